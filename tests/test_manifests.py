"""A checkpoint whose manifest has another form than its writer gives it does not exist; nothing about it crashes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from alignkit.errors import CheckpointError
from alignkit.training.checkpoint import newest_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def saved(folder: Path, step: int) -> Path:
    return save_checkpoint(folder, step, tensors={"modules": {"w": torch.ones(3)}}, state={"step": step}, keep=9)


FORMS: dict[str, tuple[str, str]] = {
    "no file": ('{"step": 2, "files": {}}', "does not list state.json"),
    "files is a list": ('{"files": ["state.json"]}', "is broken"),
    "files is null": ('{"files": null}', "is broken"),
    "files is a text": ('{"files": "state.json"}', "is broken"),
    "no files": ('{"step": 2}', "is broken"),
    "entries are numbers": ('{"files": {"state.json": 3}}', "is broken"),
    "entries lack a digest": ('{"files": {"state.json": {"size": 3}}}', "is broken"),
    "a list": ("[]", "is broken"),
    "a number": ("3", "is broken"),
    "null": ("null", "is broken"),
    "empty": ("", "is broken"),
    "cut off": ('{"step": 2, "files": {"state', "is broken"),
    "nested deeply": ("[" * 100_000, "is broken"),
    "thousands of digits": ('{"files": ' + "9" * 5000 + "}", "is broken"),
    "a path out of the folder": (
        '{"files": {"../step-00000001/state.json": {"size": 11, "sha256": ""}}}',
        "does not list state.json",
    ),
}


@pytest.mark.parametrize(("content", "reason"), FORMS.values(), ids=FORMS)
def test_another_form_is_skipped_with_its_reason(tmp_path: Path, content: str, reason: str) -> None:
    older, newer = saved(tmp_path, 1), saved(tmp_path, 2)
    (newer / "manifest.json").write_text(content)
    chosen, problems = newest_checkpoint(tmp_path)
    assert chosen == older
    assert len(problems) == 1
    assert problems[0].startswith("step-00000002")
    assert reason in problems[0]


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(files: dict[str, Any]) -> None:
        del files[name]

    return change


def _set(name: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(files: dict[str, Any]) -> None:
        files.setdefault(name, {"size": 1, "sha256": ""})[key] = value

    return change


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "tensors not listed": (_without("modules.pt"), "step-00000002/modules.pt: not in manifest.json"),
    "state not listed": (_without("state.json"), "does not list state.json"),
    "size is a text": (_set("state.json", "size", "11"), "state.json: 11 bytes instead of 11"),
    "size is null": (_set("state.json", "size", None), "state.json: 11 bytes instead of None"),
    "size is infinite": (_set("state.json", "size", float("inf")), "state.json: 11 bytes instead of inf"),
    "digest is a list": (_set("state.json", "sha256", []), "state.json: its content changed"),
    "a file that is not there": (_set("x" * 300, "size", 1), "missing"),
    "a name that no file has": (_set("a\x00b", "size", 1), "missing"),
    "another folder's file": (_set("../step-00000001/state.json", "size", 11), "missing"),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
def test_a_changed_entry_is_skipped_with_its_reason(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    older, newer = saved(tmp_path, 1), saved(tmp_path, 2)
    manifest = json.loads((newer / "manifest.json").read_text())
    change(manifest["files"])
    (newer / "manifest.json").write_text(json.dumps(manifest))
    chosen, problems = newest_checkpoint(tmp_path)
    assert chosen == older
    assert reason in problems[0]


def test_bytes_that_are_no_text_and_a_folder_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "step-00000004").write_text("a file")
    older, second, third = (saved(tmp_path, step) for step in (1, 2, 3))
    (second / "manifest.json").write_bytes(b"\xff\xfe")
    (third / "manifest.json").unlink()
    (third / "manifest.json").mkdir()
    chosen, problems = newest_checkpoint(tmp_path)
    assert chosen == older
    assert [problem.partition(":")[0] for problem in problems] == ["step-00000003", "step-00000002"]


def test_a_file_beside_those_listed_changes_nothing(tmp_path: Path) -> None:
    only = saved(tmp_path, 1)
    (only / "notes.txt").write_text("mine")
    assert newest_checkpoint(tmp_path) == (only, [])


def test_alone_it_is_an_error_that_says_so(tmp_path: Path) -> None:
    (saved(tmp_path, 1) / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(CheckpointError, match=r"no checkpoint verifies:\n  step-00000001.*does not list state\.json"):
        newest_checkpoint(tmp_path)
