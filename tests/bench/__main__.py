"""`make bench`: alignkit and TRL on two CPU cores, a JSON line for each workload.

    make bench ARGS="--only dpo,sft --steps 6"
    make bench ARGS="--resume figures.jsonl"

Nothing else may run meanwhile: threads that wait for each other spin, and a step takes 3 to 10 times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.bench import flops, ppo_peer, programs
from tests.bench.material import Material, make_material, open_material
from tests.bench.real import make_real_material
from tests.bench.shapes import SMALL
from tests.bench.turns import Program, take_turns
from tests.bench.workloads import WORKLOADS, Settings, Workload

HERE = Path(__file__).parent
DATA = HERE.parents[2] / "shared" / "data" / "hh_harmless_test_conv.jsonl.gz"


def main() -> None:
    """Runs what the arguments choose."""
    options = _arguments()
    done = _measured(options.resume)
    for name in options.only.split(",") if options.only else WORKLOADS:
        if name in done:
            print(done[name], flush=True)
            continue
        try:
            record = _compared(WORKLOADS[name], _material(WORKLOADS[name], options.data), options)
        except (RuntimeError, KeyError) as error:
            record = {"error": str(error)}
        line = json.dumps({"workload": name, **record})
        print(line, flush=True)
        if options.resume:
            with options.resume.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def _material(workload: Workload, data: Path) -> Path:
    """The folder with what a workload runs on, made where it is missing."""
    if workload.real:
        folder = HERE / ".cache" / "real"
        make_real_material(folder, data)
    else:
        folder = HERE / ".cache" / "small"
        make_material(SMALL, folder, data)
    return folder


def _measured(path: Path | None) -> dict[str, str]:
    """The lines of a file by workload, without those of workloads that failed."""
    lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
    records = {line: json.loads(line) for line in lines}
    return {record["workload"]: line for line, record in records.items() if "error" not in record}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--steps", type=int, default=6, help="timed steps after the warm-up")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--data", type=Path, default=DATA, help="HH harmless rows; random words where there is no file")
    parser.add_argument("--resume", type=Path, help="file that lines are added to; what it has is not measured again")
    parser.add_argument("--side", default="ours,peer", help="which programs; one alone gives no ratio")
    return parser.parse_args()


def _compared(workload: Workload, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both programs on one workload, step by step in turn."""
    settings = Settings(steps=options.steps * workload.steps_factor + 1, threads=options.threads)
    sides = options.side.split(",")
    running = [Program(_command(workload, side, folder, settings), folder / f"{side}.log") for side in sides]
    take_turns(running)
    figures = {side: program.figures() for side, program in zip(sides, running, strict=True)}
    return summary(workload, figures) | _counted(workload, open_material(folder), settings)


def _command(workload: Workload, side: str, folder: Path, settings: Settings) -> list[str]:
    python = ppo_peer.interpreter() if (workload.peer, side) == ("ppo", "peer") else sys.executable
    sizes = ["--steps", str(settings.steps), "--threads", str(settings.threads)]
    return [python, "-m", "tests.bench.child", workload.name, side, "--folder", str(folder), *sizes]


def summary(workload: Workload, figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The line of a workload: medians without the warm-up step, and how far the losses differ."""
    record: dict[str, Any] = {}
    if len(figures) == 2:
        ours, peer = figures["ours"], figures["peer"]
        record["ratio"] = round(_cost(workload, peer) / _cost(workload, ours), 2)
        record["memory_ratio"] = round(peer["peak_bytes"] / ours["peak_bytes"], 2)
        if workload.has_fixed_responses:
            record["max_loss_diff"] = _largest_difference(ours["losses"], peer["losses"])
            norms = [a / b for a, b in zip(ours["norms"], peer["norms"], strict=True)]
            record["max_norm_diff"] = _largest_difference(norms, [1.0] * len(norms))
    for side, own in figures.items():
        record[f"{side}_s"] = round(median(own["seconds"][1:]), 4)
        record[f"{side}_cpu_s"] = round(median(own["cpu_seconds"][1:]), 3)
        record[f"{side}_first_s"] = round(own["seconds"][0], 3)
        record[f"{side}_load_s"] = round(own["load_seconds"], 2)
        if side == "ours":
            record["ours_probe_s"] = round(own["probe_seconds"], 2)
        record[f"{side}_mib"] = round(own["peak_bytes"] / 2**20, 1)
        if own["tokens"]:
            record[f"{side}_sampled_tokens"] = round(median(own["tokens"][1:]))
        if workload.peer == "sampling":
            record[f"{side}_tokens_per_s"] = round(1 / _cost(workload, own), 1)
        if own["logprob_diff"] is not None:
            record["max_logprob_diff"] = float(f"{own['logprob_diff']:.2g}")
    return record


def _cost(workload: Workload, figures: dict[str, Any]) -> float:
    """Median seconds of a step after the warm-up; of sampling alone, for each token, since both sample their own."""
    seconds = figures["seconds"][1:]
    if workload.peer == "sampling":
        seconds = [second / count for second, count in zip(seconds, figures["tokens"][1:], strict=True)]
    return median(seconds)


def _largest_difference(ours: list[float], peer: list[float]) -> float:
    return float(f"{max(abs(a - b) for a, b in zip(ours, peer, strict=True)):.2g}")


def _counted(workload: Workload, material: Material, settings: Settings) -> dict[str, Any]:
    """Tokens and FLOPs of a step in the mean, in alignkit's layout and in rows without padding."""
    if not workload.has_fixed_responses:
        return {}
    steps = programs.step_lengths(workload, material, settings)[1:]
    groups = [group for step in steps for group in step]
    ours, rows = flops.packed(groups), programs.peer_work(workload, groups)
    counts = {"tokens": ours.tokens // len(steps), "peer_tokens": rows.tokens // len(steps)}
    if workload.real:
        return counts
    return {
        **counts,
        "gflop": round(flops.step_flops(workload, SMALL, ours, peer=False) / len(steps) / 1e9, 1),
        "peer_gflop": round(flops.step_flops(workload, SMALL, rows, peer=True) / len(steps) / 1e9, 1),
    }


if __name__ == "__main__":
    main()
