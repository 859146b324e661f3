"""The annotators' file: orders, leases, overlap, gold, undo, and the records made from it."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_label import schema
from alignkit_label.options import HumanOptions
from alignkit_label.records import gold_shares, labelled, ranked, status
from alignkit_label.source import Human
from alignkit_label.store import Refused, Said, Store, item_id

from alignkit import Group, InputError, Prompt
from alignkit.components import Context
from alignkit.preferences.annotations import annotations_of
from alignkit.runs.single import NoPolicy

if TYPE_CHECKING:
    from pathlib import Path


def pair(number: int, **known: Any) -> Group:
    return Group(Prompt.of(f"question {number}"), (f"good {number}", f"bad {number}"), **known)


def triple(number: int) -> Group:
    return Group(Prompt.of(f"question {number}"), ("a", "b", "c"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "labels.db")


def judge(store: Store, name: str, write: str, ranks: tuple[int, ...] = (0, 1), **more: Any) -> str:
    """The annotator judges their current item; ranks follow the order shown."""
    found = store.next(name)
    assert found is not None
    store.record(Said(write, found[0].id, name, more.pop("verdict", "ranked"), ranks, **more))
    return found[0].id


def prefer_good(store: Store, name: str, write: str) -> None:
    found = store.next(name)
    assert found is not None
    store.record(Said(write, found[0].id, name, "ranked", found[1]))


def test_items_carry_no_feedback_and_are_there_once(store: Store) -> None:
    known = pair(1, ranks=(0, 1), scores=(2.0, 1.0), source="model-x", meta={"annotations": [], "kept": 1})
    (first,) = store.add_items([known])
    turned = Group(known.prompt, tuple(reversed(known.responses)))
    assert store.add_items([turned, pair(2)]) == [first, item_id(pair(2))]
    assert [item.group.responses for item in store.items()] == [known.responses, pair(2).responses]
    group = store.items()[0].group
    assert (group.ranks, group.scores, dict(group.meta)) == (None, None, {"kept": 1})
    with pytest.raises(InputError, match="record 2: has 1 different responses"):
        store.add_items([pair(3), Group(Prompt.of("q"), ("same", "same"))])
    assert len(store.items()) == 2, "an import that fails adds nothing"


def test_the_order_is_drawn_once_for_item_and_annotator_and_ranks_are_turned_back(store: Store) -> None:
    store.add_items(pair(number) for number in range(40))
    orders = {}
    for name in ("anna", "ben"):
        store.configure(overlap=2)
        orders[name] = []
        for number in range(40):
            found = store.next(name)
            assert found is not None
            assert found == store.next(name), "the same item in the same order when asked again"
            orders[name].append(found[1])
            store.record(Said(f"{name} {number:03}", found[0].id, name, "ranked", found[1]))
    assert orders["anna"] != orders["ben"]
    assert all(5 < sum(shown == (1, 0) for shown in found) < 35 for found in orders.values())
    assert all(one.ranks == (0, 1) for one in store.said()), "rank 0 was given to the good one, wherever it stood"
    assert {one.shown for one in store.said()} == {(0, 1), (1, 0)}


def test_orders_follow_from_the_seed(tmp_path: Path) -> None:
    def order(file: str, seed: int) -> list[Any]:
        store = Store(tmp_path / file)
        store.configure(seed=seed)
        store.add_items(triple(number) for number in range(10))
        shown = []
        for number in range(10):
            shown.append(store.next("anna")[1])  # type: ignore[index]
            judge(store, "anna", f"write {number}", (0, 1, 2))
        return shown

    assert order("one.db", 1) == order("two.db", 1) != order("three.db", 2)


def test_the_same_write_twice_is_one_and_an_item_is_judged_once(store: Store) -> None:
    store.add_items([pair(1), pair(2)])
    found = store.next("anna")
    assert found is not None
    said = Said("write 1", found[0].id, "anna", "ranked", (0, 1))
    assert store.record(said)
    assert not store.record(said)
    for other, status_code in (
        (replace(said, write="write 2"), 409),
        (replace(said, item=item_id(pair(2))), 409),
        (replace(said, annotator="ben"), 409),
    ):
        with pytest.raises(Refused) as refused:
            store.record(other)
        assert refused.value.status == status_code
    assert len(store.said()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": (0,)},
        {"ranks": None},
        {"ranks": (0, -1)},
        {"ranks": (0, True)},
        {"ranks": (0, 1.0)},
        {"verdict": "best"},
        {"verdict": "skip", "reason": "  "},
        {"seconds": math.nan},
        {"seconds": -1.0},
    ],
)
def test_malformed_verdicts_are_refused(store: Store, change: dict[str, Any]) -> None:
    store.add_items([pair(1)])
    found = store.next("anna")
    assert found is not None
    with pytest.raises(Refused) as refused:
        store.record(replace(Said("write 1", found[0].id, "anna", "ranked", (0, 1)), **change))
    assert refused.value.status == 422
    assert store.said() == []


def test_undo_gives_the_item_back_and_can_be_repeated(store: Store) -> None:
    store.add_items([pair(1), pair(2), pair(3)])
    first = judge(store, "anna", "write 1")
    second = judge(store, "anna", "write 2")
    store.next("anna")
    with pytest.raises(Refused, match="later"):
        store.undo("anna", "write 1")
    with pytest.raises(Refused, match="no such"):
        store.undo("ben", "write 2")
    store.undo("anna", "write 2")
    store.undo("anna", "write 2")
    assert store.next("anna")[0].id == second  # type: ignore[index]
    assert store.last("anna") == "write 1"
    assert not store.record(Said("write 2", second, "anna", "ranked", (0, 1))), "a late copy doesn't revive it"
    assert [one.item for one in store.said()] == [first]
    judge(store, "anna", "write 4", (1, 0))
    assert store.progress("anna") == {"done": 2, "skipped": 0, "total": 3}


def test_a_skip_leaves_the_item_to_somebody_else(store: Store) -> None:
    store.add_items([pair(1)])
    item = judge(store, "anna", "write 1", verdict="skip", reason="unclear")
    assert store.next("anna") is None
    assert judge(store, "ben", "write 2") == item
    (group,) = labelled(store).groups
    assert [(one.annotator, one.ranks is None, one.reason) for one in annotations_of(group)] == [
        ("anna", True, "unclear"),
        ("ben", False, ""),
    ]


def test_a_lease_keeps_an_item_until_it_runs_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add_items([pair(1), pair(2)])
    store.configure(lease_minutes=1.0)
    start = schema.now()
    monkeypatch.setattr("alignkit_label.store.now", lambda: start)
    first = store.next("anna")
    second = store.next("ben")
    assert first and second and first[0].id != second[0].id
    assert store.next("cleo") is None
    monkeypatch.setattr("alignkit_label.store.now", lambda: start + 61)
    assert store.next("cleo")[0].id == first[0].id  # type: ignore[index]
    store.record(Said("late", first[0].id, "anna", "ranked", (0, 1)))
    assert len(store.said()) == 1, "what was said after the lease counts all the same"


def test_annotators_at_once_share_the_items_without_doing_one_twice(store: Store) -> None:
    store.add_items(pair(number) for number in range(24))
    ready = threading.Barrier(3)

    def work(name: str) -> None:
        ready.wait()
        number = 0
        while (found := store.next(name)) is not None:
            assert store.record(Said(f"{name} {number:05}", found[0].id, name, "ranked", found[1]))
            number += 1

    threads = [threading.Thread(target=work, args=(name,)) for name in ("anna", "ben", "cleo")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    said = store.said()
    assert sorted(one.item for one in said) == sorted(item.id for item in store.items())
    assert status(store)["complete"] == 24


def test_overlap_for_a_share_of_the_items(store: Store) -> None:
    store.add_items(pair(number) for number in range(200))
    store.configure(overlap=3, overlap_share=0.25)
    wanted = list(store.wanted().values())
    assert set(wanted) == {1, 3}
    assert 30 < wanted.count(3) < 70
    assert status(store)["verdicts_wanted"] == sum(wanted)


def test_gold_comes_up_for_everybody_and_is_counted(store: Store) -> None:
    store.add_items([pair(number) for number in range(12)])
    store.add_items([pair(number, ranks=(0, 1)) for number in (100, 101)], gold=True)
    store.configure(gold_every=4, overlap=2)
    gold = {item.id for item in store.items() if item.gold}
    for name in ("anna", "ben"):
        were = []
        for number in range(14):
            found = store.next(name)
            assert found is not None
            were.append(found[0].id in gold)
            wrong = name == "ben" and were.count(True) == 2 and were[-1]
            ranks = tuple(1 - rank for rank in found[1]) if wrong else found[1]
            store.record(Said(f"{name} {number:03}", found[0].id, name, "ranked", ranks))
        assert [place for place, is_gold in enumerate(were, start=1) if is_gold] == [4, 8]
    shares = gold_shares(store.items(), store.said())
    assert {name: share.value for name, share in shares.items()} == {"anna": 1.0, "ben": 0.5}
    found = labelled(store, min_gold=0.75)
    assert found.left_out == ["ben"]
    assert len(found.groups) == 12
    assert {one.annotator for group in found.groups for one in annotations_of(group)} == {"anna"}
    assert len(labelled(store, with_gold=True).groups) == 14


def test_a_tie_does_not_pass_gold(store: Store) -> None:
    store.add_items([pair(1, ranks=(0, 1))], gold=True)
    judge(store, "anna", "write 1", (0, 0))
    assert gold_shares(store.items(), store.said())["anna"].value == 0


def _said(name: str, ranks: tuple[int, ...] | None, verdict: Any = "ranked") -> Said:
    return Said(f"write of {name}", "item", name, verdict, ranks, (1, 0), 2.5)


def test_the_ranks_of_several_people() -> None:
    two = [_said("anna", (0, 1)), _said("ben", (1, 0))]
    assert ranked(pair(1), two).ranks == (0, 0)
    assert ranked(pair(1), [*two, _said("cleo", (1, 0))]).ranks == (1, 0)
    assert ranked(pair(1), [_said("anna", (0, 1)), _said("ben", None, "skip")]).ranks == (0, 1)
    of_three = [_said("anna", (0, 1, 2)), _said("ben", (0, 2, 1)), _said("cleo", (1, 0, 2))]
    assert ranked(triple(1), of_three).ranks == (0, 1, 2)
    bad = ranked(pair(1), [_said("anna", (0, 0), "both_bad")])
    assert (bad.ranks, bad.labels, annotations_of(bad)[0].reason) == ((0, 0), (False, False), "all bad")
    one = annotations_of(bad)[0]
    assert (one.kind, one.order, one.seconds) == ("human", (1, 0), 2.5)


def test_the_source_never_waits_and_says_what_is_missing(store: Store) -> None:
    store.add_items([pair(1), pair(2), pair(3)])
    source = Human(HumanOptions(database=str(store.path)), Context())
    with pytest.raises(InputError, match="0 of 3 items labelled, 3 missing"):
        list(source.preferences(NoPolicy()))
    prefer_good(store, "anna", "write 1")
    prefer_good(store, "anna", "write 2")
    groups = list(source.preferences(NoPolicy()))
    assert [(group.prompt.text, group.ranks, group.source) for group in groups] == [
        ("question 1", (0, 1), "human"),
        ("question 2", (0, 1), "human"),
    ]
    assert source.explain().endswith("2 of 3 items labelled, 1 missing")
    assert [Group.from_json(json.loads(json.dumps(group.to_json()))) for group in groups] == groups


def test_fresh_responses_become_items_once(store: Store) -> None:
    class Fresh:
        prompts = (Prompt.of("question 1"), Prompt.of("question 9"))

        def __call__(self, prompts: Any, k: int) -> list[Group]:
            assert k == 2
            return [Group(prompt, ("good 1", "bad 1")) for prompt in prompts]

    store.add_items([pair(1)])
    prefer_good(store, "anna", "write 1")
    source = Human(HumanOptions(database=str(store.path), k=2), Context())
    for _ in range(2):
        (group,) = source.preferences(Fresh())
        assert group.ranks == (0, 1)
        assert source.explain().endswith("1 of 2 items labelled, 1 missing; 1 of the 2 items of this run are missing")
    assert len(store.items()) == 2


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        HumanOptions(database=str(tmp_path / "none.db")).check()
    with pytest.raises(InputError, match="nothing to compare"):
        HumanOptions(database="x", k=1).check()
    HumanOptions(database=str(tmp_path / "none.db"), k=2).check()
    other = tmp_path / "text.db"
    other.write_text("this is no database, but long enough to look at" * 30)
    with pytest.raises(InputError, match="can't be used"):
        Store(other)


def test_the_file_is_for_its_owner_and_keeps_tokens(store: Store) -> None:
    token = store.add_annotator("anna")
    assert store.path.stat().st_mode & 0o077 == 0
    again = Store(store.path)
    assert again.add_annotator("anna") == token
    assert again.add_annotator("ben") != token
    assert (again.annotator_of(token), again.annotator_of(""), again.annotator_of("ä")) == ("anna", None, None)
