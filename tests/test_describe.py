"""Options for people: expected texts are written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt, Interval, Le

from alignkit.options import ComponentSpec, Config, Count, RolloutOptions
from alignkit.recipe.describe import OptionHelp, describe


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


def test_own_options_come_before_inherited_ones() -> None:
    keys = [option.key for option in describe(RolloutOptions)]
    assert keys.index("group_size") < keys.index("learning_rate")
    assert all(option.help for option in describe(RolloutOptions))
