"""Whether the modules that entry points name load something heavy, in a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import entry_points

from alignkit.plugins import GROUP, normalized
from alignkit.versions import COMMANDS_GROUP

_CHILD = """
import importlib, json, sys, traceback

class Watch:
    def find_spec(self, name, path=None, target=None):
        frames = traceback.extract_stack()[:-1]
        looks = any("importlib" in f.filename and "util" in f.filename and f.name == "find_spec" for f in frames)
        if name in ("torch", "transformers") and not looks:
            way = [f"{f.filename}:{f.lineno}" for f in frames if "importlib" not in f.filename and f.filename[0] != "<"]
            found.append(f"{name}, by way of {' > '.join(way)}")
            raise ImportError(f"{name} is not for this module")

sys.meta_path.insert(0, Watch())
heavy = {}
for module in sys.argv[1:]:
    found = heavy[module] = []
    try:
        importlib.import_module(module)
    except BaseException:
        pass
print()
print(json.dumps(heavy), flush=True)
"""


def modules_of(distribution: str) -> tuple[str, ...]:
    """The modules that a distribution's entry points for alignkit name, commands included."""
    points = [*entry_points(group=GROUP), *entry_points(group=COMMANDS_GROUP)]
    return tuple(sorted({p.module for p in points if p.dist and normalized(p.dist.name) == distribution}))


@cache
def heavy_imports(modules: tuple[str, ...]) -> dict[str, list[str]]:
    """Module -> what it imports of torch and transformers when it is loaded, each with the lines that led there."""
    command = [sys.executable, "-c", _CHILD, *modules]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[str]] = json.loads(said.splitlines()[-1])
    return found


def assert_light(distribution: str) -> None:
    """Fails if a module that the distribution's entry points name imports torch or transformers."""
    heavy = {module: found for module, found in heavy_imports(modules_of(distribution)).items() if found}
    advice = (
        "Every command loads the module that an entry point names, so `alignkit --help` would wait for it. Move the"
        ' code to another module and name it as a string: register("NAME", "MODULE:CLASS", config=OPTIONS)'
    )
    assert not heavy, "\n".join([*(f"{module} imports {found[0]}" for module, found in heavy.items()), advice])
