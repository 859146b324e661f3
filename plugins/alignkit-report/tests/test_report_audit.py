"""AIs' labels against people: the audit, its verdict, what the report opens with, and figures that do not flatter."""

from __future__ import annotations

import json
from itertools import repeat
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_report.audit import audit_database, verdict_on
from alignkit_report.figures import figures

from alignkit import Group, Prompt, cli, write_groups
from alignkit.preferences import Annotation, Share, with_annotations

if TYPE_CHECKING:
    from pathlib import Path

RANKS = {0: (0, 0), 1: (0, 1), 2: (1, 0), None: None}


def judged(number: int, ai: Any, *people: int, **meta: Any) -> Group:
    """A pair: the AI's verdict, or (first order, second order), and people's."""
    looks = ai if isinstance(ai, tuple) else (ai,)
    said = [Annotation("judge", RANKS[one], "ai", order=o) for one, o in zip(looks, ((0, 1), (1, 0)), strict=False)]
    said += [Annotation(f"person {place}", RANKS[one], "human", seconds=2.0) for place, one in enumerate(people)]
    return with_annotations(Group(Prompt.of(f"p{number}"), ("x", "y"), meta=meta), said)


def audited(*cases: tuple[Any, ...]) -> list[Group]:
    """(count, AI, people...) as records of an audit that cost 5 of money."""
    flat = [case[1:] for case in cases for _ in repeat(None, case[0])]
    return [judged(number, *case, audit={"seed": 0, "cost": {"money": 5.0}}) for number, case in enumerate(flat)]


def test_the_opening_of_an_audit() -> None:
    """78 of 100 pairs alike; of the 50 with two people, 42 have the same verdict twice. Wilson's interval of 78 of 100
    is [0.689, 0.850]. A person of two who differs makes half a hit: 36 + 4 + (4 + 4) / 2 + 34 = 78."""
    groups = audited((36, 1, 1, 1), (4, (1, 2), 0, 0), (4, 2, 2, 1), (4, 1, 2, 1), (2, 1, 2, 2), (34, 1, 1), (16, 1, 2))
    found = figures(groups)
    assert found["opening"] == [
        "The judge agrees with people on 78% of 100 random pairs [69, 85];"
        " people agree with each other on 84% [71, 92] of 50.",
        "Where both decide, it is right in 77% [68, 84] of 96.",
        "Verdict: use: it reaches 74% (10% below people).",
        "The labels cost 5 money, 200 seconds of person 0, 100 seconds of person 1.",
    ]
    audit = found["audit"]
    assert (audit["pairs"], audit["judge_tied"], audit["judge_abstained"]) == (100, 4, 0)
    assert audit["people_agree"]["n"] == 50
    assert audit["agree_where_both_decide"]["value"] == pytest.approx(74 / 96, abs=1e-4)
    assert audit["people_agree_where_both_decide"]["value"] == pytest.approx(38 / 46, abs=1e-4)


def test_the_judge_abstains_if_it_does_so_in_one_order() -> None:
    audit = figures(audited((3, (1, None), 1), (2, None, 1), (1, (1, 1), 1)))["audit"]
    assert (audit["judge_abstained"], audit["agree"]["value"]) == (5, pytest.approx(1 / 6, abs=1e-4))


@pytest.mark.parametrize(
    ("agree", "decided", "people", "people_decided", "verdict"),
    [
        (Share(29, 29), Share(29, 29), Share(0, 0), Share(0, 0), "unknown"),
        (Share(55, 100), Share(55, 100), Share(60, 100), Share(60, 100), "do not use"),
        (Share(78, 100), Share(75, 90), Share(84, 100), Share(84, 100), "use"),
        (Share(70, 100), Share(70, 90), Share(0, 0), Share(0, 0), "use"),
        (Share(69, 100), Share(69, 90), Share(0, 0), Share(0, 0), "use with people for ties"),
        (Share(60, 100), Share(60, 75), Share(90, 100), Share(90, 90), "do not use"),
        (Share(60, 100), Share(60, 75), Share(90, 100), Share(81, 90), "use with people for ties"),
        (Share(60, 100), Share(60, 80), Share(90, 100), Share(81, 90), "do not use"),
        (Share(0, 100), Share(0, 0), Share(90, 100), Share(90, 90), "do not use"),
        (Share(70, 100), Share(70, 90), Share(20, 20), Share(20, 20), "use"),
    ],
)
def test_the_rules_of_the_docs(
    agree: Share, decided: Share, people: Share, people_decided: Share, verdict: str
) -> None:
    assert verdict_on(agree, decided, people, people_decided)[0] == verdict


