"""A pretrained model instead of one of random weights: its material, and adapters that are alike in both programs."""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer

from tests.bench.material import RECORD, Material, read_hh

if TYPE_CHECKING:
    from torch import nn

REAL_MODEL = "ALIGNKIT_REAL_MODEL"
MAX_LENGTH = 384


def make_real_material(folder: Path, file: Path) -> None:
    """Makes the material of the model in $ALIGNKIT_REAL_MODEL: HH rows, and a link to the model.

    Raises:
        RuntimeError: there is no such model, or no file of rows.
    """
    model = Path(os.environ.get(REAL_MODEL, "")).resolve()
    if REAL_MODEL not in os.environ or not (model / "config.json").is_file():
        raise RuntimeError(f"needs a pretrained model: run `make real-model`, then set {REAL_MODEL} to its folder")
    if not file.is_file():
        raise RuntimeError(f"needs HH rows: there is no {file}, name a file with --data")
    pairs = list(read_hh(file))
    random.Random(0).shuffle(pairs)
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "lm"
    link.unlink(missing_ok=True)
    link.symlink_to(model)
    stop_ids = (AutoTokenizer.from_pretrained(model).eos_token_id,)
    material = Material(folder, pairs, MAX_LENGTH, stop_ids)
    (folder / RECORD).write_text(json.dumps({**asdict(material), "folder": ""}))


@torch.no_grad()
def draw_adapter(model: nn.Module) -> None:
    """Draws the first factor of each LoRA adapter from one seed, in the order of the layers; the second one is zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
