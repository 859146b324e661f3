"""Inputs that atheris makes of the corpus by what they reach in the code: `python -m tests.fuzz.guided TARGET FOLDER`.

Needs `pip install atheris`. FOLDER takes inputs that reach something new; options of libFuzzer may follow:

    python -m tests.fuzz.guided verdicts found -runs=1000000 -seed=1

`--keep` puts what is in FOLDER, once libFuzzer has thinned it out (`-merge=1`), into tests/fuzz/corpus, which
tests/test_fuzz.py reads.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

WORDS = Path(__file__).with_name("words.txt")
"""libFuzzer puts these into inputs."""
CODE = ["alignkit", *(f"alignkit_{name}" for name in ("judge", "data", "label"))]
"""What is watched."""


def main() -> None:
    """Runs libFuzzer; counts what was read and refused in FOLDER.json."""
    import atheris

    name, folder, *options = sys.argv[1:]
    with atheris.instrument_imports(include=CODE):
        from tests.fuzz.raw import RAW, keep, kept, seeds
    found = Path(folder)
    if options == ["--keep"]:
        keep(name, {path.read_bytes() for path in found.iterdir() if path.stat().st_size})
        return
    if not found.exists():
        found.mkdir()
        for number, content in enumerate([*seeds(name), *kept(name)]):
            (found / f"seed-{number}").write_bytes(content)
    counts: Counter[str] = Counter()
    target = RAW[name]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:

        def one(content: bytes) -> None:
            counts[target(content, Path(place)) if content else "refused"] += 1
            if counts.total() % 1000 == 0:
                Path(f"{folder}.json").write_text(json.dumps(counts))

        atheris.Setup([sys.argv[0], f"-dict={WORDS}", *options, folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
