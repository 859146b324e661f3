"""Millions of inputs, made of the corpus by small random changes: `python -m tests.fuzz.long --resume counts.json`.

Each target of tests/fuzz/raw.py gets its share; the quick ones get most. The counts are kept in a file, so that a later
call goes on. An input follows from (target, number), and the first that fails ends the call and is shown.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.raw import RAW, kept, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SHARES = {"verdicts": 9_400, "manifests": 300, "labels": 120, "data": 150, "recipes": 30}
"""Of ten thousand inputs."""
BATCH = 100
WORDS = [
    ast.literal_eval(f"b{line}") for line in Path(__file__).with_name("words.txt").read_text().splitlines() if line
]


def changed(draw: Callable[[int], int], corpus: Sequence[bytes]) -> bytes:
    """One of the corpus with one change or more, each decided by 52 bits: a word or a piece of another input takes the
    place of a few bytes, or a byte gets another value, or the end is cut off."""
    content = corpus[draw(32) % len(corpus)]
    while True:
        bits = draw(52)
        deed, place = bits & 15, (bits >> 4 & 0xFFFF) % (len(content) + 1)
        end, choice = place + (0, 0, 1, 2, 3, 8, 20, 60)[bits >> 20 & 7], bits >> 24 & 0xFFFF
        if deed < 8:
            content = content[:place] + WORDS[choice % len(WORDS)] + content[end:]
        elif deed < 11:
            content = content[:place] + bytes((choice & 255,)) + content[place + 1 :]
        elif deed < 12:
            content = content[:place]
        elif deed < 14:
            content = content[:place] + content[end:]
        else:
            other = corpus[choice % len(corpus)]
            content = content[:place] + other[choice % (len(other) + 1) :][: bits >> 40 & 63] + content[end:]
        if bits >> 46 & 1:
            return content[:4000]


def batch(name: str, number: int, corpus: Sequence[bytes], folder: Path) -> Counter[str]:
    """BATCH inputs of a target: how many were read and refused. Raises SystemExit with the one that fails."""
    draw, target, counts = random.Random(f"{name}/{number}").getrandbits, RAW[name], Counter[str]()
    for _ in range(BATCH):
        content = changed(draw, corpus) or b"\x00"
        try:
            counts[target(content, folder)] += 1
        except Exception as error:
            raise SystemExit(f"{name} {number}: {content!r}: {type(error).__name__}: {error}") from error
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000_000, help="of all targets, with those of earlier calls")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="counts of earlier calls")
    parser.add_argument("--seed", type=int, default=0, help="number of the first batch")
    given = parser.parse_args()
    file: Path | None = given.resume
    counts = {name: Counter[str]() for name in RAW}
    if file and file.exists():
        counts |= {name: Counter[str](said) for name, said in json.loads(file.read_text()).items()}
    corpora = {name: [*seeds(name), *kept(name)] for name in RAW}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        while sum(count.total() for count in counts.values()) < given.inputs:
            for name, share in SHARES.items():
                for _ in range(share // 10):
                    number = given.seed + counts[name].total() // BATCH
                    counts[name] += batch(name, number, corpora[name], Path(folder))
                if file:
                    file.write_text(json.dumps(counts))
    print(json.dumps(counts))
    sys.exit(0)


if __name__ == "__main__":
    main()
