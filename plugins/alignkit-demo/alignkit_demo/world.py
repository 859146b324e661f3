"""The support desk: a world small enough that the true quality of every reply is known exactly.

A seeded grammar writes customers' prompts and agents' replies. `gold` reads the intent and product from a prompt's
`meta` and gives a reply its true reward, to compare a learned reward with. Annotators see that reward through noise and
a bias for long replies: they draw their ranking from a Plackett-Luce model, in which every pair follows Bradley-Terry
(arXiv:1706.03741 models human labellers in the same way).

`gold_reward` has the signature of TRL's reward functions and `annotate` that of a preference source, so recipes name
them as `alignkit_demo.world:gold_reward` and `alignkit_demo.world:annotate`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from alignkit import Group, Prompt
from alignkit_demo import phrases
from alignkit_demo.phrases import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set

    from alignkit import Ask

RESPONSES_PER_RANKING = 4
ANNOTATOR_TEMPERATURE = 0.7
"""Difference in gold reward that changes an annotator's odds by a factor of e."""
LENGTH_BIAS = 0.03
"""Annotators like a reply this much more per word, whatever it says."""
BRIEF_WORDS = 20
"""A reply up to this length loses nothing for it."""
_SENTENCE = re.compile(r"[^.?!]+[.?!]?")


def make_prompt(random: Random) -> Prompt:
    """A customer's message; `meta` holds its intent and product."""
    name, product = random.choice(list(phrases.INTENTS)), random.choice(phrases.PRODUCTS)
    template = random.choice(phrases.OPENINGS) + random.choice(phrases.INTENTS[name].asks)
    text = template.format(product=product, color=random.choice(phrases.COLORS), number=random.choice(phrases.NUMBERS))
    return Prompt.of([{"role": "user", "content": text}], {"intent": name, "product": product})


def make_prompts(count: int, random: Random, without: Set[str] = frozenset()) -> list[Prompt]:
    """Several customers' messages, no two the same and none with a key in `without`."""
    prompts: dict[str, Prompt] = {}
    while len(prompts) < count:
        prompt = make_prompt(random)
        if prompt.key not in without:
            prompts.setdefault(prompt.key, prompt)
    return list(prompts.values())


def make_reply(prompt: Prompt, quality: float, random: Random) -> str:
    """The reply of an agent with a quality between 0 (careless) and 1 (excellent)."""

    def happens(probability: float) -> bool:
        return random.random() < probability

    sentences = []
    if happens(0.15 + 0.6 * quality):
        sentences.append(random.choice(phrases.GREETINGS))
    elif happens(0.4):
        sentences.append(random.choice(phrases.NEUTRAL))
    if happens(0.1 + 0.5 * quality):
        sentences.append(random.choice(phrases.SYMPATHY))
    if happens(0.55 * (1 - quality)):
        sentences.append(random.choice(phrases.RUDE))
    body = [_answer(prompt, quality, random) if happens(0.6 + 0.4 * quality) else random.choice(phrases.VAGUE)]
    while len(body) < 4 and happens(0.45 * (1 - 0.7 * quality)):
        body.append(random.choice(phrases.CHATTER))
    if happens(0.4):
        random.shuffle(body)
    sentences += body
    if happens(0.25 * (1 - quality)):
        sentences.append(random.choice(phrases.RUDE))
    if happens(0.1 + 0.4 * quality):
        sentences.append(random.choice(phrases.FAREWELLS))
    return " ".join(sentences)


def _answer(prompt: Prompt, quality: float, random: Random) -> str:
    """A solution; the worse the agent, the more often for another problem or product."""
    intent = prompt.meta["intent"] if random.random() < 0.45 + 0.55 * quality else random.choice(list(phrases.INTENTS))
    product = prompt.meta["product"] if random.random() < 0.65 + 0.35 * quality else random.choice(phrases.PRODUCTS)
    return random.choice(phrases.INTENTS[intent].solutions).format(product=product)


def make_note(random: Random) -> list[str]:
    """Six sentences of raw text about one product; it recurs, so that a tiny model learns to copy it."""
    product = random.choice(phrases.PRODUCTS)
    return [
        random.choice(phrases.NOTES).format(
            product=product,
            color=random.choice(phrases.COLORS),
            color2=random.choice(phrases.COLORS),
            number=random.choice(phrases.NUMBERS),
        )
        for _ in range(6)
    ]


