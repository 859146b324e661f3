"""Penalties, stop strings, min-p, and prompts admitted while others are being sampled."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from alignkit_hf import generation, probe
from alignkit_hf.fallback import sample_with_generate
from alignkit_hf.generation import Budget, Sampled, sample
from alignkit_hf.modeling import PackedModel
from alignkit_hf.sampling import TokenChooser, before_stop, filtered, penalised, uniform_streams
from hf_tiny import END, VOCABULARY, assert_equal_figures, build_model

from alignkit.options import Sampling
from alignkit.records import Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conftest import LoadPolicy
    from torch import Tensor

STOPS = (END, *range(20, 60))
PROMPTS = [[3 + (7 * i + j * j) % 290 for j in range(1 + (5 * i) % 13)] for i in range(11)]


def load(family: str) -> PackedModel:
    model = build_model(family)
    return PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))


def draw(
    model: PackedModel, options: Sampling, budget: Budget, *, n: int = 3, prompts: Sequence[Sequence[int]] = PROMPTS
) -> Sampled:
    streams = uniform_streams(0, range(len(prompts)), n, options.max_tokens)
    chooser = TokenChooser(options, streams, STOPS, model.device, prompts=prompts)
    function = sample if model.path.packed else sample_with_generate
    return function(model, prompts, n, options.max_tokens, chooser, budget)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss", "gpt2", "bloom"])
def test_the_budget_changes_nothing(
    family: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    model, options = load(family), Sampling(max_tokens=20, min_tokens=2, repetition_penalty=1.2)
    whole = draw(model, options, Budget(tokens=10**6, rows=10**6))
    assert len({len(ids) for ids in whole.ids}) > 5, "the lengths don't vary"
    mixed = []
    join = generation._ResponsePass.join

    def watched(self: generation._ResponsePass, other: generation._ResponsePass) -> None:
        join(self, other)
        mixed.append(self.in_step)

    monkeypatch.setattr(generation._ResponsePass, "join", watched)
    for budget in (Budget(tokens=10**6, rows=7), Budget(tokens=200, rows=100), Budget(tokens=1, rows=1)):
        before = len(mixed)
        parts = draw(model, options, budget)
        assert parts.ids == whole.ids
        assert parts.finished == whole.finished
        assert_equal_figures(model, parts.logprobs, whole.logprobs)
        assert (len(mixed) > before + 2) == (model.path.packed and budget.rows > 1)
    assert not any(mixed), "no responses of different ages were sampled side by side"


def test_the_budget_bounds_what_is_held() -> None:
    model, seen = load("llama"), []
    options = Sampling(max_tokens=20)

    class Watched(generation._Sampling):
        def _choose(self, logits: Tensor, row: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
            seen.append(sorted(row.tolist()))
            return super()._choose(logits, row, step)

    streams = uniform_streams(0, range(len(PROMPTS)), 2, 20)
    chooser = TokenChooser(options, streams, STOPS, model.device)
    with torch.no_grad():
        Watched(model, PROMPTS, 2, 20, chooser, Budget(tokens=170, rows=7)).run()
    assert max(map(len, seen)) == 7
    assert {row for rows in seen for row in rows} == set(range(22))
    for rows in seen:
        held = sum(len(PROMPTS[number]) for number in {row // 2 for row in rows}) + 20 * len(rows)
        assert held <= 170
    assert any(set(after) - set(before) and set(before) & set(after) for before, after in pairwise(seen))


def test_how_many_prompts_fit() -> None:
    budget = Budget(tokens=100, rows=8)
    assert budget.admits([30, 30, 30, 30], 2) == 3
    assert budget.admits([30, 30, 30, 30], 4) == 2
    assert budget.admits([30, 70, 1], 1, tokens=10, rows=1) == 1
    assert budget.admits([500, 1], 20) == 1
    assert budget.admits([95], 2, tokens=6, rows=2) == 0
    assert budget.admits([94], 2, tokens=6, rows=6) == 1
    assert budget.admits([1], 2, tokens=6, rows=7) == 0


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_penalised_greedy_equals_transformers(family: str) -> None:
    model = load(family)
    expected = []
    for prompt in PROMPTS:
        out = model.lm.generate(
            torch.tensor([prompt]), max_new_tokens=15, do_sample=False, repetition_penalty=4.0, min_new_tokens=3,
            eos_token_id=list(STOPS), pad_token_id=0,
        )  # fmt: skip
        expected.append(out[0, len(prompt) :].tolist())
    options = Sampling(max_tokens=15, temperature=0.0, repetition_penalty=4.0, min_tokens=3)
    got = draw(model, options, Budget(tokens=10**6, rows=4), n=1)
    assert got.ids == expected
    assert draw(model, Sampling(max_tokens=15, temperature=0.0, min_tokens=3), Budget(10**6, 99), n=1).ids != expected


def test_filters_equal_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, VOCABULARY, generator=generator)
    seen = torch.randint(VOCABULARY, (6, 40), generator=generator)
    expected = transformers.RepetitionPenaltyLogitsProcessor(1.7)(seen, logits.clone())
    torch.testing.assert_close(penalised(logits, seen, 1.7), expected, rtol=0, atol=0)
    for options, theirs in (
        (Sampling(min_p=0.07), transformers.MinPLogitsWarper(0.07)),
        (Sampling(top_p=0.8), transformers.TopPLogitsWarper(0.8)),
        (Sampling(top_k=9), transformers.TopKLogitsWarper(9)),
    ):
        kept = theirs(seen, logits.clone()).isfinite()
        assert 6 < int(kept.sum()) < kept.numel() / 2
        assert torch.equal(filtered(logits, options, 0, torch.tensor([0])).isfinite(), kept)


def test_rows_of_different_ages_have_minimum_lengths_of_their_own() -> None:
    logits = torch.zeros(3, 4)
    got = filtered(logits, Sampling(min_tokens=2), torch.tensor([1, 2, 0]), torch.tensor([1, 3]))
    assert got.isfinite().tolist() == [[True, False, True, False], [True] * 4, [True, False, True, False]]


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_stop_strings_end_the_text_before_them(family: str, load_policy: LoadPolicy) -> None:
    policy = load_policy(family)
    prompts = [Prompt(text=text) for text in ("once upon a", "the big red ball", "dog")]
    free = policy.generate(prompts, n=4, sampling=Sampling(max_tokens=20), seed=1)
    stop = tuple(sorted({text[5:7] for group in free.groups for text in group.responses})[:5])
    options = Sampling(max_tokens=20, stop=stop)
    batch = policy.generate(prompts, n=4, sampling=options, seed=1)
    starts = [0, *free.lengths.cumsum(0).tolist()]
    own = torch.split(batch.response_ids, batch.lengths.tolist())
    stopped = 0
    assert batch.finished is not None
    assert free.finished is not None
    for index, text in enumerate(text for group in batch.groups for text in group.responses):
        ids = free.response_ids[starts[index] : starts[index + 1]].tolist()
        lengths = [k for k in range(1, len(ids) + 1) if any(s in policy.encoder.decode([ids[:k]])[0] for s in stop)]
        length = lengths[0] if lengths else len(ids)
        assert own[index].tolist() == ids[:length]
        full = policy.encoder.decode([ids[:length]])[0]
        assert not any(s in text for s in stop)
        assert full.startswith(text)
        assert bool(batch.finished[index]) == (bool(lengths) or bool(free.finished[index]))
        stopped += bool(lengths)
    assert stopped >= 3


def test_the_first_of_several_stop_strings_counts() -> None:
    assert before_stop("a b c b", ["c", "b"]) == "a "
    assert before_stop("a b c b", ["x"]) == "a b c b"
    assert before_stop("a b", []) == "a b"


def test_options_without_what_they_need_are_refused() -> None:
    streams = torch.zeros(1, 2)
    for options, message in ((Sampling(stop=("x",)), "decode"), (Sampling(repetition_penalty=2.0), "prompts")):
        with pytest.raises(ValueError, match=message):
            TokenChooser(options, streams, [0], torch.device("cpu"))
