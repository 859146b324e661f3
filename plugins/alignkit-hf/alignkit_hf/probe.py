"""Finds out how to run a model: some architectures compute something else in the packed layout, without any error.

Once per architecture and config in a process, a few short groups are run in three ways: one sequence at a time in the
model's own forward, in padded rows, and packed. Sliding windows and rotary switches are within reach of their lengths
meanwhile (`switches`). Two questions are asked:

- Is it the same computation? In float64 (`exact`), packed and single sequences differ by float64's rounding or by a
  mistake, and nothing lies between: the model's own float32 noise, shrunk by the ratio of the two precisions, says how
  much rounding is.
- Is it as accurate? In the precision of the weights, packed log-probabilities are as near to float64 as those of the
  model's own forward.

Where there is no float64, differences are judged against the model's own noise (padded rows beside single sequences)
and against the effect of changing one prompt token, because with small weights no mistake in the attention is large.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from alignkit import Group, GroupBatch, InputError, Prompt
from alignkit_hf import exact
from alignkit_hf.attention import NAME, PackedKernel
from alignkit_hf.modeling import Accuracy, PackedModel, Path, Request
from alignkit_hf.switches import within_reach

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from transformers import PreTrainedModel

    from alignkit_hf.kernels.attention import AttentionRule

logger = logging.getLogger(__name__)

MARGIN = 512
"""How many times the expected rounding of float64 is still rounding. A mistake is larger by orders of magnitude."""
NOISE = 8
"""How many times as inaccurate as the model's own forward the packed layout may be, at the worst of a few tokens."""
SHARE = 0.02
"""Largest difference of a hidden state, as a share of the effect of another prompt token, where float64 is missing."""
_LENGTHS = ((9, (7, 3)), (4, (5, 1, 11)))
_SEEN: dict[tuple[type, str], Path] = {}


def find_path(lm: PreTrainedModel, *, layout: str, attention: str) -> Path:
    """The way to run the model that gives the result of its own forward; sets its attention accordingly.

    Raises:
        InputError: `layout` is "packed" and the model can't run in it.
    """
    key = (type(lm), f"{layout} {attention} {lm.dtype} {lm.config.to_json_string(use_diff=False)}")
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
    was_training, before = lm.training, lm.config._attn_implementation
    lm.train(False)
    try:
        with torch.no_grad(), _exact_products(), contextlib.ExitStack() as stack:
            model = PackedModel(lm)
            batch = _groups(model)
            # transformers computes the long factors of a rotary scaling in the first pass, by the switch it finds then
            model.trunk(input_ids=batch.prompt_ids[None, :1], use_cache=False)
            stack.enter_context(within_reach(lm))
            fused = _head_is_one_product(model, _sequences(batch)[0])
            path = Path(packed=False, fused_head=fused)
            return _Trial(model, batch, before).path(path) if try_packed else path
    finally:
        lm.train(was_training)
        if lm.config._attn_implementation != before:
            with _quiet_transformers():
                lm.set_attn_implementation(before)


