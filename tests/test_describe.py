"""Options for people: expected texts are written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Gt, Interval, Le

from alignkit.options import ComponentSpec, Config, Count, RolloutOptions
from alignkit.recipe.describe import OptionHelp, describe, sections


@dataclass(frozen=True, kw_only=True)
class Inner(Config):
    r: Count = 8
    """Rank."""


@dataclass(frozen=True, kw_only=True)
class Base(Config):
    shared: bool = True
    """Shared
    by all."""


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    model: str
    """Folder."""
    path: Path | None = None
    share: Annotated[float, Gt(0), Le(1)] = 0.5
    """A share."""
    flip: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0
    mode: Literal["soft", "hard"] = "soft"
    inner: Inner | None = None
    """Inside."""
    names: tuple[str, ...] = ("a", "b")
    sources: tuple[ComponentSpec, ...] = ()
    either: str | int = 3
    columns: Mapping[str, Any] = field(default_factory=dict)


def test_every_kind_of_option() -> None:
    assert describe(Options) == [
        OptionHelp("model", "str", "required", "Folder."),
        OptionHelp("path", "path", "none", ""),
        OptionHelp("share", "float > 0 <= 1", "0.5", "A share."),
        OptionHelp("flip", "float >= 0, < 0.5", "0.0", ""),
        OptionHelp("mode", '"soft" | "hard"', '"soft"', ""),
        OptionHelp("inner", "table", "none", "Inside."),
        OptionHelp("inner.r", "int >= 1", "8", "Rank."),
        OptionHelp("names", "list of str", '["a", "b"]', ""),
        OptionHelp("sources", "list of table", "[]", ""),
        OptionHelp("either", "str | int", "3", ""),
        OptionHelp("columns", "table", "{}", ""),
        OptionHelp("shared", "bool", "true", "Shared by all.", group="Base"),
    ]


@dataclass(frozen=True, kw_only=True)
class Steps(Config):
    """How far it goes.

    And more of it.
    """

    size: float = 1.0
    """Of a step."""
    count: Count = 3
    """Of steps."""


@dataclass(frozen=True, kw_only=True)
class Both(Steps, Base):
    """Nothing of its own."""


@dataclass(frozen=True, kw_only=True)
class Walk(Both):
    """A walk."""

    matters: ClassVar[tuple[str, ...]] = ("inner.r", "size")

    size: float = 0.5
    """Of a pace."""
    inner: Inner = field(default_factory=Inner)
    """Inside."""


def test_options_stand_under_the_heading_of_the_class_that_first_defines_them() -> None:
    assert [(row.key, row.default, row.help, row.group, row.matters) for row in describe(Walk)] == [
        ("inner", "{}", "Inside.", "", False),
        ("inner.r", "8", "Rank.", "", True),
        ("size", "0.5", "Of a pace.", "How far it goes", True),
        ("count", "3", "Of steps.", "How far it goes", False),
        ("shared", "true", "Shared by all.", "Base", False),
    ]


def test_what_matters_comes_first_and_nothing_twice() -> None:
    assert {title: [row.key for row in rows] for title, rows in sections(Walk).items()} == {
        "What matters first": ["inner.r", "size"],
        "Its own": ["inner"],
        "How far it goes": ["count"],
        "Base": ["shared"],
    }
    assert list(sections(Inner)) == [""]


def test_own_options_come_before_inherited_ones() -> None:
    keys = [option.key for option in describe(RolloutOptions)]
    assert keys.index("group_size") < keys.index("learning_rate")
    assert all(option.help for option in describe(RolloutOptions))
