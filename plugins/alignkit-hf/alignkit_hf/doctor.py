"""The command `alignkit doctor`: what of this machine, the plugins and a model would spoil a run. Imports no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.commands import AsJson, Overrides, PluginFiles, PolicyName, show
from alignkit_hf.machine import devices, disk, guarded, plugins, versions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from alignkit.commands import Resolved
    from alignkit_hf.machine import Finding

app = typer.Typer(help="Check this machine, the plugins and a model.", rich_markup_mode=None)

Target = Annotated[
    str, typer.Argument(metavar="[RECIPE|MODEL]", help="A recipe, or a model's folder or hub id, to check as well.")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where runs will write.")]


@app.command()
def doctor(
    target: Target = "",
    policy: PolicyName = "",
    _plugin: PluginFiles = None,
    options: Overrides = None,
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Check versions, devices, disk and plugins; with a recipe or a model also its tokenizer, memory and exactness.

    Exit code 0: nothing is wrong, or there are only warnings; 2: the recipe or the model can't be read; 3: a check
    failed.

    Examples:
        alignkit doctor
        alignkit doctor recipe.toml
    """
    resolved = _resolved(target, policy, options or ()) if target or options else None
    findings = []
    for one in findings_of(resolved, out):
        findings.append(one)
        if not as_json:
            print(one, flush=True)
    if as_json:
        show({"findings": [dataclasses.asdict(one) for one in findings]}, as_json)
    if any(one.state == "fail" for one in findings):
        raise typer.Exit(3)


def _resolved(target: str, policy: str, options: Iterable[str]) -> Resolved:
    from alignkit.commands import read_recipe

    path = Path(target).expanduser()
    if target and (path.is_file() or path.suffix == ".toml"):
        return read_recipe(path, flags={"policy": policy}, overrides=list(options))
    model = [f"policy.model={target}"] if target else []
    return read_recipe(None, flags={"policy": policy}, overrides=[*model, *options])


def findings_of(resolved: Resolved | None, out: Path) -> Iterator[Finding]:
    """All checks in order; those of a model only if there is a recipe."""
    yield from guarded("versions", versions)
    yield from guarded("plugins", plugins)
    yield from guarded("devices", devices)
    yield from guarded("disk", lambda: disk(out))
    if resolved is not None and "policy" in resolved.names:
        from alignkit_hf.checkup import checkup

        yield from checkup(resolved, out)
