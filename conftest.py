"""No test keeps anything in the home folder of whoever runs it, nor finds what another run has kept there; and none
draws other random numbers because other tests ran before it."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import pytest

if TYPE_CHECKING:
    from _pytest.fixtures import FixtureDef


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sets the user's cache folder for this process and those that it starts; downloaded models stay where they are."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("HF_HOME", str(Path(home) / "huggingface"))
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: FixtureDef[object]) -> None:
    seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    seed(item.nodeid)


def seed(name: str) -> None:
    """A stream of its own for each test and fixture: of one seed, two models that should differ would be equal.

    ALIGNKIT_TEST_SEED=1 draws others, which finds tests that hold for some numbers only.
    """
    import numpy as np
    import torch

    number = crc32(f"{os.environ.get('ALIGNKIT_TEST_SEED', '0')} {name}".encode())
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
