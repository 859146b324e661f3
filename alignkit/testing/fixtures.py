"""pytest fixtures for authors of plugins. pytest loads this module everywhere alignkit is installed, by the entry point
`pytest11`, so it imports nothing until a test asks for a fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from alignkit.records import Group
    from alignkit.testing import KnownAnswer, TinyPolicy, TinyReward


@pytest.fixture
def tiny_policy() -> TinyPolicy:
    """A language model over 28 characters with value heads; every test gets an equal, fresh one."""
    from alignkit.testing import TinyPolicy

    return TinyPolicy()


@pytest.fixture
def tiny_reward() -> TinyReward:
    """A reward that likes the letter a."""
    from alignkit.testing import TinyReward

    return TinyReward()


@pytest.fixture
def tiny_groups() -> list[Group]:
    """Five prompts with 2 to 4 ranked responses of unequal length; one ranking has a tie."""
    from alignkit.interfaces import Feed
    from alignkit.testing.material import groups_for

    return groups_for(Feed.RANKINGS)


@pytest.fixture
def known_answer() -> KnownAnswer:
    """A problem whose best policy is known in closed form, to train an algorithm on in seconds."""
    from alignkit.testing import KnownAnswer

    return KnownAnswer()