@dataclass(frozen=True)
class Assessment:
    """The assessment of a reply.

    Attributes:
        relevance: 1 for the right solution with the right product, 0.5 with another product, less 0.5 for each
            solution to another problem; at least -1.
        politeness: 0.5 for each of up to two kinds of courtesy, less 1 for each rude sentence; at least -1.
        brevity: 1 up to 20 words, less 0.05 for each further word; at least -1.
        garbled: number of sentences that nobody at the desk would write, and of repeated ones.
        words: length of the reply.
    """

    relevance: float
    politeness: float
    brevity: float
    garbled: int
    words: int

    @property
    def gold(self) -> float:
        """The true reward; an empty reply loses 2."""
        empty = self.words == 0
        return 2 * self.relevance + 1.5 * self.politeness + self.brevity - 0.75 * self.garbled - 2 * empty


def assess(intent: str, product: str, reply: str) -> Assessment:
    """Looks up each sentence of a reply to a prompt of this intent and product."""
    sentences = [" ".join(sentence.split()) for sentence in _SENTENCE.findall(reply) if sentence.strip()]
    kinds = [_kind(sentence) for sentence in sentences]
    solved = [phrases.SOLUTIONS[sentence] for sentence in sentences if sentence in phrases.SOLUTIONS]
    fitting = [0.5 + 0.5 * (about == product) for solves, about in solved if solves == intent]
    relevance = max(fitting, default=0.0) - 0.5 * (len(solved) - len(fitting))
    courtesies = len(phrases.COURTESIES.intersection(kinds))
    words = len(reply.split())
    return Assessment(
        relevance=max(-1.0, relevance),
        politeness=max(-1.0, min(courtesies, 2) / 2 - kinds.count(Kind.RUDE)),
        brevity=max(-1.0, 1 - max(0, words - BRIEF_WORDS) / BRIEF_WORDS),
        garbled=kinds.count(Kind.GARBLED) + len(sentences) - len(set(sentences)),
        words=words,
    )


def _kind(sentence: str) -> Kind:
    return Kind.SOLUTION if sentence in phrases.SOLUTIONS else phrases.SENTENCES.get(sentence, Kind.GARBLED)


def gold(prompt: Prompt, reply: str) -> float:
    """The true reward of a reply, from the intent and product in the prompt's `meta`."""
    return assess(prompt.meta["intent"], prompt.meta["product"], reply).gold


def gold_reward(
    prompts: Sequence[Any],  # noqa: ARG001 - TRL passes it by name
    completions: Sequence[Any],
    *,
    intent: Sequence[str],
    product: Sequence[str],
    **_columns: Any,
) -> list[float]:
    """The true reward, with the signature of TRL's reward functions."""
    return [
        assess(wanted, about, _text(completion)).gold
        for completion, wanted, about in zip(completions, intent, product, strict=True)
    ]


def _text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def liking(prompt: Prompt, reply: str) -> float:
    """How much annotators like a reply, before noise; differences are log-odds."""
    return gold(prompt, reply) / ANNOTATOR_TEMPERATURE + LENGTH_BIAS * len(reply.split())


def rank(group: Group, annotator: str = "") -> Group:
    """The group with one annotator's ranking: a Plackett-Luce draw on `liking`, seeded by the group's text and the
    annotator's name, so that two annotators disagree as people do."""
    random = Random(repr((group.prompt.key, group.responses)) + annotator)
    noisy = [liking(group.prompt, reply) - math.log(random.expovariate(1.0)) for reply in group.responses]
    best_first = sorted(range(len(noisy)), key=lambda index: -noisy[index])
    ranks = tuple(best_first.index(index) for index in range(len(noisy)))
    return replace(group, ranks=ranks, scores=None, source="simulated annotators")


def annotate(ask: Ask) -> Iterator[Group]:
    """Rankings of four fresh replies to every prompt of the run; duplicates are dropped."""
    for group in ask(ask.prompts, RESPONSES_PER_RANKING):
        distinct = group.without_duplicates()
        if len(distinct.responses) > 1:
            yield rank(distinct)
