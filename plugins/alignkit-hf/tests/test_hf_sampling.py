"""Samples: their distribution, their log-probabilities, and what they don't depend on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_hf import generation, probe
from alignkit_hf import policy as policy_module
from alignkit_hf.fallback import sample_with_generate
from alignkit_hf.generation import Budget, Sampled, sample
from alignkit_hf.modeling import PackedModel
from alignkit_hf.prepacked import prepacked
from alignkit_hf.sampling import TokenChooser, choose, filtered, uniform_streams
from hf_tiny import END, FAMILIES, TOKENS, VOCABULARY, assert_equal_figures, build_model, plain_logprobs

from alignkit.batch import GroupBatch
from alignkit.options import Sampling
from alignkit.records import Group, Prompt
from alignkit.testing import ELEMENTARY, assert_near, rounding, terms_of_network

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conftest import LoadPolicy

PROMPTS = [[7, 8, 9, 10, 11, 12, 13, 14, 15], [30, 31], [5, 9, 5, 9, 40, 41, 42, 43, 44, 45, 46]]
STOPS = (END, *range(20, 36))
WHOLE = Budget(tokens=10**9, rows=10**6)


def draw(
    model: PackedModel,
    prompts: Sequence[Sequence[int]],
    n: int,
    options: Sampling,
    *,
    places: Sequence[int] = (0, 1, 2),
    seed: int = 0,
    budget: Budget = WHOLE,
    decode: Callable[[Sequence[Sequence[int]]], list[str]] | None = None,
) -> Sampled:
    streams = uniform_streams(seed, places[: len(prompts)], n, options.max_tokens)
    chooser = TokenChooser(options, streams, STOPS, model.device, prompts=prompts, decode=decode)
    function = sample if model.path.packed else sample_with_generate
    return function(model, prompts, n, options.max_tokens, chooser, budget)


def terms_of_softmax(vocabulary: int) -> int:
    """Sums are made in blocks, so that no chain of additions is longer than the root of their number."""
    return 2 * ELEMENTARY + math.isqrt(vocabulary)


def as_batch(prompts: Sequence[Sequence[int]], sampled: Sampled, n: int, temperature: float) -> GroupBatch:
    groups = [Group(prompt=Prompt(text="x"), responses=("y",) * n) for _ in prompts]
    ids = [sampled.ids[i * n : (i + 1) * n] for i in range(len(prompts))]
    return GroupBatch.from_ids(prompts, ids, groups, temperature=temperature)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_logprobs_are_those_of_a_forward_pass(family: str) -> None:
    model = build_model(family)
    packed = PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))
    sampled = draw(packed, PROMPTS, 3, Sampling(max_tokens=16, temperature=0.7))
    lengths = [len(ids) for ids in sampled.ids]
    assert min(lengths) < 12, "no response ended early, so dropping rows was not tested"
    expected = plain_logprobs(model, as_batch(PROMPTS, sampled, 3, 0.7))
    assert_equal_figures(model, sampled.logprobs, expected.detach())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mamba"])
def test_greedy_equals_transformers_greedy(family: str) -> None:
    model = build_model(family)
    expected = []
    for prompt in PROMPTS:
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=list(STOPS), pad_token_id=0
        )
        expected.append(out[0, len(prompt) :].tolist())
    packed = PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))
    sampled = draw(packed, PROMPTS, 1, Sampling(max_tokens=12, temperature=0.0))
    assert sampled.ids == expected
    untempered = plain_logprobs(model, as_batch(PROMPTS, sampled, 1, 1.0))
    assert_equal_figures(model, sampled.logprobs, untempered.detach())


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_response_ends_with_the_first_stop_token_or_at_the_limit(family: str) -> None:
    model = build_model(family)
    packed = PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))
    sampled = draw(packed, PROMPTS, 8, Sampling(max_tokens=20))
    assert any(sampled.finished)
    assert not all(sampled.finished), "no response was cut off"
    for ids, finished in zip(sampled.ids, sampled.finished, strict=True):
        assert (ids[-1] in STOPS) == finished
        assert not set(ids[:-1]) & set(STOPS)
        assert finished or len(ids) == 20
    assert len({tuple(ids) for ids in sampled.ids}) > 20, "samples of a prompt are the same"


def test_a_response_does_not_depend_on_its_neighbours() -> None:
    model = build_model("llama")
    packed = PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))
    options = Sampling(max_tokens=20)
    whole = draw(packed, PROMPTS, 8, options)
    assert draw(packed, PROMPTS, 8, options).ids == whole.ids
    assert draw(packed, PROMPTS, 8, options, seed=1).ids != whole.ids
    for number in range(3):
        alone = draw(packed, PROMPTS[number : number + 1], 2, options, places=[number])
        assert alone.ids == whole.ids[number * 8 : number * 8 + 2]


@pytest.mark.parametrize(
    ("vocabulary", "draws"),
    [(50, 20_000), (8192, 100_000), (152_064, 3000), pytest.param(152_064, 100_000, marks=pytest.mark.slow)],
)
def test_tokens_follow_the_softmax(vocabulary: int, draws: int) -> None:
    """Chi-squared against softmax in float64, at every size of vocabulary. Tokens that are too rare for the statistic
    are pooled by their place in the vocabulary, so that no part of it may go missing."""
    logits = 2 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(0))
    logits[3] = float("-inf")
    streams = uniform_streams(0, range(draws), 1, 1)
    chooser = TokenChooser(Sampling(), streams, [1], torch.device("cpu"))
    size = max(1, 2**22 // vocabulary)
    parts = []
    for rows in torch.arange(draws).split(size):
        parts.append(chooser(logits.repeat(len(rows), 1), rows, 0)[:2])
    tokens, logprobs = (torch.cat(column) for column in zip(*parts, strict=True))
    expected = logits.double().softmax(-1) * draws
    common = expected >= 10
    place = (expected.cumsum(0) / draws * 500).long().clamp(max=499)
    cell = torch.where(common, 500 + torch.arange(vocabulary), place).unique(return_inverse=True)[1]
    observed = torch.bincount(cell[tokens]).double()
    wanted = torch.zeros_like(observed).index_add_(0, cell, expected)
    kept = wanted >= 5
    assert float(wanted[kept].sum()) > 0.9 * draws
    freedom = int(kept.sum()) - 1
    statistic = float(((observed - wanted).square() / wanted)[kept].sum())
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)
    assert not bool((tokens == 3).any())
    assert_near(logprobs, logits.double().log_softmax(-1)[tokens].float(), terms=terms_of_softmax(vocabulary))


@pytest.mark.parametrize("vocabulary", [8192, 152_064])
def test_the_running_sum_is_exact_enough_to_hit_every_token(vocabulary: int) -> None:
    """Uniform logits: the number in the middle of a token's share gives that token, at both ends of the vocabulary."""
    wanted = torch.cat((torch.arange(20), vocabulary // 2 + torch.arange(20), vocabulary - 20 + torch.arange(20)))
    uniform = (wanted.double() + 0.5) / vocabulary
    tokens, logprobs = choose(torch.full((len(wanted), vocabulary), 0.3), uniform)
    assert tokens.tolist() == wanted.tolist()
    assert_near(logprobs, torch.full((60,), -math.log(vocabulary)), terms=terms_of_softmax(vocabulary))


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "bloom"])
def test_a_response_is_the_same_alone_and_among_31_others(family: str) -> None:
    model = build_model(family)
    packed = PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))
    options = Sampling(max_tokens=12)
    prompts = [[5 + i, *range(9, 9 + i)] for i in range(8)]
    among = draw(packed, prompts, 4, options, places=range(8), budget=Budget(tokens=10**9, rows=12))
    for number in (0, 3, 7):
        alone = draw(packed, prompts[number : number + 1], 1, options, places=[number])
        assert alone.ids == among.ids[4 * number : 4 * number + 1]
        assert alone.finished == among.finished[4 * number : 4 * number + 1]
    assert len(among.ids) == 32


