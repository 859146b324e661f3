"""What `alignkit --help` says of plugins' commands."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest

from alignkit.cli import app

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('def act() -> None:\n    """Act at once.\n\n    Slowly."""\n', "Act at once."),
        ('import typer\nact = typer.Typer(no_args_is_help=True, help="Act now.")\n', "Act now."),
        ("raise RuntimeError('imported')\n", "Acts."),
        ("act =", "Acts."),
    ],
)
def test_help_says_what_a_command_says_of_itself_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    (tmp_path / "acting.py").write_text(source)
    information = tmp_path / "acting-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: acting\nVersion: 1.0\nSummary: Acts.\n")
    (information / "entry_points.txt").write_text("[alignkit.commands]\nact = acting:act\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (point,) = [point for point in entry_points(group="alignkit.commands") if point.name == "act"]
    assert app._help_unloaded(point) == said
    assert "acting" not in sys.modules
