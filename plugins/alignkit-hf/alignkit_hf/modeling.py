"""One module whose forward pass does all the work of a model: trunk, vocabulary head, value and score heads.

Sharded weights are whole only inside the `forward` of the module that the engine wraps, so nothing else calls parts of
the model, except for sampling and saving.
"""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from alignkit_hf.attention import PackedKernel
from alignkit_hf.kernels.exact_kl import Head
from alignkit_hf.kernels.logprobs import LogitTransform, linear_logprobs
from alignkit_hf.kernels.packed_layout import PackedLayout
from alignkit_hf.rotary import sides
from alignkit_hf.trunk import TrunkModel
from alignkit_hf.value_branch import ValueBranch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from alignkit import GroupBatch
    from alignkit_hf.reference_kl import ReferenceStates
    from alignkit_hf.value_branch import Call

    ForValues = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Request:
    """What a forward pass should return: `logprobs`, `entropy`, `hidden`, `values` [R, ..] or `scores` [S].

    Attributes:
        distribution: [R, V] log-probabilities, for heads that are not fused.
        kl_to: also return `kl` [R], the exact KL to this reference.
    """

    logprobs: bool = False
    entropy: bool = False
    hidden: bool = False
    values: bool = False
    scores: bool = False
    distribution: bool = False
    kl_to: ReferenceStates | None = None
    adapter: bool = True


@dataclass(frozen=True)
class Accuracy:
    """How far the packed and the padded layout are from float64, as the probe measured it.

    Attributes:
        of: what was compared. packed, padded: the largest difference from float64. same: that of the packed layout from
            single sequences where both are in float64.
    """

    of: str
    packed: float
    padded: float
    same: float

    def __str__(self) -> str:
        nearer = "packed" if self.packed <= self.padded else "padded"
        return f"{self.of} are {self.packed:.1e} from float64, padded {self.padded:.1e}: {nearer} is nearer"


@dataclass(frozen=True)
class Path:
    """How a model runs: in the packed layout or in one padded row per response, and whether its vocabulary head can be
    applied to the predicting positions alone. `reason` says why the packed layout does not work, or is
    empty."""

    packed: bool = True
    fused_head: bool = True
    reason: str = ""
    accuracy: Accuracy | None = field(default=None, compare=False, repr=False)


