"""The helpers beside the tests, and quick retries."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    from alignkit_serve import client

    monkeypatch.setattr(client, "FIRST_WAIT", 0.004)
