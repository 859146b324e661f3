"""Mixtures: shares hold, people are asked for what AIs are unsure of and override, every record says who ranked it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_data.mix import Given, Mix
from alignkit_data.options import MixOptions
from alignkit_report.figures import figures

from alignkit.components import Context
from alignkit.errors import InputError
from alignkit.interfaces import PreferenceSource
from alignkit.preferences.annotations import Annotation, annotations_of, with_annotations
from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from alignkit.interfaces import Ask, ComponentSpec

RANKS = {0: (0, 0), 1: (0, 1), 2: (1, 0), None: None}


class Listed(PreferenceSource[Any]):
    """A source that yields the given groups, or those that a function makes with `ask`."""

    def __init__(self, found: Sequence[Group] | Callable[[Ask], Iterator[Group]]) -> None:
        super().__init__()
        self._found = found

    def preferences(self, ask: Ask) -> Iterator[Group]:
        return self._found(ask) if callable(self._found) else iter(self._found)

    def first(self) -> Iterator[tuple[str, Group]]:
        assert not callable(self._found)
        return ((group.prompt.plain, group) for group in self._found)


def mix(sources: Sequence[Any], **options: Any) -> Mix:
    def build(role: str, spec: ComponentSpec) -> Any:
        assert role == "preferences"
        return Listed(sources[spec["index"]])

    names = ["judge", "judge", "human"] if len(sources) == 3 else ["judge", "human"]
    specs = tuple({"plugin": name, "index": index} for index, name in enumerate(names))
    return Mix(MixOptions(sources=specs, **options), Context(build=build))


def _no_ask(prompts: Any, k: int) -> list[Group]:
    raise AssertionError("nothing is sampled")


def pair(prompt: str, verdict: int | None, responses: tuple[str, str] = ("a", "b"), **fields: Any) -> Group:
    return Group(Prompt.of(prompt), responses, ranks=RANKS[verdict], **fields)


def of_judge(prompt: str, *verdicts: int | None, ranks: int | None = 1) -> Group:
    """Ranked as given, with a verdict for each order."""
    looks = [Annotation("j", RANKS[one], "ai", order=((0, 1), (1, 0))[n]) for n, one in enumerate(verdicts)]
    return with_annotations(pair(prompt, ranks, source="judge"), looks)


def ranked(groups: Sequence[Group]) -> dict[str, tuple[Any, str]]:
    """Prompt -> ranks and their source."""
    return {group.prompt.plain: (group.ranks, group.meta["mix"]["ranks_from"]) for group in groups}


NOBODY: Any = Given([])


def test_shares_hold_until_a_source_runs_out() -> None:
    """Three of the first for each of the second, until the first is due and runs out."""
    source = mix([[pair(f"j{n}", 1) for n in range(9)], [pair(f"h{n}", 2) for n in range(4)]], weights=(3.0, 1.0))
    names = [group.prompt.plain[0] for group in source.preferences(NOBODY)]
    assert "".join(names) == "jjjhjjjhjjjh"
    assert source.explain() == "judge: 9 of 9 groups\nhuman: 3 of 4 groups"
    assert len(list(mix([[pair("j", 1)] * 9, [pair("h", 1)] * 9], weights=(1, 1), limit=5).preferences(NOBODY))) == 5


def test_without_weights_all_groups_are_taken_and_say_their_source() -> None:
    found = list(mix([[pair("j", 1, source="small")], [pair("h", 2), pair("i", 0)]]).preferences(NOBODY))
    assert ranked(found) == {"j": ((0, 1), "judge"), "h": ((1, 0), "human"), "i": ((0, 0), "human")}
    assert [group.source for group in found] == ["human", "small", "human"]


def test_people_decide_what_the_judge_is_unsure_of() -> None:
    """Sure: both orders agree. Unsure: they disagree, a tie, an abstention. People prefer b throughout."""
    judged = [
        of_judge("sure", 1, 1),
        of_judge("orders", 1, 2),
        of_judge("tie", 0, 0, ranks=0),
        of_judge("silent", None, None, ranks=None),
    ]
    asked: list[str] = []

    def people(ask: Ask) -> Iterator[Group]:
        asked.extend(prompt.plain for prompt in ask.prompts)
        for group in ask(ask.prompts, 2):
            assert (group.ranks, group.meta) == (None, {})
            yield replace(group, ranks=(1, 0), source="anna")

    source = mix([judged, people], rule="unsure")
    found = list(source.preferences(NOBODY))
    assert sorted(asked) == ["orders", "silent", "tie"]
    assert ranked(found) == {
        "sure": ((0, 1), "judge"),
        "orders": ((1, 0), "human"),
        "tie": ((1, 0), "human"),
        "silent": ((1, 0), "human"),
    }
    assert [(one.annotator, one.kind) for one in annotations_of(found[1])] == [
        ("j", "ai"),
        ("j", "ai"),
        ("anna", "human"),
    ]
    assert found[1].source == "anna"
    assert "unsure of 3, asked human for 3; human ranked 3 of the groups" in source.explain()
    against = figures(found)["agreement"]["ai_against_people"]["j"]
    assert (against["n"], against["agreement"]) == (2, 0.0)


def test_the_budget_goes_to_the_most_doubtful_and_the_rest_may_be_dropped() -> None:
    """Doubts of 1, 0.5 and 0.4: a tie, two orders that differ, a margin of 0.3 where min_margin is 0.5."""
    judged = [
        replace(of_judge("margin", 1, 1), meta={**of_judge("margin", 1, 1).meta, "judge": {"margin": 0.3}}),
        of_judge("orders", 1, 2),
        of_judge("tie", 0, 0, ranks=0),
        of_judge("sure", 1, 1),
    ]
    people = [pair(prompt, 2) for prompt in ("margin", "orders", "tie", "sure")]

    def by_people(**options: Any) -> set[str]:
        found = ranked(list(mix([judged, people], rule="unsure", min_margin=0.5, **options).preferences(NOBODY)))
        return {prompt for prompt, (_, name) in found.items() if name == "human"}

    assert by_people(budget=1) == {"tie"}
    assert by_people(budget=2) == {"tie", "orders"}
    assert by_people(budget=3) == {"tie", "orders", "margin"}
    assert by_people() == {"tie", "orders", "margin", "sure"}
    kept = mix([judged, people], rule="unsure", min_margin=0.5, budget=1, undecided="drop")
    assert set(ranked(list(kept.preferences(NOBODY)))) == {"tie", "sure"}
    assert "2 unsure groups remain, 2 of them dropped" in kept.explain()


def with_people(group: Group, *verdicts: int) -> Group:
    said = [Annotation(f"h{place}", RANKS[one], "human") for place, one in enumerate(verdicts)]
    return with_annotations(group, [*annotations_of(group), *said])


def test_people_on_a_judges_record_do_not_vote_with_the_ais_and_count_once() -> None:
    """The judge is sure (both orders say 1) although a person on its record says 2; then the same person overrides, in
    a record that holds the judge's verdicts too."""
    sure = with_people(of_judge("p", 1, 1), 2)
    source = mix([[sure], []], rule="unsure")
    (kept,) = source.preferences(_no_ask)
    assert kept.ranks == (0, 1)
    assert source.figures() == {}
    again = with_people(of_judge("q", 1, 2, ranks=0), 2)
    people = with_people(replace(of_judge("q", 1, 2), ranks=(1, 0), source="human"), 2)
    (decided,) = mix([[again], [people]], rule="unsure").preferences(_no_ask)
    assert decided.ranks == (1, 0)
    assert [one.annotator for one in annotations_of(decided)] == ["j", "j", "h0"]


