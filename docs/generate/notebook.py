"""Makes docs/tutorial/first-hour.ipynb of first-hour.md, and executes it in an empty folder: `make notebook`.

Text stays text. A `python` block whose first line names a file is written to it, a `console` block is typed. A block
behind `<!-- not run: reason -->` stays text, too.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TUTORIAL = Path(__file__).resolve().parents[1] / "tutorial"
PAGE, NOTEBOOK = TUTORIAL / "first-hour.md", TUTORIAL / "first-hour.ipynb"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"# (\w+\.py)\n")
TYPED = "%%bash -e\n"
"""The first line of a cell with commands: the first that fails ends it."""
LONGEST = 40
"""Lines of an output that are kept, from its end."""


def cells_of(page: str) -> list[tuple[str, str]]:
    """(kind, source) of each cell: "markdown" or "code"."""
    found, text, position = [], "", 0
    for block in BLOCK.finditer(page):
        text += page[position : block.start()]
        position = block.end()
        source = _source(block[1], block[2])
        if not source or text.rstrip().endswith("-->"):
            text += block[0]
            continue
        found += [("markdown", text.strip()), ("code", source)]
        text = ""
    found.append(("markdown", (text + page[position:]).strip()))
    return [(kind, source) for kind, source in found if source]


def _source(language: str, code: str) -> str:
    if language == "console":
        return f"{TYPED}{code.rstrip()}"
    named = NAMED.match(code) if language == "python" else None
    return f"%%writefile {named[1]}\n{code[named.end() :].rstrip()}" if named else ""


def notebook_of(cells: list[tuple[str, str]]) -> Any:
    """A notebook of these cells, with ids that follow from their places."""
    import nbformat

    new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    made = [new[kind](source, id=f"cell-{number}") for number, (kind, source) in enumerate(cells)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel})


def executed(notebook: Any, folder: Path) -> Any:
    """The notebook with the outputs of its cells, short ones.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails, or a command in it does.
    """
    from nbclient import NotebookClient

    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=3600, coalesce_streams=True, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [_short(output) for output in cell.outputs]
    notebook.metadata.pop("language_info", None)
    return notebook


def with_outputs(notebook: Any, executed: Any) -> Any:
    """The notebook with the outputs of an executed one.

    Raises:
        SystemExit: another cell would have to be executed.
    """
    outputs = {cell.source: cell for cell in executed.cells if cell.cell_type == "code"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if cell.source not in outputs:
                sys.exit(f"has not been executed:\n{cell.source}")
            cell.outputs, cell.execution_count = outputs[cell.source].outputs, outputs[cell.source].execution_count
    return notebook


def _short(output: Any) -> Any:
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.get("text", "")).replace("\r", "").splitlines()
    if len(lines) > LONGEST:
        lines = ["...", *lines[-LONGEST:]]
    output["text"] = "\n".join(line.rstrip() for line in lines) + "\n"
    return output


def main() -> None:
    """Writes the notebook."""
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=NOTEBOOK, help="where to write it")
    parser.add_argument("--demo", type=Path, help="folder of a finished demo, instead of making one")
    parser.add_argument("--replace", action="append", default=[], metavar="OLD=>NEW", help="change commands")
    parser.add_argument("--text", action="store_true", help="take new text, and keep the outputs of the same cells")
    given = parser.parse_args()
    cells = cells_of(PAGE.read_text(encoding="utf-8"))
    if given.text:
        nbformat.write(with_outputs(notebook_of(cells), nbformat.read(NOTEBOOK, 4)), given.out)
        return
    for change in given.replace:
        old, new = change.split("=>")
        cells = [(kind, source.replace(old, new) if kind == "code" else source) for kind, source in cells]
    with TemporaryDirectory() as folder:
        if given.demo:
            (Path(folder) / "demo").symlink_to(given.demo.resolve())
            cells = [cell for cell in cells if not cell[1].startswith(f"{TYPED}alignkit demo")]
        nbformat.write(executed(notebook_of(cells), Path(folder)), given.out)


if __name__ == "__main__":
    main()
