"""Helpers of these tests lie beside them: `offline_trl` and `table_policy`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from alignkit.testing.tiny_hf import write_tiny_llama


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk."""
    return write_tiny_llama(tmp_path_factory.mktemp("model"))