class PackedModel(TrunkModel):
    """A transformers model with the heads of a policy or a scorer.

    Attributes:
        value_head: [H] -> 1 on a policy's trunk, or on its own copies of the last layers; None until `add_value_head`.
        path: set by the probe, see `alignkit_hf.probe`.
    """

    def __init__(self, model: nn.Module, *, autocast: torch.dtype | None = None, path: Path = Path()) -> None:
        super().__init__(model, autocast)
        self.value_head: nn.Linear | ValueBranch | None = None
        self.path = path

    @property
    def is_language_model(self) -> bool:
        """Whether there is a vocabulary head."""
        return self.lm.get_output_embeddings() is not None  # type: ignore[no-untyped-call]

    @property
    def vocabulary_size(self) -> int:
        """Rows of the token embedding."""
        embedding: nn.Embedding = self.lm.get_input_embeddings()  # type: ignore[assignment]
        return embedding.weight.shape[0]

    @property
    def score_head(self) -> nn.Module:
        """Hidden states to the one label of a sequence classifier."""
        head: nn.Module = self.lm.get_submodule("score")
        return head

    @property
    def logit_transform(self) -> LogitTransform:
        """What the model does to the logits of its vocabulary head."""
        return logit_transform(self.lm)

    def add_value_head(self, layers: int = 0) -> None:
        """Adds a scalar head that starts at zero, on the trunk or on copies of its last `layers` layers."""
        if self.value_head is None:
            size = self.vocabulary_head.weight.shape[1]
            head = nn.Linear(size, 1, device=self.device, dtype=torch.float32)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            self.value_head = ValueBranch(self, layers, head) if layers else head

    @contextlib.contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Runs with the weights below the adapter."""
        if not self.has_adapter:
            raise ValueError("the model has no adapter to switch off")
        tuner: Any = self.model.base_model
        tuner.disable_adapter_layers()
        try:
            yield
        finally:
            tuner.enable_adapter_layers()

    def forward(self, batch: GroupBatch, request: Request) -> dict[str, Tensor]:
        """The requested outputs, by the names of `Request`, in float32."""
        with contextlib.ExitStack() as stack:
            if not request.adapter:
                stack.enter_context(self.adapter_off())
            stack.enter_context(self.computing())
            return self._heads(self.states(batch, request), batch, request)

    def states(self, batch: GroupBatch, request: Request, kernel: type[PackedKernel] = PackedKernel) -> States:
        """What the heads are applied to. Rows on different sides of a rotary switch are computed apart."""
        parts = sides(self.lm, batch)
        if len(parts) < 2:
            return self._states(batch, request, kernel)
        return States.merged(batch, parts, [self._states(batch.select_responses(x), request, kernel) for x in parts])

    def _states(self, batch: GroupBatch, request: Request, kernel: type[PackedKernel]) -> States:
        run = partial(self._packed, kernel=kernel) if self.path.packed else self._padded
        if not (request.values and isinstance(self.value_head, ValueBranch)):
            return run(batch, request, lambda hidden: hidden)
        with self.value_head.noting() as calls:
            return run(batch, request, partial(_of_branch, self.value_head, calls))

    def run_trunk(self, input_ids: Tensor, position_ids: Tensor, **kwargs: Any) -> Tensor:
        """[rows, columns, H] last hidden states."""
        accepted = _parameters(self.trunk)
        if "position_ids" in accepted:
            kwargs["position_ids"] = position_ids
        hidden: Tensor = self.trunk(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state
        return hidden

    def _packed(
        self, batch: GroupBatch, request: Request, for_values: ForValues, *, kernel: type[PackedKernel]
    ) -> States:
        layout = PackedLayout.of(batch)
        hidden = self.run_kernel(layout.input_ids, layout.position_ids, kernel(layout))
        return States(
            predicting=hidden.index_select(0, layout.predict_index),
            last=hidden.index_select(0, layout.last_index) if request.scores else None,
            valued=for_values(hidden).index_select(0, layout.predict_index) if request.values else None,
        )

    def run_kernel(self, input_ids: Tensor, position_ids: Tensor, kernel: Any) -> Tensor:
        """[N, H] last hidden states of N tokens on one axis, with the kernel's attention."""
        # transformers passes a 4D mask on unchanged, which saves making one that no kernel reads
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)
        return self.run_trunk(input_ids[None], position_ids[None], attention_mask=mask, kernel=kernel)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """[.., V] float32 logits of hidden states [.., H]."""
        logits: Tensor = self.vocabulary_head(hidden)
        return self.logit_transform(logits.float())

    def _padded(self, batch: GroupBatch, request: Request, for_values: ForValues) -> States:
        rows = PaddedRows.of(batch)
        logits = None
        if request.logprobs and not self.path.fused_head:
            hidden, of_rows = self._plain_logits(rows)
            logits = of_rows[rows.row, rows.predict_column]
        else:
            hidden = self.run_trunk(rows.input_ids, rows.position_ids, attention_mask=rows.mask)
        every = torch.arange(len(rows.last_column), device=hidden.device)
        return States(
            predicting=hidden[rows.row, rows.predict_column],
            last=hidden[every, rows.last_column] if request.scores else None,
            valued=for_values(hidden)[rows.row, rows.predict_column] if request.values else None,
            logits=logits,
        )

    def _plain_logits(self, rows: PaddedRows) -> tuple[Tensor, Tensor]:
        """Hidden states and logits from the model's own forward, for heads that are more than one product."""
        seen: list[Tensor] = []
        hook = self.vocabulary_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        positions = {"position_ids": rows.position_ids} if "position_ids" in _parameters(self.lm) else {}
        try:
            logits: Tensor = self.lm(rows.input_ids, attention_mask=rows.mask, use_cache=False, **positions).logits
        finally:
            hook.remove()
        return seen[0], logits

    def _heads(self, states: States, batch: GroupBatch, request: Request) -> dict[str, Tensor]:
        hidden = states.predicting
        output = {} if states.logits is None else _plain_logprobs(states.logits, batch, request)
        if request.logprobs and states.logits is None:
            head = self.vocabulary_head
            output["logprobs"], entropy = linear_logprobs(
                hidden,
                head.weight,
                batch.response_ids,
                bias=head.bias,
                temperature=batch.temperature,
                entropy=request.entropy,
                transform=self.logit_transform,
            )
            if entropy is not None:
                output["entropy"] = entropy
            if request.kl_to is not None:
                own = Head(head.weight, head.bias, self.logit_transform)
                output["kl"] = request.kl_to.kl_of_states(hidden, own, batch.temperature)
        if request.hidden:
            output["hidden"] = hidden
        if states.valued is not None:
            scalar_head = self.value_head if request.logprobs else self.score_head
            if scalar_head is None:
                raise ValueError("this policy has no value head: call add_value_head() first")
            output["values"] = _scalar(
                scalar_head.head if isinstance(scalar_head, ValueBranch) else scalar_head, states.valued
            )
        if states.last is not None:
            output["scores"] = _scalar(self.score_head, states.last)
        return output


