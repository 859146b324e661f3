"""`alignkit export`: the model of a run as a folder to give away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit import InputError, Run
from alignkit.commands import AsJson, Overwrite, show

if TYPE_CHECKING:
    from collections.abc import Iterator

ADAPTER = "adapter"
DTYPES = ("float32", "bfloat16", "float16")
WEIGHTS = "model*.safetensors"
OWN = ("trained_on.json",)
"""Files that only alignkit reads."""

Source = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or the folder of a model.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")]
AdapterOnly = Annotated[bool, typer.Option("--adapter", help="The LoRA adapter alone, for peft.")]
Dtype = Annotated[
    str, typer.Option("--dtype", metavar="TYPE", help="Round weights: bfloat16, float16. [default: as trained]")
]
Push = Annotated[
    str, typer.Option("--push", metavar="USER/NAME", help="Also upload it to the Hugging Face hub (hf auth login).")
]
Private = Annotated[bool, typer.Option("--private", help="Make a new repository on the hub private.")]


def export(
    run: Source,
    out: Out,
    adapter: AdapterOnly = False,
    dtype: Dtype = "",
    push: Push = "",
    private: Private = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a trained model, merged, as a folder for transformers, vLLM and llama.cpp's converter; push it if asked.

    Examples:
        alignkit export runs/dpo --out my-model --dtype bfloat16
    """
    if dtype and (adapter or dtype not in DTYPES):
        fix = "leave --dtype out: peft casts adapters" if adapter else f"one of {', '.join(DTYPES)}"
        raise InputError("does not fit", where=f"--dtype {dtype}", fix=fix)
    if private and not push:
        raise InputError("has no effect without --push", where="--private", fix="add --push USER/NAME, or leave it out")
    model = _model_of(run, adapter=adapter)
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise InputError("is not empty", where=f"--out {out}", fix="use --overwrite, or choose a new folder")
        if model.resolve().is_relative_to(out.resolve()):
            raise InputError("holds the model itself", where=f"--out {out}", fix="choose another folder")
        shutil.rmtree(out)
    written = _write(model, out, dtype)
    if push:
        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(push, private=private, exist_ok=True)
        hub.upload_folder(repo_id=push, folder_path=out)
    show({"model": str(model), "out": str(out), "files": written, **({"pushed": push} if push else {})}, as_json)


def _model_of(given: Path, *, adapter: bool) -> Path:
    """The folder to copy from.

    Raises:
        InputError: there is no such model.
    """
    model = Run.open(given).trained if (given / "run.json").is_file() else given
    folder = model / ADAPTER if adapter else model
    wanted = "adapter_config.json" if adapter else "config.json"
    if not (folder / wanted).is_file():
        fix = "leave --adapter out: it was trained without LoRA" if adapter else "give a run, or a model's folder"
        raise InputError(f"holds no {wanted}", where=str(folder), fix=fix)
    return folder


def _write(model: Path, out: Path, dtype: str) -> list[str]:
    """Copies the model's files, not its checkpoints; returns their names."""
    out.mkdir(parents=True, exist_ok=True)
    files = [file for file in sorted(model.iterdir()) if file.is_file() and file.name not in OWN]
    for file in files:
        if dtype and file.match(WEIGHTS):
            _cast(file, out / file.name, dtype)
        else:
            shutil.copyfile(file, out / file.name)
    if dtype:
        _tell(out, dtype)
    return [file.name for file in files]


def _cast(source: Path, target: Path, dtype: str) -> None:
    """Copies a file of weights with its floating-point tensors rounded."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    with safe_open(source, "pt") as weights:
        whole = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 (no iterator)
        rounded = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in whole.items()}
        save_file(rounded, target, weights.metadata())


def _tell(out: Path, dtype: str) -> None:
    """Writes the type into config.json, and the bytes into the index of split weights."""
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    for part in _configs(config):
        part["dtype"] = dtype
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for index in out.glob("*.safetensors.index.json"):
        said = json.loads(index.read_text(encoding="utf-8"))
        said["metadata"]["total_size"] = sum(file.stat().st_size for file in out.glob(WEIGHTS))
        index.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _configs(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A configuration, and those inside that name a type of their own."""
    yield config
    for value in config.values():
        if isinstance(value, dict) and "dtype" in value:
            yield from _configs(value)
