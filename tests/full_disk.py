"""What is said and kept on a disk that is really full: `python -m tests.full_disk DISK GOOD`, where DISK is a tmpfs of
one MiB and GOOD a folder with room. Prints one JSON object; tests/test_full_disk.py looks at it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit_report import write_page

import alignkit
from alignkit import AlignkitError, Group, Prompt, TrainingOptions, cli
from alignkit.interfaces import Feed, Optimizer
from alignkit.runs.algorithm import save_trained
from alignkit.runs.rundir import MetricsFile, RunDir
from alignkit.testing import TinyPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from alignkit.batch import GroupBatch

GROUPS = [Group(Prompt(text=f"ask {number}"), ("yes", "no" * 40)) for number in range(40)]
RECORD = {"step": 7, **{f"figure {number}": number / 7 for number in range(400)}}


class Likelihood(Optimizer[TrainingOptions]):
    """Maximum likelihood; before its third loss it fills a disk."""

    consumes = Feed.DEMONSTRATIONS
    disk: Path | None = None
    seen = 0

    def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.seen += 1
        if self.disk and self.seen == 3:
            fill(self.disk, leave=8192)
        return -batch.token_mean(self.policy.forward(batch).logprobs), {}


def fill(disk: Path, leave: int = 0) -> None:
    """Leaves so many bytes free."""
    (disk / "filler").write_bytes(bytes(max(0, shutil.disk_usage(disk).free - leave)))


def message(deed: Callable[[], Any], disk: Path, leave: int = 0) -> str:
    """What is said of a deed on the disk with so many bytes free, and then with room."""
    fill(disk, leave)
    try:
        deed()
        said = "done"
    except AlignkitError as error:
        said = str(error)
    (disk / "filler").unlink()
    return said


def training(disk: Path, good: Path) -> dict[str, Any]:
    """A run whose third checkpoint finds no room, what is left of it, and whether it goes on to the same weights."""

    def train(folder: Path, *, resume: bool = False, fails: bool = False) -> bytes:
        policy = TinyPolicy()
        algorithm = Likelihood(TrainingOptions(minibatch_size=10, n_epochs=2, save_every=1), policy=policy)
        algorithm.disk = disk if fails else None
        alignkit.train(algorithm, GROUPS, out=folder, resume=resume, progress=False)
        return next(folder.glob("*.safetensors")).read_bytes()

    said = message(lambda: train(disk / "run", fails=True), disk, leave=1 << 20)
    left = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
    return {"checkpoint": said, "left": left, "equal": train(disk / "run", resume=True) == train(good / "whole")}


def files(disk: Path) -> dict[str, str]:
    """Every file of a run, of reports and of commands that write one."""
    template = disk / "page.html"
    template.write_text("{{ text }}")
    metrics = MetricsFile(disk / "metrics.jsonl")
    for step in (1, 2):
        metrics.write("policy", {"step": step})

    def run_directory() -> None:
        RunDir(disk / "new", recipe="#" * 5000, digest="", resume=False, overwrite=False, force=False).__exit__()

    deeds = {
        "groups": lambda: alignkit.write_groups(disk / "groups.jsonl", GROUPS),
        "metrics": lambda: metrics.write("policy", RECORD),
        "page": lambda: write_page(disk / "report.html", template, text="é" * 5000),
        "recipe": run_directory,
    }
    said = {name: message(deed, disk, leave=4096 if name == "recipe" else 0) for name, deed in deeds.items()}
    metrics = MetricsFile(disk / "metrics.jsonl")
    metrics.write("policy", {"step": 8})
    return said | {"steps": (disk / "metrics.jsonl").read_text()}


def commands(disk: Path, good: Path) -> dict[str, Any]:
    """`alignkit score` and `alignkit label import`, as typed, with no room at all and with room for a few items."""
    alignkit.write_groups(good / "groups.jsonl", GROUPS)
    score = ["score", str(good / "groups.jsonl"), "--reward", "rules", "-o", "reward.length.maximum=3", "--quiet"]
    found: dict[str, Any] = {}
    label = ["label", "import", str(good / "groups.jsonl"), "--db", str(disk / "labels.db")]
    for name, words, leave in (
        ("score", [*score, "--out", str(disk / "scored.jsonl")], 0),
        ("label", label, 0),
        ("label, some room", label, 160_000),
    ):
        fill(disk, leave)
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            found[name] = [cli.run(words), errors.getvalue()]
        (disk / "filler").unlink()
    with contextlib.redirect_stdout(io.StringIO()):
        return found | {"label, room": [cli.run(label), ""]}


def models(disk: Path, good: Path) -> dict[str, Any]:
    """Final models: of a tiny policy, and of transformers."""
    from alignkit.testing.tiny_hf import write_tiny_llama

    policy = alignkit.build_component("policy", {"plugin": "hf", "model": str(write_tiny_llama(good / "llama"))})
    made = {"tiny": TinyPolicy(), "hf": policy}
    return {
        name: message(lambda made=made: save_trained(Likelihood(policy=made), disk / "policy"), disk, leave=8192)  # type: ignore[misc]
        for name, made in made.items()
    }


def main() -> None:
    disk, good = map(Path, sys.argv[1:])
    os.chdir(good)
    found = {"training": training(disk, good), "files": files(disk), "commands": commands(disk, good)}
    print(json.dumps(found | {"models": models(disk, good)}))


if __name__ == "__main__":
    main()