def test_the_figures_say_that_people_saw_only_what_is_unsure() -> None:
    """Three unsure pairs, of which the AI, tied, agrees with one person; the sure one is nobody's."""
    judged = [of_judge(name, 1, 2, ranks=0) for name in "abc"] + [of_judge("d", 1, 1)]
    people = [with_people(pair(name, verdict), verdict) for name, verdict in zip("abc", (0, 1, 2), strict=True)]
    source = mix([judged, people], rule="unsure")
    found = list(source.preferences(_no_ask))
    said = source.figures()
    assert (said["agreement_where_unsure"]["value"], said["agreement_where_unsure"]["n"]) == (
        0.3333,
        3,
    )
    assert "asked where the AIs are unsure, and agree with them there on 33% of 3" in said["worth"]
    assert [group.meta["mix"].get("rule") for group in found] == ["unsure"] * 3 + [None]
    assert "where the AIs were unsure" in figures(found)["opening"][1]


def test_groups_that_nobody_ranked_are_dropped_because_losses_need_ranks() -> None:
    people = [replace(pair("p", None), source="anna"), pair("q", 0)]
    source = mix([[of_judge("p", None, ranks=None), of_judge("q", None, ranks=None)], people], rule="unsure")
    assert ranked(list(source.preferences(NOBODY))) == {"q": ((0, 0), "human")}
    assert "1 unsure groups remain, 1 of them dropped" in source.explain()


