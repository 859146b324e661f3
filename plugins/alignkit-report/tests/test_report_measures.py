"""Measures of texts and duels against values worked out by hand, by other libraries and by enumeration."""

from __future__ import annotations

import random
from itertools import combinations
from math import exp
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from alignkit_report.compare.results import Measured, differences, duels, of_reward_models, of_start, of_variant
from alignkit_report.compare.statistics import mean_of
from alignkit_report.measures.lengths import at_equal_length
from alignkit_report.measures.prompts import jackknifed, ratio
from alignkit_report.measures.run import measures
from alignkit_report.measures.samples import mean_of_replies, of_held_out, of_samples, told
from alignkit_report.measures.solved import pass_at, pass_rates
from alignkit_report.measures.texts import of_texts, self_bleu
from scipy.optimize import minimize
from scipy.special import expit

from alignkit import Group, Prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def test_a_ratio_of_sums_and_its_spread() -> None:
    # 5 of 10; without the first prompt 3 of 8. The values weigh each prompt by its counts.
    values = ratio(np.array([2.0, 3.0]), np.array([2.0, 8.0]))
    assert values.mean() == pytest.approx(0.5)
    assert values.tolist() == pytest.approx([0.5 + (2 - 1) / 5, 0.5 + (3 - 4) / 5])


def test_the_jackknife_of_a_mean_is_the_values_themselves() -> None:
    values = np.array([1.0, 4.0, 7.0, 0.0])
    without = np.array([np.delete(values, place).mean() for place in range(4)])
    assert jackknifed(3.0, without).tolist() == pytest.approx(values.tolist())


def test_diversity_by_hand() -> None:
    found = of_texts([["a b a"], ["b c"], ["b c"]])
    # words: a b a b c b c; without each prompt: b c b c, a b a b c, a b a b c.
    assert found["distinct_words"].mean() == pytest.approx(3 / 7)
    assert jackknifed(3 / 7, np.array([2 / 4, 3 / 5, 3 / 5])).tolist() == pytest.approx(
        found["distinct_words"].tolist()
    )
    assert found["distinct_bigrams"].mean() == pytest.approx(3 / 4)  # a b, b a, b c, b c
    assert found["distinct_responses"].mean() == pytest.approx(2 / 3)
    assert "repetition" not in found  # nobody has four words


def test_repetition_is_counted_over_all_runs_of_four_words() -> None:
    # a b a b a b: abab, baba, abab: one of three stands there before. The other reply adds one that does not.
    found = of_texts([["a b a b a b"], ["a b a b"]])["repetition"]
    assert found.mean() == pytest.approx(1 / 4)


