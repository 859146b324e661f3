"""Generated contracts: one test class per component of the installed plugins."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from alignkit.interfaces import ForeignTrainer, HasValues
from alignkit.plugins import normalized, read_options
from alignkit.testing.contracts import (
    ComponentContract,
    OptimizerContract,
    PolicyContract,
    PreferenceSourceContract,
    RewardSourceContract,
    SamplerContract,
    ValuesContract,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from alignkit.plugins import Registration, Registry

    Key = tuple[str, str]

CONTRACTS: dict[str, type[ComponentContract]] = {
    "policy": PolicyContract,
    "sampler": SamplerContract,
    "reward": RewardSourceContract,
    "preferences": PreferenceSourceContract,
    "optimizer": OptimizerContract,
    "metrics": ComponentContract,
}
"""The contract of each role. For an Optimizer with its own training loop only the options are tested."""


def contracts_for(
    registry: Registry,
    *,
    only: str | None = None,
    options: Mapping[Key, Mapping[str, Any]] | None = None,
    bases: Mapping[Key, type[ComponentContract]] | None = None,
) -> dict[str, type[Any]]:
    """Test classes by name, to add to a test module's namespace.

    Args:
        only: name of a component or distribution, or `distribution:name`.
        options: by (role, name), for components that can't be built without options.
        bases: by (role, name), contracts to use instead of the role's, for components that need more.
    """
    chosen = [r for r in registry.registrations if only is None or matches(r, only)]
    classes = {
        _class_name(r): _contract(
            registry, r, (options or {}).get((r.role, r.name), {}), (bases or {}).get((r.role, r.name))
        )
        for r in chosen
    }
    for broken in registry.broken:
        if only is None or normalized(only) in (broken.distribution, normalized(broken.name)):
            name = _identifier(f"TestPlugin_{broken.name}")
            classes[name] = _single_test(name, _fails(f"{broken.distribution}: {broken.error}"))
    return classes


def matches(registration: Registration, name: str) -> bool:
    """Whether a name means this component or its distribution."""
    return name in (registration.name, str(registration)) or normalized(name) == registration.distribution


def _class_name(registration: Registration) -> str:
    return _identifier(f"Test_{registration.role}_{registration.distribution}_{registration.name}")


def _identifier(text: str) -> str:
    return re.sub(r"\W", "_", text)


def _contract(
    registry: Registry,
    registration: Registration,
    options: Mapping[str, Any],
    base: type[ComponentContract] | None,
) -> type[Any]:
    """The role's contract for this component, or one test that says why there is none."""
    name = _class_name(registration)
    try:
        component = registration.load()
    except Exception as error:
        return _single_test(name, _fails(str(error)))
    config, problems = read_options(registry, registration.config, options)
    if config is not None and config.training() is not None:
        return _single_test(name, _skips(f"{registration} must be trained first: test it in its own package"))
    if problems:
        keys = ", ".join(".".join(problem.key) for problem in problems)
        return _single_test(name, _skips(f"{registration} needs options ({keys}): test it in its own package"))
    own_loop = issubclass(component, ForeignTrainer)
    own = ValuesContract if issubclass(component, HasValues) else CONTRACTS[registration.role]
    contract = base or (ComponentContract if own_loop else own)
    return type(name, (contract,), {"component": component, "options": dict(options)})


def _single_test(name: str, test: Callable[[Any], None]) -> type[Any]:
    return type(name, (), {"test_it_can_be_used": test})


def _fails(reason: str) -> Callable[[Any], None]:
    def test(_self: Any) -> None:
        pytest.fail(reason, pytrace=False)

    return test


def _skips(reason: str) -> Callable[[Any], None]:
    def test(_self: Any) -> None:
        pytest.skip(reason)

    return test
