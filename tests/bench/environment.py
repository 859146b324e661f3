"""Virtual environments for releases that this one can't hold: their own packages over those of this environment."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def interpreter(folder: Path, requirements: Sequence[str]) -> str:
    """The Python of a virtual environment that has these packages without what they need, made where it is missing.

    Raises:
        RuntimeError: pip can't install them.
    """
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        found = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        # behind its own packages come those of this environment, editable ones too
        line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (Path(found.stdout.strip()) / "parent.pth").write_text(line)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", *requirements]
        installed = subprocess.run(pip, capture_output=True, text=True, check=False)
        if installed.returncode != 0:
            said = installed.stderr.strip().splitlines()
            raise RuntimeError(f"pip can't install {' '.join(requirements)}: {said[-1] if said else 'no reason given'}")
        (folder / "ready").touch()
    return str(python)
