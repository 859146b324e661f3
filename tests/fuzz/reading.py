"""Data files in every form and format."""

from __future__ import annotations

import csv
import gzip
import io
import json
from typing import TYPE_CHECKING, Any

from alignkit_data import Dataset, DatasetOptions

from alignkit.errors import InputError, visible
from alignkit.records import read_groups, write_groups
from tests.fuzz.mutations import as_json, mutated, mutated_bytes

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit import Group

SAID = [{"annotator": "x", "ranks": [0, 1, 2], "kind": "ai", "order": [0, 1, 2], "seconds": 1.0, "reason": "r"}]
CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
ANSWER = {"role": "assistant", "content": "a"}
ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "q", "chosen": "a", "rejected": "b", "id": 3},
    {"prompt": CHAT, "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "b"}]},
    {"chosen": [*CHAT, ANSWER], "rejected": [*CHAT, {**ANSWER, "content": "b"}]},
    {"chosen": "Human: q\n\nAssistant: a", "rejected": "Human: q\n\nAssistant: b"},
    {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [0, 2, 1], "scores": [1.0, 0.5, None],
     "labels": [True, False, True], "finished": [True, True, False], "source": "s",
     "meta": {"weight": 0.5, "annotations": SAID, "shown": [0, 1, 2], "cost": {"requests": 1}},
     "prompt_meta": {"id": 0}},
    {"prompt": "q", "responses": ["a", "b", "c"], "pairwise": [[0, 1, 1], [1, 2, 1], [0, 2, 0]]},
    {"prompt": "q", "response_1": "a", "response_2": "b", "verdict": 1},
    {"prompt": "q", "response_1": "a", "response_2": "b", "human": [1, 2, 0], "ai": {"judge": 1}},
    {"prompt": "q", "completion": "a", "label": True},
    {"prompt": "q", "completion": "a"},
    {"messages": [*CHAT, ANSWER]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"instruction": "i", "input": "x", "output": "a", "system": "s", "history": [["q", "a"]]},
    {"prompt": "q", "answer": 7},
)  # fmt: skip
TOLD: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"malformed": "drop"},
    {"comparisons": "fit"},
    {"template": "{prompt} {id}"},
)


def readers(draw: random.Random, folder: Path) -> str:
    """A file in any form and format, as data; what it says is written and read again."""
    rows = [draw.choice(ROWS)] * draw.choice((1, 3, 6))
    rows = mutated(draw, rows) if draw.random() < 0.6 else rows
    path = _stored(draw, rows, folder)
    told = draw.choice(TOLD)
    return read_data(path, told)


def read_data(path: Path, told: dict[str, Any]) -> str:
    """Reads a file as data, with options."""
    try:
        dataset = Dataset(DatasetOptions(path=str(path), max_bad_share=1.0, **told))
        groups = dataset.groups()
    except InputError as error:
        check_told(error, path)
        return "refused"
    assert visible(dataset.explain()) == dataset.explain()
    again = path.with_name("again.jsonl")
    write_groups(again, groups)
    assert _same(list(read_groups(again)), groups)
    if all(group.source for group in groups) and not all(group.responses == ("",) for group in groups):
        assert _same(Dataset.of_file(again, {}).groups(), groups)
    return "read"


def _stored(draw: random.Random, rows: Any, folder: Path) -> Path:
    """The rows in a file of a random format, in a third of cases with its bytes mutated too."""
    ending = draw.choice(("jsonl", "jsonl", "json", "json", "csv", "tsv", "parquet", "arrow"))
    listed = rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else []
    try:
        if ending in ("parquet", "arrow"):
            content = _arrow(listed, ending)
        elif ending in ("csv", "tsv"):
            content = _table(listed, "," if ending == "csv" else "\t")
        else:
            ending, content = _json(draw, rows, ending)
    except Exception:  # the format has no such values, so they are written as JSON
        ending, content = _json(draw, rows, "json")
    if draw.random() < 0.3:
        content = mutated_bytes(draw, content)
    if ending in ("jsonl", "json", "csv", "tsv") and draw.random() < 0.2:
        ending, content = f"{ending}.gz", gzip.compress(content, 1)
        content = mutated_bytes(draw, content) if draw.random() < 0.3 else content
    path = folder / f"data.{ending}"
    path.write_bytes(content)
    return path


def _json(draw: random.Random, rows: Any, ending: str) -> tuple[str, bytes]:
    if ending == "jsonl" and isinstance(rows, list):
        return ending, "".join(as_json(row) + "\n" for row in rows).encode()
    return "json", as_json({"train": rows} if draw.random() < 0.2 else rows).encode()


def _table(rows: Sequence[dict[str, Any]], delimiter: str) -> bytes:
    names = list(rows[0]) if rows else ["prompt"]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(names)
    for row in rows:
        values = [row.get(name) for name in names]
        writer.writerow([json.dumps(value) if isinstance(value, dict | list) else value for value in values])
    return text.getvalue().encode("utf-8", "surrogatepass")


def _arrow(rows: Sequence[dict[str, Any]], ending: str) -> bytes:
    import pyarrow
    from pyarrow import parquet

    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    if ending == "parquet":
        parquet.write_table(table, sink, compression="none")
    else:
        with pyarrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    return bytes(sink.getvalue())


def check_told(error: InputError, path: Path) -> None:
    """An error says what, where (the file, or the option) and how to fix it."""
    named = str(path) in str(error) or error.where in ("path", "columns", "template")
    assert error.what, error
    assert named, error
    assert error.fix, error


def _same(first: Sequence[Group], second: Sequence[Group]) -> bool:
    """Whether groups are equal, NaN in their meta included."""
    shown = [json.dumps([group.to_json() for group in groups], sort_keys=True) for groups in (first, second)]
    return shown[0] == shown[1]
