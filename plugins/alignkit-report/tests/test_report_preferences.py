"""The report on a file of preferences, against counts made by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from alignkit_report.figures import figures, length_bias
from alignkit_report.verdicts import collect

from alignkit import cli
from alignkit.errors import InputError
from alignkit.preferences.annotations import Annotation, with_annotations
from alignkit.records import Group, Prompt, write_groups

PANDALM = Path(__file__).resolve().parents[4] / "shared" / "data" / "pandalm_pairs_human_ai.jsonl.gz"
RANKS = {0: (0, 0), 1: (0, 1), 2: (1, 0), None: None}
ORDERS = {"12": (0, 1), "21": (1, 0)}


def pair(prompt: str, responses: tuple[str, str] = ("good", "bad"), **said: Any) -> Group:
    """Annotators' verdicts by name, each a verdict or a list of (verdict, order); h... is a human, a... an AI."""
    annotations = []
    for name, given in said.items():
        for verdict, order in given if isinstance(given, list) else [(given, None)]:
            kind: Any = {"h": "human", "a": "ai"}[name[0]]
            annotations.append(Annotation(name, RANKS[verdict], kind, order=ORDERS[order] if order else None))
    first = next((a.ranks for a in annotations if a.ranks), None)
    return with_annotations(Group(Prompt.of(prompt), responses, ranks=first, source="test"), annotations)


def test_records_without_preferences_are_called_that() -> None:
    lone = Group(Prompt.of("p", {"good": "x", "bad": "y"}), ("",))
    said = "There are no preferences in it: no record is ranked, scored or labelled."
    assert figures([lone])["opening"] == [f"{said} If good, bad should count, rename: --columns OLD=chosen."]
    assert figures([lone, Group(Prompt.of("q"), ("x",), labels=(True,))])["opening"] == []


def test_counts_of_annotators_and_of_ranks() -> None:
    groups = [pair("p", h=1, a=2), pair("q", h=0, a=None), pair("r", h=1, a=1), Group(Prompt.of("s"), ("x", "y"))]
    found = figures(groups)
    assert found["counts"] == {
        "groups": 4,
        "prompts": 4,
        "responses": {"2": 4},
        "sources": {"test": 3, "unknown": 1},
        "ordered_pairs": 2,
        "tied_pairs": 1,
        "unranked_groups": 1,
    }
    said = {"kind": "ai", "pairs": 3, "first_better": 1, "second_better": 1, "ties": 0, "abstained": 1, "seconds": None}
    assert found["annotators"]["a"] == said


def test_ai_against_the_majority_of_people() -> None:
    """Majorities 1, 2, none (1, 2 and 0), 0; the AI says 1, 1, 1, nothing: one of two agrees, with or without ties."""
    groups = [
        pair("p", h1=1, h2=1, h3=2, a=1),
        pair("q", h1=2, h2=2, h3=2, a=1),
        pair("r", h1=1, h2=2, h3=0, a=1),
        pair("s", h1=0, h2=0, h3=2, a=None),
    ]
    found = figures(groups)["agreement"]
    against = found["ai_against_people"]["a"]
    assert (against["n"], against["agreement"]) == (2, 0.5)
    assert against["people_by_ai"] == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    # Of 12 values three are 1, six 2 and three 0; in p, q, r and s 2, 0, 3 and 2 of the 3 pairs of people differ.
    assert found["alpha_people"] == pytest.approx(1 - 11 * (2 + 0 + 3 + 2) / (144 - 9 - 36 - 9), abs=1e-4)
    between = {tuple(row["annotators"]): row for row in found["between"]}
    assert between["h1", "h2"]["agreement"] == 0.75
    assert (between["h1", "a"]["n"], between["h1", "a"]["agreement"]) == (3, 0.6667)


def test_records_of_single_annotators_join_whatever_the_order_of_the_responses() -> None:
    one = Group(Prompt.of("p"), ("good", "bad"), ranks=(0, 1), source="anna")
    other = Group(Prompt.of("p"), ("bad", "good"), ranks=(1, 0), source="ben")
    (between,) = figures([one, other])["agreement"]["between"]
    nothing = dict.fromkeys(("kappa", "kappa_interval", "agreement_interval"))
    assert between == {"annotators": ["anna", "ben"], "n": 1, "agreement": 1.0, **nothing}
    again = collect([one, other, one])
    assert [sorted(unit.judgements) for unit in again.units] == [["anna", "ben"], ["anna"]]


def test_a_ranking_counts_as_its_pairs() -> None:
    ranked = Group(Prompt.of("p"), ("a", "b", "c"), ranks=(0, 1, 1), source="anna")
    said = figures([ranked])["annotators"]["anna"]
    assert (said["pairs"], said["first_better"], said["ties"]) == (3, 2, 1)


def test_position_bias_and_orders_by_hand() -> None:
    """The one shown first wins in 3 of 4 decided looks; of two pairs seen both ways, one keeps its winner, and the two
    looks at the other make a tie."""
    groups = [
        pair("p", a=[(1, "12"), (1, "21")]),
        pair("q", a=[(1, "12"), (2, "21")]),
        pair("r", a=[(0, "12")]),
        pair("s", a=2),
    ]
    found = figures(groups)
    position = found["position"]["a"]
    assert (position["first_wins"]["value"], position["first_wins"]["n"], position["bias"]) == (0.75, 4, 0.25)
    assert (position["both_orders_agree"]["value"], position["both_orders_agree"]["n"]) == (0.5, 2)
    assert position["ties"] == 1
    assert [found["annotators"]["a"][key] for key in ("first_better", "second_better", "ties")] == [1, 1, 2]
    assert figures([pair("p", h=1)])["position"]["h"] is None