@pytest.mark.parametrize("vocabulary", [7, 9000])
def test_the_ends_of_the_unit_interval_give_possible_tokens(vocabulary: int) -> None:
    logits = torch.full((2, vocabulary), float("-inf"))
    logits[:, 2:4] = torch.tensor([0.0, 1.0])
    tokens, _ = choose(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert tokens.tolist() == [2, 3]


def test_the_inverse_cdf_by_hand() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(4, -1).contiguous()
    tokens, logprobs = choose(logits, torch.tensor([0.09, 0.11, 0.59, 0.61], dtype=torch.float64))
    assert tokens.tolist() == [0, 1, 2, 3]
    assert_near(logprobs.exp(), torch.tensor([0.1, 0.2, 0.3, 0.4]), terms=terms_of_softmax(4) + ELEMENTARY)


def test_streams_are_uniform_and_of_their_own() -> None:
    streams = uniform_streams(3, [0, 7], 4, 5000)
    assert streams.shape == (8, 5000)
    assert bool(((streams >= 0) & (streams < 1)).all())
    assert float((streams.mean(1) - 0.5).abs().max()) < 4 / math.sqrt(12 * 5000)
    assert float((torch.corrcoef(streams) - torch.eye(8)).abs().max()) < 0.08
    assert torch.equal(uniform_streams(3, [7], 2, 100), streams[4:6, :100])
    assert not torch.equal(uniform_streams(4, [7], 2, 100), streams[4:6, :100])


def test_filters_keep_what_they_say() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    stops = torch.tensor([0])

    def kept(options: Sampling, step: int = 0) -> list[bool]:
        return filtered(logits, options, step, stops)[0].isfinite().tolist()

    assert kept(Sampling(top_k=2)) == [True, True, False, False]
    assert kept(Sampling(top_p=0.65)) == [True, True, False, False]
    assert kept(Sampling(top_p=0.75)) == [True, True, True, False]
    assert kept(Sampling(top_p=0.01)) == [True, False, False, False]
    assert kept(Sampling(min_p=0.6)) == [True, True, False, False]
    assert kept(Sampling(min_p=0.45)) == [True, True, True, False]
    assert kept(Sampling(min_tokens=3), step=2) == [False, True, True, True]
    assert kept(Sampling(min_tokens=3), step=3) == [True, True, True, True]


def test_filtered_samples_stay_inside_and_carry_their_own_logprobs() -> None:
    model = build_model("llama")
    packed = PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))
    sampled = draw(packed, PROMPTS, 4, Sampling(max_tokens=10, min_tokens=4, top_k=5, temperature=0.9))
    assert min(len(ids) for ids in sampled.ids) >= 5
    batch = as_batch(PROMPTS, sampled, 4, 0.9)
    whole = plain_logprobs(model, batch).detach()
    bound = rounding(terms_of_network(model, tokens=TOKENS), scale=float(whole.abs().max()))
    assert float((sampled.logprobs - whole).min()) >= -bound
    top = draw(packed, PROMPTS, 4, Sampling(max_tokens=10, top_k=1))
    assert top.ids == [
        ids for ids in draw(packed, PROMPTS, 1, Sampling(max_tokens=10, temperature=0.0)).ids for _ in range(4)
    ]
    assert top.logprobs.tolist() == [0.0] * len(top.logprobs)


