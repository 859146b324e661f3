"""Where alignkit's time goes: `python -m tests.bench.profile dpo,sft`, a JSON line for each workload.

Shares of a step by kind of operation, beside the FLOPs that it needs and those of a large product on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.profiler import ProfilerActivity, profile

from tests.bench import flops, ours, programs
from tests.bench.__main__ import DATA, HERE
from tests.bench.clock import Clock
from tests.bench.material import make_material, open_material
from tests.bench.shapes import SMALL
from tests.bench.workloads import WORKLOADS, Settings

if TYPE_CHECKING:
    from tests.bench.workloads import Workload

KINDS = {
    "products": ("mm", "addmm", "addmm_", "bmm", "baddbmm", "linear", "mkldnn::_linear_pointwise"),
    "attention": ("scaled_dot_product", "_flash_attention"),
    "adam": ("adam", "_foreach", "_fused"),
    "softmax of the vocabulary": ("exp", "logsumexp", "amax", "cumsum", "sum", "sub_", "div_", "log_softmax"),
    "norms, rotary, activations": ("mul", "add", "add_", "pow", "rsqrt", "mean", "silu", "neg", "cos", "sin"),
    "moving": ("cat", "split", "copy_", "index", "gather", "scatter", "repeat", "clone", "contiguous", "zero", "fill_"),
}


class Laps(Clock):
    """A clock that profiles the last of its steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.profile = profile(activities=[ProfilerActivity.CPU])

    def start(self) -> None:
        if len(self.seconds) + 1 == self.steps:
            self.profile.start()
        super().start()

    def stop(self, loss: float | None = None, tokens: int | None = None) -> None:
        super().stop(loss, tokens)
        if len(self.seconds) == self.steps:
            self.profile.stop()


def main() -> None:
    """Profiles what the arguments choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", default=",".join(WORKLOADS), help="of all workloads")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--operations", type=int, default=8, help="how many of the dearest operations to name")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    make_material(SMALL, HERE / ".cache" / "small", DATA)
    peak = fastest_product()
    print(json.dumps({"peak_gflops": round(peak / 1e9, 1)}), flush=True)
    for name in options.only.split(","):
        with contextlib.redirect_stdout(sys.stderr):
            record = _profiled(WORKLOADS[name], peak, options.operations)
        print(json.dumps({"workload": name, **record}), flush=True)


def fastest_product(size: int = 2048, repeats: int = 7) -> float:
    """FLOPs a second of a large float32 product."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _profiled(workload: Workload, peak: float, operations: int) -> dict[str, Any]:
    settings = Settings(steps=3)
    material = open_material(HERE / ".cache" / "small")
    clock = Laps(settings.steps)
    ours.prepare(workload, material, settings, clock)()
    own: Counter[str] = Counter()
    for event in clock.profile.key_averages():
        own[event.key.removeprefix("aten::")] += event.self_cpu_time_total
    total = sum(own.values())
    shares: Counter[str] = Counter()
    for name, spent in own.items():
        shares[_kind(name)] += spent / total
    groups = programs.step_lengths(workload, material, settings)[-2]
    if clock.tokens:
        length = clock.tokens[-2] // (workload.groups * workload.responses)
        groups = [(prompt, [length] * workload.responses) for prompt, _ in groups]
    needed = flops.step_flops(workload, SMALL, flops.packed(groups), peer=False)
    return {
        "s": round(clock.seconds[-2], 4),
        "gflop": round(needed / 1e9, 1),
        "of_peak": round(needed / clock.seconds[-2] / peak, 3),
        "shares": {name: round(share, 3) for name, share in shares.most_common()},
        "dearest": {name: round(spent / total, 3) for name, spent in own.most_common(operations)},
    }


def _kind(name: str) -> str:
    plain = name.split("(", maxsplit=1)[0].lower()
    for kind, names in KINDS.items():
        if kind in ("attention", "adam", "moving"):
            if any(known in plain for known in names):
                return kind
        elif plain in names:
            return kind
    return "others"


if __name__ == "__main__":
    main()
