"""Trust region policy optimisation, Schulman et al., arXiv:1502.05477, section 6 and appendix C.

The policy tries the longest natural-gradient step that the trust region allows, then shorter ones, until the measured
KL is within the region and the surrogate has improved; if none succeeds, it stays. AdamW trains only the critic.

Different from the paper: the Fisher matrix is that of the sampled tokens, (1/R) sum of s s^T with s the gradient of a
token's log-probability. Its products are J^T (J v), where J v is a central difference: models and kernels need no
second derivative. The bounded KL is the mean over the sampled tokens of ratio - 1 - log ratio. The exact KL, over the
whole vocabulary, scatters around it, the more the fewer tokens a batch has. Every process must hold all weights (not
FSDP or ZeRO-3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from alignkit.algorithms import known
from alignkit.ops import kl_estimate, mean_over_processes
from alignkit_ppo.actor_critic import ActorCritic
from alignkit_ppo.natural_gradient import assign, conjugate_gradient, directional_derivative, flattened
from alignkit_ppo.options import TRPOOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from alignkit import GroupBatch


class TRPO(ActorCritic[TRPOOptions]):
    """Natural policy gradient within a trust region; the critic has its own trunk."""

    moves_weights = True

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._bare = self._wrapped = self.policy.modules()

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        super().bind(modules)
        self._wrapped = {name: modules[name] for name in self._bare}

    def surrogate(self, batch: GroupBatch, logprobs: Tensor, log_ratio: Tensor) -> Tensor:
        return -known(batch, "advantages") * log_ratio.exp()

    def take_step(self, batch: GroupBatch) -> dict[str, float]:
        """Moves the policy, through the unwrapped modules: the wrappers' hooks expect backward passes of the loss."""
        self.policy.bind(self._bare)
        try:
            return self._natural_step(batch.split(self.max_tokens, divisible=True))
        finally:
            self.policy.bind(self._wrapped)

    def _natural_step(self, parts: Sequence[GroupBatch]) -> dict[str, float]:
        options = self.config
        parameters = [p for module in self._bare.values() for p in module.parameters() if p.requires_grad]
        gradient = flattened([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        for parameter in parameters:
            parameter.grad = None
        figures = {"trust_kl": 0.0, "surrogate_gain": 0.0, "step_share": 0.0}
        if not gradient.any():
            return figures
        start = flattened(parameters)

        def fisher(vector: Tensor) -> Tensor:
            return self._fisher_product(parts, parameters, start, vector) + options.damping * vector

        direction = conjugate_gradient(fisher, -gradient, iterations=options.cg_iterations)
        longest = (2 * options.trust_region / (direction @ fisher(direction))).sqrt() * direction
        logprobs = [self._logprobs(part) for part in parts]
        before, _ = self._measure(parts, logprobs)
        for attempt in range(options.line_search_steps):
            share = options.line_search_decay**attempt
            assign(parameters, start + share * longest)
            loss, kl = self._measure(parts, logprobs)
            if kl <= options.trust_region and loss < before:
                return {"trust_kl": kl, "surrogate_gain": before - loss, "step_share": share}
        assign(parameters, start)
        return figures

    def _fisher_product(
        self, parts: Sequence[GroupBatch], parameters: Sequence[Tensor], at: Tensor, vector: Tensor
    ) -> Tensor:
        """[P] the Fisher matrix at the weights `at` [P] times the vector [P]. Leaves the weights at `at`."""

        def logprobs_at(weights: Tensor) -> Tensor:
            assign(parameters, weights)
            return torch.cat([self._logprobs(part) for part in parts])

        along = directional_derivative(logprobs_at, at, vector)
        assign(parameters, at)
        product = torch.zeros_like(at)
        for part, slopes in zip(parts, torch.split(along, [part.num_tokens for part in parts]), strict=True):
            mean = part.token_mean(self.policy.forward(part).logprobs * slopes)
            gradients = torch.autograd.grad(mean, parameters, allow_unused=True)
            pairs = zip(gradients, parameters, strict=True)
            product += flattened([torch.zeros_like(p) if g is None else g for g, p in pairs])
        return mean_over_processes(product)

    def _logprobs(self, part: GroupBatch) -> Tensor:
        with torch.no_grad():
            return self.policy.forward(part).logprobs

    @torch.no_grad()
    def _measure(self, parts: Sequence[GroupBatch], logprobs: Sequence[Tensor]) -> tuple[float, float]:
        """The policy's loss, and its mean KL in nats per token from these log-probabilities [R] of each part."""
        sums = torch.zeros(2, dtype=torch.float64, device=logprobs[0].device)
        for part, old in zip(parts, logprobs, strict=True):
            output = self.forward(part)
            loss, _ = self.policy_loss(part, output)
            sums += torch.stack([loss, part.token_mean(kl_estimate(old, output.logprobs, "k3"))])
        loss_sum, kl_sum = mean_over_processes(sums).tolist()
        return loss_sum, kl_sum
