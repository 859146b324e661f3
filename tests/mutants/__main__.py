"""How many mutants of the loss, advantage and KL code the quick tests find: `make mutants ARGS="--only kl"`.

A mutant that changes nothing that a test could see (`equivalent.toml`, with the reason) isn't counted.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mutants.forked import ForkedRuns
from tests.mutants.mutations import Mutant, mutants_of, unchanged

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
MATHEMATICS = (
    "alignkit/ops/advantages.py",
    "alignkit/ops/divergences.py",
    "alignkit/ops/kl.py",
    "alignkit/ops/ranking_losses.py",
    "alignkit/ops/surrogates.py",
    "alignkit/algorithms/policy_gradient.py",
    "alignkit/algorithms/rankings.py",
    "plugins/alignkit-dpo/alignkit_dpo/*.py",
    "plugins/alignkit-grpo/alignkit_grpo/*.py",
    "plugins/alignkit-hf/alignkit_hf/kernels/exact_kl.py",
    "plugins/alignkit-hf/alignkit_hf/kernels/logprobs.py",
    "plugins/alignkit-ppo/alignkit_ppo/*.py",
    "plugins/alignkit-reward/alignkit_reward/training.py",
)
NO_MATHEMATICS = {"__init__.py", "options.py"}
TESTS = (
    "tests/ops",
    "tests/test_begin_step.py",
    "tests/test_cached_logprobs.py",
    "plugins/alignkit-dpo/tests",
    "plugins/alignkit-hf/tests/test_hf_kernel_linear_kl.py",
    "plugins/alignkit-hf/tests/test_hf_kernel_logprobs.py",
    "plugins/alignkit-grpo/tests",
    "plugins/alignkit-ppo/tests",
    "plugins/alignkit-reward/tests",
)
REQUIRED = 0.9


def targets(only: str) -> dict[str, Path]:
    """The modules with mathematics, by dotted name."""
    files = [file for pattern in MATHEMATICS for file in sorted(ROOT.glob(pattern)) if file.name not in NO_MATHEMATICS]
    named = {_dotted(file): file for file in files}
    return {name: file for name, file in named.items() if only in name}


def _dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[2:] if parts[0] == "plugins" else parts)


def chosen_mutants(files: dict[str, Path], sample: int, seed: int) -> list[Mutant]:
    """All mutants but the equivalent ones, or a sample of them."""
    table = tomllib.loads((Path(__file__).parent / "equivalent.toml").read_text(encoding="utf-8"))
    equivalent = {(row["where"], change) for row in table["equivalent"] for change in row["changes"]}
    found = [mutant for name, file in files.items() for mutant in mutants_of(file, name)]
    found = [m for m in found if not {(m.where, m.change), (m.where, "*")} & equivalent]
    if not sample or sample >= len(found):
        return found
    return sorted(random.Random(seed).sample(found, sample), key=lambda mutant: mutant.module)


def main(arguments: Sequence[str]) -> int:
    """Runs the mutants and reports; 1 where fewer than REQUIRED are found."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="modules whose name holds this")
    parser.add_argument("--sample", type=int, default=0, help="so many mutants, drawn at random; 0 takes all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--seconds", type=float, default=10.0, help="at most so many seconds of tests a mutant")
    parser.add_argument("--tests", nargs="*", default=TESTS, help="files and folders of tests")
    options = parser.parse_args(arguments)
    files = targets(options.only)
    mutants = chosen_mutants(files, options.sample, options.seed)
    survivors: list[Mutant] = []
    done: list[Mutant] = []
    start = time.perf_counter()

    def work(runs: ForkedRuns) -> None:
        _say(f"{len(mutants)} mutants of {len(files)} modules, {len(runs.items)} tests; {_since(start)} so far")
        for name, file in files.items():
            if not runs.survives(unchanged(file, name), str(file)):
                raise RuntimeError(f"a test fails on {name} as it is, put in its own place: the figures would be wrong")
        for mutant in mutants:
            done.append(mutant)
            if runs.survives(mutant, str(files[mutant.module])):
                survivors.append(mutant)
                _say(f"{mutant.where} line {mutant.lines.start}: {mutant.change}")

    with tempfile.TemporaryDirectory() as scratch:
        runs = ForkedRuns(list(files.values()), Path(scratch), work, options.seconds)
        plain = ("-q", "-s", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "not slow and not gpu")
        pytest.main([*plain, f"--basetemp={scratch}/tests", *options.tests], plugins=[runs])
    _report(done, survivors)
    _say(_since(start))
    return 0 if done and len(survivors) <= (1 - REQUIRED) * len(done) else 1


def _report(done: Sequence[Mutant], survivors: Sequence[Mutant]) -> None:
    alive = Counter(mutant.module for mutant in survivors)
    for module, count in Counter(mutant.module for mutant in done).items():
        killed = count - alive[module]
        _say(f"{module:45} {killed:4} of {count:4} found, {killed / count:.1%}")
    if done:
        _say(f"{'all':45} {len(done) - len(survivors):4} of {len(done):4} found, {1 - len(survivors) / len(done):.1%}")


def _since(start: float) -> str:
    return f"{time.perf_counter() - start:.0f} s"


def _say(line: str) -> None:
    print(line, file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
