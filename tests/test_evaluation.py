"""Figures of an evaluation against values worked out by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from alignkit.errors import StoppedByCheck
from alignkit.options import Sampling
from alignkit.records import Group, Prompt
from alignkit.runs import evaluation
from alignkit.testing import TinyPolicy, TinyReward
from alignkit.testing.known_answer import PROMPT, REWARD_OF_TOKEN, policy_of_four_tokens, token_distribution

if TYPE_CHECKING:
    from alignkit.batch import GroupBatch


def ranked(prompt: str, *ranks: int, responses: tuple[str, ...] | None = None) -> Group:
    return Group(Prompt(text=prompt), responses or tuple(f"r{i}" for i in range(len(ranks))), ranks=ranks)


def test_ranking_accuracy_counts_ordered_pairs_and_halves_equal_scores() -> None:
    groups = [ranked("a", 0, 1), ranked("b", 0, 0, 1)]
    # a: 2 > 1 right. b: pairs (0, 2) with 1 against 1, a half, and (1, 2) with 0 against 1, wrong: 1.5 of 3.
    accuracy = evaluation.ranking_accuracy([[2.0, 1.0], [1.0, 0.0, 1.0]], groups)
    assert accuracy.value == pytest.approx(0.5)
    assert accuracy.count == 3


def test_an_abstention_leaves_its_pairs_out() -> None:
    accuracy = evaluation.ranking_accuracy([[2.0, None, 1.0]], [ranked("a", 0, 1, 2)])
    assert (accuracy.value, accuracy.count) == (1.0, 1)


def test_shorter_wins_is_the_accuracy_of_word_counts() -> None:
    groups = [
        ranked("a", 0, 1, responses=("one two", "one")),
        ranked("b", 0, 1, responses=("one", "one two")),
        ranked("c", 1, 0, responses=("one two three", "x")),
    ]
    assert evaluation.shorter_wins(groups).value == pytest.approx(2 / 3)


def test_the_interval_resamples_prompts_not_responses() -> None:
    """Ten copies of two opposite prompts: by response the interval would be narrow, by prompt it spans everything."""
    estimate = evaluation.clustered_mean({"a": [0.0] * 10, "b": [1.0] * 10})
    assert (estimate.value, estimate.low, estimate.high, estimate.count) == (0.5, 0.0, 1.0, 20)
    certain = evaluation.clustered_mean({str(k): [float(k % 2)] for k in range(400)})
    assert certain.value == 0.5
    assert certain.low == pytest.approx(0.451, abs=0.01)  # 1.96 * 0.5 / sqrt(400) = 0.049
    assert certain.high == pytest.approx(0.549, abs=0.01)
    with pytest.raises(ValueError, match="no values"):
        evaluation.clustered_mean({})


def test_win_rate_compares_the_kth_samples_and_halves_ties() -> None:
    found = evaluation.verdicts([[3.0, 1.0], [0.0]], [[2.0, 1.0], [5.0]], ["a", "b"])
    assert found == {"a": [1.0, 0.5], "b": [0.0]}


def moved(policy: TinyPolicy) -> TinyPolicy:
    """A policy whose head gives one token another logit."""
    with torch.no_grad():
        policy.modules()["policy"].vocabulary_head.bias[3] += 1.0  # type: ignore[union-attr,operator,index]
    return policy


def distributions(policy: TinyPolicy, batch: GroupBatch) -> torch.Tensor:
    """[R, V] log-probabilities, from passes with each token of the vocabulary in turn at every place."""
    tokens = range(len(policy.config.alphabet) + 1)
    contexts = policy._text.contexts(batch, after_last=False)
    with torch.no_grad():
        rows = [
            policy._network(contexts, torch.full_like(batch.response_ids, token), batch.temperature)["logprobs"]
            for token in tokens
        ]
    return torch.stack(rows, 1).double()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_the_kl_of_samples_is_the_sum_over_tokens_of_the_exact_one(temperature: float) -> None:
    policy, reference = moved(TinyPolicy()), TinyPolicy()
    sampling = Sampling(max_tokens=6, temperature=temperature)
    batch = policy.generate([Prompt(text="a"), Prompt(text="b")], n=3, sampling=sampling, seed=0)
    found = evaluation.figures_of_responses(batch, policy, reference)
    ours, theirs = (distributions(model, batch) for model in (policy, reference))
    expected = batch.sum_by_response((ours.exp() * (ours - theirs)).sum(-1)).tolist()
    assert sum(expected) > 6e-2
    assert [len(row) for row in found["kl"]] == [3, 3]
    assert flat(found["kl"]) == pytest.approx(expected, abs=1e-4)
    assert flat(found["tokens"]) == batch.lengths.tolist()
    assert flat(found["cut_off"]) == [float(not finished) for finished in batch.finished]
    at = torch.arange(batch.num_tokens), batch.response_ids
    ratio = batch.sum_by_response(ours[at] - theirs[at]).tolist()
    assert flat(found["kl_sampled"]) == pytest.approx(ratio, abs=1e-4)
    entropy = batch.sum_by_response(-(ours.exp() * ours).sum(-1)) / batch.lengths
    assert flat(found["entropy"]) == pytest.approx(entropy.tolist(), abs=1e-4)


def flat(rows: Any) -> list[float]:
    return [value for row in rows for value in row]


def test_perplexity_is_of_all_tokens_together() -> None:
    policy = moved(TinyPolicy())
    texts = [Group(Prompt(text=""), ("abba",)), Group(Prompt(text=""), ("a",)), Group(Prompt(text="b"), ("cab", "c"))]
    batch = policy.encode(texts)
    at = torch.arange(batch.num_tokens), batch.response_ids
    surprise = -distributions(policy, batch)[at]
    found, rows = evaluation.perplexity(policy, texts)
    assert found.value == pytest.approx(math.exp(float(surprise.mean())), rel=1e-4)
    assert 1 < found.low < found.value < found.high
    assert found.count == batch.num_tokens
    assert flat(rows["surprise"]) == pytest.approx(batch.sum_by_response(surprise).tolist(), rel=1e-4)
    assert [len(row) for row in rows["tokens"]] == [1, 1, 2]
    assert sum(flat(rows["tokens"])) == batch.num_tokens


HOW = [
    {"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.5}, {"min_tokens": 4}, {"temperature": 0.0}, {"temperature": 0.5},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "min_tokens": 2},
]  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_the_kl_of_equal_policies_is_0_however_they_are_sampled(how: dict[str, Any]) -> None:
    policy, prompts = TinyPolicy(), [Prompt(text="a"), Prompt(text="b")]
    batch = policy.generate(prompts, n=8, sampling=Sampling(**{"max_tokens": 8, **how}), seed=0)
    named = {"start": policy, "policy": TinyPolicy(), "policy, best of 4": TinyPolicy()}
    batches = dict.fromkeys(named, batch)
    report, _ = evaluation.compare_samples(batches, {}, policies=named, best_of=4)
    zero = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 16}
    assert report["start"]["kl"] == report["policy"]["kl"] == report["policy"]["measures"]["kl_sampled"] == zero
    assert report["policy"]["measures"].keys() == {"kl_sampled", "entropy", "cut_off"}
    assert report["policy, best of 4"]["kl_bound"]["value"] == pytest.approx(math.log(4) - 3 / 4, abs=1e-4)
    assert min(flat(evaluation.figures_of_responses(batch, moved(TinyPolicy()), policy)["kl"])) > 0.001


def test_abstentions_are_counted_beside_the_score() -> None:
    batch = TinyPolicy().encode([ranked("a", 0, 1), ranked("b", 0, 1)])

    class Half(TinyReward):
        def score(self, groups: Any) -> Any:
            return [[2.0, None] for _ in groups]

    class Silent(TinyReward):
        def score(self, groups: Any) -> Any:
            return [[None, None] for _ in groups]

    policies, batches = {"start": TinyPolicy(), "policy": TinyPolicy()}, {"start": batch, "policy": batch}
    report, _ = evaluation.compare_samples(batches, {"half": Half()}, policies=policies)
    assert report["policy"]["half"]["value"] == 2.0
    assert report["policy"]["half_abstained"] == 0.5
    with pytest.raises(StoppedByCheck, match="reward mute abstained on all 4 responses of start"):
        evaluation.compare_samples(batches, {"mute": Silent()}, policies=policies)


def test_the_first_best_of_each_n_is_chosen_and_an_abstention_never_if_it_can_be_helped() -> None:
    groups = [ranked("a", *[0] * 6), ranked("b", *[0] * 3, responses=("x", "y", "z"))]
    batch = TinyPolicy().encode(groups)
    chosen = evaluation.best_of(batch, [[1.0, 2.0, 2.0, None, -5.0, None], [None, None, None]], 3)
    assert [group.responses for group in chosen.groups] == [("r1", "r4"), ("x",)]
    assert chosen.num_responses == 3


def test_best_of_n_has_the_reward_that_its_distribution_promises() -> None:
    """P(best of n scores at most r) = P(one scores at most r)^n."""
    policy, n = policy_of_four_tokens(), 3
    batch = policy.generate([PROMPT], n=n * 600, sampling=Sampling(max_tokens=1), seed=0)
    scores = [REWARD_OF_TOKEN[text] for text in batch.groups[0].responses]
    chosen = evaluation.best_of(batch, [scores], n)
    found = [REWARD_OF_TOKEN[text] for text in chosen.groups[0].responses]
    order = sorted(zip(REWARD_OF_TOKEN.values(), token_distribution(policy).tolist(), strict=True))
    expected, below = 0.0, 0.0
    for reward, probability in order:
        expected += reward * ((below + probability) ** n - below**n)
        below += probability
    assert len(found) == 600
    assert sum(found) / 600 == pytest.approx(expected, abs=0.04)
    assert sum(scores) / len(scores) < expected - 0.2


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_kl_of_best_of_n(n: int) -> None:
    """Against the exact one over 4000 equally likely responses, and over three, where samples tie and it is less."""

    def exact(probabilities: list[float]) -> float:
        kl, below = 0.0, 0.0
        for p in probabilities:
            best = min(below + p, 1.0) ** n - below**n
            kl += best * math.log(best / p) if best else 0.0
            below += p
        return kl

    assert evaluation.best_of_kl(n) == pytest.approx(exact([1 / 4000] * 4000), abs=0.01)
    assert exact([0.2, 0.5, 0.3]) <= evaluation.best_of_kl(n) + 1e-9
    assert evaluation.best_of_kl(4) == pytest.approx(0.636294, abs=1e-6)
