"""The environment of PPO's peer: TRL 1.12, the last release with a PPO trainer, over the packages of this one."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

FOLDER = Path(__file__).parent / ".venv-ppo"
RELEASE = "trl==1.12.0"


def interpreter() -> str:
    """The Python of a virtual environment in which `import trl` finds the old release, made where it is missing.

    Raises:
        RuntimeError: pip can't install it.
    """
    python = FOLDER / "bin" / "python"
    if not (FOLDER / "ready").exists():
        venv.create(FOLDER, with_pip=True, clear=True)
        found = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        # behind its own packages come those of this environment, editable ones too
        line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (Path(found.stdout.strip()) / "parent.pth").write_text(line)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", RELEASE]
        installed = subprocess.run(pip, capture_output=True, text=True, check=False)
        if installed.returncode != 0:
            said = installed.stderr.strip().splitlines()
            raise RuntimeError(f"pip can't install {RELEASE}: {said[-1] if said else 'no reason given'}")
        (FOLDER / "ready").touch()
    return str(python)
