"""The policy's weights as files on their way to servers."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

_PREFIX = "alignkit-weights-"
FILE_BYTES = 4 * 2**30


class Transfer:
    """Holds the files of the last weights, until the next ones or `close`. Files that a killed run left are removed."""

    def __init__(self, parent: Path) -> None:
        for old in parent.glob(f"{_PREFIX}*"):
            if not _is_running(old.name.removeprefix(_PREFIX).partition("-")[0]):
                shutil.rmtree(old, ignore_errors=True)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
        self._folder.chmod(0o755)
        self.paths: list[str] = []

    def write(self, weights: Iterable[tuple[str, Tensor]], version: str) -> None:
        """Writes `paths`, at most `FILE_BYTES` each, unless a single weight is larger."""
        for old in self._folder.iterdir():
            old.unlink()
        held: dict[str, Tensor] = {}
        self.paths, size = [], 0
        for name, tensor in weights:
            bytes_of_it = tensor.numel() * tensor.element_size()
            if held and size + bytes_of_it > FILE_BYTES:
                self._write(held, version)
                held, size = {}, 0
            held[name] = _alone(tensor)
            size += bytes_of_it
        self._write(held, version)

    def _write(self, tensors: dict[str, Tensor], version: str) -> None:
        path = self._folder / f"{len(self.paths)}.safetensors"
        save_file(tensors, path, metadata={"version": version})
        path.chmod(0o644)
        self.paths.append(str(path))

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _alone(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, in memory that it shares with no other: safetensors writes no views."""
    found = tensor.detach().to("cpu").contiguous()
    return found if found.untyped_storage().nbytes() == found.numel() * found.element_size() else found.clone()


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
