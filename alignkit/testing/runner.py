"""Runs the contracts of installed plugins, for `alignkit plugins check`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alignkit.errors import InputError, closest
from alignkit.plugins import normalized, registry

selected: str | None = None
"""The component or distribution that `suite.py` builds contracts for; None means all."""


def run_contracts(name: str | None = None) -> int:
    """Runs the contracts of one component or distribution, or of all installed ones; returns pytest's exit code.

    Raises:
        InputError: no component, distribution or plugin has this name.
    """
    global selected  # noqa: PLW0603
    found = registry()
    known = {text for r in found.registrations for text in (r.name, str(r), r.distribution)}
    known |= {text for broken in found.broken for text in (broken.name, broken.distribution)}
    if name is not None and name not in known and normalized(name) not in known:
        raise InputError(f"no plugin {name!r} is installed", fix=closest(name, known))
    selected = name
    suite = Path(__file__).with_name("suite.py")
    arguments = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(suite.parent)]
    return int(pytest.main([*arguments, "--import-mode=importlib", str(suite)]))
