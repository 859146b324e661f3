"""Files in and out, and the commands on them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_label.exchange import read_records, rows_of, write_rows
from alignkit_label.store import Store

from alignkit import Group, InputError, Prompt
from alignkit.cli import run
from alignkit.preferences.annotations import Annotation, annotations_of, with_annotations
from alignkit.records import read_groups, write_groups

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit_label.exchange import Form

CHAT = [{"role": "user", "content": "Name a prime."}]
ANNA, BEN = Annotation("anna", (0, 1), "human"), Annotation("ben", (0, 0), "human")
PAIR = with_annotations(Group(Prompt.of("Name a prime."), ("7", "9"), (0, 1), source="human"), [ANNA, BEN])
RANKED = (Annotation("anna", (1, 0, 2), "human"), Annotation("ben", (1, 0, 1), "human"))
TRIPLE = with_annotations(Group(Prompt.of("q"), ("x", "y", "z"), (1, 0, 2), source="human"), RANKED)
BAD = Group(Prompt.of("q"), ("x", "y"), (0, 0), labels=(False, False), source="human")


def rows(form: Form, *groups: Group) -> list[dict[str, Any]]:
    return list(rows_of(groups, form))


def test_trl_columns() -> None:
    assert rows("pairs", PAIR, BAD) == [{"prompt": "Name a prime.", "chosen": "7", "rejected": "9"}]
    chat = Group(Prompt.of(CHAT), ("7", "9"), (1, 0))
    answers = [[{"role": "assistant", "content": text}] for text in ("9", "7")]
    assert rows("pairs", chat) == [{"prompt": CHAT, "chosen": answers[0], "rejected": answers[1]}]
    assert [(row["completion"], row["label"]) for row in rows("labels", TRIPLE, BAD)] == [
        ("y", True),
        ("z", False),
        ("x", False),
        ("y", False),
    ]
    assert rows("labels", Group(Prompt.of("q"), ("x", "y"), (0, 0))) == []


def test_label_studio_as_in_its_manual() -> None:
    pair, triple = rows("label-studio", PAIR, TRIPLE)
    assert pair["id"] == 1
    kept = json.loads(pair["data"].pop("alignkit"))
    assert kept == {"ranks": [0, 1], "source": "human", "meta": PAIR.meta}
    assert pair["data"] == {"prompt": "Name a prime.", "response_1": "7", "response_2": "9"}
    assert all("completed_by" not in one for one in pair["annotations"]), "Label Studio refuses unknown users"
    assert [one["result"][0]["meta"] for one in pair["annotations"]] == [{"annotator": "anna"}, {"annotator": "ben"}]
    results = [annotation["result"][0] for annotation in pair["annotations"]]
    assert [(one["type"], one["value"]) for one in results] == [
        ("pairwise", {"selected": "left"}),
        ("choices", {"choices": ["tie"]}),
    ]
    assert [item["body"] for item in triple["data"]["items"]] == ["x", "y", "z"]
    buckets = [annotation["result"][0]["value"]["ranker"] for annotation in triple["annotations"]]
    assert buckets == [{"rank-1": ["2"], "rank-2": ["1"], "rank-3": ["3"]}, {"rank-1": ["2"], "rank-2": ["1", "3"]}]


def test_argilla_as_in_its_source() -> None:
    pair, triple = rows("argilla", PAIR, TRIPLE)
    assert pair["fields"] == {"prompt": "Name a prime.", "response-1": "7", "response-2": "9"}
    assert [answer["value"] for answer in pair["responses"]["ranking"]] == [["response-1", "response-2"]]
    assert [answer["value"] for answer in pair["responses"]["verdict"]] == ["tie"]
    strict, tied = (answer["value"] for answer in triple["responses"]["ranking"])
    assert strict == ["response-2", "response-1", "response-3"]
    assert tied == [
        {"value": "response-2", "rank": 1},
        {"value": "response-1", "rank": 2},
        {"value": "response-3", "rank": 2},
    ]


@pytest.mark.parametrize("form", ["argilla", "label-studio"])
def test_what_was_written_is_read_back(tmp_path: Path, form: Form) -> None:
    path = tmp_path / "out.json"
    assert write_rows(path, rows_of([PAIR, TRIPLE], form), form) == 2
    pair, triple = read_records(path, {})
    assert (pair.prompt.text, pair.responses, triple.responses) == ("Name a prime.", ("7", "9"), ("x", "y", "z"))
    told = {one.annotator: (one.ranks, one.kind) for one in annotations_of(pair)}
    assert told == {"anna": ((0, 1), "human"), "ben": ((0, 0), "human")}
    assert {one.annotator: one.ranks for one in annotations_of(triple)} == {"anna": (1, 0, 2), "ben": (1, 0, 1)}


FULL = [
    Annotation("anna", (0, 0), "human", (1, 0), 4.5, "all bad: both are rude"),
    Annotation("ben", None, "human", (0, 1), 2.0, "unclear"),
    Annotation("cleo", (1, 0), "human", (0, 1), 3.25, "shorter"),
    Annotation("dora", (0, 0), "human", (0, 1), 1.0),
    Annotation("judge", (0, 1), "ai", (0, 1)),
    Annotation("judge", None, "ai", (1, 0), reason="abstained"),
]


@pytest.mark.parametrize("form", ["groups", "argilla", "label-studio"])
def test_a_round_trip_keeps_everything(tmp_path: Path, form: Form) -> None:
    """Verdicts, "all bad", ties, skips, seconds, reasons, orders, AIs' verdicts, the chat and what else is known, first
    through the file and then through a database."""
    chat = Prompt.of([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], {"answer": "7"})
    group = with_annotations(Group(chat, ("7", "9"), source="x", meta={"audit": {"seed": 3}}), FULL)
    path = tmp_path / ("out.jsonl" if form == "groups" else "out.json")
    write_rows(path, rows_of([group], form), form)
    (back,) = read_records(path, {})
    assert (back.prompt, back.responses, back.source, back.meta["audit"]) == (chat, ("7", "9"), "x", {"seed": 3})
    by_name = {(one.annotator, one.order): one for one in annotations_of(back)}
    assert by_name == {(one.annotator, one.order): one for one in FULL}

    database, out = str(tmp_path / "labels.db"), tmp_path / "again.jsonl"
    assert run(["label", "import", str(path), "--db", database, "--labels", "keep"]) == 0
    assert run(["label", "export", database, "--out", str(out)]) == 0
    (once,) = read_groups(out)
    assert sorted(annotations_of(once), key=str) == sorted(FULL, key=str)
    assert once.prompt == chat
    assert once.meta["audit"] == {"seed": 3}


@pytest.mark.parametrize("form", ["argilla", "label-studio"])
def test_an_answer_that_was_changed_there_counts(tmp_path: Path, form: Form) -> None:
    """Ben's verdict is turned round: his seconds and reason are gone, and so are the ranks that all gave."""
    timed = [Annotation("anna", (0, 1), "human", seconds=2.0), Annotation("ben", (0, 1), "human", seconds=3.0)]
    group = with_annotations(Group(Prompt.of("q"), ("7", "9"), (0, 1), source="x"), timed)
    path = tmp_path / "out.json"
    write_rows(path, rows_of([group], form), form)
    assert read_records(path, {}) == [group]
    (row,) = json.loads(path.read_text())
    if form == "argilla":
        row["responses"]["ranking"][1]["value"].reverse()
    else:
        row["annotations"][1]["result"][0]["value"]["selected"] = "right"
        row["annotations"][1]["lead_time"] = 9.0
    path.write_text(json.dumps([row]))
    (back,) = read_records(path, {})
    anna, ben = annotations_of(back)
    assert (anna, back.ranks) == (timed[0], None)
    assert (ben.ranks, ben.seconds) == ((1, 0), None if form == "argilla" else 9.0)


