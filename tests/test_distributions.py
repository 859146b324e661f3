"""The distributions: one version, complete metadata, types, and a metapackage that has them all. `make dist` builds and
tries them."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from alignkit.versions import CORE, FIRST_PARTY

ROOT = Path(__file__).parent.parent
FOLDERS = [ROOT, *(path.parent for path in sorted(ROOT.glob("plugins/*/pyproject.toml")))]
USUAL = {CORE, *(f"alignkit-{name}" for name in ("hf", "reward", "ppo", "dpo", "grpo", "data", "report", "demo"))}
OURS = re.compile(r"(alignkit[a-z-]*)(?:\[[a-z,]+\])?(.*)")


def read(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


PROJECTS = {read(folder)["project"]["name"]: folder for folder in FOLDERS}
VERSION = read(ROOT)["project"]["version"]


def requirements(project: dict[str, Any]) -> list[str]:
    extras = project.get("optional-dependencies", {}).values()
    return [*project.get("dependencies", ()), *(need for needs in extras for need in needs)]


def test_there_is_a_distribution_of_every_name() -> None:
    assert PROJECTS.keys() == {CORE, "alignkit", *FIRST_PARTY}
    assert all(folder.name == name for name, folder in PROJECTS.items() if folder != ROOT)
    installed = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    assert all(f"-e plugins/{name}" in installed for name in PROJECTS.keys() - {CORE})


@pytest.mark.parametrize("name", PROJECTS)
def test_its_metadata_is_complete_and_its_version_that_of_all(name: str) -> None:
    folder = PROJECTS[name]
    project = read(folder)["project"]
    assert project["version"] == VERSION
    assert project["license"] == "Apache-2.0"
    assert project["requires-python"] == ">=3.11"
    assert "Typing :: Typed" in project["classifiers"]
    assert not any("License ::" in line for line in project["classifiers"]), "the expression says it"
    assert project["urls"]
    assert (folder / project["readme"]).read_text(encoding="utf-8").startswith(f"# {name.removesuffix('-core')}\n")
    for need in requirements(project):
        if (ours := OURS.fullmatch(need)) and ours[1] != name:
            assert ours[2] == f"=={VERSION}", need
    for package in folder.glob("alignkit*/__init__.py"):
        assert (package.parent / "py.typed").exists()
        data = read(folder)["tool"]["setuptools"]["package-data"]
        assert "py.typed" in [*data.get("*", ()), *data.get(package.parent.name, ())]


def test_the_metapackage_has_what_most_people_use_and_extras_for_the_rest() -> None:
    project = read(PROJECTS["alignkit"])["project"]
    named = {need.partition("==")[0] for need in project["dependencies"]}
    assert named == USUAL
    extras = project["optional-dependencies"]
    rest = {name.removeprefix("alignkit-") for name in {*FIRST_PARTY} - USUAL}
    assert extras.keys() == {*rest, "all"}
    assert all(extras[name] == [f"alignkit-{name}=={VERSION}"] for name in rest)
    assert extras["all"] == [f"alignkit[{','.join(sorted(rest))}]"]


def test_the_core_needs_no_plugin() -> None:
    assert not [need for need in requirements(read(ROOT)["project"]) if need.startswith("alignkit")]


def test_one_command_changes_the_version_everywhere(tmp_path: Path) -> None:
    for folder in FOLDERS:
        copy = tmp_path / folder.relative_to(ROOT) / "pyproject.toml"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((folder / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("Makefile", "CITATION.cff"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run(["make", "version", "VERSION=9.8.7"], cwd=tmp_path, check=True, capture_output=True)
    for folder in FOLDERS:
        before = read(folder)
        after = read(tmp_path / folder.relative_to(ROOT))
        assert after["project"]["version"] == "9.8.7"
        changed = [need.replace(f"=={VERSION}", "==9.8.7") for need in requirements(before["project"])]
        ours = [need for need in requirements(after["project"]) if need.startswith("alignkit")]
        assert requirements(after["project"]) == changed
        assert all(need.endswith("==9.8.7") or need.startswith("alignkit[") for need in ours)
    assert "version: 9.8.7\n" in (tmp_path / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {VERSION}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert not list(tmp_path.rglob("*.old"))
