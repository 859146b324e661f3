"""Types the README's commands as they stand, here, after `make demo`. `make readme` does so in a bare clone.

The demo's pairs and model take the place of the reader's own.
"""

from __future__ import annotations

import re
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from walkthrough import Walk

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
HUB = "huggingface.co"
OWN, OWN_MODEL = "Your own data", "Qwen/Qwen3-0.6B"
"""The section about what the reader has, and the model that stands for it there."""


@dataclass(frozen=True)
class Typed:
    """A command of the README.

    Attributes:
        network: whether the paragraph before its block says that it needs one.
        own: whether it stands in the section about the reader's own data.
    """

    command: str
    network: bool
    own: bool = False


def commands() -> list[Typed]:
    """The commands of the README's console blocks, without their comments."""
    found, text, section = [], README.read_text(encoding="utf-8"), ""
    pieces = BLOCK.split(text)
    for before, block in zip(pieces[::2], pieces[1::2], strict=False):
        section = (HEADING.findall(before) or [section])[-1]
        paragraph, own = before.rstrip().rpartition("\n\n")[2], section == OWN
        lines = (line.partition(" #")[0].strip() for line in block.splitlines())
        found += [Typed(line, "network" in paragraph and not own, own) for line in lines]
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
    shutil.copy(ROOT / "demo/ppo/preferences.jsonl", ROOT / "pairs.jsonl")
    for typed in commands():
        if typed.command.startswith(("make ", "source ")):
            continue
        if typed.network and not online:
            print(f"skipped, {HUB} can't be reached: {typed.command}", flush=True)
            continue
        start = time.perf_counter()
        done = walk.type(typed.command.replace(OWN_MODEL, "demo/ppo/sft") if typed.own else typed.command)
        print(f"exit code {done.code}, {time.perf_counter() - start:.0f} s: {typed.command}", flush=True)
        if done.code:
            failed = 1
            print(done.out, done.err, sep="\n", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
