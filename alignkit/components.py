"""What every part of a run is, whatever its role: options, and the run that it may use. Free of torch."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args

from alignkit.errors import InputError
from alignkit.options import ComponentSpec, Config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _no_builder(role: str, spec: ComponentSpec) -> Component[Any]:
    raise InputError(
        f"this context can't build a {role} component ({spec.get('plugin')!r})", fix="context=alignkit.make_context()"
    )


@dataclass(frozen=True)
class Context:
    """What a component may use of the run that builds it.

    Attributes:
        seed: the run's seed.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        folder: where the component may keep files of its own, or None.
        cache: where results that follow from their inputs alone are kept from run to run, or None.
        build: makes another component from a spec, for components that are made of others.
    """

    seed: int = 0
    device: str = "auto"
    folder: Path | None = None
    cache: Path | None = None
    build: Callable[[str, ComponentSpec], Component[Any]] = field(default=_no_builder)


ConfigT = TypeVar("ConfigT", bound=Config)


class Component(ABC, Generic[ConfigT]):
    """A part that a plugin supplies. An instance holds its options as `self.config`.

    Attributes:
        Config: the class of the options: that of the generic argument (`RewardSource[BrevityOptions]`) or of the base
            class, and `alignkit.Config`, which has none, where neither says so.
    """

    Config: ClassVar[type[Config]] = Config

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "Config" not in vars(cls):
            given = [argument for base in vars(cls).get("__orig_bases__", ()) for argument in get_args(base)]
            cls.Config = next((a for a in given if isinstance(a, type) and issubclass(a, Config)), cls.Config)

    def __init__(self, config: ConfigT | None = None, context: Context | None = None) -> None:
        self.config: ConfigT = config if config is not None else self.Config()  # type: ignore[assignment]
        self.context = context if context is not None else Context()