def test_self_bleu_by_hand() -> None:
    found = self_bleu([["the cat sat down"], ["the cat sat up"], ["the dog"]])
    # The first two: 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, none of 1, smoothed to 0.1. The third: 1 of 2 words,
    # nothing else, each smoothed, and shorter than the closest other text by 2 of 2 words.
    long = (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25
    short = (1 / 2 * 0.1**3) ** 0.25 * exp(1 - 4 / 2)
    assert found is not None
    assert found.mean() == pytest.approx((2 * long + short) / 3)
    # Without the first, the second has "the" in common with the third; without the third nothing changes.
    without_first = ((1 / 4 * 0.1 / 3 * 0.1 / 2 * 0.1) ** 0.25 + short) / 2
    expected = jackknifed((2 * long + short) / 3, np.array([without_first, without_first, long]))
    assert found.tolist() == pytest.approx(expected.tolist())
    assert self_bleu([["a b c d e"], ["a b c d e"]]) == pytest.approx([1.0, 1.0])
    assert self_bleu([["", "a"], ["b", "c"]]) == pytest.approx([0.0, 0.0])
    assert self_bleu([["a", "b"]]) is None


def random_texts(draw: random.Random, prompts: int, replies: int) -> list[list[str]]:
    words = [f"w{number}" for number in range(40)]
    weights = [1 / (number + 1) for number in range(40)]
    return [
        [" ".join(draw.choices(words, weights, k=draw.randrange(3, 20))) for _ in range(replies)]
        for _ in range(prompts)
    ]


def test_self_bleu_is_nltk_s() -> None:
    bleu = pytest.importorskip("nltk.translate.bleu_score", reason="nltk is not installed")
    texts = random_texts(random.Random(2), 8, 3)
    words = [text.split() for replies in texts for text in replies]
    smooth = bleu.SmoothingFunction().method1
    expected = [
        bleu.sentence_bleu(words[:place] + words[place + 1 :], own, smoothing_function=smooth)
        for place, own in enumerate(words)
    ]
    found = self_bleu(texts)
    assert found is not None
    assert found.mean() == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distinct_words", "distinct_bigrams", "self_bleu"])
def test_intervals_of_diversity_hold_its_mean(name: str) -> None:
    estimates = [mean_of(of_texts(random_texts(random.Random(seed), 48, 2))[name][None]) for seed in range(200)]
    truth = np.mean([one.value for one in estimates])
    assert 0.92 <= np.mean([one.low <= truth <= one.high for one in estimates]) <= 0.995


@pytest.mark.parametrize("longer", [[[0.0, 0.0], [0.0, 0.0]], [[3.0, -1.0], [2.0, 5.0]]])
def test_duels_that_all_tie_have_even_odds(longer: list[list[float]]) -> None:
    found = at_equal_length(np.full((2, 2), 0.5), np.array(longer))
    assert found == pytest.approx([0.0, 0.0], abs=1e-9)


def test_the_win_rate_at_the_same_length_is_the_most_likely_one() -> None:
    draw = np.random.default_rng(5)
    longer = draw.normal(30, 40, size=(40, 2))
    wins = (draw.random((40, 2)) < expit(0.5 + 0.02 * longer)).astype(float)
    wins[0, 0], wins[1, 1] = 0.5, np.nan
    known = ~np.isnan(wins)
    scaled = np.tanh(longer[known] / longer[known].std())

    def surprise(point: Floats) -> float:
        chance = expit(point[0] + point[1] * np.array([*scaled, 1, -1]))
        won = np.array([*wins[known], 0.5, 0.5])
        weight = np.array([*np.ones(len(scaled)), 0.5, 0.5])
        return float(-(weight * (won * np.log(chance) + (1 - won) * np.log(1 - chance))).sum())

    expected = minimize(surprise, np.zeros(2), tol=1e-10).x
    found = at_equal_length(wins, longer)
    assert found is not None
    assert found.mean() == pytest.approx(expected[0], abs=1e-4)
    assert expit(found.mean()) < np.nanmean(wins) - 0.05  # ours are longer, and longer ones win


def test_intervals_of_the_win_rate_at_the_same_length_hold_the_truth() -> None:
    draw, held = np.random.default_rng(1), []
    for _ in range(200):
        longer = draw.normal(20, 50, size=(64, 2))
        wins = draw.random((64, 2)) < expit(0.4 + 1.5 * np.tanh(longer / longer.std()))
        found = at_equal_length(wins.astype(float), longer)
        assert found is not None
        one = mean_of(found[None])
        held.append(one.low <= 0.4 <= one.high)
    assert 0.92 <= np.mean(held) <= 0.98


def test_one_that_always_wins_and_lengths_that_never_differ_have_a_finite_rate() -> None:
    always = at_equal_length(np.ones((20, 1)), np.zeros((20, 1)))
    assert always is not None
    assert 0.94 < expit(always.mean()) < 1  # 20.5 of 21 duels
    longer_wins = np.where(np.arange(20) % 2, 1.0, 0.0)[:, None]
    even = at_equal_length(longer_wins, 10 * longer_wins - 5)
    assert even is not None
    assert expit(even.mean()) == pytest.approx(0.5, abs=1e-6)
    assert at_equal_length(np.full((3, 1), np.nan), np.zeros((3, 1))) is None


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer() -> None:
    right = [True, False, False, True, False, False]
    for k in range(1, 7):
        draws = list(combinations(right, k))
        assert pass_at(k, 6, 2) == pytest.approx(sum(map(any, draws)) / len(draws))
    found = pass_rates(np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, np.nan]]))
    assert list(found) == ["pass@1", "pass@2", "pass@4"]
    assert found["pass@2"].tolist() == pytest.approx([1 - 1 / 6, 0.0])
    assert found["pass@4"][0] == 1.0
    assert np.isnan(found["pass@4"][1])  # three answers say nothing of four
    assert pass_rates(np.array([[0.5, 1.0]])) == pass_rates(np.array([[np.nan]])) == {}


