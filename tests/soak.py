"""`make soak`: kills runs at random moments, resumes them, and compares every model with the uninterrupted run's.

    make soak ARGS="--kills 200 --seed 1"

SIGKILL comes at a random moment, in a third of the cases inside a save of a checkpoint, in a tenth while a stage writes
its final model. SFT, the reward model, DPO, PPO and GRPO are killed; after each kill the same command goes on with
--resume, and at the end every model must be equal bit for bit, and every step logged once.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from demo_files import make_small_demo

if TYPE_CHECKING:
    from collections.abc import Sequence

KILLS_PER_RUN = 4
EVERY_STEP = ("minibatch_size=4", "save_every=1")
ROLLOUTS = ("iterations=3", "batch_size=6", "minibatch_size=3", "n_epochs=2", "save_every=1")
RUNS: dict[str, tuple[str, dict[str, Sequence[str]]]] = {
    "sft, reward, ppo": (
        "recipe.toml",
        {
            "sft": EVERY_STEP,
            "reward": tuple(f"train.{setting}" for setting in (*EVERY_STEP, "n_epochs=1")),
            "optimizer": ROLLOUTS,
        },
    ),
    "dpo": ("from-sft.toml", {"optimizer": ("plugin=dpo", "n_epochs=2", *EVERY_STEP)}),
    "grpo": ("from-sft.toml", {"optimizer": ("plugin=grpo", *ROLLOUTS)}),
}
"""Name -> the demo's recipe, and settings by table."""


def command(demo: Path, name: str, out: Path) -> list[str]:
    """The command of a run that may be resumed."""
    recipe, settings = RUNS[name]
    words = [sys.executable, "-m", "alignkit", "run", str(demo / recipe), "--quiet", "--resume", "--out", str(out)]
    options = [f"{table}.{setting}" for table, listed in settings.items() for setting in listed]
    return [*words, *(word for option in ("sampling.max_tokens=16", *options) for word in ("-o", option))]


def is_saving(out: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(not (step / "manifest.json").exists() for step in out.glob("*/checkpoints/step-*"))


def is_finishing(out: Path) -> bool:
    """Whether a stage is writing its model."""
    done = json.loads((out / "run.json").read_text())["stages"] if (out / "run.json").exists() else {}
    stages = {"sft": "sft", "reward": "reward", "policy": "align"}
    return any((out / folder / "config.json").exists() and stage not in done for folder, stage in stages.items())


def killed(words: list[str], out: Path, draw: random.Random, seconds: float) -> str:
    """Starts the command, kills it, and returns at what moment: "ended" if it was done before."""
    moment = draw.choices(("any", "save", "model"), (17, 10, 3))[0]
    after = draw.uniform(0, seconds)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    started = time.monotonic()
    while process.poll() is None:
        past = time.monotonic() - started >= after
        if past and (moment == "any" or (is_saving(out) if moment == "save" else is_finishing(out))):
            process.kill()
            break
        time.sleep(0.001)
    _, errors = process.communicate()
    if process.returncode == 0:
        return "ended"
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"{' '.join(words)}\n{errors.decode()[-3000:]}")
    return moment


def models(out: Path) -> dict[str, bytes]:
    """The weights of every stage."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("*/model.safetensors"))}


def steps(out: Path) -> list[tuple[str, int]]:
    """(stage, step) of every record of the metrics."""
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(record["stage"], record["step"]) for record in records]


def soak(folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kills until there are enough. Raises SystemExit at the first run that ends otherwise than without kills."""
    demo, draw, counts = make_small_demo(folder / "demo"), random.Random(seed), Counter[str]()
    expected: dict[str, tuple[dict[str, bytes], list[tuple[str, int]]]] = {}
    seconds: dict[str, float] = {}
    for name in RUNS:
        out = folder / f"whole {name}"
        started = time.monotonic()
        subprocess.run(command(demo, name, out), check=True, stdout=subprocess.DEVNULL)
        seconds[name] = time.monotonic() - started
        expected[name] = models(out), steps(out)
        assert expected[name][0], f"{name} wrote no model"
    number = 0
    while sum(counts.values()) < kills:
        number += 1
        name = draw.choice(list(RUNS))
        out = folder / f"{number} {name}"
        words, moments = command(demo, name, out), []
        for _ in range(min(KILLS_PER_RUN, kills - sum(counts.values()))):
            if (moment := killed(words, out, draw, seconds[name])) == "ended":
                break
            moments.append(moment)
            counts[f"{name}: {moment}"] += 1
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        same = (models(out), steps(out)) == expected[name]
        print(
            f"{sum(counts.values())} of {kills}: {name}, killed {moments}: {'equal' if same else 'DIFFERENT'}",
            flush=True,
        )
        if not same:
            raise SystemExit(f"{out} differs from {folder / f'whole {name}'} (seed {seed})")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = soak(Path(folder), given.kills, given.seed)
    print(json.dumps({"kills": sum(counts.values()), "equal": "all", **dict(sorted(counts.items()))}))


if __name__ == "__main__":
    main()
