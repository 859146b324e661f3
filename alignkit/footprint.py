"""How much memory the models of a training take, known before their weights are loaded. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Held:
    """A model that a training holds.

    Attributes:
        name: what it is for: "policy", "reference", "critic", "reward".
        trained: whether it is trained, or only asked.
        scores: whether it is a scorer, a trunk with a scalar head, and no language model.
        of_reward: whether it starts from the reward's model, and not from the policy.
        value_layers: layers of the value head on a policy's trunk; 0: only the head. None: there is none.
        folder: where it is stored; empty: its options say what it is.
    """

    name: str
    trained: bool = False
    scores: bool = False
    of_reward: bool = False
    value_layers: int | None = None
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a training asks of a model.

    Attributes:
        device: "cpu", "cuda" or another type of device.
        max_tokens: tokens of a micro-batch, made of groups of `responses` responses of `response` tokens to a prompt of
            `prompt` tokens.
        rows: responses that are sampled at a time; 0: none are.
        adam: "torch", or "8bit" moments.
    """

    device: str
    max_tokens: int
    prompt: int
    response: int
    responses: int
    rows: int = 0
    adam: Literal["torch", "8bit"] = "torch"


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a model takes in one process that holds all of it, in bytes where nothing else is said.

    Attributes:
        parameters, trained: numbers.
        largest: the largest part that sharding gathers at a time: a layer, or the embedding and the heads.
        gradients, adam: of the trained parameters, float32 copies of short weights among the latter.
        activations: the peak of one forward and backward pass beyond the above; None: not known.
        casts: the part of the activations that is copies of weights in the precision of the computation, which a
            process that holds a share of the weights makes layer by layer.
        cache: keys and values of the responses that are sampled at a time.
    """

    parameters: int
    trained: int = 0
    weights: int = 0
    largest: int = 0
    gradients: int = 0
    adam: int = 0
    activations: int | None = 0
    casts: int = 0
    cache: int = 0
