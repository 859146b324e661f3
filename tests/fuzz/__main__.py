"""Fuzzes for a while: `python -m tests.fuzz --seconds 600 --seed 7 readers labels`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.fuzz.targets import TARGETS, example


def main() -> int:
    """Runs examples of all targets in turn; shows the first fault of each place in the code. 1 if there is one."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"some of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="for how long")
    parser.add_argument("--seed", type=int, default=0, help="number of the first example")
    given = parser.parse_args()
    if unknown := [name for name in given.targets if name not in TARGETS]:
        parser.error(f"no target {unknown[0]}")
    counts: Counter[tuple[str, str]] = Counter()
    faults: Counter[str] = Counter()
    end, number = time.monotonic() + given.seconds, given.seed
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: Path(folder) / name for name in given.targets or TARGETS}
        for path in folders.values():
            path.mkdir()
        while time.monotonic() < end:
            for name, path in folders.items():
                try:
                    counts[name, example(name, number, path)] += 1
                except Exception as error:
                    counts[name, "failed"] += 1
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    place = f"{name}: {type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
                    faults[place] += 1
                    if faults[place] == 1:
                        print(f"\n{name} {number}: {''.join(traceback.format_exception(error))[-1500:]}", flush=True)
            number += 1
    for (name, outcome), count in sorted(counts.items()):
        print(f"{name}: {count} {outcome}")
    for place, count in faults.most_common():
        print(f"{count} x {place}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
