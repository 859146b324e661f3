"""Finds out how to run a model: some architectures compute something else in the packed layout, without any error.

The probe compares a few short groups with plain forward passes of one sequence at a time, once per architecture and
config in a process. Meanwhile, sliding windows are shorter than the groups. Differences are judged against the effect
of changing one prompt token, because in a model with small random weights no mistake in the attention is large.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import torch

from alignkit import Group, GroupBatch, InputError, Prompt
from alignkit_hf.attention import NAME, PackedKernel
from alignkit_hf.kernels.packed_layout import PackedLayout
from alignkit_hf.modeling import PackedModel, Path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from transformers import PreTrainedModel

    from alignkit_hf.kernels.attention import AttentionRule

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of a log-probability, in nats, for float32 weights."""
SHARE = 0.02
"""Largest difference of a hidden state, as a share of the effect of another prompt token."""
WINDOW = 6
_WINDOW_NAMES = ("sliding_window", "attention_chunk_size", "window_size")
_LENGTHS = ((9, (7, 3)), (4, (5, 1, 11)))
_SEEN: dict[tuple[type, str], Path] = {}


def find_path(lm: PreTrainedModel, *, layout: str, attention: str) -> Path:
    """The way to run the model that gives the result of its own forward; sets its attention accordingly.

    Raises:
        InputError: `layout` is "packed" and the model can't run in it.
    """
    key = (type(lm), f"{layout} {attention} {lm.config.to_json_string(use_diff=False)}")
    if key not in _SEEN:
        path = _probe(lm, try_packed=layout != "padded" and attention == "auto")
        if path.reason and layout == "packed":
            raise InputError(
                f"{type(lm).__name__} can't run in the packed layout: {path.reason}",
                where="layout",
                fix='set layout = "auto" or "padded"',
            )
        if path.reason:
            logger.warning("%s runs in the padded layout, which is slower: %s", type(lm).__name__, path.reason)
        _SEEN[key] = path
    path = _SEEN[key]
    if path.packed:
        lm.set_attn_implementation(NAME)
    return path


def _probe(lm: PreTrainedModel, *, try_packed: bool) -> Path:
    """The path, and why it is not packed ("" if it is, or if packed was not tried)."""
    was_training = lm.training
    lm.train(False)
    try:
        with torch.no_grad(), _short_windows(lm), _exact_products():
            model = PackedModel(lm)
            batch = _groups(model)
            rows = [_alone(model, ids) for ids in _sequences(batch)]
            fused = _head_is_one_product(model, batch, rows)
            reason = _difference(model, batch, rows) if try_packed else ""
    finally:
        lm.train(was_training)
    return Path(packed=try_packed and not reason, fused_head=fused, reason=reason)


def _groups(model: PackedModel) -> GroupBatch:
    """Two groups of fixed tokens spread over the vocabulary."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(model.vocabulary_size, (count,), generator=generator).tolist()

    prompts = [tokens(prompt) for prompt, _ in _LENGTHS]
    responses = [[tokens(length) for length in lengths] for _, lengths in _LENGTHS]
    groups = [Group(prompt=Prompt(text=""), responses=("",) * len(rows)) for rows in responses]
    return GroupBatch.from_ids(prompts, responses, groups, device=model.device)


def _sequences(batch: GroupBatch) -> list[Tensor]:
    """[1, L] prompt and response, for each response."""
    prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
    responses = torch.split(batch.response_ids, batch.lengths.tolist())
    group_of = batch.group_index.tolist()
    return [torch.cat((prompts[g], ids))[None] for g, ids in zip(group_of, responses, strict=True)]


def _alone(model: PackedModel, ids: Tensor) -> Tensor:
    """[L, H] hidden states from the trunk's own forward."""
    hidden: Tensor = model.trunk(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[0]


def _response_parts(batch: GroupBatch, rows: list[Tensor]) -> Tensor:
    """[R, ..] values at the positions that predict response tokens, from one row [L, ..] per response."""
    lengths = batch.lengths.tolist()
    return torch.cat([row[-length - 1 : -1] for row, length in zip(rows, lengths, strict=True)])


def _head_is_one_product(model: PackedModel, batch: GroupBatch, rows: list[Tensor]) -> bool:
    """Whether the vocabulary head on the trunk's hidden states gives the model's own logits."""
    if not model.is_language_model:
        return True
    first = _sequences(batch)[0]
    try:
        ours = model.logits(rows[0])
        theirs = model.lm(first, use_cache=False).logits[0].float()
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    return bool((ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max() <= _tolerance(model))


def _difference(model: PackedModel, batch: GroupBatch, rows: list[Tensor]) -> str:
    """Why the packed layout does not work, or ""."""
    lm = model.lm
    before = lm.config._attn_implementation
    other = _sequences(batch)
    for ids in other:
        ids[0, 2] = (ids[0, 2] + 1) % model.vocabulary_size
    effect = _response_parts(batch, [_alone(model, ids) for ids in other])
    expected = _response_parts(batch, rows)
    layout = PackedLayout.of(batch)
    kernel = _CountingKernel(layout)
    try:
        with _quiet_transformers():
            lm.set_attn_implementation(NAME)
            hidden = model.run_kernel(layout.input_ids, layout.position_ids, kernel)[layout.predict_index]
    except Exception as error:  # whatever an unknown architecture raises, the packed layout does not work for it
        reason = (
            f"its forward pass raised {type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
        )
    else:
        reason = _judge(model, hidden, expected, effect) if kernel.calls else "its attention can't be replaced"
    if reason:
        with _quiet_transformers():
            lm.set_attn_implementation(before)
    return reason


def _judge(model: PackedModel, hidden: Tensor, expected: Tensor, effect: Tensor) -> str:
    difference = (hidden - expected).abs().max()
    noise = 4 * torch.finfo(expected.dtype).eps * expected.abs().max()
    allowed = torch.maximum(SHARE * (effect - expected).abs().max(), noise)
    if not bool(difference <= allowed):
        return f"its hidden states differ by {float(difference):.1e} from single sequences"
    if model.is_language_model:
        ours, theirs = (model.logits(x).log_softmax(-1) for x in (hidden, expected))
        largest = float((ours - theirs).abs().max())
        if not largest <= _tolerance(model):
            return f"its log-probabilities differ by {largest:.1e} from single sequences"
    return ""


def _tolerance(model: PackedModel) -> float:
    """In nats. In reduced precision (quantised models) only gross mistakes show in log-probabilities."""
    return TOLERANCE if model.lm.dtype in (torch.float32, torch.float64) else 1.0


class _CountingKernel(PackedKernel):
    """Counts its calls, to see whether the model used it."""

    calls = 0

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        self.calls += 1
        return super().__call__(layer, query, key, value, rule)


@contextlib.contextmanager
def _short_windows(lm: PreTrainedModel) -> Iterator[None]:
    """Makes every sliding window of the config and the modules shorter than the probe's groups."""
    config = lm.config.get_text_config()
    changed: list[tuple[Any, str, int]] = []
    for owner in {id(x): x for x in (lm.config, config, *lm.modules())}.values():
        for name in _WINDOW_NAMES:
            value = vars(owner).get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > WINDOW:
                changed.append((owner, name, value))
                setattr(owner, name, WINDOW)
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Float32 products in full precision, whatever the process uses for training."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hides transformers' warnings about attention implementations; the probe gives its own."""
    library = logging.getLogger("transformers")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.setLevel(level)
