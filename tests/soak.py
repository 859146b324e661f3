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
from typing import Any

import tomli_w

from alignkit import Group, Prompt, write_groups

Table = dict[str, Any]
KILLS_PER_RUN = 4
MOMENTS = {"any": 17, "save": 10, "model": 3}
"""When a kill comes -> its share."""
EVERY_STEP: Table = {"learning_rate": 1e-2, "minibatch_size": 4, "save_every": 1}
ROLLOUTS: Table = {"iterations": 3, "batch_size": 4, "group_size": 2, "minibatch_size": 2, "n_epochs": 2}
PAIRS = [Group(Prompt(text=f"say {a}{b}"), (a * 3, b * 3), ranks=(0, 1)) for a in "abcd" for b in "xyz"]
RUNS: dict[str, dict[str, Table]] = {
    "sft, reward, ppo": {
        "demonstrations": {"path": "demonstrations.jsonl"},
        "preferences": {"path": "pairs.jsonl"},
        "sft": EVERY_STEP,
        "reward": {"plugin": "model", "train": {**EVERY_STEP, "n_epochs": 1}},
        "optimizer": {"plugin": "ppo", **EVERY_STEP, **ROLLOUTS},
    },
    "dpo": {"preferences": {"path": "pairs.jsonl"}, "optimizer": {"plugin": "dpo", "n_epochs": 2, **EVERY_STEP}},
    "grpo": {
        "prompts": {"path": "pairs.jsonl"},
        "reward": {"plugin": "rules", "keywords": {"good": ["a", "b"]}},
        "optimizer": {"plugin": "grpo", **EVERY_STEP, **ROLLOUTS},
    },
}
"""Name -> the tables of its recipe, on a Llama of 20,000 parameters."""
Models = tuple[dict[str, bytes], list[tuple[str, int]]]


def make_material(folder: Path) -> Path:
    """The model, the data and the recipes."""
    from alignkit.testing.tiny_hf import write_tiny_llama

    write_tiny_llama(folder / "model")
    write_groups(folder / "pairs.jsonl", PAIRS)
    write_groups(folder / "demonstrations.jsonl", [Group(pair.prompt, pair.responses[:1]) for pair in PAIRS])
    common: dict[str, Table] = {
        "run": {"seed": 3, "device": "cpu"},
        "policy": {"model": str(folder / "model")},
        "sampling": {"max_tokens": 6},
        "eval": {"count": 2},
    }
    for name, tables in RUNS.items():
        found = {table: dict(options) for table, options in {**common, **tables}.items()}
        for table in found.keys() & {"demonstrations", "preferences", "prompts"}:
            found[table]["path"] = str(folder / found[table]["path"])
        (folder / f"{name}.toml").write_text(tomli_w.dumps(found))
    return folder


def command(material: Path, name: str, out: Path) -> list[str]:
    """The command of a run that may be resumed, without its program."""
    return ["run", str(material / f"{name}.toml"), "--quiet", "--resume", "--out", str(out)]


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
    context.set_forkserver_preload(["tests.soak_imports"])
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
    return weights, [(record["stage"], record["step"]) for record in records if "loss" in record]


def uninterrupted(folder: Path, material: Path) -> tuple[dict[str, Models], dict[str, float]]:
    """What each run leaves that nobody kills, and how many seconds it takes in the server's processes."""
    expected, seconds = {}, {}
    first = server().Process(target=os.getpid)
    first.start()
    first.join()
    for name in RUNS:
        out = folder / f"whole {name}"
        subprocess.run(
            [sys.executable, "-m", "alignkit", *command(material, name, out)], check=True, capture_output=True
        )
        expected[name] = left(out)
        assert expected[name][0], f"{name} wrote no model"
        started = time.monotonic()
        killed(command(material, name, folder / f"again {name}"), folder / f"again {name}", "model", float("inf"))
        seconds[name] = time.monotonic() - started
        assert left(folder / f"again {name}") == expected[name], f"{name} differs from itself without a kill"
    return expected, seconds


def soak(folder: Path, kills: int, seed: int, kept: Path | None = None) -> Counter[str]:
    """Kills until there are enough. Raises SystemExit at the first run that ends otherwise than without kills."""
    counts = Counter[str](json.loads(kept.read_text()) if kept and kept.exists() else {})
    draw = random.Random(f"{seed}/{counts.total()}")
    material = make_material(folder / "material")
    expected, seconds = uninterrupted(folder, material)
    number = 0
    while counts.total() < kills:
        number += 1
        name = draw.choice(list(RUNS))
        out = folder / f"{number} {name}"
        words, moments = command(material, name, out), []
        for _ in range(min(KILLS_PER_RUN, kills - counts.total())):
            moment = draw.choices(list(MOMENTS), list(MOMENTS.values()))[0]
            started = time.monotonic()
            if not killed(words, out, moment, draw.uniform(0, seconds[name])):
                if not moments:  # the machine is less busy than when this was measured
                    seconds[name] = time.monotonic() - started
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
