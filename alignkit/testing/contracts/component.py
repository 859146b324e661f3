"""The contract of every component, whatever its role: its options."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic import TypeAdapter

from alignkit.checking import option_names
from alignkit.components import Component, Context
from alignkit.options import Config
from alignkit.plugins import read_options, registry
from alignkit.recipe.describe import field_docs

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        for owner in _owners(config):
            parameters = owner.__dataclass_params__
            assert parameters.frozen, f"@dataclass(frozen=True, kw_only=True) is missing on {owner.__name__}"
        assert all(field.kw_only for field in dataclasses.fields(config) if field.init)

    def test_unknown_options_are_refused(self) -> None:
        given = {**self.options, "no_such_option": 1}
        _, problems = read_options(registry(), self.component.Config, given)
        assert [problem.key for problem in problems] == [("no_such_option",)]

    def test_options_survive_a_round_trip(self) -> None:
        config = self.config()
        assert _read(type(config), dataclasses.asdict(config)) == config
        adapter = TypeAdapter(type(config))
        assert _read(type(config), json.loads(adapter.dump_json(config))) == config

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


def _owners(config: type[Config]) -> list[type[Any]]:
    """The options class and the dataclasses it inherits fields from."""
    return [owner for owner in config.__mro__ if "__dataclass_fields__" in vars(owner)]
