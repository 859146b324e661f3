"""Chooses tokens by inverse-CDF draws; each response has its own stream of uniform numbers.

A stream is a counter-based generator (SplitMix64, doi:10.1145/2660193.2660195) keyed by seed, the prompt's place and
the response's index, so a response does not depend on what is sampled next to it, and equal prompts get different
responses. It takes one uniform number per token, where torch.multinomial draws one per logit.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from alignkit import Sampling

BLOCK = 128
DIRECT_VOCABULARY = 8192
"""Larger vocabularies are summed in two levels, because one running float32 sum would be too coarse."""


def uniform_streams(seed: int, places: Sequence[int], n: int, steps: int) -> Tensor:
    """[len(places) * n, steps] float64 uniform numbers in [0, 1), a row for each of `n` responses at each place."""
    names = (f"{seed}:{place}:{index}" for place in places for index in range(n))
    starts = np.array(
        [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") for name in names],
        dtype=np.uint64,
    )
    counters = np.arange(1, steps + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = starts[:, None] + counters
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return torch.from_numpy((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def choose(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The token [B] at which the CDF of softmax(logits) [B, V] passes `uniform` [B], and its log-probability [B]."""
    peak = logits.amax(1, keepdim=True)
    weights = (logits - peak).exp_()
    if logits.shape[1] <= DIRECT_VOCABULARY:
        token, total = _search(weights, uniform[:, None])
    else:
        token, total = _search_blocks(weights, uniform[:, None])
    logprob = logits.gather(1, token) - peak - total.log().to(logits.dtype)
    return token.squeeze(1), logprob.squeeze(1)


def _search(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    running = weights.cumsum(1)
    total = running[:, -1:]
    # strictly below the total, so that rounding never leads past the last token of positive probability
    threshold = torch.minimum(uniform.to(total.dtype) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(running, threshold, right=True), total


def _search_blocks(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    blocks = F.pad(weights, (0, -weights.shape[1] % BLOCK)).view(len(weights), -1, BLOCK)
    running = blocks.sum(2).double().cumsum(1)
    total = running[:, -1:]
    threshold = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    block = torch.searchsorted(running, threshold, right=True)
    before = torch.where(block > 0, running.gather(1, (block - 1).clamp(min=0)), 0.0)
    chosen = blocks.gather(1, block[:, :, None].expand(-1, 1, BLOCK)).squeeze(1).double()
    within, _ = _search(chosen, (threshold - before) / chosen.sum(1, keepdim=True))
    return block * BLOCK + within, total


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest token [B] of logits [B, V] and its log-probability [B]."""
    token = logits.argmax(1)
    return token, logits.gather(1, token[:, None]).squeeze(1) - logits.logsumexp(1)


def filtered(logits: Tensor, sampling: Sampling, step: int | Tensor, stop_ids: Tensor) -> Tensor:
    """Logits [B, V], with minus infinity at the tokens that `top_k`, `top_p`, `min_p` and `min_tokens` exclude.

    Args:
        step: one for all rows, or [B].
    """
    if sampling.min_tokens:
        early = torch.as_tensor(step, device=logits.device).expand(len(logits)) < sampling.min_tokens
        stops = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device).index_fill_(0, stop_ids, True)
        logits = logits.masked_fill(early[:, None] & stops, float("-inf"))
    if 0 < sampling.top_k < logits.shape[1]:
        lowest = logits.topk(sampling.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    if sampling.top_p < 1.0:
        ordered, order = logits.sort(dim=1, descending=True)
        probs = ordered.softmax(1)
        excluded = probs.cumsum(1) - probs >= sampling.top_p
        logits = logits.masked_fill(excluded.gather(1, order.argsort(1)), float("-inf"))
    if sampling.min_p > 0.0:
        lowest = logits.amax(1, keepdim=True) + math.log(sampling.min_p)
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    return logits


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits [B, V]; those of the tokens `seen` [B, T] are divided by the penalty, or multiplied if negative."""
    values = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(values < 0, values * penalty, values / penalty))


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of these strings."""
    return text[: min((text.find(string) for string in stop if string in text), default=len(text))]


class TokenChooser:
    """Turns raw logits into tokens as the sampling options say.

    Args:
        streams: [S, steps] uniform numbers of all responses.
        stop_ids: tokens that end a response.
        prompts: token ids of the prompts of the S responses; needed for a repetition penalty.
        decode: the texts of responses; needed for stop strings.
    """

    def __init__(
        self,
        sampling: Sampling,
        streams: Tensor,
        stop_ids: Sequence[int],
        device: torch.device,
        *,
        prompts: Sequence[Sequence[int]] = (),
        decode: Callable[[Sequence[Sequence[int]]], list[str]] | None = None,
    ) -> None:
        self.sampling = sampling
        self.streams = streams.t().contiguous().to(device)
        self.stop_ids = torch.tensor(list(stop_ids), dtype=torch.long, device=device)
        self._plain = set(sampling.distortions) <= {"temperature", "stop", "repetition_penalty"}
        self._penalised = sampling.repetition_penalty != 1.0
        self._decode = decode
        if sampling.stop and decode is None:
            raise ValueError("stop strings need a way to decode responses")
        if self._penalised and not prompts:
            raise ValueError("a repetition penalty needs the prompts")
        self._prefix = max(map(len, prompts)) if self._penalised else 0
        if self._penalised or sampling.stop:
            self._history = self._new_history(prompts if self._penalised else [[0]]).to(device)

    def _new_history(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """[S, prefix + steps] tokens of prompts and responses; empty places repeat the first token."""
        steps, count = self.streams.shape
        rows = []
        for ids in prompts:
            own = list(ids[: self._prefix])
            rows.append(own + [ids[0]] * (self._prefix + steps - len(own)))
        return torch.tensor(rows).repeat_interleave(count // len(prompts), 0)

    def __call__(self, logits: Tensor, rows: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token, its log-probability and whether it ends its response [B], for the responses `rows` [B].

        Args:
            logits: [B, V].
            step: number of the token in its response, one for all rows or [B].
        """
        temperature = self.sampling.temperature
        if self._penalised:
            logits = penalised(logits, self._history[rows], self.sampling.repetition_penalty)
        if temperature not in (0.0, 1.0):
            logits = logits / temperature
        if not self._plain:
            logits = filtered(logits, self.sampling, step, self.stop_ids)
        if temperature == 0.0:
            token, logprob = greedy(logits)
        else:
            token, logprob = choose(logits, self.streams[step, rows])
        return token, logprob, self._ends(token, rows, step)

    def _ends(self, tokens: Tensor, rows: Tensor, step: int | Tensor) -> Tensor:
        if self._penalised or self.sampling.stop:
            self._history[rows, self._prefix + step] = tokens
        ends = tokens == self.stop_ids if len(self.stop_ids) == 1 else (tokens[:, None] == self.stop_ids).any(1)
        return ends | self._has_stop_string(rows, step) if self.sampling.stop else ends

    def _has_stop_string(self, rows: Tensor, step: int | Tensor) -> Tensor:
        assert self._decode is not None
        lengths = (torch.as_tensor(step).expand(len(rows)) + 1).tolist()
        history = self._history[rows, self._prefix :].tolist()
        texts = self._decode([ids[:length] for ids, length in zip(history, lengths, strict=True)])
        found = [any(string in text for string in self.sampling.stop) for text in texts]
        return torch.tensor(found, device=rows.device)
