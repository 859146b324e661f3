"""The contract of reward sources."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from alignkit.interfaces import RewardSource
from alignkit.records import Group, Prompt
from alignkit.testing.contracts.component import ComponentContract
from alignkit.testing.material import groups
from alignkit.testing.tolerance import near

if TYPE_CHECKING:
    from collections.abc import Sequence

Scores = list[list[float | None]]


class RewardSourceContract(ComponentContract):
    """`class TestMine(RewardSourceContract): component = Mine`

    A source that needs its own records (with a reference answer in `meta`, say) overrides `groups`.
    """

    terms: ClassVar[int] = 2000
    """Operations behind a score, for the rounding tolerance: enough for a model of a few thousand parameters. A larger
    model needs more (`alignkit.testing.terms_of_network`)."""

    def groups(self) -> list[Group]:
        """At least two groups of several responses each."""
        return groups()

    def _score(self, scored: Sequence[Group], source: Any = None) -> Scores:
        source = source or self.make()
        assert isinstance(source, RewardSource)
        scores = source.score(scored)
        rows = scores if isinstance(scores, list) else [scores]
        found = [len(row) if isinstance(row, list | tuple) else f"{type(row).__name__} {row!r}" for row in rows]
        wanted = [len(group.responses) for group in scored]
        assert found == wanted, (
            f"score() must give a list for each group, with a score for each response: lists of {wanted}, not {found}"
        )
        return scores

    def test_one_float_or_none_for_each_response(self) -> None:
        for score in (score for row in self._score(self.groups()) for score in row):
            assert score is None or (type(score) is float and math.isfinite(score)), (
                f"{score!r} is no finite float: use None to abstain"
            )

    def test_it_does_not_abstain_from_everything(self) -> None:
        scores = [score for row in self._score(self.groups()) for score in row]
        assert any(score is not None for score in scores), (
            f"all {len(scores)} scores are None, so nothing can be learnt from them, nor tested here: override groups"
            " to give records that it can score (with an answer in meta, say)"
        )

    def test_no_groups_give_no_scores(self) -> None:
        self._score([])

    def test_scoring_again_gives_the_same(self) -> None:
        source = self.make()
        assert self._score(self.groups(), source) == self._score(self.groups(), source)

    def test_a_group_scores_the_same_alone_and_in_any_batch(self) -> None:
        given = self.groups()
        together = self._score(given)
        source = self.make()
        self._assert_close([self._score([group], source)[0] for group in given], together)
        self._assert_close(self._score([*given, *given], source)[len(given) :], together)
        self._assert_close(self._score(given[::-1], source)[::-1], together)

    def test_a_response_scores_the_same_without_its_siblings(self) -> None:
        given = self.groups()
        alone = [[_only(group, k) for k in range(len(group.responses))] for group in given]
        source = self.make()
        self._assert_close([[self._score([one], source)[0][0] for one in row] for row in alone], self._score(given))

    def test_feedback_that_a_record_carries_is_not_read(self) -> None:
        def judged(group: Group) -> Group:
            count = len(group.responses)
            return replace(
                group, ranks=tuple(range(count)), scores=tuple(map(float, range(count))), labels=(True,) * count
            )

        self._assert_close(self._score([judged(group) for group in self.groups()]), self._score(self.groups()))

    def test_records_stay_as_they_are(self) -> None:
        given = self.groups()
        before = copy.deepcopy(given)
        self._score(given)
        assert given == before

    def test_empty_responses_and_conversations_are_scored(self) -> None:
        conversation = Prompt.of([{"role": "user", "content": "hi"}], self.groups()[0].prompt.meta)
        self._score([replace(self.groups()[0], responses=("", "a")), Group(conversation, ("hello",))])

    def _assert_close(self, found: Scores, expected: Scores) -> None:
        scale = max((abs(score) for row in expected for score in row if score is not None), default=0.0) or 1.0

        def close(score: float | None) -> Any:
            return None if score is None else near(score, terms=self.terms, scale=scale)

        assert found == [[close(score) for score in row] for row in expected]


def _only(group: Group, k: int) -> Group:
    return replace(group.choose([k]), ranks=None, scores=None, labels=None)
