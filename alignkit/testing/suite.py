"""The test module that `run_contracts` passes to pytest. A policy with an option `model` runs on a tiny Llama."""

from __future__ import annotations

import atexit
from pathlib import Path
from tempfile import TemporaryDirectory

from alignkit.checking import option_names
from alignkit.plugins import registry
from alignkit.testing import contracts_for, runner
from alignkit.testing.installed import matches
from alignkit.testing.tiny_hf import write_tiny_llama

_wanting_a_model = [
    r
    for r in registry().registrations
    if r.role == "policy"
    and "model" in option_names(r.config)
    and (runner.selected is None or matches(r, runner.selected))
]
_options: dict[tuple[str, str], dict[str, str]] = {}
if _wanting_a_model:
    _folder = TemporaryDirectory()
    atexit.register(_folder.cleanup)
    _model = write_tiny_llama(Path(_folder.name))
    _options = {(r.role, r.name): {"model": str(_model)} for r in _wanting_a_model}

globals().update(contracts_for(registry(), only=runner.selected, options=_options))
