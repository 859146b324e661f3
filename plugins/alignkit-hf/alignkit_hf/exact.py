"""Runs a model, or its first layers, in float64: the truth that both layouts are compared with.

Every product, norm and softmax is in float64, also where the model's code asks for float32, so that what is left of a
difference is no rounding. Weights of large models are widened layer by layer, and token embeddings not at all (a row of
a table is the same number in float64), so that a layer is all the memory it takes.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from alignkit_hf.modeling import PackedModel

WHOLE_MODEL = 300_000_000
"""Weights in the layers of a model that is run whole; of larger ones the first layers of every kind."""
AT_ONCE = 150_000_000
"""Weights in the layers of a model that are widened at once: 1.2 GB."""
HEAD_ROWS = 8192
"""Rows of the vocabulary head that are widened at a time."""
_PLACES = ("idx", "index", "layer_id", "layer_number")
"""Parts of the names under which a layer knows where it stands, which makes it no other kind of layer."""


def layers_to_run(model: PackedModel) -> int | None:
    """How many of the first layers can be run in float64: all of a small model, else as many as have every kind among
    them, and at least two. None where there is no float64: on MPS, with quantised weights, or in a large model without
    one list of layers."""
    if model.device.type == "mps" or not all(parameter.is_floating_point() for parameter in model.lm.parameters()):
        return None
    found = _list_of_layers(model)
    layers: nn.ModuleList | None = getattr(*found) if found else None
    if _count_weights([model.trunk] if layers is None else layers) <= WHOLE_MODEL:
        return count_layers(model)
    if layers is None:
        return None
    kinds = [_kind(layer) for layer in layers]
    return min(len(layers), max(2, 1 + max(kinds.index(kind) for kind in kinds)))


def count_layers(model: PackedModel) -> int:
    """Of the whole model, as its config says."""
    return int(getattr(model.lm.config.get_text_config(), "num_hidden_layers", 0))


@contextlib.contextmanager
def first_layers(model: PackedModel, count: int) -> Iterator[None]:
    """Inside, the model ends after its first `count` layers, where it keeps them in one list."""
    found = _list_of_layers(model)
    if found is None:
        yield
        return
    layers = getattr(*found)
    try:
        setattr(*found, layers[:count])
        yield
    finally:
        setattr(*found, layers)


@contextlib.contextmanager
def float64(model: PackedModel) -> Iterator[None]:
    """Inside, the trunk computes in float64. Its parameters keep their identity, and get their own storage back."""
    found = _list_of_layers(model)
    layers = list(getattr(*found)) if found else []
    if _count_weights(layers) <= AT_ONCE:
        layers = []
    inside = {id(module) for layer in layers for module in layer.modules()}
    saved: list[tuple[Tensor, Tensor]] = []
    hooks: list[Any] = []
    default = torch.get_default_dtype()
    try:
        for module in model.trunk.modules():
            if isinstance(module, nn.Embedding):
                hooks.append(module.register_forward_hook(lambda _module, _inputs, output: output.double()))
            elif id(module) not in inside:
                saved.extend(_widened([module]))
        kept = len(saved)
        for layer in layers:
            hooks.append(layer.register_forward_pre_hook(lambda layer, _: saved.extend(_widened(layer.modules()))))
            hooks.append(layer.register_forward_hook(lambda *_: _restore(saved, kept)))
        torch.set_default_dtype(torch.float64)
        with _Wide(), _experts_one_by_one(model):
            yield
    finally:
        torch.set_default_dtype(default)
        for hook in hooks:
            hook.remove()
        _restore(saved, 0)


@contextlib.contextmanager
def _experts_one_by_one(model: PackedModel) -> Iterator[None]:
    """Inside, a mixture's experts run one after another: grouped products exist in float32 and below only."""
    before = getattr(model.lm.config.get_text_config(), "_experts_implementation", None)
    if before in (None, "eager"):
        yield
        return
    try:
        model.lm.set_experts_implementation("eager")
        yield
    finally:
        model.lm.set_experts_implementation(before)


def logits(model: PackedModel, hidden: Tensor) -> Tensor:
    """[R, V] float64 logits of float64 hidden states [R, H]."""
    head = model.vocabulary_head
    out = torch.cat([hidden @ rows.double().t() for rows in torch.split(head.weight, HEAD_ROWS)], 1)
    if head.bias is not None:
        out += head.bias
    return model.logit_transform(out)


@contextlib.contextmanager
def small_head(model: PackedModel, *, wide: bool) -> Iterator[None]:
    """Inside, the vocabulary head has a few of its rows only; in float64 with `wide`."""
    head = model.vocabulary_head
    chosen = slice(None, None, max(1, len(head.weight) // 512))
    small = nn.Linear(head.weight.shape[1], len(head.weight[chosen]), bias=head.bias is not None, device="meta")
    for name, own in (("weight", head.weight), ("bias", head.bias)):
        if own is not None:
            part = own.detach()[chosen]
            setattr(small, name, nn.Parameter(part.double() if wide else part, requires_grad=False))
    try:
        model.lm.set_output_embeddings(small)  # type: ignore[no-untyped-call]
        yield
    finally:
        model.lm.set_output_embeddings(head)  # type: ignore[no-untyped-call]


class _Wide(TorchFunctionMode):
    """Whatever asks for a smaller floating dtype gets float64."""

    _CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self._CASTS:
            func = Tensor.double
        return func(*map(_wide, args), **{name: _wide(value) for name, value in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def _widened(modules: Iterable[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Makes the floating tensors of these modules float64; returns them with what they held."""
    own = (itertools.chain(module.parameters(recurse=False), module.buffers(recurse=False)) for module in modules)
    saved = [(x, x.data) for x in itertools.chain.from_iterable(own) if x.is_floating_point()]
    for tensor, data in saved:
        tensor.data = data.double()
    return saved


def _restore(saved: list[tuple[Tensor, Tensor]], kept: int) -> None:
    """Gives back all but the first `kept` tensors."""
    while len(saved) > kept:
        tensor, data = saved.pop()
        tensor.data = data


def _count_weights(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _list_of_layers(model: PackedModel) -> tuple[nn.Module, str] | None:
    """The module and its attribute that holds the layers, lowest first."""
    count = getattr(model.lm.config.get_text_config(), "num_hidden_layers", None)
    for module in model.trunk.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, name
    return None


def _kind(layer: nn.Module) -> list[Any]:
    """What tells a layer from others beside its weights: its modules, and the plain values that they hold."""
    return [
        (name, type(module), [
            (key, value)
            for key, value in vars(module).items()
            if isinstance(value, int | float | str | None) and not any(place in key for place in _PLACES)
        ])
        for name, module in layer.named_modules()
    ]  # fmt: skip
