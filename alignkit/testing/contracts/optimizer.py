"""The contract of alignment algorithms, on the tiny policy: each check takes milliseconds."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import TYPE_CHECKING, Any

import torch

from alignkit.batch import GroupBatch, Totals
from alignkit.components import Context
from alignkit.interfaces import Feed, Optimizer, Policy, RewardSource
from alignkit.testing.contracts.component import SEED, ComponentContract
from alignkit.testing.material import (
    CountingModule,
    backward,
    batch_for,
    clear_gradients,
    differing_fields,
    flat,
    gradients,
    nudge,
    trained_parameters,
)
from alignkit.testing.tiny import TinyOptions, TinyPolicy, TinyReward
from alignkit.testing.tolerance import assert_near, rounding, terms_of_network

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

    from alignkit.outputs import PolicyOutput

MANY = 1
"""A token budget that puts every group, or every response if groups may be split, in its own micro-batch."""


_KEEP = (
    "a resumed run would go on differently; put whatever prepare, begin_step, loss, take_step and keep_going store on"
    " the Optimizer into state_dict() and load_state_dict()"
)


class OptimizerContract(ComponentContract):
    """`class TestMine(OptimizerContract): component = Mine`"""

    def policy(self) -> Policy[Any]:
        """The policy to train, with dropout in its config; every call gives an equal one."""
        return TinyPolicy(TinyOptions(dropout=0.3), Context(seed=SEED, device="cpu"))

    def reward(self) -> RewardSource[Any]:
        return TinyReward()

    def make(self) -> Any:
        component: Any = self.component
        return component(self.config(), self.context(), policy=self.policy(), reward=self.reward())

    def batch(self, optimizer: Optimizer[Any]) -> GroupBatch:
        """The input of `prepare`: encoded records, or scored rollouts."""
        n = max(2, getattr(optimizer.config, "group_size", 2))
        return batch_for(optimizer.consumes, optimizer.policy, self.reward(), n=n)

    def _ready(self, *, moved: bool) -> tuple[Optimizer[Any], GroupBatch]:
        """An optimizer in training mode and its prepared batch; `moved` moves the weights off the starting point."""
        optimizer = self.make()
        assert isinstance(optimizer, Optimizer)
        prepared = _prepare(optimizer, self.batch(optimizer))
        for module in optimizer.modules().values():
            module.train()
        if moved:
            nudge(optimizer.modules())
        return optimizer, _begun(optimizer, prepared)

    def test_loss_is_a_finite_scalar_with_detached_metrics(self) -> None:
        optimizer, batch = self._ready(moved=False)
        said = optimizer.loss(batch)
        assert isinstance(said, tuple), f"loss() must give (loss, metrics), not a {type(said).__name__}"
        loss, metrics = said
        assert loss.shape == (), (
            f"the loss must be one figure, not of shape {(*loss.shape,)}: see GroupBatch.token_mean"
        )
        assert bool(loss.isfinite()), f"the loss is {loss.item()}"
        for name, value in metrics.items():
            figure = torch.as_tensor(value)
            assert figure.shape == (), f"the metric {name} is not a single figure"
            assert not figure.requires_grad, f"the metric {name} keeps the graph"
            assert bool(figure.isfinite()), f"the metric {name} is {value}"

    def test_micro_batches_never_change_the_gradient(self) -> None:
        optimizer, batch = self._ready(moved=True)
        half = batch.num_groups // 2
        two = [batch.select(range(half)), batch.select(range(half, batch.num_groups))]
        many = batch.split(MANY, divisible=not optimizer.couples_responses)
        whole_gradient, whole_metrics = _step(optimizer, [batch])
        terms, scale = _terms(optimizer, batch), max(1.0, *map(abs, whole_metrics.values()))
        for parts in ([part.replace(totals=batch.totals) for part in two], many):
            gradient, metrics = _step(optimizer, parts)
            error = _relative_error(gradient, whole_gradient)
            assert error < rounding(terms), f"{len(parts)} micro-batches change the gradient by {error:.1e} of its size"
            for name, value in whole_metrics.items():
                assert abs(metrics[name] - value) < rounding(terms, scale=scale), (
                    f"{name} is {value} for the batch and {metrics[name]} summed over {len(parts)} micro-batches"
                )

    def test_means_are_over_the_whole_step(self) -> None:
        optimizer, batch = self._ready(moved=True)
        own = batch.counts()
        doubled = Totals(2 * own.tokens, 2 * own.responses, 2 * own.groups)
        gradient, _ = _step(optimizer, [batch])
        shared, _ = _step(optimizer, [batch.replace(totals=doubled)])
        assert _relative_error(shared, gradient / 2) < rounding(_terms(optimizer, batch))

    def test_loss_twice_is_the_same(self) -> None:
        optimizer, batch = self._ready(moved=True)
        first, _ = _step(optimizer, [batch])
        again, _ = _step(optimizer, [batch])
        assert torch.equal(first, again), "loss() uses random numbers or keeps state between calls"

    def test_prepare_and_loss_leave_their_batch_alone(self) -> None:
        optimizer = self.make()
        batch = self.batch(optimizer)
        before = copy.deepcopy(batch)
        prepared = _prepare(optimizer, batch)
        assert differing_fields(batch, before) == []
        before = copy.deepcopy(prepared)
        _begun(optimizer, prepared)
        optimizer.loss(prepared)
        assert differing_fields(prepared, before) == []

    def test_prepare_changes_no_weights(self) -> None:
        optimizer = self.make()
        before = flat(trained_parameters(optimizer.modules()).values())
        _prepare(optimizer, self.batch(optimizer))
        assert torch.equal(flat(trained_parameters(optimizer.modules()).values()), before)

    def test_a_data_set_may_be_prepared_in_pieces(self) -> None:
        optimizer = self.make()
        if optimizer.consumes is Feed.ROLLOUTS:
            return
        batch = self.batch(optimizer)
        whole = _prepare(optimizer, batch)
        pieces = GroupBatch.concat([_prepare(optimizer, batch.select([g])) for g in range(batch.num_groups)])
        for field in dataclasses.fields(GroupBatch):
            expected = getattr(whole, field.name)
            if isinstance(expected, torch.Tensor) and expected.is_floating_point():
                assert_near(getattr(pieces, field.name), expected, terms=_terms(optimizer, batch))

    def test_the_ratio_is_one_at_the_first_step(self) -> None:
        optimizer, batch = self._ready(moved=False)
        if optimizer.consumes is not Feed.ROLLOUTS:
            return
        assert batch.logprobs is not None
        error = float((optimizer.policy.forward(batch).logprobs - batch.logprobs).detach().expm1().abs().max())
        # The sampler's batches differ from the training pass, so its log-probabilities may differ by rounding.
        bound = rounding(_terms(optimizer, batch), scale=float(batch.logprobs.abs().max()))
        assert error < bound, f"the ratio is off by {error:.1e}"
        _, metrics = _step(optimizer, [batch])
        for name in ("clip_fraction", "approx_kl"):
            assert abs(metrics.get(name, 0.0)) < bound, f"{name} is {metrics[name]} at the first step"

    def test_zero_learning_rate_leaves_the_kl_at_zero(self) -> None:
        optimizer = self.make()
        initial = optimizer.policy.reference()
        for _ in range(3):
            batch = _begun(optimizer, _prepare(optimizer, self.batch(optimizer)))
            _, metrics = _step(optimizer, [batch])
            _step_by(0.0, optimizer)
            logprobs = initial.forward(batch).logprobs
            bound = rounding(_terms(optimizer, batch), scale=float(batch.sum_by_response(logprobs).abs().max()))
            for name, value in {**metrics, **optimizer.batch_metrics}.items():
                if name == "kl" or name.endswith("_kl"):
                    assert abs(value) < bound, f"{name} is {value} although nothing was learnt"
        batch = self.batch(optimizer)
        assert torch.equal(optimizer.policy.forward(batch).logprobs, initial.forward(batch).logprobs)
        if optimizer.reference is not None:
            assert torch.equal(optimizer.reference.forward(batch).logprobs, initial.forward(batch).logprobs)

    def test_every_module_is_trained(self) -> None:
        optimizer, batch = self._ready(moved=True)
        _step(optimizer, [batch])
        for name, module in optimizer.modules().items():
            grads = [parameter.grad for parameter in module.parameters() if parameter.requires_grad]
            assert any(grad is not None and bool(grad.any()) for grad in grads), f"no gradient reaches {name}"

    def test_the_policy_learns_through_response_tokens_only(self) -> None:
        """The whole gradient passes through the outputs of `forward` on the response tokens."""
        optimizer, batch = self._ready(moved=True)
        policy_modules = optimizer.policy.modules()
        trained = {id(parameter) for parameter in trained_parameters(optimizer.modules()).values()}
        if not any(id(p) in trained for p in trained_parameters(policy_modules).values()):
            return
        _step(optimizer, [batch])
        expected = flat(gradients(policy_modules).values())
        recorder = _Recorder(optimizer.policy)
        clear_gradients(optimizer.modules())
        loss, _ = optimizer.loss(batch)
        backward(loss)
        clear_gradients(policy_modules)
        recorder.pass_on()
        error = _relative_error(flat(gradients(policy_modules).values()), expected)
        assert error < rounding(_terms(optimizer, batch)), f"{error:.1e} of the gradient bypasses Policy.forward"

    def test_the_reference_stays_and_is_not_trained(self) -> None:
        optimizer, batch = self._ready(moved=False)
        if optimizer.reference is None:
            assert not optimizer.uses_reference
            return
        before = optimizer.reference.forward(batch).logprobs
        assert not before.requires_grad
        _step(optimizer, [batch])
        nudge(optimizer.modules())
        assert torch.equal(optimizer.reference.forward(batch).logprobs, before)

    def test_state_survives_as_json(self) -> None:
        optimizer, batch = self._ready(moved=False)
        _whole_step(optimizer, batch)
        try:
            state = json.loads(json.dumps(optimizer.state_dict()))
            json.dumps(optimizer.batch_metrics)
        except TypeError as error:
            raise AssertionError(f"state_dict() and batch_metrics hold JSON types, no tensors: {error}") from error
        restored = self.make()
        restored.load_state_dict(state)
        found = json.loads(json.dumps(restored.state_dict()))
        assert found == state, f"load_state_dict() does not restore what state_dict() returned: {found}, not {state}"

    def test_a_resumed_run_goes_on_the_same(self) -> None:
        """As the engine resumes: a new Optimizer with the weights and the state of the one that went on."""
        optimizer, batch = self._ready(moved=True)
        _whole_step(optimizer, batch)
        resumed = self._resumed(optimizer)
        # Online, the rest of the prepared batch comes from the checkpoint; offline, the data is prepared again.
        rest = batch if optimizer.consumes is Feed.ROLLOUTS else _prepare(resumed, self.batch(resumed))
        _assert_same_step(optimizer, batch, resumed, rest, "the rest of the batch")
        resumed, again = self._resumed(optimizer), self.batch(optimizer)
        ours, theirs = _prepare(optimizer, again), _prepare(resumed, again)
        differing = differing_fields(ours, theirs)
        assert not differing, f"prepare() gives other {', '.join(differing)} after load_state_dict(): {_KEEP}"
        _assert_same_step(optimizer, ours, resumed, theirs, "the next batch")
        assert resumed.state_dict() == optimizer.state_dict(), f"state_dict() differs after the next batch: {_KEEP}"

    def _resumed(self, optimizer: Optimizer[Any]) -> Optimizer[Any]:
        """A new Optimizer that continues from a checkpoint of this one."""
        resumed: Optimizer[Any] = self.make()
        for name, module in resumed.modules().items():
            module.load_state_dict(optimizer.modules()[name].state_dict())
            module.train()
        resumed.load_state_dict(json.loads(json.dumps(optimizer.state_dict())))
        return resumed

    def test_forward_passes_run_through_bound_modules(self) -> None:
        optimizer, batch = self._ready(moved=True)
        expected, _ = optimizer.loss(batch)
        wrapped = {name: CountingModule(module) for name, module in optimizer.modules().items()}
        optimizer.bind(wrapped)
        loss, _ = optimizer.loss(batch)
        assert torch.equal(loss, expected)
        for name, module in wrapped.items():
            assert module.calls, f"loss does not call the wrapped module {name}"

    def test_learning_rate_scales_name_parameters(self) -> None:
        optimizer = self.make()
        names = list(trained_parameters(optimizer.modules()))
        for prefix in optimizer.learning_rate_scales():
            assert any(name.startswith(prefix) for name in names), f"no parameter begins with {prefix!r}: {names}"

    def test_what_was_trained_is_saved(self, tmp_path: Path) -> None:
        self.make().save(tmp_path / "trained")
        assert any((tmp_path / "trained").iterdir())


class _Recorder:
    """Detaches the policy's outputs from the graph, so that gradients can flow through them alone."""

    def __init__(self, policy: Policy[Any]) -> None:
        self._outputs: list[tuple[Tensor, Tensor]] = []
        self._forward = policy.forward
        policy.forward = self._cut  # type: ignore[method-assign]

    def _cut(self, batch: GroupBatch, **asked: Any) -> PolicyOutput:
        output = self._forward(batch, **asked)
        assert output.logprobs.shape == (batch.num_tokens,)
        return dataclasses.replace(
            output,
            **{
                field.name: self._leaf(tensor)
                for field in dataclasses.fields(output)
                if (tensor := getattr(output, field.name)) is not None and tensor.requires_grad
            },
        )

    def _leaf(self, tensor: Tensor) -> Tensor:
        leaf = tensor.detach().requires_grad_()
        self._outputs.append((tensor, leaf))
        return leaf

    def pass_on(self) -> None:
        used = [(tensor, leaf.grad) for tensor, leaf in self._outputs if leaf.grad is not None]
        torch.autograd.backward([tensor for tensor, _ in used], [grad for _, grad in used])


