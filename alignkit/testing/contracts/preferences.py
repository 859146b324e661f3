"""The contract of preference sources."""

from __future__ import annotations

import json
from typing import Any

from alignkit.interfaces import PreferenceSource
from alignkit.records import Group
from alignkit.testing.contracts.component import ComponentContract
from alignkit.testing.material import FixedSampler


class PreferenceSourceContract(ComponentContract):
    """`class TestMine(PreferenceSourceContract): component = Mine; options = {"path": ...}`"""

    def sampler(self) -> FixedSampler:
        """The sampler for labellers of fresh responses."""
        return FixedSampler()

    def _groups(self, source: Any = None) -> list[Group]:
        source = source or self.make()
        assert isinstance(source, PreferenceSource)
        found = list(source.preferences(self.sampler()))
        others = {type(one).__name__ for one in found if not isinstance(one, Group)}
        assert not others, f"preferences() must yield alignkit.Group, not {', '.join(sorted(others))}"
        return found

    def test_it_yields_groups(self) -> None:
        assert self._groups(), "it yields nothing: give options, or override sampler, so that it has something to judge"

    def test_it_does_not_abstain_from_everything(self) -> None:
        found = self._groups()
        if not self.make().judges:
            return
        assert any(map(_says_something, found)), (
            f"none of {len(found)} groups has ranks or scores that prefer a response, or labels: nothing can be learnt"
            " from them. Give options, or override sampler, so that it has something to judge; a source that only"
            " collects responses for others sets judges = False"
        )

    def test_the_order_is_fixed(self) -> None:
        assert self._groups() == self._groups(), "two equal sources give different groups: seed what is random"
        source = self.make()
        first = list(source.preferences(self.sampler()))
        assert first == list(source.preferences(self.sampler())), "a second pass over the source gives different groups"

    def test_groups_survive_the_file_between_stages(self) -> None:
        source = self.make()
        for group in self._groups(source):
            assert Group.from_json(json.loads(json.dumps(group.to_json()))) == group
        json.dumps(source.figures())

    def test_ranks_start_at_the_best(self) -> None:
        for group in self._groups():
            assert group.ranks is None or min(group.ranks) == 0, f"no best response in {group.ranks}"


def _says_something(group: Group) -> bool:
    """Whether it is a demonstration, has labels, or tells its responses apart."""
    told_apart = any(len({*values} - {None}) > 1 for values in (group.ranks, group.scores) if values)
    return len(group.responses) == 1 or group.labels is not None or told_apart
