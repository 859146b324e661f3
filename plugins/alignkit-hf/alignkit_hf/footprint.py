"""The memory of a model, from its config alone.

The model is made of fake tensors, which have a shape and no numbers. A forward and a backward pass of a micro-batch run
on them in the code that training uses, while every tensor that comes and goes is counted. So all that autograd keeps is
in the figure, for any architecture, LoRA, frozen layers and gradient checkpointing. docs/how-to/scale.md says what that
is for a Llama.

A model for CUDA is counted on fake CPU tensors with CUDA's precision and the inputs and outputs of its fused attention,
so no GPU is needed. What the kernels use inside is in no figure.
"""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any
from weakref import finalize

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from alignkit import Footprint, Group, GroupBatch, Prompt
from alignkit_hf import loading
from alignkit_hf.adapters import add_adapter
from alignkit_hf.attention import NAME, PackedKernel
from alignkit_hf.freezing import freeze, layers_of
from alignkit_hf.kernels.attention import padded_index
from alignkit_hf.kernels.packed_layout import PackedLayout
from alignkit_hf.modeling import PackedModel, Path, Request, States
from alignkit_hf.sources import Source
from alignkit_hf.sources import loading as loading_errors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from alignkit import Held, Load
    from alignkit_hf.kernels.attention import AttentionRule
    from alignkit_hf.options import HFOptions

logger = logging.getLogger(__name__)

FOUR_BITS = 0.516
"""Bytes of a weight in nf4 with doubly quantised scales (arXiv:2305.14314, section 3)."""
CACHE_BYTES = 512 * 2**20
MAX_ROWS = 512


def footprint(options: HFOptions, held: Held, load: Load) -> Footprint:
    """The memory of a model that the options name, for one of the uses of a training.

    Raises:
        InputError: its config can't be loaded.
    """
    stored = held.scores and held.of_reward
    if stored:
        options = replace(
            options, lora=type(options.lora)(), weights="float32", dtype="auto", freeze_layers=0, train_last=0,
            quantize="none", reference="auto", gradient_checkpointing=False,
        )  # fmt: skip
    if held.name == "reference" and options.lora.r and options.reference != "copy":
        return Footprint(parameters=0)
    with loading_errors("model", options.model):
        source = Source.of(options.model, options.revision)
        config = transformers.AutoConfig.from_pretrained(
            source.base.name, revision=source.base.revision, trust_remote_code=options.trust_remote_code
        )
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model = _fake_model(config, options, held, load)
        trained = [p for p in model.parameters() if p.requires_grad] if held.trained else []
        activations: int | None = 0
        if held.trained and (options.layout == "padded" or options.attention != "auto"):
            activations = None
        elif held.trained:
            activations = _activations(model, load, held, mode)
        return _sum(model, options, held, load, trained, activations)


def _sum(
    model: PackedModel, options: HFOptions, held: Held, load: Load, trained: list[nn.Parameter], activations: int | None
) -> Footprint:
    branch = _branch(model, held)
    short = any(p.itemsize < 4 for p in trained)
    count = sum(p.numel() for p in trained) + sum(p.numel() for p in branch)
    moments = 2 if load.adam == "8bit" else 8
    layers = list(layers_of(model))
    within = {id(p) for layer in layers for p in layer.parameters()}
    outside = sum(_bytes(p, options) for p in model.parameters() if id(p) not in within)
    if activations is not None and branch:
        activations += activations * (held.value_layers or 0) // len(layers)
    return Footprint(
        parameters=sum(p.numel() for p in (*model.parameters(), *branch)),
        trained=count,
        weights=round(sum(_bytes(p, options) for p in (*model.parameters(), *branch, *model.buffers()))),
        largest=round(max([outside, *(sum(_bytes(p, options) for p in layer.parameters()) for layer in layers)])),
        gradients=4 * count,
        adam=(moments + 4 * short) * count,
        activations=activations,
        casts=_casts(model) if activations and not options.gradient_checkpointing else 0,
        cache=_cache(model, load) if held.name == "policy" and load.rows else 0,
    )


def _fake_model(config: Any, options: HFOptions, held: Held, load: Load) -> PackedModel:
    """Like `HFPolicy` and `HFScorer` make it. Must be called inside a fake mode."""
    short = options.weights == "bfloat16" or options.quantize == "4bit"
    kind: Any = transformers.AutoModelForCausalLM
    if held.scores:
        kind, config.num_labels = transformers.AutoModelForSequenceClassification, 1
        config.get_text_config().pad_token_id = 0
    with unset_fake_temporarily(), torch.device("meta"):
        dtype = torch.bfloat16 if short else torch.float32
        lm = kind.from_config(config, dtype=dtype, trust_remote_code=options.trust_remote_code)
        loading.make_ready(lm)
        lm.requires_grad_(held.trained)
        model: Any = lm
        if options.lora.r and held.name != "reward":
            model = add_adapter(lm, options.lora, head="score" if held.scores else None)
    _make_fake(model)
    lm.set_attn_implementation(NAME)
    precision = "bfloat16" if options.weights == "bfloat16" and not held.scores else options.dtype
    autocast = loading.autocast_dtype(precision, torch.device(load.device))
    packed = PackedModel(model, autocast=autocast, path=Path())
    if held.value_layers is not None:
        packed.add_value_head()
    if held.trained:
        freeze(packed, options)
    return loading.prepare_for_training(packed, gradient_checkpointing=options.gradient_checkpointing)


