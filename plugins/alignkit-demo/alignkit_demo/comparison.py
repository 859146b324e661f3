"""Algorithms side by side: same SFT policy, reward model and rankings, same number of prompts.

Each runs as `alignkit run comparison.toml --optimizer NAME` in its own process, to measure peak memory.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from alignkit import InputError, closest
from alignkit_demo.demo import COMPARISON

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit.commands import Reporter

RESULTS = "comparison.json"


@dataclass(frozen=True)
class Row:
    """The result of one algorithm.

    Attributes:
        gold, reward: mean true and learned reward over replies to the prompts of the evaluation.
        kl: to the SFT policy, in nats per reply. win_rate: against the SFT policy by gold; a tie counts one half.
        seconds: of the algorithm's own stage. memory: peak of the whole process, in MiB.
    """

    algorithm: str
    gold: float
    reward: float
    kl: float
    win_rate: float
    seconds: float
    memory: int


def algorithms(folder: Path) -> list[str]:
    """The algorithms with settings in the folder's comparison.toml, in its order."""
    tables = tomllib.loads((folder / COMPARISON).read_text(encoding="utf-8"))
    return list(tables["optimizer"]["for"])


def compare(folder: Path, names: Sequence[str], *, reporter: Reporter, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Runs algorithms in a demo's folder; writes and returns comparison.json.

    Keeps the rows of other algorithms from earlier calls.

    Args:
        names: some of `algorithms`; empty means all. overrides: `-o` of every run.

    Raises:
        InputError: an algorithm has no settings.
    """
    known = algorithms(folder)
    for name in names:
        if name not in known:
            raise InputError(f"{name!r} has no settings in {COMPARISON}", where="--compare", fix=closest(name, known))
    path = folder / RESULTS
    rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
    rows["sft"] = asdict(_start(folder))
    for number, name in enumerate(names or known, start=1):
        reporter.note(f"{name}: {number} of {len(names or known)}")
        rows[name] = asdict(_run(folder, name, overrides))
        found = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), **_machine(), "rows": rows}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _start(folder: Path) -> Row:
    return _row("sft", _stages(folder / "ppo")["eval"]["start"], {"value": 0.5}, 0.0, 0)


def _run(folder: Path, name: str, overrides: Sequence[str]) -> Row:
    out = folder / "comparison" / name
    options = [word for override in overrides for word in ("-o", override)]
    words = [sys.executable, "-m", "alignkit", "run", str(folder / COMPARISON), "--optimizer", name, *options]
    with tempfile.TemporaryFile() as errors:
        words += ["--out", str(out), "--overwrite", "--quiet"]
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            raise RuntimeError(f"{name} failed: {errors.read().decode(errors='replace')[-2000:]}")
    stages = _stages(out)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    evaluation = stages["eval"]
    seconds = stages["align"]["seconds"]
    return _row(name, evaluation["policy"], evaluation["win_rate/gold"], seconds, round(usage.ru_maxrss / unit))


def _row(name: str, samples: Mapping[str, Any], win_rate: Mapping[str, float], seconds: float, memory: int) -> Row:
    gold, reward, kl = (samples[figure]["value"] for figure in ("gold", "reward", "kl"))
    return Row(name, gold, reward, kl, win_rate["value"], round(seconds, 1), memory)


def _stages(run: Path) -> dict[str, Any]:
    stages: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]
    return stages


def _machine() -> dict[str, Any]:
    import torch

    return {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
