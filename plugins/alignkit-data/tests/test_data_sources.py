"""The sources `dataset` and `function` as a run uses them: order, limits, counts, early checks."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_data import Dataset, DatasetOptions, FunctionOptions, FunctionSource
from alignkit_data.options import CHECKED_ROWS

from alignkit import plugins
from alignkit.errors import InputError, PluginError
from alignkit.records import Group, Prompt, read_groups, write_groups
from alignkit.testing import PreferenceSourceContract

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from alignkit.interfaces import Ask


def pair(number: int) -> dict[str, Any]:
    return {"prompt": f"p{number}", "chosen": f"a{number}", "rejected": "b", "number": number}


SAME = {"prompt": "p", "chosen": "a", "rejected": "a"}
NULL = {"prompt": "p", "chosen": None, "rejected": "a"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pairs.jsonl"


def write(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def dataset(path: Path, **options: Any) -> Dataset:
    return Dataset(DatasetOptions(path=str(path), **options))


def prompts(source: Dataset) -> list[str | None]:
    return [group.prompt.text for group in source.preferences()]


def refusal(path: Path, **options: Any) -> InputError:
    """The error that both the early check and the reading itself raise."""
    with pytest.raises(InputError) as early:
        DatasetOptions(path=str(path), **options).check()
    with pytest.raises(InputError) as late:
        dataset(path, **options).groups()
    assert str(early.value) == str(late.value)
    assert early.value.fix
    return early.value


class TestDataset:
    def test_order_limit_and_shuffle(self, path: Path) -> None:
        write(path, map(pair, range(20)))
        in_order = [f"p{number}" for number in range(20)]
        assert prompts(dataset(path)) == in_order
        assert prompts(dataset(path, limit=3)) == in_order[:3]
        shuffled = prompts(dataset(path, shuffle=1))
        assert shuffled != in_order
        assert sorted(shuffled, key=str) == sorted(in_order)
        assert prompts(dataset(path, shuffle=1)) == shuffled != prompts(dataset(path, shuffle=2))
        assert prompts(dataset(path, shuffle=1, limit=5)) == shuffled[:5]

    def test_groups_name_their_source_and_keep_other_columns(self, path: Path) -> None:
        write(path, [pair(3)])
        expected = Group(Prompt("p3", meta={"number": 3}), ("a3", "b"), ranks=(0, 1), source="pairs.jsonl")
        assert dataset(path).groups() == [expected]

    def test_what_is_written_is_read_again(self, path: Path, tmp_path: Path) -> None:
        write(path, map(pair, range(5)))
        groups = dataset(path).groups()
        write_groups(tmp_path / "groups.jsonl", groups)
        assert dataset(tmp_path / "groups.jsonl").groups() == groups == list(read_groups(tmp_path / "groups.jsonl"))

    def test_it_describes_what_it_found(self, path: Path) -> None:
        write(path, [SAME, pair(1), pair(2), {**pair(3), "rejected": ""}])
        found = dataset(path).describe()
        assert (found.form, found.columns, found.meta_columns) == (
            "preference", ("prompt", "chosen", "rejected"), ("number",),
        )  # fmt: skip
        assert (found.rows, dict(found.dropped)) == (4, {"chosen and rejected are the same": 1, "empty response": 1})
        assert found.sample == dataset(path).groups()[0]
        assert found.render().splitlines() == [
            "form: preference (prompt, chosen, rejected)",
            "rows: 2 of 4",
            "  dropped 1: chosen and rejected are the same",
            "  dropped 1: empty response",
            "kept for rewards: number",
            "prompt: p1",
            "response (rank 0): a1",
            "response (rank 1): b",
        ]

    def test_bad_rows_are_an_error_above_a_share(self, path: Path) -> None:
        write(path, [pair(1), pair(2), SAME, SAME])
        assert len(dataset(path).groups()) == 2
        error = refusal(path, max_bad_share=0.49)
        assert error.where == str(path)
        assert error.what == (
            f"2 of 4 rows can't be used: 2 chosen and rejected are the same (the first at {path}:3)"
        )  # fmt: skip

    def test_no_usable_row_is_always_an_error(self, path: Path) -> None:
        write(path, [SAME])
        assert "1 of 1 rows can't be used" in refusal(path, max_bad_share=1.0).what

    @pytest.mark.parametrize("content", ["", "\n\n"])
    def test_an_empty_file(self, path: Path, content: str) -> None:
        path.write_text(content)
        error = refusal(path)
        assert (error.where, error.what) == (str(path), "the data set is empty")

    def test_a_missing_path_and_split(self, path: Path) -> None:
        assert refusal(path).where == "path"
        write(path, [pair(1)])
        assert refusal(path, split="test").where == "split"

    @pytest.mark.parametrize(("row", "what"), [(NULL, "chosen is null"), ("{", "broken JSON"), ("3", "a row is a num")])
    def test_malformed_rows_stop_or_are_dropped(self, path: Path, row: Any, what: str) -> None:
        write(path, [pair(1), pair(2), row, pair(4)])
        error = refusal(path)
        assert error.where == f"{path}:3"
        assert error.what.startswith(what)
        found = dataset(path, malformed="drop")
        assert prompts(found) == ["p1", "p2", "p4"]
        assert found.describe().dropped == {"malformed": 1}

    def test_rows_beyond_the_limit_are_not_read(self, path: Path) -> None:
        write(path, [pair(1), pair(2), NULL])
        DatasetOptions(path=str(path), limit=2).check()
        assert prompts(dataset(path, limit=2)) == ["p1", "p2"]

    def test_a_few_limited_rows_are_no_share(self, path: Path) -> None:
        write(path, [SAME, SAME, pair(1), pair(2)])
        assert prompts(dataset(path, limit=1, max_bad_share=0.5)) == ["p1"]
        write(path, [*[SAME] * 49, pair(1), pair(2)])
        assert "49 of 50 rows can't be used" in refusal(path, limit=1).what
        write(path, ({"prompt": "p", "completion": "a", "label": number == 9} for number in range(10)))
        assert len(dataset(path, limit=5).groups()) == 5

    def test_missing_columns(self, path: Path) -> None:
        write(path, [{"question": "p", "chosen": "a", "rejected": "b"}])
        assert dataset(path, columns={"question": "prompt"}, limit=1).describe().form == "preference"
        write(path, [{"question": "p", "answer": "a"}])
        assert "--columns question=prompt, --columns answer=completion" in refusal(path).fix
        assert refusal(path, columns={"qestion": "prompt"}).where == "columns"

    @pytest.mark.parametrize("label", [True, False])
    def test_labels_of_one_kind(self, path: Path, label: bool) -> None:
        row = {"prompt": "p", "completion": "a", "label": label}
        write(path, [row, row])
        assert refusal(path).what.startswith(f"every label is {str(label).lower()}")
        assert len(dataset(path, form="completion").groups()) == 2
        write(path, [row, {**row, "label": not label}])
        assert [group.labels for group in dataset(path).groups()] == [(label,), (not label,)]

    def test_a_large_file_is_checked_in_its_first_rows(self, path: Path) -> None:
        write(path, [*map(pair, range(CHECKED_ROWS)), NULL])
        DatasetOptions(path=str(path)).check()
        with pytest.raises(InputError, match=f"pairs.jsonl:{CHECKED_ROWS + 1}: chosen is null"):
            dataset(path).groups()
        write(path, [SAME] * (CHECKED_ROWS + 1))
        with pytest.raises(InputError, match=f"{CHECKED_ROWS} of {CHECKED_ROWS} rows can't be used"):
            DatasetOptions(path=str(path)).check()

    def test_the_check_imports_nothing_heavy(self, path: Path) -> None:
        write(path, [*map(pair, range(2000)), NULL])
        script = (
            "import sys\nfrom alignkit.errors import InputError\nfrom alignkit_data import DatasetOptions\n"
            f"try:\n    DatasetOptions(path={str(path)!r})\n"
            "except InputError as error:\n    print(error)\n"
            "print({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(
            f"DatasetOptions: {path}:2001: chosen is null, expected text or messages\n  fix: "
        )
        assert done.stdout.endswith("set()\n")


class OneSampler:
    prompts: Sequence[Prompt] = (Prompt("p1"), Prompt("p2"))

    def __call__(self, prompts: Sequence[Prompt], k: int) -> list[Group]:
        return [Group(prompt, tuple(f"r{index}" for index in range(k))) for prompt in prompts]


MODULE = """
from dataclasses import replace

