"""The environment of PPO's peer: TRL 1.12, the last release with a PPO trainer, over the packages of this one."""

from __future__ import annotations

from pathlib import Path

from tests.bench import environment

FOLDER = Path(__file__).parent / ".venv-ppo"


def interpreter() -> str:
    """The Python of a virtual environment in which `import trl` finds the old release.

    Raises:
        RuntimeError: pip can't install it.
    """
    return environment.interpreter(FOLDER, ["trl==1.12.0"])
