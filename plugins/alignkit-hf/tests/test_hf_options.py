"""Wrong options are refused before torch is imported; each error says what is wrong and how to fix it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_hf.options import HFOptions, LoraOptions

from alignkit.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import BuildFolder


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