def test_a_judge_biased_by_twenty_points_is_found_out_to_within_three() -> None:
    """Scripted: right 70% of the time, and 20 points more likely to say "the first" than it should, in each order."""
    draw = random.Random(0)
    groups = []
    for number in range(1000):
        looks = []
        for order, rate in (("12", 0.7 + 0.2), ("21", 0.7 - 0.2)):
            looks.append((1 if draw.random() < rate else 2, order))
        groups.append(pair(f"p{number}", a=looks))
    assert figures(groups)["position"]["a"]["bias"] == pytest.approx(0.2, abs=0.03)


def test_length_bias_by_hand() -> None:
    found = length_bias([("aaaa", "b", 1), ("a", "bbbb", 1), ("aaa", "b", 1), ("aa", "bb", 2)])
    assert found is not None
    assert (found["longer_wins"]["value"], found["longer_wins"]["n"]) == (0.6667, 3)
    ratios = [share and (share["value"], share["n"]) for share in found["first_wins_by_ratio"]]
    assert ratios == [None, (1.0, 1), None, (0.0, 1), (1.0, 1), (1.0, 1), None]


def test_contradictions_over_records_and_circles() -> None:
    groups = [
        pair("p", a=1),
        pair("p", ("bad", "good"), a=1),
        pair("q", a=1),
        pair("q", a=0),
        *(pair("c", responses, h=1) for responses in (("x", "y"), ("y", "z"), ("z", "x"))),
    ]
    found = figures(groups)["contradictions"]
    assert found["a"] == {"repeated_pairs": 2, "differing": 2, "opposite": 1, "rankings": 0, "intransitive": 0}
    assert found["h"] == {"repeated_pairs": 0, "differing": 0, "opposite": 0, "rankings": 1, "intransitive": 1}


def test_duplicates_leaks_and_cost() -> None:
    groups = [
        pair("Name a prime.", h=1),
        pair("name a  PRIME", ("bad!", "Good"), h=1),
        pair("name a prime", ("good", "bad"), h=1),
        Group(Prompt.of("w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12"), ("No.", "no"), meta={"cost": {"tokens": 7}}),
        Group(Prompt.of("z"), ("u", "v"), meta={"cost": {"tokens": 5, "money": 0.25, "free": True}}),
    ]
    held_out = [
        pair("NAME A PRIME", ("good", "other"), h=1),
        Group(Prompt.of("w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 x"), ("",)),
        Group(Prompt.of("unseen"), ("u",)),
    ]
    found = figures(groups, held_out)
    assert found["duplicates"] == {"repeated_records": 2, "ranked_differently": 1, "same_response_twice": 1}
    assert found["leakage"] == {
        "held_out_prompts": 3,
        "same_prompt": 1,
        "similar_prompt": 1,
        "held_out_responses": 3,
        "same_response": 2,
    }
    assert found["cost"] == {"tokens": 12, "money": 0.25}
    assert figures(groups)["leakage"] is None


def test_a_malformed_annotation_names_its_record() -> None:
    with pytest.raises(InputError, match="record 2"):
        figures(
            [
                pair("p", h=1),
                Group(Prompt.of("q"), ("a", "b"), meta={"annotations": [{"annotator": "h", "ranks": [0]}]}),
            ]
        )


def test_the_command_as_text_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "prefs.jsonl", tmp_path / "out" / "page.html"
    write_groups(file, [pair("p", h=1, a=[(1, "12"), (1, "21")]), pair("<q>", h=2, **{"a<b>": 1})])
    assert cli.run(["preferences", "report", str(file), "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "AI against people" in said
    assert cli.run(["preferences", "report", str(file), "--held-out", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agreement"]["ai_against_people"]["a"]["agreement"] == 1.0
    assert found["leakage"]["same_prompt"] == 2
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") >= 3
    assert "a&lt;b&gt;" in html
    assert "a<b>" not in html
    assert "http" not in html
    assert cli.run(["preferences", "report", str(tmp_path / "none.jsonl")]) == 2


def test_an_empty_or_silent_file_has_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prefs.jsonl"
    write_groups(file, [Group(Prompt.of("p"), ("a", "b"))])
    assert cli.run(["preferences", "report", str(file), "--html", str(tmp_path / "p.html")]) == 0
    assert "unranked groups  1" in capsys.readouterr().out


@pytest.mark.skipif(not PANDALM.exists(), reason="needs ../shared/data/pandalm_pairs_human_ai.jsonl.gz")
def test_the_published_figures_of_pandalm(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["preferences", "report", str(PANDALM), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["agreement"]
    kappas = {tuple(row["annotators"]): row["kappa"] for row in found["between"]}
    people = [kappas[f"human-{a}", f"human-{b}"] for a, b in ((1, 2), (1, 3), (2, 3))]
    assert people == pytest.approx([0.852, 0.879, 0.862], abs=0.001)
    gpt = found["ai_against_people"]["gpt-3.5-turbo"]
    assert (gpt["n"], gpt["left_out"]) == (974, 0)
    assert [gpt["each_person"][f"human-{n}"]["agreement"] for n in (1, 2, 3)] == [0.7094, 0.7012, 0.7084]
    assert gpt["random_person"]["value"] == pytest.approx((0.70945 + 0.70123 + 0.70842) / 3, abs=1e-4)
    assert (gpt["agreement"], gpt["kappa"]) == pytest.approx((0.716, 0.493), abs=0.001)