@pytest.mark.parametrize(("family", "drawer"), [("llama", "sample"), ("bloom", "sample_with_generate")])
def test_out_of_memory_samples_fewer_at_a_time(
    load_policy: LoadPolicy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, family: str, drawer: str
) -> None:
    policy, draw_all, rows = load_policy(family), getattr(policy_module, drawer), []
    prompts = [Prompt(text=text) for text in ("once upon", "the big red ball", "once upon")]
    options = Sampling(max_tokens=12, repetition_penalty=1.3)
    whole = policy.generate(prompts, n=6, sampling=options, seed=5)

    def hungry(model: PackedModel, ids: Sequence[Sequence[int]], n: int, *rest: Any) -> Sampled:
        *_, budget = rest
        rows.append((n, budget.rows))
        if budget.rows > 4:
            draw_all(model, ids[:1], n, *rest)  # some tokens are drawn before it fails
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return draw_all(model, ids, n, *rest)

    monkeypatch.setattr(policy_module, drawer, hungry)
    again = policy.generate(prompts, n=6, sampling=options, seed=5)
    assert rows == [(6, 18), (6, 9), (3, 4)]
    assert caplog.messages[-1] == "out of memory: now at most 4 responses are sampled at a time"
    assert again.groups == whole.groups
    assert len({group.responses for group in whole.groups}) == 3
    policy.generate(prompts, n=4, sampling=options, seed=5)
    assert rows[3:] == [(4, 4)], "the next batch starts where the last one fitted"


