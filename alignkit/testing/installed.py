"""Generated contracts: one test class per component of the installed plugins, and one per distribution."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from alignkit.interfaces import ForeignTrainer, HasValues
from alignkit.plugins import normalized, read_options
from alignkit.testing.contracts import (
    ComponentContract,
    MetricSinkContract,
    OptimizerContract,
    PolicyContract,
    PreferenceSourceContract,
    RewardSourceContract,
    SamplerContract,
    ValuesContract,
)
from alignkit.testing.entry_points import assert_light, modules_of
from alignkit.testing.runner import LacksOptions, matches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alignkit.checking import Problem
    from alignkit.plugins import Registration, Registry

    Key = tuple[str, str]

CONTRACTS: dict[str, type[ComponentContract]] = {
    "policy": PolicyContract,
    "sampler": SamplerContract,
    "reward": RewardSourceContract,
    "preferences": PreferenceSourceContract,
    "optimizer": OptimizerContract,
    "metrics": MetricSinkContract,
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
    for distribution in sorted({r.distribution for r in chosen}):
        if modules_of(distribution):
            name = _identifier(f"TestDistribution_{distribution}")
            classes[name] = _single_test(name, partial(assert_light, distribution), "its_entry_points_import_no_torch")
    for broken in registry.broken:
        if only is None or normalized(only) in (broken.distribution, normalized(broken.name)):
            name = _identifier(f"TestPlugin_{broken.name}")
            classes[name] = _single_test(name, _fails(f"{broken.distribution}: {broken.error}"))
    return classes


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
        reason = f"{registration} must be trained first: test it in its own package"
        return _single_test(name, partial(pytest.skip, reason))
    if problems:
        reason = f"{registration} {_lacking(registration, problems)}"
        return _single_test(name, partial(_skip_for_options, reason))
    own_loop = issubclass(component, ForeignTrainer)
    own = ValuesContract if issubclass(component, HasValues) else CONTRACTS[registration.role]
    contract = base or (ComponentContract if own_loop else own)
    return type(name, (contract,), {"component": component, "options": dict(options)})


def _lacking(registration: Registration, problems: Sequence[Problem]) -> str:
    """The options to give, as `plugins check` takes them."""
    keys = [".".join([registration.role, *problem.key]) for problem in problems]
    if all(problem.missing for problem in problems):
        return f"needs {' '.join(f'-o {key}=VALUE' for key in keys)}"
    return "needs other options: " + "; ".join(f"{key}: {p.what}" for key, p in zip(keys, problems, strict=True))


def _single_test(name: str, test: Callable[[], None], called: str = "it_can_be_used") -> type[Any]:
    return type(name, (), {f"test_{called}": lambda _self: test()})


def _skip_for_options(reason: str) -> None:
    raise pytest.skip.Exception(reason) from LacksOptions()


def _fails(reason: str) -> Callable[[], None]:
    return partial(pytest.fail, reason, pytrace=False)
