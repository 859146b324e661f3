"""`--dry-run` against the memory that a process takes: within 15% for three sizes, with all weights and with LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bench.memory import CASES, Case, measure, write_model
from tests.bench.scale import SHAPES, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("models")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_estimate_is_within_15_percent_of_the_peak(case: Case, folder: Path) -> None:
    found = measure(case, folder)
    assert 0.85 <= found.ratio <= 1.15, found


def test_the_cases_have_the_sizes_that_they_name(tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    write_model(tmp_path / "tiny", vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    assert (tmp_path / "tiny" / "model.safetensors").exists()
    counts = {}
    for name in SHAPES:
        config = AutoConfig.from_pretrained(write_config(tmp_path, name))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        counts[name] = round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 2)
    # As their model cards say.
    assert counts == {"1B": 1.24, "8B": 8.03, "70B": 70.55}
