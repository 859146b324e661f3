"""The base of every component: its options and its context. Imports no torch."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args

from alignkit.errors import InputError
from alignkit.footprint import Footprint, Held, Load
from alignkit.options import ComponentSpec, Config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from alignkit.records import Group


def _no_builder(role: str, spec: ComponentSpec) -> Component[Any]:
    raise InputError(
        f"this context can't build a {role} component ({spec.get('plugin')!r})", fix="context=alignkit.make_context()"
    )


@dataclass(frozen=True)
class Context:
    """What a run offers to its components.

    Attributes:
        seed: the run's seed.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        folder: for the component's own files, or None.
        cache: folder for results that later runs can reuse because they depend on their inputs alone, or None.
        build: builds a nested component from its role and spec.
    """

    seed: int = 0
    device: str = "auto"
    folder: Path | None = None
    cache: Path | None = None
    build: Callable[[str, ComponentSpec], Component[Any]] = field(default=_no_builder)


ConfigT = TypeVar("ConfigT", bound=Config)


class Component(ABC, Generic[ConfigT]):
    """Base of everything a plugin supplies. `self.config` holds its options.

    Attributes:
        Config: the options class: the generic argument (`RewardSource[BrevityOptions]`), else inherited from the base
            class, else `alignkit.Config`, which has no options.
        counts_flops: for policies: whether they and their scorers count their passes (`alignkit.ops.count_pass`), as
            `optimizer.budget.flops` needs.
    """

    Config: ClassVar[type[Config]] = Config
    counts_flops: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "Config" not in vars(cls):
            given = [argument for base in vars(cls).get("__orig_bases__", ()) for argument in get_args(base)]
            cls.Config = next((a for a in given if isinstance(a, type) and issubclass(a, Config)), cls.Config)

    def __init__(self, config: ConfigT | None = None, context: Context | None = None) -> None:
        self.config: ConfigT = config if config is not None else self.Config()  # type: ignore[assignment]
        self.context = context if context is not None else Context()

    @classmethod
    def holds(cls, config: ConfigT) -> tuple[Held, ...]:
        """For algorithms: the models that a training with these options holds beside the reward's."""
        reference = [Held(name="reference")] if getattr(cls, "uses_reference", False) else []
        return (Held(name="policy", trained=True), *reference)

    @classmethod
    def footprint(cls, config: ConfigT | None, held: Held, load: Load) -> Footprint | None:
        """For policies and rewards: the memory of a model made with these options, or stored in `held.folder`. Its
        weights are not loaded. None: not known."""
        return None

    @classmethod
    def try_records(cls, config: ConfigT, records: Iterable[tuple[str, Group]]) -> None:
        """Loads no model. Raises InputError with the place of a record that a policy can't read, a reward can't score
        or a labeller can't label: of a prompt without a column that it needs."""
