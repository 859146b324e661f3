"""The public names of a package, listed once in its stub (`__init__.pyi`) and imported on first use."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def public_names(package: str) -> tuple[Callable[[str], Any], list[str]]:
    """(`__getattr__`, `__all__`) of the package being imported, from the stub beside it."""
    stub = Path(sys.modules[package].__file__ or "").with_suffix(".pyi")
    imports = [node for node in ast.parse(stub.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: f"{'.' * node.level}{node.module}" for node in imports for alias in node.names}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name], package), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, sorted(homes)
