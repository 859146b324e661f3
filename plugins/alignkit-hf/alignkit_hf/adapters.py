"""LoRA adapters: merged at loading, added for training, and saved alone.

A policy may start from an adapter, and its own adapter may be merged on the way (see `HFPolicy.reference`). The adapter
that is saved holds the sum of them all, stacked rank upon rank, which is exact. So the base that it names is the one
that it fits.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from alignkit import InputError
from alignkit_hf.weights import check_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from alignkit_hf.options import LoraOptions
    from alignkit_hf.sources import Place, Source
    from alignkit_hf.trunk import LowRank, TrunkModel

logger = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def add_adapter(
    model: nn.Module,
    lora: LoraOptions,
    *,
    seed: int = 0,
    revision: str | None = None,
    head: str | None = None,
    where: str = "lora",
) -> nn.Module:
    """The model in a PeftModel with an adapter that starts at zero.

    Args:
        seed: of the random factors.
        revision: of the model, if it is from the hub.
        head: a module that is fully trained.

    Raises:
        InputError: the model has no module of one of the target names, or an adapter can't be added to it.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets: str | list[str] = list(lora.target_modules)
    if lora.target_modules == ("all-linear",):
        targets = "all-linear"
    names = [name for name, _ in model.named_modules()]
    linear = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)}
    fix = f"choose from: {', '.join(sorted(linear))}"
    known = [one for one in lora.target_modules if any(f".{name}".endswith(f".{one}") for name in names)]
    if unknown := [one for one in lora.target_modules if targets != "all-linear" and one not in known]:
        what = f"no module of the model is called {' or '.join(unknown)}"
        raise InputError(what, where=f"{where}.target_modules", fix=fix)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=targets,
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM" if head is None else "SEQ_CLS",
        revision=revision,
        modules_to_save=None if head is None else [head],
    )
    device = next(model.parameters()).device
    try:
        with _quiet_peft(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(str(error), where=f"{where}.target_modules", fix=fix) from error


def merge_adapters(lm: PreTrainedModel, source: Source, *, where: str) -> tuple[PreTrainedModel, list[LowRank | None]]:
    """The model with a source's adapters merged, and what each of them added (None: more than low-rank products).

    An adapter that holds an embedding of its own size, because it was trained with new tokens, gets it.

    Raises:
        InputError: an adapter's tensors are not those that it needs.
    """
    from peft import PeftModel, get_peft_model_state_dict

    added: list[LowRank | None] = []
    for place in source.adapters:
        file = place.file(WEIGHTS)
        if file is None:
            raise InputError(
                f"the adapter {place.name} has no {WEIGHTS} (pickled weights can run code, so they are not loaded)",
                where=where,
                fix="save it again with peft's save_pretrained",
            )
        given = load_file(file)
        grown = _grow(lm, given, place, where=where)
        with _quiet_peft():
            adapted = PeftModel.from_pretrained(lm, place.name, revision=place.revision)
            expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        others = {name.replace(".default.", ".") for name in adapted.state_dict()} - expected
        check_adapter(place, expected, set(given) - others, where=where)
        added.append(None if grown or others & set(given) else low_rank(adapted))
        with _quiet_peft():
            lm = adapted.merge_and_unload()
    return lm, added


def tensors_of_adapter(place: Place) -> set[str]:
    """Names of an adapter's tensors, without peft's prefix."""
    file = place.file(WEIGHTS)
    if file is None:
        return set()
    with safe_open(file, "pt") as tensors:
        return {name.removeprefix(_PREFIX) for name in tensors.keys()}  # noqa: SIM118


def low_rank(model: Any) -> LowRank | None:
    """What the adapter of a PeftModel adds, with its scale in B; None if it does more than add low-rank products."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    names = {key.removeprefix(_PREFIX).removesuffix(".lora_A.weight") for key in tensors if "lora_A" in key}
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name in names:
        keys = [f"{_PREFIX}{name}.lora_{part}.weight" for part in "AB"]
        if not all(key in tensors and tensors[key].ndim == 2 for key in keys):
            return None
        below, above = (tensors[key].detach().float().cpu() for key in keys)
        layer = model.get_base_model().get_submodule(name)
        factors[name] = below.clone(), above * layer.scaling[model.active_adapter]
    return factors if len(tensors) == 2 * len(factors) else None


def save_adapter(model: TrunkModel, path: Path) -> None:
    """Writes the adapter of a model, if it has one: the sum of all adapters that its base lacks.

    An adapter that stands on one which is more than low-rank products fits no stored base, and is not written.
    """
    shutil.rmtree(path, ignore_errors=True)
    if not model.has_adapter:
        return
    peft_model: Any = model.model
    config = peft_model.peft_config[peft_model.active_adapter]
    base = Path(str(config.base_model_name_or_path)).expanduser()
    before = config.base_model_name_or_path
    if base.is_dir():
        config.base_model_name_or_path = str(base.resolve())
    try:
        if not model.merged:
            peft_model.save_pretrained(path)
            return
        layers = [*model.merged, low_rank(peft_model)]
        if None in layers:
            logger.warning("%s is not written: no stored model is the base of this adapter; load %s", path, path.parent)
            return
        _write_sum([layer for layer in layers if layer is not None], config, model.lm, path)
    finally:
        config.base_model_name_or_path = before


def _write_sum(layers: Sequence[LowRank], config: Any, lm: PreTrainedModel, path: Path) -> None:
    """Writes one adapter that adds what all layers add."""
    tensors: dict[str, Tensor] = {}
    names = sorted(set().union(*layers))
    parts = {name: [layer[name] for layer in layers if name in layer] for name in names}
    rank = max(sum(below.shape[0] for below, _ in pairs) for pairs in parts.values())
    for name, pairs in parts.items():
        below, above = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1)
        unused = rank - below.shape[0]
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = nn.functional.pad(below, (0, 0, 0, unused)).contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = nn.functional.pad(above, (0, unused)).contiguous()
    ends = {name.rsplit(".", 1)[-1] for name in names}
    meant = {name for name, module in lm.named_modules() if name.rsplit(".", 1)[-1] in ends and _is_leaf(module)}
    merged = copy.copy(config)
    merged.r = merged.lora_alpha = rank
    merged.target_modules = ends if meant == set(names) else set(names)
    merged.rank_pattern, merged.alpha_pattern, merged.use_rslora = {}, {}, False
    merged.layers_to_transform = merged.layers_pattern = None
    merged.inference_mode = True
    path.mkdir(parents=True)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    merged.save_pretrained(path)


def _is_leaf(module: nn.Module) -> bool:
    """Whether it is a linear module, adapted or not."""
    return hasattr(module, "weight")


def _grow(lm: PreTrainedModel, given: Mapping[str, Tensor], place: Place, *, where: str) -> bool:
    """Gives the embedding the number of rows that an adapter holds for it; returns whether it changed.

    Raises:
        InputError: the adapter has no rows of that number for an untied vocabulary head.
    """
    rows = _rows_of(lm, lm.get_input_embeddings(), given)
    before: Any = lm.get_input_embeddings().weight
    if rows in (None, before.shape[0]):
        return False
    lm.resize_token_embeddings(rows, mean_resizing=False)
    head = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    tied = head is None or head.weight is lm.get_input_embeddings().weight
    if not tied and _rows_of(lm, head, given) != rows:
        raise InputError(
            f"the adapter {place.name} was trained with {rows} tokens, but holds no vocabulary head for them",
            where=where,
            fix="save it again with save_embedding_layers=True",
        )
    return True


def _rows_of(lm: PreTrainedModel, module: nn.Module, given: Mapping[str, Tensor]) -> int | None:
    """Rows of a module's whole weight in an adapter's tensors; None if they hold none."""
    name = next(name for name, other in lm.named_modules() if other is module)
    keys = {f"{_PREFIX}{name}.{middle}weight" for middle in ("", "base_layer.", "modules_to_save.")}
    return next((tensor.shape[0] for key, tensor in given.items() if key in keys), None)


@contextlib.contextmanager
def _quiet_peft() -> Iterator[None]:
    """Hides warnings that concern only peft: it uses a deprecated name of transformers, sets ranks for experts of a
    mixture that are not adapted, finds missing tensors (an error here), and tied weights (`make_ready` looks)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied", UserWarning)
        yield