def test_label_studio_from_elsewhere(tmp_path: Path) -> None:
    items = [{"id": "mdn", "body": "x"}, {"id": "wiki", "body": "y"}]
    ranker = {"type": "ranker", "value": {"ranker": {"rank": ["wiki", "mdn"]}}}
    tasks = [
        {
            "data": {"prompt": "q", "items": items},
            "annotations": [
                {"completed_by": 3, "result": [ranker], "lead_time": 4.5},
                {"completed_by": {"id": 4, "email": "b@x"}, "result": [], "was_cancelled": True},
            ],
        }
    ]
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(tasks))
    (group,) = read_records(path, {})
    assert [(one.annotator, one.ranks, one.seconds) for one in annotations_of(group)] == [
        ("3", (1, 0), 4.5),
        ("b@x", None, None),
    ]
    tasks[0]["data"] = {"prompt": "q", "response_1": "x"}
    path.write_text(json.dumps(tasks))
    with pytest.raises(InputError, match="record 1: needs at least two fields"):
        read_records(path, {})


def test_responses_with_labels_are_joined_by_prompt(tmp_path: Path) -> None:
    path = tmp_path / "kto.jsonl"
    labelled = [("q", "x", True), ("other", "z", True), ("q", "y", False)]
    path.write_text("".join(json.dumps({"prompt": p, "completion": c, "label": v}) + "\n" for p, c, v in labelled))
    (group,) = read_records(path, {})
    assert (group.prompt.text, group.responses, group.ranks) == ("q", ("x", "y"), (0, 1))


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> dict[str, Any]:
        assert run(["label", *words, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    database, out = str(tmp_path / "labels.db"), tmp_path / "out.jsonl"
    write_groups(tmp_path / "in.jsonl", [PAIR, TRIPLE, Group(Prompt.of("alone"), ("a", "b"))])
    write_groups(tmp_path / "gold.jsonl", [Group(Prompt.of("gold"), ("right", "wrong"), (0, 1))])
    found = said("import", str(tmp_path / "in.jsonl"), "--db", database, "--labels", "keep")
    assert found == {"read": 3, "left_out": {}, "known_items": 0, "new_items": 3, "verdicts": 4}
    alike = [
        Group(Prompt.of("alone"), ("b", "a")),
        Group(Prompt.of("same"), ("a", "a")),
        Group(Prompt.of("q9"), ("a",)),
    ]
    write_groups(tmp_path / "more.jsonl", [*alike, Group(Prompt.of("twice"), ("c", "d")), *[PAIR] * 2])
    found = said("import", str(tmp_path / "more.jsonl"), "--db", str(tmp_path / "more.db"), "--labels", "ignore")
    reasons = found.pop("left_out")
    assert found == {"read": 6, "known_items": 1, "new_items": 3, "verdicts": 0}
    assert reasons.pop("one response") == 1
    assert list(reasons.values()) == [1]
    assert said("import", str(tmp_path / "in.jsonl"), "--db", database, "--labels", "keep")["verdicts"] == 0
    said("import", str(tmp_path / "gold.jsonl"), "--db", database, "--labels", "gold")
    counts = said("status", database)
    assert (counts["items"], counts["gold_items"], counts["complete"]) == (3, 1, 2)
    assert counts["annotators"]["anna"]["judged"] == 2
    (between,) = said("agreement", database)["between"]
    assert (between["annotators"], between["n"]) == (["anna", "ben"], 4)
    assert (between["agreement"], between["kappa"], len(between["kappa_interval"])) == (0.5, 0.3333, 2)
    assert said("export", database, "--out", str(out))["missing"] == 1
    assert [group.responses for group in read_groups(out)] == [("7", "9"), ("x", "y", "z")]
    pairs = said("export", database, "--out", str(out), "--form", "pairs", "--min-annotators", "2")
    assert pairs["rows"] == 4
    assert "who said what" in pairs["not_kept"]
    assert run(["label", "status", str(tmp_path / "none.db")]) == 2
    assert "alignkit label import FILE" in capsys.readouterr().err


def test_settings_are_kept_and_ports_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.db")
    store.configure(overlap=2, guidelines="Be kind.")
    assert Store(store.path).settings()["guidelines"] == "Be kind."
    with pytest.raises(KeyError):
        store.configure(colour="red")


TASK: dict[str, Any] = {"id": 1, "data": {"prompt": "q", "response_1": "a", "response_2": "b"}}
LEFT = {"type": "pairwise", "value": {"selected": "left"}}
RECORD: dict[str, Any] = {"fields": {"prompt": "q", "response-1": "a", "response-2": "b"}}


def judged(**fields: Any) -> dict[str, Any]:
    return {**TASK, "annotations": [{"completed_by": 3, "result": [LEFT], **fields}]}


def answered(*values: Any) -> dict[str, Any]:
    ranking = [{"value": name, "rank": rank} for name, rank in zip(("response-1", "response-2"), values, strict=True)]
    return {**RECORD, "responses": {"ranking": [{"value": ranking, "user_id": "u"}]}}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (judged(lead_time="\u00e9"), "seconds must be a number from 0"),
        (judged(lead_time=[1]), "seconds must be a number from 0"),
        (judged(lead_time=float("nan")), "seconds must be a number from 0"),
        (judged(lead_time=-1), "seconds must be a number from 0"),
        (judged(completed_by=["x", "b"]), "completed_by is"),
        (judged(completed_by=None), "completed_by is None"),
        (judged(completed_by={"email": "\ud800"}), "lone surrogate"),
        (judged(result=[{"type": "ranker", "value": {"ranker": ["response_1"]}}]), "response_2"),
        ({**judged(), "data": {**TASK["data"], "response_3": "c"}}, "2 ranks by 3 for 3 responses"),
        ({**TASK, "data": {**TASK["data"], "prompt": False}}, "prompt is a boolean"),
        ({**TASK, "data": {**TASK["data"], "response_2": 7}}, "response_2 is a number, expected text"),
        (answered(1, float("inf")), "expected whole numbers"),
        (answered(1, False), "expected whole numbers"),
        (answered(1, "2"), "expected whole numbers"),
        ({**RECORD, "fields": {**RECORD["fields"], "response-2": None}}, "response-2 is null, expected text"),
        ({**RECORD, "fields": {**RECORD["fields"], "prompt": [{"role": 1, "content": "q"}]}}, "role is a number"),
    ],
)
def test_what_fits_neither_program_is_refused_at_its_record(
    tmp_path: Path, row: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in.json"
    good = answered(1, 2) if "fields" in row else judged()
    path.write_text(json.dumps([good, row]))
    for labels in ("ignore", "keep"):
        command = ["label", "import", str(path), "--db", str(tmp_path / "labels.db"), "--labels", labels, "--json"]
        assert run(command) == 2
        said = json.loads(capsys.readouterr().err)["error"]
        assert said["where"] == f"{path}, record 2"
        assert reason in said["what"]
        assert said["fix"]


@pytest.mark.parametrize("form", ["groups", "argilla", "label-studio"])
def test_a_chat_is_read_back_as_a_chat(tmp_path: Path, form: Form) -> None:
    chat = with_annotations(Group(Prompt.of(CHAT), ("7", "9"), source="human"), [ANNA])
    path = tmp_path / ("out.jsonl" if form == "groups" else "out.json")
    write_rows(path, rows_of([chat], form), form)
    (group,) = read_records(path, {})
    assert group.prompt.content == CHAT
    assert [(one.annotator, one.ranks) for one in annotations_of(group)] == [("anna", (0, 1))]


def test_too_many_responses_name_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_groups(tmp_path / "in.jsonl", [Group(Prompt.of("q"), tuple("abcdefghij"))])
    assert run(["label", "import", str(tmp_path / "in.jsonl"), "--db", str(tmp_path / "labels.db")]) == 2
    assert f"{tmp_path / 'in.jsonl'}, record 1: has 10 different responses" in capsys.readouterr().err
