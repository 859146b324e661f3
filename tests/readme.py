"""Types the README's commands as they stand, here, after `make demo`. `make readme` does so in a bare clone."""

from __future__ import annotations

import re
import socket
import sys
import time
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


def main() -> int:
    """Types them; returns 1 if one failed."""
    walk, online, failed = Walk(ROOT), hub_is_reachable(), 0
    for typed in commands():
        if typed.command.startswith(("make ", "source ")):
            continue
        if typed.network and not online:
            print(f"skipped, {HUB} can't be reached: {typed.command}", flush=True)
            continue
        start = time.perf_counter()
        done = walk.type(typed.command)
        print(f"exit code {done.code}, {time.perf_counter() - start:.0f} s: {typed.command}", flush=True)
        if done.code:
            failed = 1
            print(done.out, done.err, sep="\n", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