def _make_fake(model: nn.Module) -> None:
    """Moves a model from the meta device to a fake CPU; what is tied stays tied."""
    new: dict[int, Tensor] = {}

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in new:
            fake = torch.empty_like(tensor, device="cpu")
            held = isinstance(tensor, torch.nn.Parameter)
            new[id(tensor)] = torch.nn.Parameter(fake, tensor.requires_grad) if held else fake
        return new[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = moved(tensor)  # type: ignore[assignment]


def _bytes(tensor: Tensor, options: HFOptions) -> float:
    """What a parameter takes; of 4-bit models the matrices of the layers are in 4 bits."""
    frozen = isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad
    if options.quantize == "4bit" and frozen and tensor.ndim == 2 and tensor.shape[0] < 32_000:
        return FOUR_BITS * tensor.numel()
    return tensor.numel() * tensor.itemsize


def _branch(model: PackedModel, held: Held) -> list[nn.Parameter]:
    """The parameters that a value branch copies."""
    layers = layers_of(model)
    copied = list(layers)[len(layers) - held.value_layers :] if held.value_layers else []
    return [parameter for layer in copied for parameter in layer.parameters()]


def _casts(model: PackedModel) -> int:
    """The copies of weights that autocast keeps until a pass ends: those of trained products, but for the vocabulary
    head, which is cast by itself. With checkpoints they may be gone before the peak."""
    if model.autocast is None:
        return 0
    head = model.vocabulary_head if model.is_language_model else None
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return sum(
        model.autocast.itemsize * weight.numel()
        for weight in linear
        if weight.requires_grad and weight.dtype != model.autocast
    )


def _cache(model: PackedModel, load: Load) -> int:
    """Keys and values of what `HFPolicy.generate` samples at a time."""
    config = model.lm.config.get_text_config()
    width = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * width * head * (4 if model.autocast is None else 2)
    prompts = load.prompt / max(1, load.responses)
    needed = int(token * min(MAX_ROWS, load.rows) * (load.response + prompts))
    return min(needed, CACHE_BYTES) if load.device == "cpu" else needed


def _activations(model: PackedModel, load: Load, held: Held, mode: FakeTensorMode) -> int | None:
    """The peak of a forward and a backward pass, with gradients in place as after a first micro-batch.

    None if the model can't run on fake tensors, because what it does depends on numbers.
    """
    with unset_fake_temporarily():
        batch = _batch(load)
        layout = PackedLayout.of(batch)
        index = padded_index(torch.tensor(layout.group_lengths()))
    fake = _fake_layout(layout, index, mode)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    kernel = PackedKernel(fake) if load.device == "cpu" else FusedKernel()
    model.train()
    try:
        with LiveBytes() as live:
            _pass(model, batch, fake, kernel, held)
    except Exception as error:  # whatever an unknown architecture raises
        logger.warning("%s: activations are not known: %s", type(model.lm).__name__, str(error).splitlines()[:1])
        return None
    return int(live.peak)


def _pass(model: PackedModel, batch: GroupBatch, layout: PackedLayout, kernel: Any, held: Held) -> None:
    request = Request(logprobs=not held.scores, values=held.value_layers is not None or held.scores, scores=held.scores)
    with model.computing():
        hidden = model.run_kernel(layout.input_ids, layout.position_ids, kernel)
        predicting = hidden.index_select(0, layout.predict_index)
        states = States(
            predicting=predicting,
            last=hidden.index_select(0, layout.last_index) if held.scores else None,
            valued=predicting if request.values else None,
        )
        del hidden
        outputs = model._heads(states, batch, request)
    del states, predicting
    loss = torch.stack([value.float().sum() for value in outputs.values()]).sum()
    del outputs
    torch.autograd.backward(loss)


def _batch(load: Load) -> GroupBatch:
    responses = max(1, min(load.responses, (load.max_tokens - load.prompt) // load.response))
    count = max(1, load.max_tokens // (load.prompt + responses * load.response))
    prompts = [[0] * load.prompt] * count
    rows = [[[0] * load.response] * responses] * count
    groups = [Group(Prompt(text=""), ("",) * responses)] * count
    return GroupBatch.from_ids(prompts, rows, groups, device=torch.device("cpu"))


def _fake_layout(layout: PackedLayout, index: tuple[Tensor, Tensor], mode: FakeTensorMode) -> PackedLayout:
    values = {field.name: getattr(layout, field.name) for field in fields(layout)}
    fake: Any = {name: mode.from_tensor(x) for name, x in values.items() if isinstance(x, torch.Tensor)}
    gather, real = (mode.from_tensor(x) for x in index)
    cache = {"padded index": (gather, real), "padded kept": fake["input_ids"].clone()}
    return replace(layout, **fake, cache=cache)


class FusedKernel:
    """Keeps what a fused attention keeps on CUDA: its inputs without repeated heads, its output, and a number per head
    and token."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """[1, heads, N, D_v]."""
        dtype = value.dtype
        out: Tensor = _Fused.apply(query.to(dtype), key.to(dtype), value)  # type: ignore[no-untyped-call]
        return out


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = value.new_empty(*query.shape[:-1], value.shape[-1])
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, _gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and still in use.

    Attributes:
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._seen: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in given:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen[storage] = True
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.live -= size
