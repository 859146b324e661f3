"""Runs a command and ends its whole process group once the command, or the process that asked for it, has ended.

`python guard.py PARENT COMMAND ...` in a session of its own. vLLM's workers survive the API server, and a process that
is killed can't tell anyone, so one that only watches must do it. Uses the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

CHECK_SECONDS = 0.2
GRACE_SECONDS = 10.0


def main() -> None:
    parent, *command = sys.argv[1:]
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    child = subprocess.Popen(command)
    while child.poll() is None and os.getppid() == int(parent) and not stopping:
        time.sleep(CHECK_SECONDS)
    if child.poll() is None:
        os.killpg(0, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
    else:
        print(f"the server has ended, exit code {child.returncode}", file=sys.stderr, flush=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