def test_chunks_change_nothing(load_policy: LoadPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy()
    prompts = [Prompt(text=text) for text in ("once upon", "the big red ball", "a", "dog")]
    options = Sampling(max_tokens=12, temperature=0.9)
    whole = policy.generate(prompts, n=3, sampling=options, seed=5)
    monkeypatch.setattr("alignkit_hf.policy.MAX_ROWS", 4)
    chunked = policy.generate(prompts, n=3, sampling=options, seed=5)
    assert chunked.groups == whole.groups
    assert torch.equal(chunked.response_ids, whole.response_ids)
    assert chunked.logprobs is not None
    assert whole.logprobs is not None
    assert_equal_figures(policy.raw, chunked.logprobs, whole.logprobs)


def test_dropping_finished_rows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("mistral")
    packed = PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))
    dropped = draw(packed, PROMPTS, 6, Sampling(max_tokens=24))
    monkeypatch.setattr(generation, "COMPACT_BELOW", -1.0)
    kept = draw(packed, PROMPTS, 6, Sampling(max_tokens=24))
    assert dropped.ids == kept.ids
    assert dropped.finished == kept.finished
    assert_equal_figures(model, dropped.logprobs, kept.logprobs)


def test_the_distribution_of_whole_responses() -> None:
    """2,000 samples of one prompt: the first token's frequencies against the model's own probabilities."""
    model = build_model("llama", loud=2.0)
    packed = PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))
    count = 2000
    sampled = draw(packed, PROMPTS[:1], count, Sampling(max_tokens=2))
    logits = model(torch.tensor(PROMPTS[:1])).logits[0, -1].detach().double()
    expected = logits.softmax(-1) * count
    observed = torch.bincount(torch.tensor([ids[0] for ids in sampled.ids]), minlength=VOCABULARY).double()
    kept = expected > 5
    statistic = float(((observed - expected).square() / expected)[kept].sum())
    assert abs(statistic - float(kept.sum())) < 4 * math.sqrt(2 * float(kept.sum()))


def test_under_autocast_logprobs_stay_near_the_forward_pass() -> None:
    model = build_model("llama")
    path = probe.find_path(model, layout="auto", attention="auto")
    packed = PackedModel(model, path=path, autocast=torch.bfloat16)
    sampled = draw(packed, PROMPTS, 3, Sampling(max_tokens=16))
    expected = plain_logprobs(model, as_batch(PROMPTS, sampled, 3, 1.0)).detach()
    assert float((sampled.logprobs - expected).abs().mean()) < 0.05


def test_transformers_own_generation_settings_change_nothing() -> None:
    model = build_model("bloom")
    packed = PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))
    before = draw(packed, PROMPTS, 2, Sampling(max_tokens=10))
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.top_k = 1
    assert draw(packed, PROMPTS, 2, Sampling(max_tokens=10)).ids == before.ids
    assert model.generation_config.repetition_penalty == 5.0


@pytest.mark.parametrize("bias", [False, True])
def test_prepacked_layers_compute_the_same_and_are_put_back(bias: bool) -> None:
    layer = torch.nn.Linear(48, 1000, bias=bias)
    model = torch.nn.ModuleDict({"layer": layer, "short": torch.nn.Linear(48, 7).bfloat16()})
    weight, offset = layer.weight.detach().double(), layer.bias.detach().double() if bias else 0.0
    for rows in (1, 5, 64):
        x = torch.randn(2, rows, 48)
        with torch.no_grad(), prepacked(model):
            assert "forward" in layer.__dict__
            assert "forward" not in model["short"].__dict__
            inside = layer(x)
        assert_near(inside, (x.double() @ weight.t() + offset).float(), terms=49)
    assert "forward" not in layer.__dict__
    assert layer(x).requires_grad


def test_sampling_sees_the_weights_as_they_are_now() -> None:
    model = build_model("llama")
    packed = PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))
    for _ in range(2):
        sampled = draw(packed, PROMPTS, 2, Sampling(max_tokens=6))
        expected = plain_logprobs(model, as_batch(PROMPTS, sampled, 2, 1.0))
        assert_equal_figures(model, sampled.logprobs, expected.detach())
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(-1.5)


def test_responses_outgrow_the_first_room_for_their_keys() -> None:
    model = build_model("llama")
    packed = PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))
    sampled = draw(packed, PROMPTS, 16, Sampling(max_tokens=80), budget=Budget(tokens=10**9, rows=32))
    assert max(map(len, sampled.ids)) > 2 * generation.ROOM
    expected = plain_logprobs(model, as_batch(PROMPTS, sampled, 16, 1.0))
    assert_equal_figures(model, sampled.logprobs, expected.detach())
