"""Runs contracts by hand, to show that a broken component fails them."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.testing.contracts import ComponentContract


def contract_of(base: type[ComponentContract], component: type[Any], **overrides: Any) -> type[ComponentContract]:
    """The contract of a component, as `class Contract(base): component = ...` would write it."""
    return type("Contract", (base,), {"component": component, **overrides})


def failing(contract: type[ComponentContract], folder: Path, only: str | None = None) -> set[str]:
    """Names of the contract's failing tests, without `test_`; `only` runs a single one."""
    return set(failures(contract, folder, only))


def failures(contract: type[ComponentContract], folder: Path, only: str | None = None) -> dict[str, str]:
    """The message of each of the contract's failing tests, by its name without `test_`; `only` runs a single one."""
    names = [name for name in dir(contract) if name.startswith("test_")] if only is None else [f"test_{only}"]
    found = {}
    for name in names:
        test = getattr(contract(), name)
        arguments = {"tmp_path": folder / name} if "tmp_path" in signature(test).parameters else {}
        try:
            test(**arguments)
        except pytest.skip.Exception:
            continue
        except (Exception, pytest.fail.Exception) as error:
            found[name.removeprefix("test_")] = str(error)
    return found