def test_a_majority_flatters_and_says_how_many_pairs_it_leaves_out() -> None:
    """The AI says 1. Six pairs: both people 1; two: 1 and 2; two: 2 and 1; two: both 2. Where people agree it is right
    in 6 of 8; each person alone says 1 in 8 of 12."""
    groups = [judged(n, 1, *said) for n, said in enumerate([(1, 1)] * 6 + [(1, 2)] * 2 + [(2, 1)] * 2 + [(2, 2)] * 2)]
    found = figures(groups)["agreement"]["ai_against_people"]["judge"]
    assert (found["n"], found["agreement"], found["left_out"]) == (8, 0.75, 4)
    assert [found["each_person"][name]["agreement"] for name in ("person 0", "person 1")] == [0.6667, 0.6667]
    assert found["random_person"]["value"] == 0.6667
    assert found["random_person"]["low"] < 0.6667 < found["random_person"]["high"]
    assert len(found["kappa_interval"] or found["agreement_interval"]) == 2


def test_labels_that_nobody_or_only_the_unsure_has_checked() -> None:
    assert "Nobody has checked these labels" in figures([judged(1, 1)])["opening"][0]
    assert figures([judged(1, 1, 1)])["opening"] == [
        "judge agrees with a random person on 100% [0, 100] of 1 pairs.",
        "Whether these pairs are a random sample is unknown: `alignkit label audit`.",
        "The labels cost 2 seconds of person 0.",
    ]
    unsure = figures([judged(n, 1, 1, mix={"ranks_from": "people", "rule": "unsure"}) for n in range(3)])
    assert "where the AIs were unsure" in unsure["opening"][1]
    assert "where the AIs were unsure" in unsure["agreement"]["note"]
    people = with_annotations(Group(Prompt.of("q"), ("x", "y")), [Annotation("anna", (0, 1), "human")])
    assert figures([people])["opening"] == []


def test_rankings_have_an_ordinal_alpha() -> None:
    """Two people rank three responses of two prompts: one swaps neighbours, the other turns a ranking round.

    Each rank stands there 4 times, so the ranks are 4 and 8 apart: expected are 2 * (16 * 16 + 16 * 16 + 16 * 64) / 11,
    observed 2 units * 2 * 16, or 2 * 2 * 64.
    """

    def ranked(prompt: str, *ranks: tuple[int, ...]) -> Group:
        said = [Annotation(f"h{place}", one, "human") for place, one in enumerate(ranks)]
        return with_annotations(Group(Prompt.of(prompt), ("a", "b", "c")), said)

    near = figures([ranked("p", (0, 1, 2), (0, 2, 1)), ranked("q", (0, 1, 2), (0, 1, 2))])["agreement"]
    far = figures([ranked("p", (0, 1, 2), (2, 1, 0)), ranked("q", (0, 1, 2), (0, 1, 2))])["agreement"]
    expected = 2 * (16 * 16 + 16 * 16 + 16 * 64) / 11
    assert near["alpha_rankings_people"] == pytest.approx(1 - 64 / expected, abs=1e-4)
    assert far["alpha_rankings_people"] == pytest.approx(1 - 256 / expected, abs=1e-4)
    assert len(near["alpha_rankings_people_interval"]) == 2


def test_a_run_directory_with_its_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three responses, of which the audit shows people two; the AI's verdicts stand in both files and count once."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    ranking = Annotation("judge", (0, 1, 2), "ai")
    groups = [with_annotations(Group(Prompt.of(f"p{n}"), ("x", "y", "z"), (0, 1, 2)), [ranking]) for n in range(40)]
    write_groups(run / "preferences.jsonl", groups)
    assert audit_database(run) == run / "audit.db"
    assert audit_database(tmp_path / "prefs.jsonl") == tmp_path / "prefs.audit.db"

    def said(*words: str) -> dict[str, Any]:
        assert cli.run(["preferences", "report", str(run), *words, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    assert "Nobody has checked" in said()["opening"][0]
    (run / "audit.db").touch()
    assert "alignkit label export" in said()["opening"][-1]
    pairs = [group.choose([2, 0]) for group in groups]
    people = [Annotation("anna", (1, 0) if n < 30 else (0, 1), "human") for n in range(40)]
    write_groups(
        run / "audit.jsonl",
        [
            with_annotations(
                Group(one.prompt, one.responses, meta={"audit": {}}), [Annotation("judge", (1, 0), "ai"), anna]
            )
            for one, anna in zip(pairs, people, strict=True)
        ],
    )
    found = said()
    assert found["opening"][0].startswith(
        "The judge agrees with people on 75% of 40 random pairs [60, 86]; no pair has"
    )
    assert (found["counts"]["groups"], found["annotators"]["judge"]["pairs"]) == (40, 120)
    assert cli.run(["preferences", "report", str(run), "--html", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("The judge agrees with people on 75%")
    assert "The judge agrees with people on 75%" in (tmp_path / "page.html").read_text(encoding="utf-8")
