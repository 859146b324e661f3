"""Every command and snippet of the docs is run by a test, or says above why not: `<!-- not run: reason -->`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import test_examples_audit
import test_examples_label
import test_python_docs
from test_docs import ALL_PAGES, ROOT, WRITTEN, code_blocks
from test_tutorial import DOCS, GUIDES, TRANSLATED, TUTORIAL

PAGES = [*ALL_PAGES, ROOT / "examples/hardware/README.md"]
DATA = ROOT / "plugins/alignkit-data/README.md"
TRANSLATIONS = {other: page for page, other in TRANSLATED}
TYPED = {TUTORIAL, *(DOCS / "how-to" / f"{name}.md" for name in GUIDES)}
"""Pages that test_tutorial.py types from the first block to the last. Its blocks of Python are files, named in their
first lines."""
RUN = {ROOT / "README.md", DATA, test_python_docs.PAGE, test_examples_audit.PAGE, test_examples_label.PAGE, *TYPED}
"""Pages whose blocks a test runs; a translation has the blocks of its original."""
RESOLVED = {path for path in PAGES if path.parent.parent.name == "plugins"}
"""Pages whose commands test_readme.py resolves against the recipe of the demo."""
BLOCK = re.compile(r"^(?:<!-- ([^\n]*) -->\n+)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?(?:alignkit|make|pip|python|torchrun|accelerate) \w", re.MULTILINE)
RUNNABLE = ("console", "sh", "bash", "python")
CHECKED = ("toml", "json", "yaml", "text")
"""Files and outputs: test_docs.py reads those that are alignkit's."""


@dataclass(frozen=True)
class Block:
    """A fenced block, with the comment above it."""

    comment: str
    language: str
    text: str

    @property
    def reason(self) -> str:
        """Why it is not run; empty if it should be."""
        return self.comment.partition("not run: ")[2]


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(text)]


def faults(page: Path) -> list[str]:
    """Blocks that nothing runs and that don't say why."""
    text, page = page.read_text(encoding="utf-8"), TRANSLATIONS.get(page, page)
    found = []
    for block in blocks(text):
        first = block.text.partition("\n")[0]
        excused = block.reason or block.comment.startswith("from: ")
        if block.language in RUNNABLE and not excused:
            resolved = page in RESOLVED and block.language == "console"
            nameless = page in TYPED and block.language == "python" and not re.fullmatch(r"# \w+\.py", first)
            found += [] if (page in RUN or resolved) and not nameless else [f"nothing runs: {first}"]
        elif block.language not in (*RUNNABLE, *CHECKED, ""):
            found.append(f"```{block.language} is unknown: {first}")
        elif block.language in ("text", "") and COMMAND.search(block.text):
            found.append(f"a command in a block without a language: {first}")
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return found + [f"not in a block: {line}" for line in re.findall(r"^    (?:alignkit|make|pip) .*$", outside, re.M)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    if not page.read_text(encoding="utf-8").startswith(WRITTEN):
        assert faults(page) == []


def test_what_is_run_is_there() -> None:
    assert all(page.exists() for page in RUN)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```console\nalignkit run a.toml\n```", "nothing runs: alignkit run a.toml"),
        ("<!-- not run: needs a GPU -->\n```console\nalignkit run a.toml\n```", ""),
        ("<!-- not run: -->\n```console\nls\n```", "nothing runs: ls"),
        ("<!-- from: a.py -->\n```python\na = 1\n```", ""),
        ("```python\na = 1\n```", "nothing runs: a = 1"),
        ("```text\nmake demo\n```", "a command in a block without a language: make demo"),
        ("```\na table\n```", ""),
        ("A\n\n    make demo\n", "not in a block:     make demo"),
        ("```fish\nls\n```", "```fish is unknown: ls"),
    ],
)
def test_a_block_that_nothing_runs_is_found(tmp_path: Path, text: str, fault: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text + "\n", encoding="utf-8")
    assert faults(page) == ([fault] if fault else [])


def test_the_snippet_of_the_data_package_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"question": "How are you?", "chosen": "Well.", "rejected": "No."}
    Path("pairs.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (block,) = code_blocks(DATA, "python")
    exec(compile(block, DATA.name, "exec"), {})
    assert "How are you?" in capsys.readouterr().out
    assert Path("pairs.parquet").stat().st_size > 0