@dataclass(frozen=True, eq=False)
class States:
    """Hidden states: `predicting` [R, H] at the positions that predict response tokens, `last` [S, H] of the responses'
    last tokens, `valued` [R, H] for the value head; and `logits` [R, V] from heads that are not fused."""

    predicting: Tensor
    last: Tensor | None = None
    valued: Tensor | None = None
    logits: Tensor | None = None

    @classmethod
    def merged(cls, batch: GroupBatch, masks: Sequence[Tensor], parts: Sequence[States]) -> States:
        """Those of the whole batch from those of its responses in each mask [S]."""
        responses = torch.cat([mask.nonzero()[:, 0] for mask in masks]).argsort()
        tokens = torch.cat([mask[batch.response_index].nonzero()[:, 0] for mask in masks]).argsort()

        def join(name: str, order: Tensor) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values)[order]

        order = {"predicting": tokens, "last": responses, "valued": tokens, "logits": tokens}
        return cls(**{name: join(name, index) for name, index in order.items()})  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class PaddedRows:
    """A row [L] for each of the S responses, its prompt first, padded on the right.

    Attributes:
        input_ids, position_ids, mask: [S, L].
        row, predict_column: [R] where each response token is predicted. last_column: [S].
    """

    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor
    row: Tensor
    predict_column: Tensor
    last_column: Tensor

    @classmethod
    def of(cls, batch: GroupBatch) -> PaddedRows:
        """The rows of a batch. The content of the padding is never read."""
        prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
        responses = torch.split(batch.response_ids, batch.lengths.tolist())
        group_of = batch.group_index.tolist()
        input_ids = pad_sequence(
            [torch.cat((prompts[g], ids)) for g, ids in zip(group_of, responses, strict=True)], batch_first=True
        )
        prompt_lengths = batch.prompt_lengths[batch.group_index]
        columns = torch.arange(input_ids.shape[1], device=batch.device)
        row = batch.response_index
        offset = torch.arange(batch.num_tokens, device=batch.device) - batch.first_token[row]
        return cls(
            input_ids=input_ids,
            position_ids=columns.expand_as(input_ids),
            mask=(columns < (prompt_lengths + batch.lengths)[:, None]).long(),
            row=row,
            predict_column=prompt_lengths[row] + offset - 1,
            last_column=prompt_lengths + batch.lengths - 1,
        )


def logit_transform(lm: PreTrainedModel) -> LogitTransform:
    """What the model does to its logits, according to its config and attributes."""
    config = lm.config.get_text_config()
    scale = 1.0
    if isinstance(factor := getattr(config, "logit_scale", None), int | float):
        scale *= float(factor)
    if isinstance(divisor := getattr(config, "logits_scaling", None), int | float):
        scale /= float(divisor)
    softcap = getattr(config, "final_logit_softcapping", None)
    return LogitTransform(scale=scale, softcap=None if softcap is None else float(softcap))


def _plain_logprobs(logits: Tensor, batch: GroupBatch, request: Request) -> dict[str, Tensor]:
    distribution = (logits.float() / batch.temperature).log_softmax(-1)
    output = {"logprobs": distribution.gather(1, batch.response_ids[:, None]).squeeze(1)}
    if request.entropy:
        output["entropy"] = -(distribution.exp() * distribution).sum(-1)
    if request.kl_to is not None:
        output["kl"] = request.kl_to.kl_of_distribution(distribution)
    if request.distribution:
        output["distribution"] = distribution
    return output


def _of_branch(branch: ValueBranch, calls: Sequence[Call], hidden: Tensor) -> Tensor:
    """The branch's hidden states, in the shape of the trunk's."""
    own: Tensor = branch(calls)
    return own.reshape(hidden.shape)


def _scalar(head: nn.Module, hidden: Tensor) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        value: Tensor = head(hidden.float())
        return value.squeeze(-1).clone()  # no view: sharded weights hook into what a pass returns


_PARAMETERS: dict[type, frozenset[str]] = {}


def _parameters(module: nn.Module) -> frozenset[str]:
    kind = type(module)
    if kind not in _PARAMETERS:
        _PARAMETERS[kind] = frozenset(inspect.signature(kind.forward).parameters)
    return _PARAMETERS[kind]
