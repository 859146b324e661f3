"""The plugin that `plugins new` writes; examples/third-party-plugin is one."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from alignkit.errors import InputError
from alignkit.plugins import FIRST_PARTY

TEMPLATES = Path(__file__).parent / "plugin_template"


def write_distribution(name: str, parent: Path) -> Path:
    """Writes `parent/alignkit-NAME`: a distribution with the reward NAME and its contract test.

    Raises:
        InputError: the name is not allowed, or the folder exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise InputError(f"{name!r} is not a plugin name", where="NAME", fix="use lower-case words joined by '-'")
    if f"alignkit-{name}" in FIRST_PARTY:
        raise InputError(
            f"alignkit-{name} is one of alignkit's own distributions", where="NAME", fix="choose another name"
        )
    folder = parent / f"alignkit-{name}"
    if folder.exists():
        raise InputError("already exists", where=str(folder), fix="choose another name, or another --out")
    module = f"alignkit_{name.replace('-', '_')}"
    names = {"name": name, "module": module, "stem": "".join(map(str.capitalize, name.split("-")))}
    for template in TEMPLATES.rglob("*.tmpl"):
        path = folder / str(template.relative_to(TEMPLATES).with_suffix("")).replace("module", module)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(template.read_text(encoding="utf-8")).substitute(names), encoding="utf-8")
    return folder