FIGURES = {"kl": 0.0, "kl_sampled": 0.0, "tokens": 3.0, "cut_off": 0.0, "entropy": 1.5}


def sampled(source: str, texts: list[str], gold: list[float], **more: Any) -> list[Group]:
    return [
        Group(Prompt.of(f"p{place}"), (text,), source=source,
              meta={"figures": {name: [value] for name, value in {**FIGURES, **more, "gold": score}.items()}})
        for place, (text, score) in enumerate(zip(texts, gold, strict=True))
    ]  # fmt: skip


def test_the_measures_of_a_run() -> None:
    start = sampled("start", ["aa", "bb", "cc"], [0.0, 1.0, 0.0])
    policy = sampled("policy", ["aa", "aa", "a"], [1.0, 1.0, 0.0])
    found = measures([*start, *policy], {}, ())
    names = {"distinct_responses", "distinct_words", "self_bleu", "pass@1/gold"}
    assert found["start"].keys() == names
    assert found["policy"].keys() == names | {"win_rate_same_length/gold"}
    assert found["policy"]["pass@1/gold"]["value"] == found["policy"]["distinct_words"]["value"] == 0.6667
    assert found["policy"]["distinct_words"]["n"] == 3
    rate = found["policy"]["win_rate_same_length/gold"]
    assert 0.5 < rate["value"] < 0.9  # one win and two ties, of which the shorter one draws
    assert 0 < rate["low"] < rate["value"] < rate["high"] < 1
    assert measures(start[:1] + policy[:1], {}, ()) == {"start": {}, "policy": {}}


def test_perplexity_is_told_per_token_and_averaged_as_a_log() -> None:
    texts = [Group(Prompt(text=""), ("x",), meta={"figures": {"surprise": [s], "tokens": [t]}})
             for s, t in ((2.0, 1.0), (4.0, 2.0), (9.0, 3.0))]  # fmt: skip
    log = of_held_out(texts)
    assert log.mean() == pytest.approx(15 / 6)
    figure = told({"perplexity": log[None]})["perplexity"]
    assert figure["value"] == pytest.approx(exp(2.5), abs=1e-4)
    assert figure["low"] < figure["value"] < figure["high"]
    plain = mean_of(log[None])
    assert figure["high"] == pytest.approx(exp(plain.high), abs=1e-4)


def test_what_is_not_known_for_a_prompt_is_left_out() -> None:
    means = mean_of_replies(np.array([[1.0, np.nan], [np.nan, np.nan], [2.0, 4.0]]))
    assert means[0] == 1.0
    assert np.isnan(means[1])
    assert means[2] == 3.0
    assert told({"gold": means[None]})["gold"]["n"] == 2
    assert told({"gold": means[None, :2]}) == {}


def measured(seed: int, shift: float, draw: np.random.Generator, **models: Any) -> Measured:
    """A run in which the policy's gold reward is `shift` above the start's, and its entropy that much below."""
    gold = draw.normal(size=(30, 1))
    values = {"start": {"gold": gold, "kl": 0 * gold}, "policy": {"gold": gold + shift, "kl": 0 * gold + 1}}
    noise = 0.1 * draw.normal(size=30)
    entropy = {"start": 2 + noise, "policy": 2 - shift + noise + 0.1 * draw.normal(size=30)}
    tables = {name: {"gold": of["gold"][:, 0], "kl": of["kl"][:, 0], "entropy": entropy[name]}
              for name, of in values.items()}  # fmt: skip
    return Measured(seed, "30 prompts", values, tables, models, 1.0, 5, None, "")


def test_what_is_never_negative_has_an_interval_without_negative_values() -> None:
    apart = np.array([[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]])
    found = told({"kl": apart, "kl_sampled": apart})
    assert found["kl"] == {**found["kl_sampled"], "low": 0.0}
    assert found["kl_sampled"]["low"] < -10  # Student's t of two seeds


