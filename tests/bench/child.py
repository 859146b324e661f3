"""One program on one workload: `python -m tests.bench.child WORKLOAD SIDE ...`, for `python -m tests.bench`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from tests.bench import programs
from tests.bench.clock import Clock, Turns
from tests.bench.material import open_material
from tests.bench.workloads import WORKLOADS, Settings


def main() -> None:
    """Runs the workload and prints its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("side", choices=("ours", "peer"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(steps=options.steps, threads=options.threads)
    with contextlib.redirect_stdout(sys.stderr):
        figures = programs.measure(
            options.side,
            WORKLOADS[options.workload],
            open_material(options.folder),
            settings,
            Clock(turns=Turns.from_environment()),
        )
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
