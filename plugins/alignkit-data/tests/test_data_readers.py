"""Files of every format give the same rows; broken files say where they are broken."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from datetime import date
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pyarrow
import pytest
from alignkit_data import hub
from alignkit_data.readers import Row, local_rows
from pyarrow import parquet

from alignkit.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

ROWS: list[dict[str, Any]] = [
    {"prompt": "Hé?\nTwo lines, a comma", "responses": ["a", "b"], "scores": [0.5, None]},
    {"prompt": 'He said "hi".', "responses": ["c", "d"], "scores": [1.0, 2.0]},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_csv(path: Path, delimiter: str) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(ROWS[0])
        writer.writerows([row["prompt"], json.dumps(row["responses"]), json.dumps(row["scores"])] for row in ROWS)
    return path


def values(path: Path, split: str = "") -> list[dict[str, Any]]:
    return [row.values for row in local_rows(path, split)]


def error_of(path: Path, split: str = "") -> InputError:
    with pytest.raises(InputError) as error:
        list(local_rows(path, split))
    return error.value


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson", "a.json", "a.json.gz", "a.JSONL"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    assert values(write(tmp_path / name, LINES)) == ROWS


@pytest.mark.parametrize("content", [ROWS, {"data": ROWS}])
def test_json_lists(tmp_path: Path, content: Any) -> None:
    assert values(write(tmp_path / "a.json", json.dumps(content))) == ROWS
    assert values(write(tmp_path / "b.json", json.dumps(content, indent=2))) == ROWS


def test_a_json_file_of_one_row(tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.json", json.dumps(ROWS[0]))) == ROWS[:1]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_comma_separated(tmp_path: Path, name: str, delimiter: str) -> None:
    path = write_csv(tmp_path / name, delimiter)
    assert values(path) == ROWS
    assert values(write(tmp_path / f"{name}.gz", path.read_bytes())) == ROWS


@pytest.mark.parametrize(
    ("name", "text", "what", "fix"),
    [
        (
            "a.csv",
            "prompt,chosen,chosen,rejected\np,a,b,c\n",
            "two columns are called 'chosen'",
            "rename or remove one",
        ),
        ("a.csv", "prompt, chosen,chosen \np,a,b\n", "two columns are called 'chosen'", "rename or remove one"),
        ("a.csv", "prompt;chosen\np;a\n", "the cells are separated by ';', expected ','", "commas between the cells"),
        ("a.csv", "prompt|chosen\np|a\n", "the cells are separated by '|', expected ','", "commas between the cells"),
        ("a.csv", "prompt\tchosen\np\ta\n", r"separated by '\t', expected ','", "rename the file to end in .tsv"),
        ("a.tsv", "prompt,chosen\np,a\n", r"separated by ',', expected '\t'", "rename the file to end in .csv"),
    ],
)
def test_a_header_that_is_none_is_named(tmp_path: Path, name: str, text: str, what: str, fix: str) -> None:
    error = error_of(write(tmp_path / name, text))
    assert error.where == f"{tmp_path / name}:1"
    assert what in error.what
    assert fix in error.fix


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.csv.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path: Path, name: str, mark: str, encoding: str) -> None:
    path = write(tmp_path / name, (mark + "prompt,completion\np,a\n").encode(encoding))
    error = error_of(path)
    assert (error.what, error.where) == ("the file is UTF-16, expected UTF-8", str(path))
    assert f"iconv -f {encoding.upper().replace('-LE', 'LE').replace('-BE', 'BE')} -t UTF-8 {path}" in error.fix


def test_spaces_around_a_name_and_columns_without_one(tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.csv", ",prompt , chosen,\n0,p,a,\n")) == [{"prompt": "p", "chosen": "a"}]
    assert values(write(tmp_path / "b.csv", "prompt\np\n")) == [{"prompt": "p"}]


def test_a_csv_cell_holds_messages_but_a_text_stays_a_text(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi?"}]
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "completion", "ranks"], [json.dumps(chat), "[1, 2]", ""]])
    assert values(path) == [{"prompt": chat, "completion": "[1, 2]", "ranks": None}]


def test_parquet_and_arrow(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{**row, "day": date(2024, 2, 29)} for row in ROWS])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    expected = [{**row, "day": "2024-02-29"} for row in ROWS]
    assert values(tmp_path / "a.parquet") == expected
    places = [row.where for row in local_rows(tmp_path / "a.parquet", "")]
    assert places == [f"{tmp_path / 'a.parquet'}, row {number}" for number in (1, 2)]
    assert values(tmp_path / "a.arrow") == expected


def test_rows_say_where_they_are(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", "\n" + LINES.replace("\n", "\n\n"))
    assert [row.where for row in local_rows(lines, "")] == [f"{lines}:2", f"{lines}:4"]
    table = write_csv(tmp_path / "a.csv", ",")
    assert [row.where for row in local_rows(table, "")] == [f"{table}:2", f"{table}:4"]
    array = write(tmp_path / "a.json", json.dumps(ROWS))
    assert [row.where for row in local_rows(array, "")] == [f"{array}, row 1", f"{array}, row 2"]


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    assert values(write(tmp_path / "a.jsonl", mark + LINES.encode())) == ROWS
    assert values(write(tmp_path / "a.csv", mark + b"prompt\np\n")) == [{"prompt": "p"}]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "a"', "broken JSON: Expecting ',' delimiter at column 15"),
        (b'{"prompt": "\xff"}', "not UTF-8 (byte 13 of the line)"),
        ('["a"]', "a row is a list, expected an object with the columns as keys"),
        ("null", "a row is null, expected an object with the columns as keys"),
    ],
)
def test_broken_lines_are_told_apart(tmp_path: Path, line: str | bytes, problem: str) -> None:
    data = line.encode() if isinstance(line, str) else line
    path = write(tmp_path / "a.jsonl", LINES.encode() + data + b"\n" + LINES.encode())
    rows = list(local_rows(path, ""))
    assert rows[2] == Row(f"{path}:3", problem=problem)
    assert [row.values for row in rows[3:]] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "place", "what"),
    [
        ("a.json", b'[{"prompt": "a"},\n{"prompt" "b"}]', ":2", "broken JSON: Expecting ':' delimiter at column 11"),
        ("a.json", b'[{"prompt":\n "\xff"}]', ":2", "not UTF-8"),
        ("a.json", b"3", "", "the file holds a number"),
        ("a.csv", b"prompt,x\na,b\n\xff,c\n", ":3", "not UTF-8"),
        ("a.csv", b'prompt\n"a"b"\n', ":2", "broken CSV"),
        ("a.jsonl.gz", b"no gzip", "", "the compressed file is broken"),
        ("a.jsonl.gz", gzip.compress(LINES.encode() * 100)[:-20], "", "the compressed file is broken"),
        ("a.parquet", b"no parquet", "", "broken file"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, place: str, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = error_of(path)
    assert error.where == f"{path}{place}"
    assert error.what.startswith(what)
    assert error.fix


def test_csv_rows_of_another_length(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'prompt,ranks\na,"[1"\nb\nc,[2]\n')
    assert [row.problem for row in local_rows(path, "")] == [
        "ranks is broken JSON: Expecting ',' delimiter at column 3",
        "1 cells under a header of 2",
        "",
    ]


@pytest.mark.parametrize("end", ["", "\n", "\n\n\r\n"])
def test_empty_last_lines_of_a_csv_file_are_none(end: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"prompt,ranks\nc,[2]{end}")
    assert [(row.problem, row.values) for row in local_rows(path, "")] == [("", {"prompt": "c", "ranks": [2]})]


class TestPathsAndSplits:
    def test_a_missing_file_names_its_neighbour(self, tmp_path: Path) -> None:
        write(tmp_path / "pairs.jsonl", LINES)
        error = error_of(tmp_path / "pair.jsonl")
        assert (error.where, error.what) == ("path", f"no such file: {tmp_path / 'pair.jsonl'}")
        assert error.fix == f"in {tmp_path}: did you mean 'pairs.jsonl'?"
        assert error_of(tmp_path / "none" / "a.jsonl").fix == "check the path"

    def test_an_unknown_format(self, tmp_path: Path) -> None:
        error = error_of(write(tmp_path / "a.xlsx", "x"))
        assert (error.where, error.what) == ("path", "unknown format: a.xlsx")
        assert ".jsonl" in error.fix

    def test_a_single_file_is_the_split_of_its_name_and_train(self, tmp_path: Path) -> None:
        path = write(tmp_path / "dev.jsonl", LINES)
        assert values(path, "train") == values(path, "dev") == ROWS
        error = error_of(path, "test")
        assert (error.where, error.what) == ("split", f"there is no split 'test': {path} is a single file")

    def test_a_folder_has_a_split_for_each_name(self, tmp_path: Path) -> None:
        write(tmp_path / "train-00001-of-00002.jsonl", json.dumps(ROWS[1]))
        write(tmp_path / "train-00000-of-00002.jsonl", json.dumps(ROWS[0]))
        write(tmp_path / "test.csv", "prompt\np\n")
        write(tmp_path / "dataset_info.json", "{}")
        write(tmp_path / "README.md", "text")
        assert values(tmp_path) == values(tmp_path, "train") == ROWS
        assert values(tmp_path, "test") == [{"prompt": "p"}]
        error = error_of(tmp_path, "validation")
        assert (error.where, error.fix) == ("split", "splits: test, train")

    def test_a_hub_checkout_keeps_its_files_in_data(self, tmp_path: Path) -> None:
        write(tmp_path / "data" / "only.jsonl", LINES)
        assert values(tmp_path) == ROWS

    def test_several_splits_without_train_want_a_choice(self, tmp_path: Path) -> None:
        write(tmp_path / "a.jsonl", LINES)
        write(tmp_path / "test.jsonl", LINES)
        error = error_of(tmp_path)
        assert (error.where, error.fix) == ("split", "choose one: a, test")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        error = error_of(tmp_path)
        assert (error.where, error.what) == ("path", f"{tmp_path} holds no data files")

    def test_what_datasets_saves(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        parts = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
        assert values(tmp_path / "both") == ROWS
        assert values(tmp_path / "both", "test") == ROWS[:1]
        assert error_of(tmp_path / "both", "dev").fix == "splits: test, train"
        parts["train"].save_to_disk(tmp_path / "one")
        assert values(tmp_path / "one") == ROWS


class TestHub:
    @pytest.fixture
    def package(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
        """A fake `datasets` with one data set of two splits; tests can't reach the hub itself."""

        def names(path: str, subset: str | None) -> list[str]:
            if path != "people/pairs":
                raise FileNotFoundError(f"{path} doesn't exist\nmore text")
            return ["train", "test"] if subset is None else ["dev"]

        def load(path: str, subset: str | None, *, split: str) -> list[dict[str, Any]]:
            return [{"prompt": f"{subset} {split}", "day": date(2024, 2, 29)}]

        config = SimpleNamespace(HF_ENDPOINT="http://127.0.0.1:9", HF_DATASETS_CACHE=str(tmp_path))
        package = SimpleNamespace(get_dataset_split_names=names, load_dataset=load, config=config)
        monkeypatch.setitem(sys.modules, "datasets", package)
        monkeypatch.setattr(hub, "getproxies", dict)
        return package

    @pytest.fixture
    def reachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub, "getproxies", lambda: {"https": "a proxy"})

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("people/pairs", True),
            ("pairs", True),
            ("a/b/c", False),
            ("pairs.jsonl", False),
            ("/a", False),
            ("..", False),
        ],
    )
    def test_names(self, path: str, expected: bool) -> None:
        assert hub.is_hub_id(path) is expected

    @pytest.mark.parametrize(
        ("subset", "split", "prompt"), [("", "", "None train"), ("", "test", "None test"), ("x", "", "x dev")]
    )
    def test_rows(self, package: Any, reachable: None, subset: str, split: str, prompt: str) -> None:
        rows = list(hub.hub_rows("people/pairs", subset, split))
        assert rows == [Row(f"people/pairs ({prompt.split()[1]}), row 1", {"prompt": prompt, "day": "2024-02-29"})]

    def test_a_wrong_split_lists_the_others(self, package: Any, reachable: None) -> None:
        with pytest.raises(InputError, match="people/pairs has no split 'dev'\n  fix: splits: test, train"):
            list(hub.hub_rows("people/pairs", "", "dev"))

    def test_a_data_set_that_is_not_there(self, package: Any, reachable: None) -> None:
        with pytest.raises(InputError) as error:
            list(hub.hub_rows("people/pears", "", ""))
        assert error.value.where == "path"
        assert error.value.what.endswith("loading it from the hub failed: people/pears doesn't exist")
        assert "a local JSONL, JSON, CSV or Parquet file" in error.value.fix

    def test_without_a_network_only_cached_data_sets_are_asked_for(self, package: Any, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="can't be reached, and no copy is cached"):
            list(hub.hub_rows("people/pairs", "", ""))
        (tmp_path / "people___pairs").mkdir()
        assert len(list(hub.hub_rows("people/pairs", "", ""))) == 1

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(
            InputError, match=r"needs the package 'datasets'\n  fix: pip install 'alignkit-data\[hub\]'"
        ):
            list(hub.hub_rows("people/pairs", "", ""))
