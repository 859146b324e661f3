"""Runs the contracts of installed plugins, for `alignkit plugins check`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from alignkit.checking import option_names
from alignkit.errors import InputError, closest
from alignkit.plugins import NOT_INSTALLED, normalized, read_options, registry
from alignkit.recipe.recipe import Recipe, parse_override

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignkit.plugins import Registration, Registry

selected: str | None = None
"""The component or distribution that `suite.py` builds contracts for; None means all."""
given: dict[tuple[str, str], dict[str, Any]] = {}
"""Options by (role, name) that `suite.py` builds them with."""


class LacksOptions(Exception):  # noqa: N818
    """The cause of a skip: a component can't be built with the options that were given."""


def matches(registration: Registration, name: str) -> bool:
    """Whether a name means this component or its distribution."""
    distribution = registration.distribution
    return name in (registration.name, str(registration), distribution) or normalized(name) == distribution


def run_contracts(name: str | None = None, options: Sequence[str] = ()) -> int:
    """Runs the contracts of one component or distribution, or of all installed ones; returns pytest's exit code.

    Args:
        options: `role.option=value`, for every tested component of that role that has the option.

    Raises:
        InputError: no component, distribution or plugin has this name; none has such an option; or something that the
            name asks for was not tested, because its options are missing or wrong.
    """
    global selected, given
    found = registry()
    known = {text for r in found.registrations for text in (r.name, str(r), r.distribution)}
    known |= {text for broken in found.broken for text in (broken.name, broken.distribution)}
    if name is not None and name not in known and normalized(name) not in known:
        raise InputError(f"no plugin {name!r} is installed", fix=closest(name, known, NOT_INSTALLED))
    selected, given = name, _options(found, name, options)
    suite, tally = Path(__file__).with_name("suite.py"), _Tally()
    sys.modules.pop("alignkit.testing.suite", None)  # an earlier call's classes
    arguments = ["-qq", "--tb=short", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(suite.parent)]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # alignkit is imported already
    code = int(pytest.main([*arguments, "--import-mode=importlib", str(suite)], plugins=[tally]))
    print(tally.summary())
    if code == 0 and tally.lacking and name is not None:
        fix = f"alignkit plugins check {name} -o KEY=VALUE; `alignkit plugins show` explains the options"
        raise InputError("; ".join(tally.lacking), where="not checked", fix=fix)
    return code


def _options(found: Registry, name: str | None, options: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """The options of each tested component, by (role, name)."""
    recipe = Recipe(overrides=[parse_override(text) for text in options])
    tested = [r for r in found.registrations if name is None or matches(r, name)]
    for (role, option, *_), _value in recipe.overrides:
        known = {option for r in tested if r.role == role for option in option_names(r.config)}
        if option not in known:
            what = "no such option" if known else f"no {role} plugin with options is tested"
            raise InputError(what, where=f"-o {role}.{option}", fix=closest(option, known) if known else "")
    chosen = {}
    for one in tested:
        table = recipe.override_table(one.role)
        mine = {option: value for option, value in table.items() if option in option_names(one.config)}
        for problem in read_options(found, one.config, mine)[1] if mine else ():
            if not problem.missing:
                raise recipe.error(one.role, problem)
        chosen[one.role, one.name] = mine
    return chosen


class _Tally:
    """Counts the tests of a pytest run by their result, with the reasons of those that were skipped.

    Attributes:
        lacking: reasons that better options would remove.
    """

    def __init__(self) -> None:
        self.results: Counter[str] = Counter()
        self.reasons: list[str] = []
        self.lacking: list[str] = []

    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> None:
        """pytest calls this after each phase of a test."""
        error = call.excinfo.value if call.excinfo else None
        if isinstance(error, pytest.skip.Exception):
            self.results["skipped"] += 1
            self.reasons.append(str(error))
            self.lacking += [str(error)] * isinstance(error.__cause__, LacksOptions)
        elif error is not None:
            self.results["failed"] += 1
        elif call.when == "call":
            self.results["passed"] += 1

    def summary(self) -> str:
        """`12 passed, 1 skipped: alignkit-data:dataset needs -o preferences.path=VALUE`"""
        counts = [f"{self.results[result]} {result}" for result in ("failed", "passed") if self.results[result]]
        if self.reasons:
            counts.append(f"{self.results['skipped']} skipped: {'; '.join(dict.fromkeys(self.reasons))}")
        return ", ".join(counts)
