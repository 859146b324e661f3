"""Data can't move a terminal's cursor, recolour it or reorder what it shows, wherever they reach one, nor a page."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from alignkit_report.run_report import write_report

from alignkit import Group, InputError, Prompt, Run, StoppedByCheck, cli, visible, write_groups
from alignkit.commands import show
from alignkit.runs.reporting import BarReporter, JsonReporter, LineReporter

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = {
    "colour": ("\x1b[31mred", r"\x1b[31mred"),
    "title": ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    "CSI in one byte": ("\x9b2J", r"\x9b2J"),
    "OSC in one byte": ("\x9d0;x\x9c", r"\x9d0;x\x9c"),
    "carriage return": ("good\rbad", r"good\rbad"),
    "backspace": ("good\x08\x08\x08\x08bad", r"good\x08\x08\x08\x08bad"),
    "override": ("\u202egnp.exe", r"\u202egnp.exe"),
    "isolate": ("\u2066x\u2069", r"\u2066x\u2069"),
    "mark": ("\u200fx\u061c", r"\u200fx\u061c"),
    "line separator": ("a\u2028b", r"a\u2028b"),
    "NUL": ("a\x00b", r"a\x00b"),
    "half of a pair": ("\ud83d", r"\ud83d"),
}
ALL = "".join(hostile for hostile, _ in HOSTILE.values() if not hostile.startswith("\ud83d"))


@pytest.mark.parametrize(("hostile", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_control_characters_are_shown_as_escapes(hostile: str, shown: str) -> None:
    assert visible(f"before {hostile} after") == f"before {shown} after"


def test_ordinary_text_is_left_alone() -> None:
    text = "tab\tand\nnew line, café, שלום, مرحبا, 👩\u200d💻, \\x1b, é"
    assert visible(text) == text


@pytest.mark.parametrize("error", [InputError(ALL, where=ALL, fix=ALL), StoppedByCheck(ALL)])
def test_errors_are_shown_escaped(error: Exception) -> None:
    assert str(error) == visible(str(error))
    assert r"\x1b[31mred" in str(error)


def test_the_command_line_shows_errors_and_their_traces_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for traced in ("0", "1"):
        monkeypatch.setenv("ALIGNKIT_TRACEBACK", traced)
        assert cli.run(["run", "no\x1b[31m\u202e.toml"]) == 2
        said = capsys.readouterr().err
        assert r"no\x1b[31m\u202e.toml" in said
        assert said == visible(said)


def test_results_and_notes_are_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    show({ALL.replace("\n", ""): {"sample": ALL}}, as_json=False)
    stream = io.StringIO()
    LineReporter(stream).note(ALL)
    for said in (capsys.readouterr().out, stream.getvalue()):
        assert said == visible(said)
        assert r"\u202egnp.exe" in said


def test_the_bar_shows_notes_escaped() -> None:
    stream = io.StringIO()
    reporter = BarReporter(stream)
    reporter.start("sft", 3)
    reporter.note(ALL)
    reporter.close()
    assert r"\x9b2J" in stream.getvalue()
    assert not {"\x9b", "\u202e", "\x07"} & set(stream.getvalue())


def test_json_lines_escape_them_too() -> None:
    stream = io.StringIO()
    JsonReporter(stream).note(ALL)
    assert json.loads(stream.getvalue())["text"] == ALL
    assert stream.getvalue().isascii()
    assert "\x1b" not in stream.getvalue()


def test_a_page_shows_them_as_escapes(tmp_path: Path) -> None:
    samples = [Group(Prompt.of(f"<i>{ALL}"), (f"{name} {ALL}",), source=name) for name in ("start", "policy")]
    write_groups(tmp_path / "samples.jsonl", samples)
    (tmp_path / "recipe.toml").write_text('name = "\u202e"\n', encoding="utf-8")
    page = write_report(Run(tmp_path, stages={})).read_text(encoding="utf-8")
    assert page == visible(page)
    assert r"&lt;i&gt;\x1b[31mred" in page


def test_what_was_read_is_described_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = [{"annotator": "\x1b[2Janna", "ranks": [0, 1], "kind": "human"}]
    row = {"prompt": ALL, "responses": [f"a {ALL}", "b"], "ranks": [0, 1], "meta": {"annotations": annotations}}
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert cli.run(["preferences", "report", str(path)]) == 0
    said = capsys.readouterr().out
    assert said == visible(said)
    assert r"\x1b[2Janna" in said
    assert r"a \x1b[31mred" in said