def rank(ask, k=2):
    for group in ask(ask.prompts, k):
        yield replace(group, ranks=tuple(range(k)))

def rows(ask):
    return [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "a", "rejected": "a"}]

def nothing(ask):
    return []

def wrong(ask):
    yield {"prompt": "p", "chosen": "a", "rejected": "b"}
    yield "text"

def fails(ask):
    yield {"prompt": "p", "chosen": "a", "rejected": "b"}
    raise KeyError("label")

def null(ask):
    yield {"prompt": None}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"labels_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def from_function(function: str, ask: Ask | None = None, **options: Any) -> list[Group]:
    source = FunctionSource(FunctionOptions(function=function, **options))
    return list(source.preferences(ask or OneSampler()))


class TestFunction:
    def test_groups_pass_through(self, module: str) -> None:
        assert from_function(f"{module}:rank", args={"k": 3}) == [
            Group(Prompt(prompt), ("r0", "r1", "r2"), ranks=(0, 1, 2)) for prompt in ("p1", "p2")
        ]

    def test_rows_take_any_form(self, module: str) -> None:
        expected = Group(Prompt("p"), ("a", "b"), ranks=(0, 1), source=f"{module}:rows")
        assert from_function(f"{module}:rows") == [expected]
        with pytest.raises(InputError, match=f"{module}:rows: 1 of 2 rows can't be used"):
            from_function(f"{module}:rows", max_bad_share=0.4)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nothing", "{0}:nothing: the data set is empty"),
            ("wrong", "{0}:wrong, row 2: the function yielded text"),
            ("null", "{0}:null, row 1: prompt is null"),
        ],
    )
    def test_what_it_yields_wrongly_names_the_row(self, module: str, name: str, message: str) -> None:
        with pytest.raises(InputError, match=message.format(module)):
            from_function(f"{module}:{name}")

    def test_its_own_errors_name_it(self, module: str) -> None:
        with pytest.raises(PluginError, match=f"{module}:fails raised KeyError: 'label'"):
            from_function(f"{module}:fails")

    def test_the_check_imports_it(self, module: str) -> None:
        FunctionOptions(function=f"{module}:rank").check()
        with pytest.raises(InputError, match="did you mean 'rank'"):
            FunctionOptions(function=f"{module}:rnak").check()
        with pytest.raises(InputError, match=r"can't be called as f\(ask, of=...\): got an unexpected keyword"):
            FunctionOptions(function=f"{module}:rank", args={"of": 3}).check()

    def test_a_function_that_scores_is_sent_to_the_source_for_it(self) -> None:
        with pytest.raises(InputError, match=r"called as f\(ask\): missing a required argument: 'b'") as refused:
            FunctionOptions(function="operator:add").check()
        assert "-o preferences.source.function=operator:add;" in refused.value.fix


def test_both_are_registered() -> None:
    for name, component in (("dataset", Dataset), ("function", FunctionSource)):
        assert plugins.registry().load("preferences", name) is component


class TestDatasetContract(PreferenceSourceContract):
    component = Dataset

    @pytest.fixture(autouse=True)
    def _file(self, path: Path) -> None:
        write(path, map(pair, range(5)))
        type(self).options = {"path": str(path), "columns": {"number": "answer"}, "shuffle": 3}


class TestFunctionContract(PreferenceSourceContract):
    component = FunctionSource

    @pytest.fixture(autouse=True)
    def _module(self, module: str) -> None:
        type(self).options = {"function": f"{module}:rank", "args": {"k": 3}}
