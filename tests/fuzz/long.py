"""Millions of inputs, made of the corpus by small random changes: `python -m tests.fuzz.long --resume counts.json`.

Each target of tests/fuzz/raw.py gets its share; the quick ones get most. The counts are kept in a file, so that a later
call goes on. An input follows from (target, number), and the first that fails ends the call and is shown.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.fuzz.mutations import DEEP, DIGITS, VALUES, as_json
from tests.fuzz.raw import RAW, kept, seeds

SHARES = {"verdicts": 9_830, "manifests": 60, "labels": 50, "data": 50, "recipes": 10}
"""Of ten thousand inputs."""
BATCH = 100
VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"(?!\s*:)|-?\d[\d.eE+-]*|true|false|null|\[[^\[\]{}]*\]|\{[^\[\]{}]*\}')
JSON_VALUES = [as_json(value).encode() for value in VALUES if value not in (DEEP, DIGITS)]
WORDS = [
    ast.literal_eval(f"b{line}") for line in Path(__file__).with_name("words.txt").read_text().splitlines() if line
]


Seed = tuple[bytes, Sequence[tuple[int, int]]]
"""An input, and the places of its values."""


def changed(draw: Callable[[int], int], corpus: Sequence[Seed]) -> bytes:
    """One of the corpus with one change or more, each decided by 52 bits.

    In half of them the first change puts another value in the place of one. In others a word or a piece of another
    input takes the place of a few bytes, a byte gets another value, or the end is cut off.
    """
    content, places = corpus[draw(32) % len(corpus)]
    while True:
        bits = draw(52)
        deed, place = bits & 15, (bits >> 4 & 0xFFFF) % (len(content) + 1)
        end, choice = place + (0, 0, 1, 2, 3, 8, 20, 60)[bits >> 20 & 7], bits >> 24 & 0xFFFF
        if places and deed < 10:
            place, end = places[(bits >> 4 & 0xFFFF) % len(places)]
            content = content[:place] + JSON_VALUES[choice % len(JSON_VALUES)] + content[end:]
        elif deed < 8:
            content = content[:place] + WORDS[choice % len(WORDS)] + content[end:]
        elif deed < 11:
            content = content[:place] + bytes((choice & 255,)) + content[place + 1 :]
        elif deed < 12:
            content = content[:place]
        elif deed < 14:
            content = content[:place] + content[end:]
        else:
            other = corpus[choice % len(corpus)][0]
            content = content[:place] + other[choice % (len(other) + 1) :][: bits >> 40 & 63] + content[end:]
        if bits >> 46 & 3:
            return content[:4000]
        places = ()


def batch(name: str, number: int, corpus: Sequence[Seed], folder: Path) -> Counter[str]:
    """BATCH inputs of a target: how many were read and refused. Raises SystemExit with the one that fails."""
    draw, target, counts = random.Random(f"{name}/{number}").getrandbits, RAW[name], Counter[str]()
    for _ in range(BATCH):
        content = changed(draw, corpus) or b"\x00"
        try:
            counts[target(content, folder)] += 1
        except Exception as error:
            raise SystemExit(f"{name} {number}: {content!r}: {type(error).__name__}: {error}") from error
    return counts


def corpus_of(name: str) -> list[Seed]:
    """What inputs of a target are made of: half of them good ones, of which more is read."""
    good, found = list(seeds(name)), kept(name)
    contents = [*good * max(1, len(found) // len(good)), *found]
    return [(content, [match.span() for match in VALUE.finditer(content)]) for content in contents]


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
    corpora = {name: corpus_of(name) for name in RAW}
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