class _Trial:
    """The packed layout of a model beside its other ways to run. Hidden states are [R, H], at the positions that
    predict response tokens."""

    def __init__(self, model: PackedModel, batch: GroupBatch, attention: str) -> None:
        self.model, self.batch, self.attention = model, batch, attention

    def path(self, path: Path) -> Path:
        """The path with the verdict."""
        kernel = _counting_kernel()
        try:
            packed = self._packed(kernel)
        except Exception as error:  # whatever an unknown architecture raises, the packed layout does not work for it
            said = str(error).splitlines()[0][:100] if str(error) else ""
            return replace(path, reason=f"its forward pass raised {type(error).__name__}: {said}")
        if not kernel.calls:
            return replace(path, reason="its attention can't be replaced")
        count = exact.layers_to_run(self.model)
        found = None if count is None else self._against_float64(count)
        reason, accuracy = found or ("", None)
        if not reason and (found is None or count != exact.count_layers(self.model)):
            reason = self._against_own_noise(packed, judge_logprobs=found is None)
        if not reason and not path.fused_head:
            reason = "its logits are not the product of hidden states and vocabulary head alone"
        return replace(path, packed=not reason, reason=reason, accuracy=accuracy)

    def _against_float64(self, count: int) -> tuple[str, Accuracy | None] | None:
        """Why the first layers don't compute the same, or "", and how accurate they are; None without float64."""
        model = self.model
        with exact.first_layers(model, count):
            single, padded, packed = self._single(), self._padded(), self._packed()
            try:
                with exact.float64(model):
                    truth, packed_truth = self._single(), self._packed()
            except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
                logger.debug("no float64 for %s: %s", type(model.lm).__name__, error)
                return None
        eps, own_eps = torch.finfo(torch.float64).eps, torch.finfo(single.dtype).eps
        rounding = MARGIN * max(_apart(single, truth) * eps / own_eps, eps * float(truth.abs().max()))
        same = _apart(packed_truth, truth)
        if not same <= rounding:
            where = "from single sequences in float64"
            return f"its hidden states differ by {same:.1e} {where}, where rounding explains {rounding:.1e}", None
        what = "hidden states"
        if model.is_language_model:
            what, truth = "log-probabilities", self._chosen(exact.logits(model, truth))
            single, padded, packed = (self._chosen(model.logits(x)) for x in (single, padded, packed))
        accuracy = Accuracy(what, packed=_apart(packed, truth), padded=_apart(padded, truth), same=same)
        allowed = NOISE * max(_apart(single, truth), accuracy.padded, own_eps * float(truth.abs().max()))
        return "" if accuracy.packed <= allowed else f"its {accuracy}", accuracy

    def _against_own_noise(self, packed: Tensor, *, judge_logprobs: bool) -> str:
        """Why the whole model does not compute the same in its own precision, or ""."""
        model = self.model
        single, padded = self._single(), self._padded()
        noise = max(_apart(padded, single), torch.finfo(single.dtype).eps * float(single.abs().max()))
        effect = _apart(self._single(changed=True), single)
        if not _apart(packed, single) <= max(NOISE * noise, SHARE * effect):
            return f"its hidden states differ by {_apart(packed, single):.1e} from single sequences"
        if not (judge_logprobs and model.is_language_model):
            return ""
        logits = model.logits(single)
        terms = logits.shape[-1] ** 0.5 + single.shape[-1] ** 0.5
        single, padded, packed = (self._chosen(model.logits(x)) for x in (single, padded, packed))
        floor = torch.finfo(model.lm.dtype).eps * terms * float(logits.abs().max())
        if not _apart(packed, single) <= NOISE * max(_apart(padded, single), floor):
            return f"its log-probabilities differ by {_apart(packed, single):.1e} from single sequences"
        return ""

    def _single(self, *, changed: bool = False) -> Tensor:
        """One sequence at a time, in the trunk's own forward; with `changed`, a prompt token is another one."""
        self._attend_with(self.attention)
        rows = []
        for ids, length in zip(_sequences(self.batch), self.batch.lengths.tolist(), strict=True):
            if changed:
                ids[0, 2] = (ids[0, 2] + 1) % self.model.vocabulary_size
            hidden: Tensor = self.model.trunk(input_ids=ids, use_cache=False).last_hidden_state
            rows.append(hidden[0, -length - 1 : -1])
        return torch.cat(rows)

    def _padded(self) -> Tensor:
        self._attend_with(self.attention)
        self.model.path = Path(packed=False)
        return self.model.states(self.batch, Request()).predicting

    def _packed(self, kernel: type[PackedKernel] = PackedKernel) -> Tensor:
        self._attend_with(NAME)
        self.model.path = Path()
        return self.model.states(self.batch, Request(), kernel).predicting

    def _attend_with(self, name: str) -> None:
        with _quiet_transformers():
            self.model.lm.set_attn_implementation(name)

    def _chosen(self, logits: Tensor) -> Tensor:
        """[R] log-probabilities of the response tokens."""
        return logits.gather(1, self.batch.response_ids[:, None])[:, 0] - logits.logsumexp(1)


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; not a number where one of them is not."""
    return float((ours - theirs).abs().max())


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


def _head_is_one_product(model: PackedModel, ids: Tensor) -> bool:
    """Whether the vocabulary head on the trunk's hidden states gives the model's own logits."""
    if not model.is_language_model:
        return True
    count = exact.layers_to_run(model)
    for layers in (count, None):
        with contextlib.ExitStack() as stack, contextlib.suppress(Exception):  # of a head that needs all its rows
            if layers is not None:
                stack.enter_context(exact.first_layers(model, layers))
                stack.enter_context(exact.float64(model))
            stack.enter_context(exact.small_head(model, wide=layers is not None))
            theirs = model.lm(ids, use_cache=False).logits[0]
            hidden = model.trunk(input_ids=ids, use_cache=False).last_hidden_state[0]
            ours = model.logits(hidden)
            rounding = torch.finfo(theirs.dtype).eps * hidden.shape[-1] ** 0.5 * float(theirs.abs().max())
            return bool(ours.shape == theirs.shape and _apart(ours, theirs) <= NOISE * rounding)
    return False


def _counting_kernel() -> type[_CountingKernel]:
    return type("Counting", (_CountingKernel,), {"calls": 0})


class _CountingKernel(PackedKernel):
    """Counts its calls on the class, to see whether the model used it."""

    calls = 0

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        type(self).calls += 1
        return super().__call__(layer, query, key, value, rule)


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
