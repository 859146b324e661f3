"""The contract of every component, whatever its role: its options."""

from __future__ import annotations

import dataclasses
import json
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic import TypeAdapter

from alignkit.checking import option_names
from alignkit.components import Component, Context
from alignkit.options import Config
from alignkit.plugins import read_options, registry
from alignkit.recipe.describe import field_docs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from alignkit.options import ComponentSpec

SEED = 7


class ComponentContract:
    """Base of the contracts. Set `component`, and `options` if it needs any; or override `make`."""

    component: ClassVar[type[Component[Any]]]
    options: ClassVar[Mapping[str, Any]] = {}

    def config(self, **changes: Any) -> Any:
        """The component's options, with changes."""
        return _read(self.component.Config, {**self.options, **changes})

    def context(self) -> Context:
        return Context(seed=SEED, device="cpu", build=self._build)

    def _build(self, role: str, spec: ComponentSpec) -> Component[Any]:
        """A component named in the tested component's options."""
        registration = registry().get(role, spec["plugin"])
        options = {key: value for key, value in spec.items() if key != "plugin"}
        component = registration.load()
        return component(_read(registration.config, options), self.context())

    def make(self) -> Any:
        """A new component; every call gives an equal one."""
        return self.component(self.config(), self.context())

    def test_options_are_a_frozen_keyword_only_dataclass(self) -> None:
        config = self.component.Config
        assert issubclass(config, Config), f"{config.__name__} does not derive from alignkit.Config"
        faults = list(_faults(config))
        assert not faults, "; ".join(faults)

    def test_unknown_options_are_refused(self) -> None:
        given = {**self.options, "no_such_option": 1}
        _, problems = read_options(registry(), self.component.Config, given)
        found = [problem.key for problem in problems]
        assert found == [("no_such_option",)], f"an unknown option must be refused, and nothing else: found {found}"

    def test_options_survive_a_round_trip(self) -> None:
        config = self.config()
        changed = "differ once they were written and read: use types that JSON and TOML have"
        assert _read(type(config), dataclasses.asdict(config)) == config, f"the options {changed}"
        adapter = TypeAdapter(type(config))
        assert _read(type(config), json.loads(adapter.dump_json(config))) == config, f"the options {changed}"

    def test_every_option_is_documented(self) -> None:
        config = self.component.Config
        docs = field_docs(config)
        missing = [name for name in option_names(config) if not docs.get(name)]
        assert not missing, f"no docstring under {', '.join(missing)} of {config.__name__}"


def _read(config: type[Config], values: Mapping[str, Any]) -> Config:
    instance, problems = read_options(registry(), config, values)
    if instance is None or problems:
        pytest.fail("; ".join(f"{'.'.join(p.key)}: {p.what}" for p in problems))
    return instance


def _faults(config: type[Config]) -> Iterator[str]:
    """What keeps the attributes of an options class from being options."""
    decorator = "write @dataclass(frozen=True, kw_only=True) above it"
    known = {name for owner in config.__mro__ for name in get_annotations(owner)}
    positional = {field.name for field in dataclasses.fields(config) if field.init and not field.kw_only}
    for owner in config.__mro__:
        hints = get_annotations(owner)
        if "__dataclass_fields__" in vars(owner):
            if by_place := [name for name in hints if name in positional]:
                yield f"{owner.__name__} takes {', '.join(by_place)} by position: {decorator}"
        elif ignored := [name for name, hint in hints.items() if "ClassVar" not in str(hint)]:
            yield f"{', '.join(ignored)} of {owner.__name__} can't be set: {decorator}"
        for name, value in vars(owner).items():
            if isinstance(value, bool | int | float | str | tuple) and name not in known and name[0] != "_":
                yield f"{owner.__name__}.{name} has no type, so it is no option: write {name}: {type(value).__name__} ="