def test_two_sources_of_one_plugin_are_two_annotators() -> None:
    groups = [pair("p", 1, source="judge")]
    (found,) = mix([groups, [pair("p", 2, source="judge")], []], rule="unsure").preferences(NOBODY)
    assert [one.annotator for one in annotations_of(found)] == ["judge-1", "judge-2"]


def test_scores_near_each_other_are_doubtful() -> None:
    judged = [pair("near", 1, scores=(0.5, 0.4)), pair("far", 1, scores=(2.0, 0.0))]
    found = mix([judged, [pair("near", 2)]], rule="unsure", min_margin=0.2)
    assert ranked(list(found.preferences(NOBODY))) == {"near": ((1, 0), "human"), "far": ((0, 1), "judge")}


def test_people_whose_file_holds_the_responses_the_other_way_round() -> None:
    people = [pair("p", 1, ("b", "a")), pair("other", 1, ("x", "y"))]
    found = list(mix([[of_judge("p", 0, 0, ranks=0)], people], rule="unsure").preferences(NOBODY))
    assert ranked(found) == {"p": ((1, 0), "human"), "other": ((0, 1), "human")}
    assert annotations_of(found[0])[-1] == Annotation("human", (1, 0), "human")
    one = list(mix([[of_judge("p", 0, 0, ranks=0)], people], rule="unsure", budget=1).preferences(NOBODY))
    assert list(ranked(one)) == ["p"]


def test_an_ensemble_is_given_the_same_responses_and_votes() -> None:
    """Two against one on p: a third of the verdicts disagree. All agree on q."""
    first = [of_judge("p", 1, 1), of_judge("q", 2, 2, ranks=2)]

    def second(ask: Ask) -> Iterator[Group]:
        for group in ask(ask.prompts, 5):
            yield replace(group, ranks=(1, 0), source="other")

    strict = mix([first, second, []], rule="unsure", max_disagreement=0.3)
    found = list(strict.preferences(NOBODY))
    assert ranked(found) == {"p": ((0, 1), "judge-1+judge-2"), "q": ((1, 0), "judge-1+judge-2")}
    assert "unsure of 1" in strict.explain()
    loose = mix([first, second, []], rule="unsure", max_disagreement=0.4)
    list(loose.preferences(NOBODY))
    assert "unsure of 0" in loose.explain()


def test_what_is_given_twice_for_a_prompt_is_sampled_in_turn() -> None:
    ask = Given([pair("p", 1), pair("p", 1, ("c", "d"))])
    assert [group.responses for group in ask(ask.prompts, 2)] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"sources": ({"plugin": "judge"},)}, "sources"),
        ({"weights": (1.0,)}, "weights"),
        ({"rule": "unsure", "weights": (1.0, 1.0)}, "weights"),
        ({"rule": "unsure", "limit": 3}, "limit"),
        ({"budget": 3}, "budget"),
        ({"min_margin": 0.5}, "min_margin"),
    ],
)
def test_options_that_do_not_fit_together(options: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError) as error:
        MixOptions(**{"sources": ({"plugin": "judge"}, {"plugin": "human"}), **options}).check()
    assert error.value.where == where


def test_the_first_records_are_those_of_all_sources() -> None:
    """By doubt, people or AIs rank those that have no ranks; by shares, nobody does."""
    sources = [[pair("a", 1)], [pair("b", None), pair("c", 2)]]
    assert [(place, group.ranks) for place, group in mix(sources).first()] == [
        ("a", (0, 1)),
        ("b", None),
        ("c", (1, 0)),
    ]
    to_rank = list(mix(sources, rule="unsure").first())
    assert [place for place, _ in to_rank] == ["a", "b", "c"]
    assert all(group.ranks is not None for _, group in to_rank)
