"""The real data sets beside the repository load completely, with the counts that their README gives."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from alignkit_data import Dataset, DatasetOptions, to_trl_rows

DATA = Path(__file__).parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not beside the repository")


def load(name: str, **options: Any) -> Dataset:
    config = DatasetOptions(path=str(DATA / name), **options)
    config.check()
    return Dataset(config)


@pytest.mark.parametrize(
    ("name", "form", "count"),
    [
        ("hh_harmless_test_conv.jsonl.gz", "preference", 2299),
        ("hh_harmless_200_conv.jsonl", "preference", 200),
        ("lf_dpo_en_demo.jsonl.gz", "preference", 300),
        ("gsm8k_model_solutions_kto.jsonl.gz", "label", 5276),
        ("gsm8k_test_100.jsonl", "prompts", 100),
        ("alpaca_seed_tasks_sft.jsonl", "messages", 175),
    ],
)
def test_every_row_is_used(name: str, form: str, count: int) -> None:
    found = load(name).describe()
    assert (found.form, found.rows, dict(found.dropped)) == (form, count, {})


def test_a_preference_pair_is_the_row() -> None:
    raw = json.loads((DATA / "hh_harmless_200_conv.jsonl").read_text(encoding="utf-8").splitlines()[0])
    group = load("hh_harmless_200_conv.jsonl", limit=1).groups()[0]
    assert group.prompt.content == raw["prompt"]
    assert group.responses == (raw["chosen"][0]["content"], raw["rejected"][0]["content"])
    assert (group.ranks, group.prompt.meta) == ((0, 1), {"id": raw["id"]})


def test_labels_and_answers() -> None:
    groups = load("gsm8k_model_solutions_kto.jsonl.gz").groups()
    assert sum(group.labels == (True,) for group in groups) == 2001
    assert load("gsm8k_test_100.jsonl").groups()[0].prompt.meta["final_answer"] == "18"


def test_rankings_reproduce_every_comparison() -> None:
    with gzip.open(DATA / "qa_feedback_k4_human.jsonl.gz", "rt") as lines:
        rows = {row["id"]: row for row in map(json.loads, lines)}
    source = load("qa_feedback_k4_human.jsonl.gz")
    found = source.describe()
    assert (found.form, found.rows, found.dropped) == ("comparisons", 500, {"intransitive comparisons": 22})
    strict = 0
    for group in source.groups():
        row, ranks = rows[group.prompt.meta["id"]], group.ranks
        assert ranks is not None
        for first, second, verdict in row["pairwise"]:
            assert (ranks[first] == ranks[second], ranks[first] < ranks[second], ranks[first] > ranks[second])[verdict]
        assert (sorted(ranks) == [0, 1, 2, 3]) == row["strict_total_order"]
        strict += row["strict_total_order"]
        assert group.prompt.content == row["prompt"]
        assert group.prompt.meta["context"] == row["context"]
    assert strict == 298
    pairs = sum(1 for _ in to_trl_rows(source.groups()))
    kept = [rows[group.prompt.meta["id"]] for group in source.groups()]
    assert pairs == sum(verdict != 0 for row in kept for *_, verdict in row["pairwise"])


def test_a_template_puts_the_passages_before_the_question() -> None:
    group = load("qa_feedback_k4_human.jsonl.gz", template="{context}\n\n{prompt}", limit=1).groups()[0]
    assert group.prompt.messages is not None
    text = group.prompt.messages[-1]["content"]
    assert text.startswith(group.prompt.meta["context"] + "\n\n")
    assert text.endswith("?")


def test_pairs_with_a_majority_verdict() -> None:
    source = load(
        "pandalm_pairs_human_ai.jsonl.gz", columns={"human_majority": "verdict"}, malformed="drop"
    )  # 6 rows hold true in place of a text, 54 an empty response
    found = source.describe()
    assert (found.form, found.rows, dict(found.dropped)) == ("verdict", 999, {"empty response": 54, "malformed": 6})
    assert {group.ranks for group in source.groups()} == {(0, 0), (0, 1), (1, 0)}
