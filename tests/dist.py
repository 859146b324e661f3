"""Builds the wheel and the sdist of every distribution into dist/, installs them and tries them: `make dist`.

Each wheel is built from its sdist. They are installed from dist/ alone into a new environment, outside the repository.
By default that environment sees the packages of others that are installed here, and none of this project;
`python tests/dist.py --empty` installs those from the index instead, as a user would.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
PROJECTS = [ROOT, *(path.parent for path in sorted(ROOT.glob("plugins/*/pyproject.toml")))]
MODEL = """
from pathlib import Path
from alignkit.testing.tiny_hf import write_tiny_llama
write_tiny_llama(Path("model"))
"""
PAIR = {"prompt": "Say hello.", "chosen": "hello", "rejected": "no"}


def project(folder: Path) -> dict[str, Any]:
    """The table [project] of a distribution."""
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def build(folder: Path, work: Path) -> list[str]:
    """Builds one distribution; returns the names of its files."""
    from build import ProjectBuilder
    from pyproject_hooks import quiet_subprocess_runner

    name = project(folder)["name"]
    source = work / name
    source.mkdir()
    shutil.copy(ROOT / "LICENSE", source)
    for path in (folder / "pyproject.toml", folder / "README.md", *folder.glob("alignkit*")):
        if path.is_dir() and path.suffix != ".egg-info":
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy(path, source)
    sdist = Path(ProjectBuilder(source, runner=quiet_subprocess_runner).build("sdist", DIST))
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "unpacked", filter="data")
    unpacked = work / "unpacked" / sdist.name.removesuffix(".tar.gz")
    wheel = Path(ProjectBuilder(unpacked, runner=quiet_subprocess_runner).build("wheel", DIST))
    return [sdist.name, wheel.name]


def environment(folder: Path, *, empty: bool) -> Path:
    """A virtual environment with none of this project; returns its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    if not empty:
        others = folder / "others"
        others.mkdir()
        for path in Path(site.getsitepackages()[0]).iterdir():
            if not path.name.startswith(("alignkit", "__editable__", "__pycache__")) and path.suffix != ".pth":
                (others / path.name).symlink_to(path)
        (installed,) = folder.glob("lib/python*/site-packages")
        (installed / "others.pth").write_text(f"{others}\n", encoding="utf-8")
    return folder / "bin"


def install(programs: Path, *, empty: bool) -> None:
    """Installs `alignkit[all]` from dist/ with what it requires; pytest too, for `plugins check`."""
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "--disable-pip-version-check", "install"]
    # Files where there is an index: it may have something of the same name.
    ours = list(map(str, DIST.glob("*.whl"))) if empty else ["--no-index", "--find-links", str(DIST), "alignkit[all]"]
    limits = ["-c", str(ROOT / "constraints.txt")] if empty else []
    subprocess.run([*pip, "--quiet", *limits, *ours, "pytest"], check=True, env=_without_python_path())


def smoke(programs: Path, folder: Path, version: str) -> None:
    """Uses what is installed, in an empty folder outside the repository."""
    folder.mkdir()
    alignkit = partial(_said, str(programs / "alignkit"), cwd=folder)
    assert alignkit("--version").strip() == version
    assert "Align language models" in alignkit("--help")
    listed = json.loads(alignkit("plugins", "list", "--json"))
    assert listed["broken"] == []
    assert {"demo", "compare", "doctor"} <= {one["name"] for one in listed["commands"]}
    found = {one["distribution"] for one in (*listed["plugins"], *listed["commands"])}
    expected = {project(path)["name"] for path in PROJECTS} - {"alignkit"}
    assert found == expected, found ^ expected
    alignkit("plugins", "check", "brevity", "--plugin", _new(alignkit, folder))
    _said(str(programs / "python"), "-c", MODEL, cwd=folder)
    (folder / "pairs.jsonl").write_text("".join(json.dumps({**PAIR, "prompt": f"Say {n}."}) + "\n" for n in range(12)))
    options = ["-o", "policy.model=model", "-o", "preferences.path=pairs.jsonl", "-o", "sampling.max_tokens=4"]
    alignkit("run", "--optimizer", "dpo", *options, "--out", "run", "--quiet")
    assert (folder / "run" / "policy" / "model.safetensors").exists()
    assert (folder / "run" / "report.html").exists()


def _new(alignkit: Any, folder: Path) -> str:
    """The file of a plugin from the templates, which are data of the package."""
    alignkit("plugins", "new", "brevity")
    return str(folder / "alignkit-brevity" / "alignkit_brevity.py")


def _said(*command: str, cwd: Path) -> str:
    ran = subprocess.run(command, cwd=cwd, env=_without_python_path(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{' '.join(command)}: exit code {ran.returncode}\n{ran.stdout[-2000:]}{ran.stderr}"
    return ran.stdout


def _without_python_path() -> dict[str, str]:
    left_out = ("PYTHONPATH", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in left_out} | {"OMP_NUM_THREADS": "1"}


def main() -> None:
    """Builds, installs, tries; says how long each took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--empty", action="store_true", help="install what others make from the index, too")
    empty = parser.parse_args().empty
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="alignkit-dist-") as place:
        start, work = time.perf_counter(), Path(place)
        with ThreadPoolExecutor(2) as pool:
            files = [name for names in pool.map(partial(build, work=work), PROJECTS) for name in names]
        print(f"built {len(files)} files in dist/, {time.perf_counter() - start:.0f} s", flush=True)
        programs = environment(work / "environment", empty=empty)
        install(programs, empty=empty)
        print(f"installed alignkit[all] from them, {time.perf_counter() - start:.0f} s", flush=True)
        smoke(programs, work / "elsewhere", project(ROOT)["version"])
        print(f"they work outside the repository, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
