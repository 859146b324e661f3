"""`alignkit watch`: a run while it runs, from any terminal that sees its folder. It only reads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

OneRun = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, of a run that goes on or has ended.")]
Every = Annotated[float, typer.Option("--every", metavar="SECONDS", min=0.2, help="Time between two looks.")]
Once = Annotated[bool, typer.Option("--once", help="Print the present state and stop, as without a terminal.")]


def watch(run: OneRun, every: Every = 2.0, once: Once = False) -> None:
    """Follow a run: its progress, curves, alarms and samples. Ctrl-C stops watching, not the run.

    Examples:
        alignkit watch runs/ppo
    """
    from rich.console import Console
    from rich.live import Live

    from alignkit import Run
    from alignkit_report.run_view import view

    opened, console = Run.open(run), Console(highlight=False)
    if once or not console.is_terminal:
        console.print(view(opened, time.time()))
        return
    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                live.update(view(opened, time.time()), refresh=True)
                time.sleep(every)
    except KeyboardInterrupt:
        pass
