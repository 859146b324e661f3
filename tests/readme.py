"""Types the README's commands as they stand, here, after `make demo`. `make readme` does so in a bare clone."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from walkthrough import Walk

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HUB = "huggingface.co"


@dataclass(frozen=True)
class Typed:
    """A command of the README. `network`: whether the sentence before its block says that it needs one."""

    command: str
    network: bool


def commands() -> list[Typed]:
    """The commands of the README's console blocks, without their comments."""
    found, text = [], README.read_text(encoding="utf-8")
    pieces = BLOCK.split(text)
    for before, block in zip(pieces[::2], pieces[1::2], strict=False):
        paragraph = before.rstrip().rpartition("\n\n")[2]
        lines = (line.partition(" #")[0].strip() for line in block.splitlines())
        found += [Typed(line, "network" in paragraph) for line in lines]
    return found


def hub_is_reachable() -> bool:
    """Whether the Hugging Face hub accepts a connection."""
    try:
        socket.create_connection((HUB, 443), timeout=5).close()
    except OSError:
        return False
    return True


def chains(typed: list[Typed]) -> list[list[Typed]]:
    """The commands before the first script, and it with those after it: what a script makes is for these alone."""
    first = next((place for place, one in enumerate(typed) if one.command.startswith("python ")), len(typed))
    return [typed[:first], typed[first:]]


def type_all(typed: list[Typed], *, online: bool) -> bool:
    """Types commands one after the other; returns whether all succeeded."""
    walk, well = Walk(ROOT), True
    for one in typed:
        if one.command.startswith(("make ", "source ")):
            continue
        if one.network and not online:
            print(f"skipped, {HUB} can't be reached: {one.command}", flush=True)
            continue
        start = time.perf_counter()
        done = walk.type(one.command)
        told = [f"exit code {done.code}, {time.perf_counter() - start:.0f} s: {one.command}"]
        print("\n".join(told + [done.out, done.err] * bool(done.code)), flush=True)
        well = well and not done.code
    return well


def main() -> int:
    """Types them, two at a time on one core each; returns 1 if one failed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    online = hub_is_reachable()
    with ThreadPoolExecutor(2) as pool:
        return int(not all(list(pool.map(lambda chain: type_all(chain, online=online), chains(commands())))))


if __name__ == "__main__":
    sys.exit(main())
