"""Diversity and repetition of replies, by words. [P]: prompts.

- distinct-n: Li et al. 2016, arXiv:1510.03055. The more texts, the lower: compare equal numbers of them.
- self-BLEU: Zhu et al. 2018, arXiv:1802.01886: BLEU-4 of each text with all others as references. Like theirs it has
  nltk's smoothing method 1 and the brevity penalty of the closest length. nltk (and sacrebleu) compare each text with
  each other one, minutes for a comparison's replies; here each n-gram is looked up once, for the jackknife too.
- repetition: rep-4 of Welleck et al. 2019, arXiv:1908.04319, over all replies instead of averaged over them, so that
  short ones weigh little.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np

from alignkit_report.measures.prompts import jackknifed, ratio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from alignkit_report.measures.prompts import Floats

    Texts = Sequence[Sequence[str]]
    Grams = Counter[tuple[str, ...]]

ORDERS = (1, 2, 3, 4)
REPEATED = 4
SMOOTHED = 0.1
"""Counts as the matches of an order that has none."""


def of_texts(texts: Texts) -> dict[str, Floats]:
    """The figures of replies to P >= 2 prompts, each [P]; without those that the texts are too short for."""
    found = {
        "distinct_responses": distinct([Counter((text,) for text in replies) for replies in texts]),
        "distinct_words": distinct([_pooled(replies, 1) for replies in texts]),
        "distinct_bigrams": distinct([_pooled(replies, 2) for replies in texts]),
        "repetition": repetition(texts),
        "self_bleu": self_bleu(texts),
    }
    return {name: values for name, values in found.items() if values is not None}


def distinct(grams: Sequence[Grams]) -> Floats | None:
    """[P] distinct over all n-grams; None where there are none.

    Args:
        grams: of the replies to each prompt.
    """
    every: Grams = Counter()
    for own in grams:
        every.update(own)
    count = every.total()
    if not count:
        return None
    whole = len(every) / count
    alone = [sum(every[gram] == times for gram, times in own.items()) for own in grams]
    without = [
        (len(every) - lost) / left if (left := count - own.total()) else whole
        for own, lost in zip(grams, alone, strict=True)
    ]
    return jackknifed(whole, np.array(without))


def repetition(texts: Texts) -> Floats | None:
    """[P] share of runs of REPEATED words that stand in the same reply before; None where all replies are shorter."""
    grams = [[_grams(text.split(), REPEATED) for text in replies] for replies in texts]
    counts = np.array([sum(own.total() for own in replies) for replies in grams], dtype=np.float64)
    first = np.array([sum(map(len, replies)) for replies in grams], dtype=np.float64)
    return ratio(counts - first, counts) if counts.any() else None


def self_bleu(texts: Texts) -> Floats | None:
    """[P] BLEU of each reply with all others as references.

    The jackknife leaves out the replies to a prompt as references too; what it does not follow is the closest length.
    """
    words = [text.split() for replies in texts for text in replies]
    prompts = [prompt for prompt, replies in enumerate(texts) for _ in replies]
    if len(set(prompts)) < 2:
        return None
    matches = [[0] * len(ORDERS) for _ in words]
    lost: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0] * len(ORDERS))
    for order, n in enumerate(ORDERS):
        for text, found, only_of, less in _matches([_grams(own, n) for own in words], prompts):
            matches[text][order] += found
            if less:
                lost[only_of, text][order] += less
    lengths = sorted(map(len, words))
    closest = [_closest(lengths, len(own)) for own in words]
    scores = np.array([_bleu(len(own), closest[text], matches[text]) for text, own in enumerate(words)])
    sums, counts = np.bincount(prompts, scores), np.bincount(prompts)
    change = np.zeros(len(texts))
    for (left_out, text), lacking in lost.items():
        fewer = [count - less for count, less in zip(matches[text], lacking, strict=True)]
        change[left_out] += _bleu(len(words[text]), closest[text], fewer) - scores[text]
    return jackknifed(float(scores.mean()), (scores.sum() - sums + change) / (len(words) - counts))


def _matches(grams: Sequence[Grams], prompts: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """(text, matches, prompt, fewer matches without this prompt's texts) of each n-gram in each text: how often it
    stands in another text too, at most as often as in that which has it most."""
    holders: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for text, own in enumerate(grams):
        for gram, times in own.items():
            holders[gram].append((times, text))
    for held in holders.values():
        held.sort(reverse=True)
        for times, text in held:
            most, only_of = next(((count, prompts[other]) for count, other in held if other != text), (0, 0))
            rest = next((count for count, other in held if other != text and prompts[other] != only_of), 0)
            # Leaving out a text's own prompt leaves out the text.
            kept = min(times, most if only_of == prompts[text] else rest)
            yield text, min(times, most), only_of, min(times, most) - kept


def _bleu(length: int, closest: int, matches: Sequence[int]) -> float:
    if not matches[0]:
        return 0.0
    shares = [(found or SMOOTHED) / max(length - n + 1, 1) for n, found in zip(ORDERS, matches, strict=True)]
    brevity = min(0.0, 1 - closest / length)
    return math.exp(brevity + sum(map(math.log, shares)) / len(shares))


def _closest(lengths: Sequence[int], own: int) -> int:
    """The length of another text that is closest to a text's own; the shorter of two.

    Args:
        lengths: of all texts, sorted.
    """
    place = bisect_left(lengths, own)
    others = [*lengths[max(place - 1, 0) : place], *lengths[place + 1 : place + 2]]
    return min(others, key=lambda length: (abs(length - own), length))


def _pooled(replies: Iterable[str], n: int) -> Grams:
    pooled: Grams = Counter()
    for text in replies:
        pooled.update(_grams(text.split(), n))
    return pooled


def _grams(words: Sequence[str], n: int) -> Grams:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
