"""Wrong options are refused before torch is imported; each error says what is wrong and how to fix it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_hf.loading import pick_device
from alignkit_hf.options import HFOptions, LoraOptions
from alignkit_hf.policy import HFPolicy
from hf_tiny import VOCABULARY

from alignkit.components import Context
from alignkit.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import BuildFolder, LoadPolicy


def refused(**options: Any) -> InputError:
    with pytest.raises(InputError) as raised:
        HFOptions(**options).check()
    assert raised.value.fix
    return raised.value


def test_a_good_folder_passes(build_folder: BuildFolder) -> None:
    HFOptions(model=str(build_folder())).check()


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    assert refused().where == "model"
    assert "no model folder" in refused(model=str(tmp_path / "nothing")).what
    assert "no model folder" in refused(model="./nothing").what
    assert "config.json" in refused(model=str(tmp_path)).what


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert "HF_HUB_OFFLINE" in refused(model="owner/model").what
    (tmp_path / "models--owner--model").mkdir()
    HFOptions(model="owner/model").check()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    HFOptions(model="owner/another").check()


def test_pickled_weights_are_refused(build_folder: BuildFolder) -> None:
    folder = build_folder()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "safetensors" in refused(model=str(folder)).what


def test_a_damaged_config_is_named(build_folder: BuildFolder) -> None:
    folder = build_folder()
    (folder / "config.json").write_text("{")
    assert "config.json" in refused(model=str(folder)).where


def test_options_that_exclude_each_other(build_folder: BuildFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(build_folder())
    assert refused(model=model, layout="packed", attention="sdpa").where == "attention"
    assert refused(model=model, reference="adapter-off").where == "reference"
    assert refused(model=model, quantize="4bit").where == "quantize"
    lora = LoraOptions(r=8)
    HFOptions(model=model, lora=lora, reference="adapter-off").check()
    assert "bitsandbytes" in refused(model=model, quantize="4bit", lora=lora).what
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("alignkit_hf.options.has_nvidia_driver", lambda: False)
    assert "CUDA" in refused(model=model, quantize="4bit", lora=lora).what


def test_options_that_would_do_nothing_or_can_not_be(
    build_folder: BuildFolder, load_policy: LoadPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_folder()
    model = str(folder)
    for given in ({"target_modules": ("q_proj",)}, {"alpha": 32.0}):
        with pytest.raises(InputError, match=f"{next(iter(given))}: has no effect without r above 0"):
            LoraOptions(**given)
    assert refused(model=model, revision="main").where == "revision"
    for token in (VOCABULARY, 99999):
        assert f"no token {token}" in refused(model=model, end_token_id=token).what
        assert refused(model=model, stop_token_ids=(2, token)).where == "stop_token_ids"
    with pytest.raises(InputError, match="end_token_id: must be at least 0"):
        HFOptions(model=model, end_token_id=-1)
    monkeypatch.setattr(HFOptions, "_check_against_config", lambda *_: None)
    with pytest.raises(InputError, match=r"end_token_id: the vocabulary of \d+ tokens has no token 99999"):
        load_policy(folder=folder, end_token_id=99999)


def test_a_saved_policy_has_no_revision_and_a_device_must_exist(
    build_folder: BuildFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_folder()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    options = HFOptions(model="owner/model", revision="v2")
    assert HFPolicy.load(folder, options, Context(device="cpu")).config.model == str(folder)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"run\.device: there is no device 'cuda'"):
            pick_device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


def test_checking_imports_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from alignkit.errors import InputError
from alignkit_hf.options import HFOptions
try:
    HFOptions(model={str(tmp_path / "nothing")!r}).check()
except InputError as error:
    assert error.exit_code == 2
else:
    raise SystemExit("not refused")
assert not {{"torch", "transformers"}} & set(sys.modules), "heavy imports"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
