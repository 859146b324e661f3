"""Files of labels, of alignkit and of other programs."""

from __future__ import annotations

import contextlib
import io
import json
from typing import TYPE_CHECKING, Any, Literal

from alignkit_label.command import import_file
from alignkit_label.exchange import read_records, rows_of, write_rows

from alignkit.errors import InputError
from alignkit.preferences import annotations_of
from tests.fuzz.mutations import as_json, mutated, mutated_bytes
from tests.fuzz.reading import ROWS, check_told

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit_label.exchange import Form

    from alignkit import Group

RANKED = {"type": "ranker", "value": {"ranker": {"rank-1": ["2"], "rank-2": ["1", "3"]}}}
FORMS: tuple[Form, ...] = ("groups", "argilla", "label-studio")
TASKS: tuple[dict[str, Any], ...] = (
    {"id": 1, "data": {"prompt": "q", "response_1": "a", "response_2": "b"}, "annotations": [
        {"completed_by": {"email": "x@y"}, "lead_time": 2.5, "was_cancelled": False,
         "result": [{"type": "pairwise", "value": {"selected": "left"}}]},
        {"completed_by": 3, "was_cancelled": True, "result": []}]},
    {"id": 2, "data": {"prompt": "q", "items": [{"id": name, "body": name * 2} for name in "123"]}, "annotations": [
        {"completed_by": 3, "result": [RANKED]}]},
    {"fields": {"prompt": "q", "response-1": "a", "response-2": "b", "response-3": "c"},
     "metadata": {"annotators": json.dumps({"u": "anna"})}, "suggestions": {}, "vectors": {},
     "responses": {"ranking": [{"value": [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 2},
                                          {"value": "response-3", "rank": 2}], "user_id": "u"}],
                   "verdict": [{"value": "tie", "user_id": "v"}]}},
)  # fmt: skip


def labels(draw: random.Random, folder: Path) -> str:
    """A file for `alignkit label import`; what was imported is exported in each form and imported again."""
    base = draw.choice((TASKS, ROWS))
    rows = [draw.choice(base)] * draw.choice((1, 2))
    rows = mutated(draw, rows)
    path = folder / draw.choice(("in.json", "in.json", "in.jsonl"))
    text = as_json(rows) if path.suffix == ".json" or not isinstance(rows, list) else "\n".join(map(as_json, rows))
    path.write_bytes(mutated_bytes(draw, text.encode()) if draw.random() < 0.2 else text.encode())
    return read_labels(path, draw.choice(("ignore", "keep", "gold")))


def read_labels(path: Path, kept: Literal["ignore", "keep", "gold"] | None) -> str:
    """Imports a file into a database, if one is wanted; exports what it says in each form and reads that again."""
    folder = path.parent
    try:
        if kept:
            with contextlib.redirect_stdout(io.StringIO()):
                import_file(path, folder / "labels.db", kept, None, True)
        groups = [group for group in read_records(path, {}) if len(group.responses) > 1]
    except InputError as error:
        check_told(error, path)
        return "refused"
    finally:
        for file in folder.glob("labels.db*"):
            file.unlink()
    for form in FORMS:
        again = folder / ("again.jsonl" if form == "groups" else "again.json")
        write_rows(again, rows_of(groups, form), form)
        if groups:
            back, meant = ([_judged(group) for group in read] for read in (read_records(again, {}), groups))
            assert back == meant, (form, back, meant)
    return "read"


def _judged(group: Group) -> Any:
    """What a group says that every form can hold: the prompt, the responses and each ranking."""
    said = {(one.annotator, _order(one.ranks)) for one in annotations_of(group) if one.ranks is not None}
    return group.prompt.content, group.responses, said


def _order(ranks: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(set(ranks)).index(rank) for rank in ranks)
