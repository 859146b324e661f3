"""`alignkit export`: folders that other tools load, and nothing of a run's own in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit import cli
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has trained a policy with LoRA."""
    folder = tmp_path / "run"
    model = write_tiny_llama(folder / "policy")
    (model / "checkpoints").mkdir()
    (model / "checkpoints" / "state.pt").touch()
    (model / "trained_on.json").touch()
    (model / "adapter").mkdir()
    (model / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "run.json").write_text(json.dumps({"stages": {"sft": {}, "align": {}}}))
    return folder


def export(*words: object, code: int = 0) -> None:
    assert cli.run(["export", *map(str, words), "--json"]) == code


def test_a_whole_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    export(run, "--out", out)
    files = sorted(path.name for path in out.iterdir())
    assert json.loads(capsys.readouterr().out)["files"] == files
    assert not {"checkpoints", "adapter", "trained_on.json"} & set(files)
    ids = torch.tensor([[1, 2, 3]])
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (run / "policy", out))
    assert torch.equal(before(ids).logits, after(ids).logits)
    assert AutoTokenizer.from_pretrained(out).encode("a b") == AutoTokenizer.from_pretrained(run / "policy").encode(
        "a b"
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_once(run: Path, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "out"
    export(run / "policy", "--out", out, "--dtype", dtype)
    before, after = (AutoModelForCausalLM.from_pretrained(path, dtype="auto") for path in (run / "policy", out))
    kind = getattr(torch, dtype)
    assert after.dtype == kind
    for name, weight in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], weight.to(kind)), name


def test_the_adapter_alone(run: Path, tmp_path: Path) -> None:
    export(run, "--out", tmp_path / "out", "--adapter")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["adapter_config.json"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dtype", "int4"], "one of float32, bfloat16, float16"),
        (["--adapter", "--dtype", "float16"], "leave --dtype out"),
        (["--private"], "add --push"),
    ],
)
def test_what_does_not_fit_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    export(run, "--out", tmp_path / "out", *words, code=2)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_replaced_unasked_and_a_model_never_by_itself(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    export(run, "--out", out)
    export(run, "--out", out, code=2)
    export(run, "--out", out, "--overwrite")
    export(run, "--out", run, "--overwrite", code=2)
    assert "holds the model itself" in capsys.readouterr().err
    assert (run / "policy" / "config.json").exists()
    export(out, "--out", tmp_path / "other", "--adapter", code=2)
    assert "trained without LoRA" in capsys.readouterr().err
    export(tmp_path / "nothing", "--out", tmp_path / "other", code=2)
    assert "holds no config.json" in capsys.readouterr().err


def test_it_is_pushed_where_asked(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client is replaced: there is no hub here."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, name: str, **options: Any) -> None:
            calls.append((name, options))

        def upload_folder(self, **options: Any) -> None:
            calls.append(("upload", options))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    export(run, "--out", tmp_path / "out", "--push", "me/model", "--private")
    assert calls == [
        ("me/model", {"private": True, "exist_ok": True}),
        ("upload", {"repo_id": "me/model", "folder_path": tmp_path / "out"}),
    ]
