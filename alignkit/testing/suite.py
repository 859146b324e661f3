"""The test module that `run_contracts` passes to pytest. A policy with an option `model` runs on a tiny Llama."""

from __future__ import annotations

import atexit
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alignkit.checking import option_names
from alignkit.plugins import registry
from alignkit.testing import contracts_for, runner
from alignkit.testing.tiny_hf import write_tiny_llama

_wanting_a_model = [
    r
    for r in registry().registrations
    if r.role == "policy"
    and "model" in option_names(r.config)
    and (runner.selected is None or runner.matches(r, runner.selected))
]
_options: dict[tuple[str, str], dict[str, Any]] = {}
if _wanting_a_model:
    _folder = TemporaryDirectory()
    atexit.register(_folder.cleanup)
    _model = write_tiny_llama(Path(_folder.name))
    _options = {(r.role, r.name): {"model": str(_model)} for r in _wanting_a_model}
for _key, _given in runner.given.items():
    _options[_key] = {**_options.get(_key, {}), **_given}

globals().update(contracts_for(registry(), only=runner.selected, options=_options))
