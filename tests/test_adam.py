"""AdamW on float32 copies: every number against torch's own AdamW in float32."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from alignkit.algorithms.options import PolicyGradientOptions
from alignkit.errors import InputError
from alignkit.options import TrainingOptions
from alignkit.testing import ELEMENTARY, assert_near
from alignkit.training.adam import MasterAdamW, make_adam

CPU = torch.device("cpu")


def optimizer_of(module: nn.Module, **options: Any) -> Any:
    config = TrainingOptions(**{"learning_rate": 1e-4, "weight_decay": 0.1, **options})
    return SimpleNamespace(config=config, modules=lambda: {"m": module}, learning_rate_scales=dict)


def gradients(steps: int, mean: float = 0.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [mean + torch.randn(2, 3, generator=generator) for _ in range(steps)]


def test_the_weights_are_those_of_float32_rounded() -> None:
    """Weights between 0.5 and 1 are 2^-8 apart, forty steps; 200 steps of one direction come to several spacings."""
    layer = nn.Linear(3, 2, bias=False, dtype=torch.bfloat16)
    layer.weight.data = torch.tensor([[0.9, -0.7, 0.6], [-0.6, 0.8, -0.9]], dtype=torch.bfloat16)
    exact = nn.Parameter(layer.weight.detach().float())
    reference = torch.optim.AdamW([exact], lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1)
    adam = make_adam(optimizer_of(layer), CPU)
    assert isinstance(adam, MasterAdamW)
    start = layer.weight.detach().clone()
    for step, gradient in enumerate(gradients(200, mean=1.0), start=1):
        layer.weight.grad, exact.grad = gradient.clone(), gradient
        adam.step()
        reference.step()
        assert_near(adam.param_groups[0]["params"][0], exact, terms=step * ELEMENTARY)
        assert torch.equal(layer.weight, adam.param_groups[0]["params"][0].bfloat16())
        adam.zero_grad()
        assert layer.weight.grad is None
    assert (layer.weight < start).all(), "steps far below the spacing of bfloat16 have added up"


def test_gradients_add_up_in_float32() -> None:
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    make_adam(optimizer_of(layer), CPU)
    for value in (256.0, 1.0, 1.0, 1.0):  # in bfloat16, 256 + 1 is 256
        layer(torch.full((1, 1), value, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.item() == 259.0


def test_a_weight_without_gradient_is_left_alone() -> None:
    layer = nn.Linear(3, 2, bias=False, dtype=torch.bfloat16)
    adam = make_adam(optimizer_of(layer), CPU)
    with torch.no_grad():
        layer.weight.add_(1.0)
    moved = layer.weight.detach().clone()
    adam.step()
    assert torch.equal(layer.weight, moved)


def test_the_state_goes_on_bit_for_bit() -> None:
    def trained(layer: nn.Linear, adam: torch.optim.Optimizer, given: list[torch.Tensor]) -> torch.Tensor:
        for gradient in given:
            layer.weight.grad = gradient.clone()
            adam.step()
        return layer.weight.detach()

    torch.manual_seed(0)
    layer = nn.Linear(3, 2, bias=False, dtype=torch.bfloat16)
    other = nn.Linear(3, 2, bias=False, dtype=torch.bfloat16)
    adam, again = make_adam(optimizer_of(layer), CPU), make_adam(optimizer_of(other), CPU)
    trained(layer, adam, gradients(60)[:30])
    with torch.no_grad():
        other.weight.copy_(layer.weight)
    again.load_state_dict(copy.deepcopy(adam.state_dict()))
    left, right = (trained(each, its, gradients(60)[30:]) for each, its in ((layer, adam), (other, again)))
    assert torch.equal(left, right)
    assert torch.equal(adam.param_groups[0]["params"][0], again.param_groups[0]["params"][0])


def test_float32_weights_need_no_copies() -> None:
    for dtype in (torch.float32, torch.float64):
        assert type(make_adam(optimizer_of(nn.Linear(3, 2, dtype=dtype)), CPU)) is torch.optim.AdamW


@pytest.mark.parametrize("kind", [TrainingOptions, PolicyGradientOptions])
@pytest.mark.parametrize(("found", "message"), [(None, "bitsandbytes"), (object(), "CUDA")])
def test_eight_bits_need_bitsandbytes_and_cuda(
    monkeypatch: pytest.MonkeyPatch, kind: type[TrainingOptions], found: object, message: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    monkeypatch.setattr("alignkit.options.has_nvidia_driver", lambda: False)
    with pytest.raises(InputError, match=message) as refused:
        kind(adam="8bit").check()
    assert refused.value.where == "adam"
