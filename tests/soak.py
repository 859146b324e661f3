"""`make soak`: kills runs at random moments, resumes them, and compares every model with the uninterrupted run's.

    make soak ARGS="--kills 200 --seed 1 --resume soak.json"

SIGKILL comes at a random moment, in a third of the cases inside a save of a checkpoint, in a tenth while a stage writes
its final model. SFT, the reward model, DPO, PPO and GRPO are killed; after each kill the same command goes on with
--resume, and at the end every model must be equal bit for bit, and every step logged once. With `--resume FILE` the
counts are kept there, and the next call goes on from them.

The uninterrupted runs are processes as a user starts them. Those that are killed are forked from a server that has
imported everything, so that kills come in the run and not in its imports.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
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
MOMENTS = {"any": 17, "save": 10, "model": 3}
"""When a kill comes -> its share."""
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
IMPORTED = ["alignkit.cli.app", "alignkit.runs.stages", "alignkit_demo.demo", "alignkit_data", "transformers"] + [
    f"alignkit_{name}" for name in ("hf.policy", "hf.scorer", "dpo.dpo", "ppo.ppo", "grpo.members", "reward.training")
]
Models = tuple[dict[str, bytes], list[tuple[str, int]]]


def command(demo: Path, name: str, out: Path) -> list[str]:
    """The command of a run that may be resumed, without its program."""
    recipe, settings = RUNS[name]
    words = ["run", str(demo / recipe), "--quiet", "--resume", "--out", str(out)]
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


def has_come(moment: str, out: Path) -> bool:
    return moment == "any" or (is_saving(out) if moment == "save" else is_finishing(out))


def server() -> multiprocessing.context.ForkServerContext:
    """Forks processes that have imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def typed(words: list[str], log: Path) -> None:
    """The command, in a process of its own."""
    from alignkit import cli

    sys.argv = ["alignkit", *words]
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.exit(cli.run(words))


def killed(words: list[str], out: Path, moment: str, after: float) -> bool:
    """Starts the command and kills it at the first such moment after so many seconds; False if it ended before."""
    log = out.with_name(f"{out.name}.log")
    process = server().Process(target=typed, args=(words, log))
    process.start()
    due = time.monotonic() + after
    while process.is_alive():
        if time.monotonic() >= due and has_come(moment, out):
            process.kill()
            break
        time.sleep(0.001)
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"alignkit {' '.join(words)}\n{log.read_text()[-3000:]}")
    return process.exitcode != 0


def left(out: Path) -> Models:
    """The weights of every stage, and (stage, step) of every record of the metrics."""
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    weights = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("*/model.safetensors"))}
    return weights, [(record["stage"], record["step"]) for record in records]


def uninterrupted(folder: Path, demo: Path) -> tuple[dict[str, Models], dict[str, float]]:
    """What each run leaves that nobody kills, and how many seconds it takes in the server's processes."""
    expected, seconds = {}, {}
    first = server().Process(target=os.getpid)
    first.start()
    first.join()
    for name in RUNS:
        out = folder / f"whole {name}"
        subprocess.run([sys.executable, "-m", "alignkit", *command(demo, name, out)], check=True, capture_output=True)
        expected[name] = left(out)
        assert expected[name][0], f"{name} wrote no model"
        started = time.monotonic()
        killed(command(demo, name, folder / f"again {name}"), folder / f"again {name}", "model", float("inf"))
        seconds[name] = time.monotonic() - started
        assert left(folder / f"again {name}") == expected[name], f"{name} differs from itself without a kill"
    return expected, seconds


def soak(folder: Path, kills: int, seed: int, kept: Path | None = None) -> Counter[str]:
    """Kills until there are enough. Raises SystemExit at the first run that ends otherwise than without kills."""
    counts = Counter[str](json.loads(kept.read_text()) if kept and kept.exists() else {})
    draw = random.Random(f"{seed}/{counts.total()}")
    demo = make_small_demo(folder / "demo")
    expected, seconds = uninterrupted(folder, demo)
    number = 0
    while counts.total() < kills:
        number += 1
        name = draw.choice(list(RUNS))
        out = folder / f"{number} {name}"
        words, moments = command(demo, name, out), []
        for _ in range(min(KILLS_PER_RUN, kills - counts.total())):
            moment = draw.choices(list(MOMENTS), list(MOMENTS.values()))[0]
            if not killed(words, out, moment, draw.uniform(0, seconds[name])):
                break
            moments.append(moment)
        if killed(words, out, "any", float("inf")) or left(out) != expected[name]:
            raise SystemExit(f"{out}, killed {moments}, differs from {folder / f'whole {name}'} (seed {seed})")
        counts.update(f"{name}: {moment}" for moment in moments)
        print(f"{counts.total()} of {kills}: {name}, killed {moments}: equal", flush=True)
        if kept:
            kept.write_text(json.dumps(counts))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, metavar="FILE", help="counts of earlier calls")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = soak(Path(folder), given.kills, given.seed, given.resume)
    print(json.dumps({"kills": counts.total(), "equal": "all", **dict(sorted(counts.items()))}))


if __name__ == "__main__":
    main()
