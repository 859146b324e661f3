"""What `alignkit doctor` checks of a machine and the plugins on it. Imports no torch."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alignkit import AlignkitError, InputError, has_nvidia_driver, registry, visible
from alignkit.commands import default_cache, main_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

State = Literal["ok", "warn", "fail"]
LEAST_DISK = 2**30
"""Bytes below which no run ends well."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        fix: what to do, where something is wrong.
    """

    name: str
    state: State
    said: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f"\n      fix: {self.fix}" if self.fix else ""
        return visible(f"{self.state:<4}  {self.name}: {self.said}{fix}")


def guarded(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check; an error of it is one more."""
    try:
        yield from check()
    except InputError as error:
        yield Finding(name, "fail", ": ".join(filter(None, (error.where, error.what))), error.fix)
    except AlignkitError as error:
        yield Finding(name, "fail", str(error))
    except Exception as error:
        yield Finding(name, "fail", f"{type(error).__name__}: {error}")


def versions() -> Iterator[Finding]:
    """The main packages, and what the project's distributions need but don't get."""
    found = [f"{name} {version}" for name, version in main_versions().items()]
    yield Finding("versions", "ok", f"Python {platform.python_version()}, {', '.join(found)}")
    own = sorted({one.distribution for one in registry().registrations} | {"alignkit"})
    for need, has, owner in unmet(own):
        what = f"{owner} needs {need}, and {has or 'it is not installed'}"
        yield Finding("versions", "fail", what, f"{Path(sys.executable).name} -m pip install '{need}'")


def unmet(distributions: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """(requirement, installed version, who needs it) of each requirement that is not met, extras left out."""
    from packaging.requirements import Requirement

    for owner in distributions:
        try:
            needs = metadata.requires(owner) or []
        except metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            try:
                version = metadata.version(need.name)
            except metadata.PackageNotFoundError:
                yield f"{need.name}{need.specifier}", "", owner
                continue
            if not need.specifier.contains(version, prereleases=True):
                yield f"{need.name}{need.specifier}", f"{version} is installed", owner


def plugins() -> Iterator[Finding]:
    """Broken plugins, and commands that can't be loaded; versions of the interface are among their reasons."""
    found = registry()
    for one in found.broken:
        fix = f"install a version of {one.distribution} that fits, or pip uninstall {one.distribution}"
        yield Finding("plugins", "fail", f"{one.distribution} is broken: {one.error}", fix)
    for point in metadata.entry_points(group="alignkit.commands"):
        try:
            point.load()
        except Exception as error:
            owner = point.dist.name if point.dist else point.value
            said = f"the command {point.name} of {owner} can't be loaded: {type(error).__name__}: {error}"
            yield Finding("plugins", "fail", said, f"install {owner} again")
    working = len({one.distribution for one in found.registrations})
    if not found.broken:
        yield Finding("plugins", "ok", f"{len(found.registrations)} components of {working} distributions")


def devices() -> Iterator[Finding]:
    """The devices that torch sees, what they compute in, and those that it does not see."""
    import torch

    threads = torch.get_num_threads()
    yield Finding("devices", "ok", f"CPU with {os.cpu_count()} cores, torch uses {threads} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            one = torch.cuda.get_device_properties(index)
            said = f"cuda:{index} {one.name}, {one.total_memory / 2**30:.0f} GiB"
            if torch.cuda.is_bf16_supported(including_emulation=False):
                yield Finding("devices", "ok", f"{said}, bfloat16")
            else:
                yield Finding("devices", "warn", f"{said}, no bfloat16", 'set policy.dtype = "float32"')
    elif has_nvidia_driver():
        yield Finding(
            "devices", "warn", f"there is an NVIDIA driver, but torch {torch.__version__} finds no CUDA device",
            "install a torch that is built for this CUDA (pytorch.org), or look at nvidia-smi",
        )  # fmt: skip
    if torch.backends.mps.is_available():
        yield Finding("devices", "ok", "mps")


def disk(out: Path, needed: int = 0) -> Iterator[Finding]:
    """Whether the folders of runs, the cache and temporary files can be written, and have room for `needed` bytes."""
    for name, folder in (("runs", out), ("cache", default_cache()), ("temporary files", Path(tempfile.gettempdir()))):
        place = next(one for one in (folder.expanduser().absolute(), *folder.absolute().parents) if one.is_dir())
        free = shutil.disk_usage(place).free
        said = f"{free / 2**30:.1f} GiB are free for {name} ({folder})"
        wanted = max(LEAST_DISK, needed if name == "runs" else 0)
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"\0" * 2**16)
                file.flush()
        except OSError as error:
            yield Finding("disk", "fail", f"{place} can't be written: {error.strerror}", "make room, or choose another")
            continue
        if free < wanted:
            said += f", and {wanted / 2**30:.1f} GiB are needed"
            where = "--out, or lower optimizer.keep_checkpoints" if name == "runs" else "another disk"
            yield Finding("disk", "fail", said, f"make room, or choose {where}")
        else:
            yield Finding("disk", "ok", said)
