"""The plugins that `plugins new` writes, one of each kind; examples/third-party-plugin is a reward."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from alignkit.errors import InputError, closest
from alignkit.versions import CORE, FIRST_PARTY

TEMPLATES = Path(__file__).parent / "plugin_template"
KINDS = {
    "reward": (
        "reward",
        "responses of about the wanted length",
        "alignkit score groups.jsonl --reward $name -o reward.words=12 --out scored.jsonl",
    ),
    "preferences": (
        "preference source",
        "the shorter of the policy's responses is better",
        "alignkit preferences make recipe.toml --preferences $name --out ranked.jsonl",
    ),
    "optimizer": (
        "algorithm",
        "REINFORCE with the mean of its siblings as a response's baseline",
        "alignkit run recipe.toml --optimizer $name",
    ),
    "metrics": (
        "metric sink",
        "a CSV file with one line per figure",
        "alignkit run recipe.toml -o 'run.metrics=[{plugin=\"$name\"}]'",
    ),
    "sampler": (
        "sampler",
        "the policy itself, with a file of all rollouts",
        "alignkit run recipe.toml --sampler $name",
    ),
    "policy": (
        "policy",
        "a language model of letters that sees one letter back",
        "alignkit run recipe.toml --policy $name",
    ),
}
"""Kind -> what it is called, what the written one does, and a command that uses it."""


def write_distribution(name: str, parent: Path, kind: str = "reward") -> Path:
    """Writes `parent/alignkit-NAME`: a distribution with the component NAME of a kind, and its contract test.

    Raises:
        InputError: the name or kind is not allowed, or the folder exists.
    """
    if kind not in KINDS:
        raise InputError(f"no kind {kind!r} of plugins", where="--kind", fix=closest(kind, KINDS))
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise InputError(f"{name!r} is not a plugin name", where="NAME", fix="use lower-case words joined by '-'")
    if f"alignkit-{name}" in (CORE, *FIRST_PARTY):
        raise InputError(
            f"alignkit-{name} is one of alignkit's own distributions", where="NAME", fix="choose another name"
        )
    folder = parent / f"alignkit-{name}"
    if folder.exists():
        raise InputError("already exists", where=str(folder), fix="choose another name, or another --out")
    module = f"alignkit_{name.replace('-', '_')}"
    noun, summary, usage = KINDS[kind]
    names = {"name": name, "module": module, "stem": "".join(map(str.capitalize, name.split("-")))}
    names |= {"noun": noun, "a_noun": f"A{'n' * (noun[0] == 'a')} {noun}", "summary": summary}
    names["usage"] = Template(usage).substitute(names)
    whole = "packages" if (TEMPLATES / kind / "module").is_dir() else "py-modules"
    names["files"] = f'{whole} = ["{module}"]'
    for template in (*TEMPLATES.glob("*.tmpl"), *(TEMPLATES / kind).rglob("*.tmpl")):
        base = TEMPLATES if template.parent == TEMPLATES else TEMPLATES / kind
        path = folder / str(template.relative_to(base).with_suffix("")).replace("module", module)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(template.read_text(encoding="utf-8")).substitute(names), encoding="utf-8")
    return folder
