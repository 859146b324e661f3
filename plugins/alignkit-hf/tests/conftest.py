"""Fixtures that save and load tiny models; `hf_tiny` makes them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from alignkit_hf import probe
from alignkit_hf.options import HFOptions
from alignkit_hf.policy import HFPolicy
from hf_tiny import build_model, build_tokenizer

from alignkit.components import Context


class BuildFolder(Protocol):
    def __call__(
        self, family: str = ..., *, pad: str | None = ..., template: str | None = ..., **changes: Any
    ) -> Path: ...


@pytest.fixture
def build_folder(tmp_path: Path) -> BuildFolder:
    """Saves a model and its tokenizer as a folder."""

    def build(family: str = "llama", *, pad: str | None = "<pad>", template: str | None = None, **changes: Any) -> Path:
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        build_model(family, **changes).save_pretrained(folder)
        build_tokenizer(pad=pad, template=template).save_pretrained(folder)
        return folder

    return build


class LoadPolicy(Protocol):
    def __call__(self, family: str = ..., *, folder: Path | None = ..., **options: Any) -> HFPolicy: ...


@pytest.fixture
def load_policy(build_folder: BuildFolder) -> LoadPolicy:
    """The policy of a family, or of a folder, on the CPU."""

    def load(family: str = "llama", *, folder: Path | None = None, **options: Any) -> HFPolicy:
        model = str(folder if folder is not None else build_folder(family))
        return HFPolicy(HFOptions(model=model, **options), Context(device="cpu"))

    return load


@pytest.fixture(autouse=True)
def forget_probes() -> None:
    """Every test probes anew."""
    probe._SEEN.clear()
