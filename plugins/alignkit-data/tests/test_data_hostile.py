"""What no row should hold is an error with its place, never a raw one; templates name columns and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow
import pytest
from alignkit_data import Dataset, DatasetOptions, FunctionOptions
from data_rows import make
from pyarrow import parquet

from alignkit import InputError, OptionsError
from alignkit.preferences import annotations_of

if TYPE_CHECKING:
    from pathlib import Path

GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}
RANKED: dict[str, Any] = {"prompt": "q", "responses": ["a", "b"], "ranks": [0, 1]}


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(OptionsError) as error:
        DatasetOptions(path=str(path), **options)
    assert error.value.fix
    return str(error.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "q", "x": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "recursion"),
        (json.dumps({"instruction": "i", "output": "a", "history": True}), "history is a boolean, expected a list"),
        (json.dumps({**RANKED, "source": {"a": 1}}), "source is an object, expected text"),
        (json.dumps({**RANKED, "scores": [10**400, 0]}), "expected finite numbers"),
        (json.dumps({**RANKED, "meta": {"weight": float("nan")}}), "meta.weight must be a number"),
        (json.dumps({**RANKED, "meta": {"shown": [0]}}), "meta.shown must be a list with a value for each response"),
        (json.dumps({**RANKED, "meta": {"annotations": [3]}}), "meta.annotations is not a list"),
        (json.dumps({**RANKED, "meta": {"annotations": [{"annotator": "x", "ranks": [0]}]}}), "1 ranks by x"),
        (
            json.dumps({**RANKED, "meta": {"annotations": [{"annotator": "x", "ranks": [0, 1], "seconds": "é"}]}}),
            "seconds must be a number from 0, found 'é'",
        ),
        (json.dumps({"prompt": [{"role": 3, "content": "q"}]}), "role is a number, expected text"),
    ],
)
def test_a_row_that_holds_something_else_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"\n{line}\n")
    said = refused(path)
    assert f"{path}:2: " in said
    assert reason in said


@pytest.mark.parametrize("content", ['{"prompt": ' + "[" * 100_000, "[" + "9" * 5000 + "]"])
def test_a_json_file_beyond_reading_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(content)
    assert f"{path}: JSON that can't be read" in refused(path)


@pytest.mark.parametrize(
    ("content", "line"), [("prompt,chosen,rejected\rq,a,b\r", 1), ("prompt,chosen,rejected\nq,a\rx,b\n", 2)]
)
def test_a_carriage_return_outside_quotes_is_named(tmp_path: Path, content: str, line: int) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(content.encode())
    assert f"{path}:{line}: broken CSV: a carriage return outside quotes" in refused(path)
    path.write_bytes(b'prompt,chosen,rejected\nq,"a\rx",b\n')
    assert Dataset(DatasetOptions(path=str(path))).groups()[0].responses == ("a\rx", "b")


def test_parquet_text_that_is_not_utf8_names_its_row(tmp_path: Path) -> None:
    texts = pyarrow.array([b"a", b"\xff", b"c"]).view(pyarrow.string())
    table = pyarrow.table({"prompt": ["q", "r", "s"], "chosen": texts, "rejected": ["x", "y", "z"]})
    path = tmp_path / "data.parquet"
    parquet.write_table(table, path)
    assert f"{path}, row 2: not UTF-8" in refused(path)
    kept = Dataset(DatasetOptions(path=str(path), malformed="drop"))
    assert [group.responses[0] for group in kept.groups()] == ["a", "c"]
    assert kept.describe().dropped == {"malformed": 1}


def test_a_date_that_python_has_not_names_its_row(tmp_path: Path) -> None:
    years = pyarrow.array([0, 10**15], pyarrow.timestamp("s"))
    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["q", "r"], "year": years}), path)
    assert f"{path}, row 2: can't be read" in refused(path)


def test_a_broken_arrow_stream_does_not_read_beyond_its_memory(tmp_path: Path) -> None:
    path = tmp_path / "data.arrow"
    table = pyarrow.table({"prompt": [f"prompt number {n}" for n in range(50)]})
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    content = path.read_bytes()
    offsets = b"".join(number.to_bytes(4, "little") for number in range(0, 150, 15))
    broken = content.replace(offsets[4:12], b"\xff\xff\xff\x7e\xff\xff\xff\x7f", 1)
    assert broken != content
    path.write_bytes(broken)
    assert f"{path}: broken file" in refused(path)


def test_numbers_of_seconds_stay_as_they_were() -> None:
    said = {"annotator": "x", "ranks": [0, 1], "seconds": 4.5}
    assert annotations_of(make({**RANKED, "meta": {"annotations": [said]}}))[0].seconds == 4.5


@pytest.mark.parametrize(
    "template",
    [
        "{prompt.__class__}",
        "{prompt.__class__.__mro__[1].__subclasses__}",
        "{prompt[0]}",
        "{prompt!r}",
        "{prompt:>1000000000}",
        "{prompt:{width}}",
        "{}",
        "{0}",
        "{prompt",
        "prompt}",
    ],
)
def test_a_template_names_columns_and_nothing_else(tmp_path: Path, template: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({**GOOD, "width": 5}) + "\n")
    with pytest.raises(OptionsError) as error:
        DatasetOptions(path=str(path), template=template)
    assert [problem.key for problem in error.value.problems] == [("template",)]
    assert "write {name of a column}" in error.value.fix
    with pytest.raises(OptionsError):
        FunctionOptions(function="os:getcwd", template=template)


def test_a_template_is_filled_with_texts_that_look_like_templates() -> None:
    row = {**GOOD, "prompt": "{chosen.__class__} {", "the id": 3, "größe": 1.5}
    assert make(row, template="{{{the id}}} {prompt} {größe}").prompt.text == "{3} {chosen.__class__} { 1.5"


def test_a_file_for_labels_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([GOOD, {**GOOD, "chosen": "\ud800"}]))
    with pytest.raises(InputError) as error:
        Dataset.of_file(path, {})
    assert error.value.where == f"{path}, row 2"
