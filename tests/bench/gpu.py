"""`make bench-gpu`: alignkit and TRL on one CUDA device: Qwen2 shapes, random weights, bfloat16 over float32 weights.

Prints a JSON line for each workload, shape and program, and one that compares the two. A workload that fails prints an
error line, and the next one runs. `--device cpu --shapes tiny` goes the same way on any machine. PPO's peer needs
trl 1.12 to be what `import trl` finds; elsewhere that line is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from tests.bench import flops, programs
from tests.bench.clock import Clock
from tests.bench.material import Lengths, Material, generated
from tests.bench.shapes import BY_NAME, Shape
from tests.bench.workloads import WORKLOADS, Settings, Workload

if TYPE_CHECKING:
    from tests.bench.programs import Side

LENGTHS = (Lengths(256, 0.6, 32, 1024), Lengths(256, 0.6, 32, 768))
TINY_LENGTHS = (Lengths(24, 0.6, 4, 64), Lengths(12, 0.6, 2, 32))
SIZES = {
    "sft": {"groups": 24, "peer_rows_per_pass": 8},
    "dpo": {"groups": 16, "peer_rows_per_pass": 4},
    "reward-k4": {"groups": 8, "peer_rows_per_pass": 12},
    "grpo": {"groups": 8, "max_new": 128, "peer_rows_per_pass": 64},
    "ppo-n4": {"groups": 16, "max_new": 128, "peer_rows_per_pass": 16},
    "ppo-n4-shared": {"groups": 16, "max_new": 128, "peer_rows_per_pass": 16},
}
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100": 989.4, "H200": 989.4, "A100": 312.0}


def main() -> None:
    """Runs what the arguments choose."""
    options = _arguments()
    started = time.perf_counter()
    peak = _peak_flops(options.device)
    _print(device=_device_name(options.device), torch=torch.__version__, peak_tflops=peak and round(peak / 1e12, 1))
    with tempfile.TemporaryDirectory() as scratch:
        for shape_name in options.shapes.split(","):
            shape = BY_NAME[shape_name]
            made = time.perf_counter()
            material = _material(shape, Path(options.folder or scratch) / shape_name, options)
            _print(shape=shape_name, made_in_s=round(time.perf_counter() - made, 1))
            for name in options.only.split(","):
                if time.perf_counter() - started > options.budget:
                    _print(workload=name, shape=shape_name, skipped=f"the budget of {options.budget} s is used up")
                    continue
                _compare(name, shape_name, material, options, peak)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="sft,dpo,reward-k4,grpo,ppo-n4-shared", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--shapes", default="0.5B,1.5B", help=f"of {', '.join(BY_NAME)}")
    parser.add_argument("--side", default="ours,peer", help="which programs")
    parser.add_argument("--steps", type=int, default=4, help="timed steps after the warm-up")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--budget", type=float, default=420.0, help="seconds after which no workload is started")
    parser.add_argument("--folder", help="where models are kept between runs; a temporary folder without it")
    return parser.parse_args()


def _compare(name: str, shape_name: str, material: Material, options: argparse.Namespace, peak: float | None) -> None:
    """Both programs on one workload."""
    found: dict[str, dict[str, Any]] = {}
    for side in options.side.split(","):
        record = {"workload": name, "shape": shape_name, "side": side}
        try:
            figures = _measured(side, _workload(name, shape_name), material, options)
            record |= _summary(side, figures, material, BY_NAME[shape_name], options, peak)
            found[side] = figures
        except Exception as error:
            traceback.print_exc(limit=-3, file=sys.stderr)
            record["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        _print(**record)
        _clean_up(options.device)
    if len(found) == 2:
        ours, peer = found["ours"], found["peer"]
        seconds = [median(figures["seconds"][1:]) for figures in (ours, peer)]
        _print(
            workload=name,
            shape=shape_name,
            ratio=round(seconds[1] / seconds[0], 2),
            memory_ratio=round(peer["peak_bytes"] / max(1, ours["peak_bytes"]), 2),
            ours_s=round(seconds[0], 4),
            peer_s=round(seconds[1], 4),
            max_loss_diff=_difference(ours, peer),
        )


def _measured(side: Side, workload: Workload, material: Material, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a run; the peer's passes are halved while they don't fit the memory."""
    settings = Settings(steps=options.steps + 1, device=options.device, bf16=options.dtype == "bfloat16")
    while True:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                figures = programs.measure(side, workload, material, settings, Clock(device=options.device))
            return {**figures, "workload": workload, "settings": settings}
        except torch.OutOfMemoryError:
            smaller = (workload.peer_rows_per_pass or workload.peer_rows) // 2
            if side == "ours" or smaller < 1 or workload.peer_rows % smaller:
                raise
            workload = replace(workload, peer_rows_per_pass=smaller)
        _clean_up(options.device)


def _summary(
    side: Side,
    figures: dict[str, Any],
    material: Material,
    shape: Shape,
    options: argparse.Namespace,
    peak: float | None,
) -> dict[str, Any]:
    workload, settings = figures["workload"], figures["settings"]
    groups = programs.step_lengths(workload, material, settings)
    measured = [group for step in groups[1:] for group in step]
    rows, seconds = flops.one_by_one(measured), sum(figures["seconds"][1:])
    work = flops.packed(measured)
    if side == "peer":
        work = programs.peer_work(workload, measured)
    used = flops.step_flops(workload, shape, work, peer=side == "peer") / seconds
    return {
        "s": round(median(figures["seconds"][1:]), 4),
        "first_s": round(figures["seconds"][0], 2),
        "tokens_per_s": round(rows.tokens / seconds),
        "executed_tokens_per_s": round(work.tokens / seconds),
        "tflops": round(used / 1e12, 2),
        "mfu": peak and round(used / peak, 4),
        "peak_gib": round(figures["peak_bytes"] / 2**30, 2),
        "rows_per_pass": workload.peer_rows_per_pass if side == "peer" else None,
        "losses": [round(loss, 5) for loss in figures["losses"]],
    }


def _workload(name: str, shape_name: str) -> Workload:
    if shape_name == "tiny":
        return WORKLOADS[name].resized(groups=4, max_new=8 if WORKLOADS[name].max_new else 0)
    return WORKLOADS[name].resized(**SIZES[name])


def _material(shape: Shape, folder: Path, options: argparse.Namespace) -> Material:
    tiny = shape.context <= 512
    return generated(
        shape, folder, torch.bfloat16, rows=400, lengths=TINY_LENGTHS if tiny else LENGTHS, device=options.device
    )


def _difference(ours: dict[str, Any], peer: dict[str, Any]) -> float | None:
    if not (ours["workload"].has_fixed_responses and ours["losses"]):
        return None
    return float(f"{max(abs(a - b) for a, b in zip(ours['losses'], peer['losses'], strict=True)):.2g}")


def _clean_up(device: str) -> None:
    """Lets go of a program's memory and of what accelerate remembers of it."""
    from accelerate.state import AcceleratorState

    gc.collect()
    AcceleratorState._reset_state(reset_partial_state=True)
    if device == "cuda":
        torch.cuda.empty_cache()


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"


def _peak_flops(device: str) -> float | None:
    """What the maker says of dense bfloat16 products; None for a device that is not in the table."""
    if device == "cpu":
        return None
    known = (peak for name, peak in PEAK_TFLOPS.items() if name in _device_name(device))
    return next((peak * 1e12 for peak in known), None)


def _print(**record: Any) -> None:
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
