"""Kinder stories: the prompts, the demonstrations, and a rule of kindness that a reader can check by eye.

`stories-ppo.toml` uses these functions. The model knows only the English of TinyStories (arXiv:2305.07759) and rarely
ends a story by itself, so the demonstrations are its own stories, cut after two to four sentences.
"""

from __future__ import annotations

import re
from itertools import product
from random import Random
from typing import TYPE_CHECKING, Any

from alignkit import Group

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alignkit import Sampler

KINDS = ("boy", "girl", "cat", "dog", "bird", "bear", "rabbit", "mouse", "duck", "frog")
NAMES = ("Lily", "Tom", "Ben", "Sue", "Max", "Mia", "Tim", "Anna", "Sam", "Lucy", "Jack", "Bob")
HABITS = (
    "loved to play", "liked to run", "wanted a new toy", "lived in a big house", "loved to sing", "liked to jump",
    "had a red ball", "wanted to find a friend", "liked to help", "was very hungry", "loved the sun", "lost a hat",
)  # fmt: skip
KIND_WORDS = (
    "happ(?:y|ily|ier)", "friend(?:s|ly|ship)?", "smil(?:e|es|ed|ing)", "lov(?:e|es|ed|ely|ing)", "kind(?:ly|ness|er)?",
    "laugh(?:s|ed|ing|ter)?", "hug(?:s|ged|ging)?", "thank(?:s|ed|ing|ful)?", "shar(?:e|es|ed|ing)", "proud(?:ly)?",
    "fun(?:ny)?", "help(?:s|ed|ing|ful)?",
)  # fmt: skip
UNKIND_WORDS = (
    "sad(?:ly|ness)?", "cry(?:ing)?", "cried", "scared", "angr(?:y|ily)", "mad", "hurt(?:s|ing)?", "afraid", "sorry",
    "bad(?:ly)?", "lost", "broken?",
)  # fmt: skip
SENTENCE_MARKS = re.compile(r"[.!?]")
SENTENCE = re.compile(r"[^.!?]*[.!?]+\"?")


def openings(sampler: Sampler, *, count: int, first: int = 0) -> Iterator[dict[str, str]]:  # noqa: ARG001
    """Rows with openings made from the template, starting at `first`, in a fixed shuffled order."""
    texts = [
        f"Once upon a time, there was a little {kind} named {name} who {habit}."
        for kind, name, habit in product(KINDS, NAMES, HABITS)
    ]
    Random(0).shuffle(texts)
    yield from ({"prompt": text} for text in texts[first : first + count])


def kindness(story: str) -> float:
    """Distinct kind words minus distinct unkind ones; 2 less for fewer than three sentence marks.

    Without that penalty a policy learns one kind sentence by heart.
    """
    lowered = story.lower()

    def distinct(words: Sequence[str]) -> int:
        return sum(re.search(rf"\b{word}\b", lowered) is not None for word in words)

    too_short = len(SENTENCE_MARKS.findall(story)) < 3
    return float(distinct(KIND_WORDS) - distinct(UNKIND_WORDS) - 2 * too_short)


def kindness_reward(prompts: Sequence[Any], completions: Sequence[str], **_columns: Any) -> list[float]:  # noqa: ARG001
    """The rule as a reward function: `--reward stories:kindness_reward`."""
    return [kindness(story) for story in completions]


def demonstrations(sampler: Sampler) -> Iterator[Group]:
    """One story for each prompt of the run, cut after two to four whole sentences; shorter stories are dropped."""
    for group in sampler(sampler.prompts, 1):
        sentences = SENTENCE.findall(group.responses[0])
        wanted = Random(group.responses[0]).randint(2, 4)
        if len(sentences) >= wanted:
            yield Group(group.prompt, ("".join(sentences[:wanted]).strip(),), source="stories")