def test_every_measure_is_told_and_tested() -> None:
    draw = np.random.default_rng(0)
    runs = {name: [measured(seed, shift, draw) for seed in range(3)] for name, shift in (("a", 0.0), ("b", 1.0))}
    row = of_variant(runs["b"], "gold")
    assert row["measures"].keys() == {"entropy"}
    assert row["measures"]["entropy"]["n"] == 90
    assert row["measures"]["entropy"]["value"] == pytest.approx(1.0, abs=0.05)
    assert row["kl"]["value"] == 1.0
    assert row["tokens"] == 5
    assert of_start(runs["b"])["measures"]["entropy"]["value"] == pytest.approx(2.0, abs=0.05)
    found = duels(runs, "gold")
    (pair,) = found["pairs"]
    assert pair["measures"]["entropy"]["value"] == pytest.approx(1.0, abs=0.1)  # a less b
    assert pair["measures"]["entropy"]["p_corrected"] < 0.001
    assert pair["p"] == pair["measures"]["gold"]["p"]
    assert pair["difference"] == {name: pair["measures"]["gold"][name] for name in ("value", "low", "high", "n")}
    assert found["changes"]["a"]["entropy"]["p"] > 0.01
    assert found["changes"]["b"]["entropy"]["value"] == pytest.approx(-1.0, abs=0.1)
    assert found["changes"]["b"]["entropy"]["p_corrected"] < 0.001


def test_p_is_corrected_for_the_cases_that_have_the_measure() -> None:
    draw = np.random.default_rng(4)
    zero = np.zeros((1, 40))
    shifted = [0.3 * shift + draw.normal(size=(1, 40)) for shift in range(3)]
    cases = [({"x": values, "only": zero} if place else {"x": values}, {"x": zero, "only": zero + 1})
             for place, values in enumerate(shifted)]  # fmt: skip
    found = differences(cases)
    ps = sorted(row["x"]["p"] for row in found)
    holm = [3 * ps[0], max(3 * ps[0], 2 * ps[1]), max(3 * ps[0], 2 * ps[1], ps[2])]
    assert sorted(row["x"]["p_corrected"] for row in found) == pytest.approx([min(1.0, p) for p in holm])
    assert [sorted(row) for row in found] == [["x"], ["only", "x"], ["only", "x"]]
    assert found[1]["only"]["value"] == -1.0


def test_one_of_three_equal_algorithms_seems_different_in_at_most_5_percent_of_comparisons() -> None:
    draw, found = np.random.default_rng(8), []
    for _ in range(200):
        shared = draw.normal(size=(1, 40))
        tables = [{"x": shared + 0.3 * draw.normal(size=(3, 1)) + draw.normal(size=(3, 40))} for _ in range(3)]
        rows = differences([(tables[0], tables[1]), (tables[0], tables[2]), (tables[1], tables[2])])
        found.append([(row["x"]["p"] <= 0.05, row["x"]["p_corrected"] <= 0.05) for row in rows])
    different = np.array(found)
    assert 0.02 <= different[..., 0].mean() <= 0.08
    assert different[..., 1].any(axis=1).mean() <= 0.08 < different[..., 0].any(axis=1).mean()


def test_reward_models_are_told_once_where_variants_share_them() -> None:
    draw = np.random.default_rng(0)
    same = {name: [measured(seed, 0.0, draw, pairs=seed) for seed in range(2)] for name in ("a", "b")}
    assert of_reward_models(same) == {"seed 0": {"pairs": 0}, "seed 1": {"pairs": 1}}
    other = {**same, "c": [measured(0, 0.0, draw, pairs=9)]}
    assert of_reward_models(other) == {
        "a, seed 0": {"pairs": 0}, "b, seed 0": {"pairs": 0}, "c, seed 0": {"pairs": 9}, "seed 1": {"pairs": 1},
    }  # fmt: skip
    assert of_reward_models({"a": [measured(0, 0.0, draw)]}) == {}


def test_replies_of_all_policies_are_measured_against_the_start() -> None:
    start = sampled("start", ["a b", "a c", "d"], [0.0, 0.0, 0.0])
    best = sampled("policy, best of 4", ["a b", "a c", "d"], [1.0, 0.2, 0.5])
    found = of_samples({"start": start, "policy, best of 4": best})
    assert "win_rate_same_length/gold" in found["policy, best of 4"]
    assert not any(name.startswith("pass@") for name in found["policy, best of 4"])
    assert found["start"].keys() >= {"distinct_words", "distinct_bigrams", "pass@1/gold"}
