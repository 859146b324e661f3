"""Checkpoints that either verify or do not exist.

Files are written and flushed to disk first, `manifest.json` (each file, its size and sha256) last. A folder whose
manifest does not verify is no checkpoint. Resuming takes the newest checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import torch

from alignkit.errors import CheckpointError
from alignkit.files import replacing, telling_when_full
from alignkit.records import Group

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from alignkit.batch import GroupBatch

MANIFEST, STATE = "manifest.json", "state.json"


def save_checkpoint(
    folder: Path, step: int, *, tensors: Mapping[str, Any], state: Mapping[str, Any], keep: int, begun: bool = False
) -> Path:
    """Writes `folder/step-N`, then deletes what it replaces: all but the newest `keep` whole checkpoints up to it,
    partial ones, and those of later steps, which a run that went back has given up.

    Args:
        tensors: file stem -> anything that `torch.load(weights_only=True)` can read.
        state: JSON types.
        begun: whether other processes have written their files to the checkpoint already.

    Raises:
        AlignkitError: the disk is full; the partial checkpoint is removed and earlier ones stay.
    """
    target = folder / name_of(step)
    if not begun:
        shutil.rmtree(target, ignore_errors=True)
    with telling_when_full(folder, "a checkpoint", lambda: _bytes_of(tensors)):
        try:
            target.mkdir(parents=True, exist_ok=begun)
            for name, value in tensors.items():
                torch.save(value, target / f"{name}.pt")
            (target / STATE).write_text(json.dumps(state), encoding="utf-8")
            files = {path.name: _entry(path) for path in sorted(target.iterdir())}
            with replacing(target / MANIFEST) as manifest:
                json.dump({"step": step, "files": files}, manifest, indent=1)
        except Exception:
            shutil.rmtree(target, ignore_errors=True)
            raise
    found = checkpoint_folders(folder)
    whole = [old for old in found if old.name <= target.name and problem_with(old, content=False) is None]
    for old in found:
        if old not in whole[:keep]:
            shutil.rmtree(old)
    return target


def _bytes_of(tensors: Any) -> int:
    leaves = torch.utils._pytree.tree_leaves(tensors)
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, torch.Tensor))


def name_of(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def checkpoint_folders(folder: Path) -> list[Path]:
    """Checkpoint folders, complete or not, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)


def problem_with(checkpoint: Path, *, content: bool = True) -> str | None:
    """Why a checkpoint does not verify, with the file's name; None if it verifies.

    Args:
        content: also compare the files' hashes, not only their sizes.
    """
    try:
        listed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {str(name): (entry["size"], entry["sha256"]) for name, entry in listed.items()}
        found = {path.name: path for path in checkpoint.iterdir() if path.is_file() and path.name != MANIFEST}
    except OSError:
        return f"{checkpoint.name}: no readable {MANIFEST} (the save was interrupted)"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{checkpoint.name}: {MANIFEST} is broken"
    return next((f"{checkpoint.name}/{problem}" for problem in _problems(expected, found, content)), None)


def _problems(expected: Mapping[str, tuple[int, str]], found: Mapping[str, Path], content: bool) -> Iterator[str]:
    """What is wrong with files of which a manifest lists size and digest."""
    if STATE not in expected:
        yield f"{MANIFEST}: does not list {STATE}"
    for name, path in found.items():
        if name not in expected and path.suffix == ".pt":
            yield f"{name}: not in {MANIFEST}"
    for name, (size, digest) in expected.items():
        if name not in found:
            yield f"{name}: missing"
        elif (held := found[name].stat().st_size) != size:
            yield f"{name}: {held} bytes instead of {size}"
        elif content and _digest(found[name]) != digest:
            yield f"{name}: its content changed"


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and the problems of newer ones that don't.

    Raises:
        CheckpointError: there are checkpoints, but none verifies. A single one without a manifest is none: its save,
            the run's first, was interrupted.
    """
    problems: list[str] = []
    for candidate in checkpoint_folders(folder):
        problem = problem_with(candidate)
        if problem is None:
            return candidate, problems
        problems.append(problem)
    if len(problems) > 1 or any((found / MANIFEST).is_file() for found in checkpoint_folders(folder)):
        raise CheckpointError(
            "\n  ".join(["no checkpoint verifies:", *problems])
            + f"\n  fix: restore {folder} from a copy, or start again with --overwrite"
        )
    return None, problems


def way_back(folder: Path, step: int) -> str:
    """For a run that failed after `step`: the checkpoint to continue from, and how."""
    found = checkpoint_folders(folder)
    if not found:
        return "no checkpoint was saved before\n  fix: lower learning_rate or max_grad_norm, and start again"
    again = "lower learning_rate or max_grad_norm, or use float32, then --resume --force"
    if found[0].name == name_of(step):
        return f"the newest checkpoint already leads to it\n  fix: delete {found[0]}, {again}"
    return f"the checkpoint {found[0].name} is kept\n  fix: {again}"


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint."""
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return state


def load_tensors(checkpoint: Path, name: str) -> Any:
    """One tensor file of a checkpoint, on the CPU. Unpickles only tensors and plain containers."""
    return torch.load(checkpoint / f"{name}.pt", map_location="cpu", weights_only=True)


def modules_to_tensors(modules: Mapping[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """Trained parameters and buffers on the CPU, by qualified name; the policy's own files hold frozen weights."""
    return {name: tensor.detach().cpu() for name, tensor in trained_tensors(modules)}


def tensors_to_modules(saved: Mapping[str, torch.Tensor], modules: Mapping[str, torch.nn.Module]) -> None:
    """Loads the result of `modules_to_tensors` into modules."""
    with torch.no_grad():
        for name, tensor in trained_tensors(modules):
            tensor.copy_(saved[name])


def trained_tensors(modules: Mapping[str, torch.nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint holds of modules."""
    for name, module in modules.items():
        for key, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{name}.{key}", parameter
        persistent = module.state_dict().keys()
        yield from ((f"{name}.{key}", buffer) for key, buffer in module.named_buffers() if key in persistent)


def batch_to_tensors(batch: GroupBatch) -> dict[str, Any]:
    """A prepared batch as tensors and JSON text, for `save_checkpoint`."""
    packed: dict[str, Any] = {"groups": json.dumps([group.to_json() for group in batch.groups])}
    for name in batch.__dataclass_fields__:
        value = getattr(batch, name)
        if isinstance(value, torch.Tensor | float | int):
            packed[name] = value
    return packed


def packed(**batches: GroupBatch | None) -> dict[str, Any]:
    """Prepared batches, those that are there, by the names of their files, for `save_checkpoint`."""
    return {name: batch_to_tensors(batch) for name, batch in batches.items() if batch is not None}


def load_batch(checkpoint: Path, name: str, device: torch.device) -> GroupBatch | None:
    """The batch in one file of a checkpoint, if it is there."""
    if not (checkpoint / f"{name}.pt").exists():
        return None
    return batch_from_tensors(load_tensors(checkpoint, name), device)


def batch_from_tensors(packed: Mapping[str, Any], device: torch.device) -> GroupBatch:
    """The batch that `batch_to_tensors` packed."""
    from alignkit.batch import GroupBatch

    fields = {name: value for name, value in packed.items() if name != "groups"}
    groups = tuple(Group.from_json(record) for record in json.loads(packed["groups"]))
    return GroupBatch(**fields, groups=groups).to(device)


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
