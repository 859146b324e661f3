"""`alignkit label audit`: random pairs that AIs judged, people's verdicts, and the report that opens with them."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_label.audit import drawn
from alignkit_label.server import state
from alignkit_label.store import Said, Store, item_id

from alignkit import Group, Prompt, read_groups, write_groups
from alignkit.cli import run
from alignkit.preferences import Annotation, annotations_of, with_annotations

if TYPE_CHECKING:
    from pathlib import Path


def ranked(number: int, ranks: tuple[int, ...] | None, **meta: Any) -> Group:
    """Three responses that a judge saw in both orders."""
    said = [Annotation("judge", ranks, "ai", order=order) for order in ((0, 1, 2), (2, 1, 0))]
    return with_annotations(Group(Prompt.of(f"p{number}"), ("x", "y", "z"), ranks, meta=meta), said)


def groups() -> list[Group]:
    """60 rankings, 20 all tied, 20 abstentions, and 20 that only a person judged: 300 pairs of the AI."""
    found = [ranked(n, (0, 1, 2) if n < 60 else (0, 0, 0) if n < 80 else None, cost={"tokens": 10}) for n in range(100)]
    people = [Annotation("anna", (0, 1, 2), "human")]
    return [*found, *(with_annotations(Group(Prompt.of(f"h{n}"), ("x", "y", "z")), people) for n in range(20))]


def test_the_sample_is_uniform_over_pairs_seeded_and_nested() -> None:
    pairs, judged = drawn(groups(), 100, 0)
    assert (len(pairs), judged) == (100, 300)
    assert {item_id(pair) for pair in drawn(groups()[::-1], 40, 0)[0]} == {item_id(pair) for pair in pairs[:40]}
    assert [item_id(pair) for pair in drawn(groups(), 100, 1)[0]] != [item_id(pair) for pair in pairs]
    assert len(drawn(groups(), 1000, 0)[0]) == 300
    verdicts = [annotations_of(pair)[0].verdict(0, 1) for pair in drawn(groups(), 300, 0)[0]]
    assert (verdicts.count(1), verdicts.count(0), verdicts.count(None)) == (180, 60, 60)
    counts: dict[str, int] = {}
    for seed in range(200):
        for pair in drawn(groups()[58:68], 3, seed)[0]:
            counts[item_id(pair)] = counts.get(item_id(pair), 0) + 1
    # Each of 30 pairs is drawn 20 times on average, with a deviation of sqrt(200 * 0.1 * 0.9) = 4.24.
    assert len(counts) == 30
    assert max(counts.values()) < 20 + 4 * 4.24
    assert min(counts.values()) > 20 - 4 * 4.24


def test_annotators_see_neither_the_verdicts_nor_the_audit(tmp_path: Path) -> None:
    store = Store(tmp_path / "audit.db")
    store.add_items(drawn(groups(), 5, 0)[0])
    seen = json.dumps(state(store, "anna", {}))
    assert "judge" not in seen
    assert "audit" not in seen


def test_an_item_that_is_there_gains_verdicts_and_the_mark(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.db")
    (pair,) = drawn([ranked(1, (0, 1, 2))], 1, 0)[0]
    turned = Group(pair.prompt, pair.responses[::-1])
    store.add_items([turned])
    store.add_items([pair])
    store.add_items([pair])
    (item,) = store.items()
    assert item.group.responses == turned.responses
    assert [one.verdict(1, 0) for one in annotations_of(item.group)] == [1, 1]
    assert item.group.meta["audit"]["of"] == 3


def judge_all(store: Store, name: str, right: float, seed: int) -> None:
    """The annotator prefers the text that stands first in the alphabet, with this probability, and else the other."""
    draw = random.Random(seed)
    while (found := store.next(name)) is not None:
        item, shown = found
        texts = [item.group.responses[index] for index in shown]
        better = min(texts) if draw.random() < right else max(texts)
        store.record(Said(f"{name} {item.id}", item.id, name, "ranked", tuple(int(text != better) for text in texts)))


def test_from_a_run_to_the_report_that_opens_with_the_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The judge is right in 75% of 200 pairs; two people are right in 90%, so each agrees with it on 0.75 * 0.9 +
    0.25 * 0.1 = 70%, and they agree with each other on 82%."""

    def said(*words: str) -> dict[str, Any]:
        assert run([*words, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    draw = random.Random(1)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    labels = [
        with_annotations(
            Group(Prompt.of(f"p{n}"), ("x", "y"), (0, 1), meta={"cost": {"tokens": 10, "money": 0.01}}),
            [Annotation("judge", (0, 1) if draw.random() < 0.75 else (1, 0), "ai")],
        )
        for n in range(200)
    ]
    write_groups(folder / "preferences.jsonl", labels)
    told = said("label", "audit", str(folder), "--n", "60", "--seed", "7")
    assert (told["judged_pairs"], told["drawn"], told["db"]) == (200, 60, str(folder / "audit.db"))
    assert "label export" in said("preferences", "report", str(folder))["opening"][-1]
    store = Store(folder / "audit.db")
    assert store.settings()["overlap"] == 2
    for seed, name in enumerate(("anna", "ben")):
        store.add_annotator(name)
        judge_all(store, name, 0.9, seed)
    assert said("label", "export", str(folder / "audit.db"))["out"] == str(folder / "audit.jsonl")
    exported = list(read_groups(folder / "audit.jsonl"))
    assert {one.kind for group in exported for one in annotations_of(group)} == {"ai", "human"}
    for path in (folder, folder / "audit.jsonl"):
        found = said("preferences", "report", str(path))
        assert found["audit"]["agree"]["value"] == pytest.approx(0.70, abs=3 * (0.7 * 0.3 / 60) ** 0.5)
        assert found["audit"]["people_agree"]["value"] == pytest.approx(0.82, abs=3 * (0.82 * 0.18 / 60) ** 0.5)
        assert (found["audit"]["pairs"], found["audit"]["people_agree"]["n"]) == (60, 60)
        assert found["opening"][0].startswith("The judge agrees with people on ")
        assert " of 60 random pairs [" in found["opening"][0]
        assert found["opening"][3].startswith("The labels cost 2,000 tokens, 2 money")


def test_labels_that_no_ai_gave_have_no_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_groups(tmp_path / "people.jsonl", groups()[100:])
    assert run(["label", "audit", str(tmp_path / "people.jsonl")]) == 2
    assert "no AI has judged these" in capsys.readouterr().err
    write_groups(tmp_path / "ai.jsonl", groups())
    assert run(["label", "audit", str(tmp_path / "ai.jsonl"), "--n", "3"]) == 0
    assert (tmp_path / "ai.audit.db").is_file()