def _step_by(learning_rate: float, optimizer: Optimizer[Any]) -> None:
    """Gradient descent without torch.optim, whose import takes longer than all checks."""
    with torch.no_grad():
        for parameter in trained_parameters(optimizer.modules()).values():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=learning_rate)


def _terms(optimizer: Optimizer[Any], batch: GroupBatch) -> int:
    return terms_of_network(optimizer.modules(), batch.num_tokens)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _prepare(optimizer: Optimizer[Any], batch: GroupBatch) -> GroupBatch:
    with torch.no_grad():
        return optimizer.prepare(batch)


def _begun(optimizer: Optimizer[Any], prepared: GroupBatch) -> GroupBatch:
    """The prepared batch as one step, after `begin_step`."""
    batch = prepared.replace(totals=prepared.counts())
    with torch.no_grad():
        optimizer.begin_step(batch)
    return batch


def _step(optimizer: Optimizer[Any], parts: Iterable[GroupBatch]) -> tuple[Tensor, dict[str, float]]:
    """The gradient and metrics of one optimisation step, summed over its micro-batches as in the engine."""
    clear_gradients(optimizer.modules())
    sums: dict[str, float] = {}
    for part in parts:
        loss, metrics = optimizer.loss(part)
        backward(loss)
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(torch.as_tensor(value).detach())
    return flat(gradients(optimizer.modules()).values()), sums


def _whole_step(optimizer: Optimizer[Any], batch: GroupBatch) -> Tensor:
    """All calls of an optimisation step but AdamW's; returns the gradient and the figures, on one axis."""
    begun = _begun(optimizer, batch)
    gradient, figures = _step(optimizer, [begun])
    more = optimizer.take_step(begun)
    optimizer.keep_going({**figures, "grad_norm": float(gradient.norm()), "learning_rate": 0.01, **more})
    return torch.cat([gradient, torch.tensor([*figures.values(), *more.values()], dtype=torch.float64)])


def _assert_same_step(
    optimizer: Optimizer[Any], batch: GroupBatch, resumed: Optimizer[Any], other: GroupBatch, where: str
) -> None:
    """Fails unless both take the same optimisation step, bit for bit."""
    expected, found = _whole_step(optimizer, batch), _whole_step(resumed, other)
    assert torch.equal(found, expected), f"the loss of {where} differs after load_state_dict(): {_KEEP}"
