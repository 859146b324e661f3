"""The support desk: a reproducible grammar, gold rewards worked out by hand, annotators with known noise and bias."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING

import pytest
from alignkit_demo import phrases, world

from alignkit import Group, Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

GREETING, SYMPATHY, FAREWELL = "Thank you for your message.", "I am sorry for the trouble.", "Have a lovely day."
LATE_KETTLE = Prompt.of("Where is my kettle?", {"intent": "late", "product": "kettle"})
SOLUTION = "Your kettle will reach you within two days."


@pytest.mark.parametrize(
    ("reply", "gold"),
    [
        (f"{GREETING} {SYMPATHY} {SOLUTION}", 2 * 1 + 1.5 * 1 + 1),
        (f"{GREETING} {SOLUTION}", 2 * 1 + 1.5 * 0.5 + 1),
        ("Your lamp will reach you within two days.", 2 * 0.5 + 1),
        ("We will refund the kettle in full.", 2 * -0.5 + 1),
        (f"{SOLUTION} We will refund the lamp in full.", 2 * (1 - 0.5) + 1),
        ("That is not our problem. Stop bothering us.", 1.5 * -1 + 1),
        (f"{GREETING} Stop bothering us.", 1.5 * (0.5 - 1) + 1),
        ("Hi. Hi.", 1 - 0.75),
        ("kettle kettle your", 1 - 0.75),
        ("", 1 - 2),
        (phrases.CHATTER[0], 1),
        (f"{phrases.CHATTER[0]} {phrases.CHATTER[2]}", 1 - 13 / 20),
        (" ".join([GREETING, SYMPATHY, FAREWELL, SOLUTION]), 2 + 1.5 + 1 - 3 / 20),
        (" ".join(phrases.CHATTER * 2), -1 - 4 * 0.75),
    ],
)
def test_gold_equals_the_value_worked_out_by_hand(reply: str, gold: float) -> None:
    assert world.gold(LATE_KETTLE, reply) == pytest.approx(gold, abs=1e-12)


def test_two_courtesies_of_one_kind_count_once() -> None:
    assert world.assess("late", "kettle", f"{GREETING} Thank you for getting in touch.").politeness == 0.5


def test_relevance_never_falls_below_minus_one() -> None:
    wrong = " ".join(phrases.INTENTS[name].solutions[0].format(product="sofa") for name in ("stock", "wrong", "manual"))
    assert world.assess("late", "kettle", wrong).relevance == -1


def test_a_line_break_inside_a_sentence_changes_nothing() -> None:
    assert world.gold(LATE_KETTLE, SOLUTION.replace(" will", "\n will")) == world.gold(LATE_KETTLE, SOLUTION)


def test_the_grammar_depends_on_its_seed_alone() -> None:
    def draw(seed: int) -> list[object]:
        random = Random(seed)
        prompts = world.make_prompts(20, random)
        return [(prompt, world.make_reply(prompt, 0.5, random), world.make_note(random)) for prompt in prompts]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_every_written_sentence_is_recognised() -> None:
    random = Random(0)
    for prompt in world.make_prompts(500, random):
        reply = world.make_reply(prompt, random.random(), random)
        sentences = len(phrases.SENTENCES.keys() & {reply}) or reply.count(".")
        repeats = sentences - len({part.strip() for part in reply.split(".") if part.strip()})
        assert world.assess(prompt.meta["intent"], prompt.meta["product"], reply).garbled == repeats


def test_a_prompt_names_its_product_and_every_solution_belongs_to_one_intent() -> None:
    assert all(prompt.meta["product"] in prompt.plain for prompt in world.make_prompts(200, Random(1)))
    assert len(phrases.SOLUTIONS) == sum(len(intent.solutions) for intent in phrases.INTENTS.values()) * len(
        phrases.PRODUCTS
    )
    assert not phrases.SOLUTIONS.keys() & phrases.SENTENCES.keys()


def test_the_best_agent_reaches_the_best_values_and_the_worst_misses_them() -> None:
    random = Random(2)
    prompts = world.make_prompts(1500, random)
    best, worst = (
        sum(world.gold(prompt, world.make_reply(prompt, quality, random)) for prompt in prompts) / len(prompts)
        for quality in (1.0, 0.0)
    )
    assert best == pytest.approx(4.0, abs=0.1)
    assert worst == pytest.approx(0.0, abs=0.2)


def test_gold_reward_reads_strings_and_messages_and_ignores_other_columns() -> None:
    replies = [SOLUTION, [{"role": "assistant", "content": "We will refund the kettle in full."}]]
    rewards = world.gold_reward(
        ["", ""], replies, intent=["late", "refund"], product=["kettle", "lamp"], trainer_state=None
    )
    assert rewards == [2 + 1, 2 * 0.5 + 1]


def share_preferring_first(first: str, second: str, draws: int) -> float:
    """How often annotators put the first reply first, over prompts that differ in nothing but a number."""
    groups = [Group(Prompt.of(f"Where is my kettle? {k}", LATE_KETTLE.meta), (first, second)) for k in range(draws)]
    return sum(world.rank(group).ranks == (0, 1) for group in groups) / draws


def test_annotators_follow_bradley_terry_on_gold() -> None:
    right, other = "Your kettle will reach you within two days.", "Your lamp will reach you within two days."
    odds = 1 / (1 + math.exp(-1.0 / 0.7))
    assert share_preferring_first(right, other, 4000) == pytest.approx(
        odds, abs=3 * math.sqrt(odds * (1 - odds) / 4000)
    )


def test_annotators_prefer_the_longer_of_two_equally_good_replies() -> None:
    long = " ".join(phrases.NEUTRAL + phrases.VAGUE)
    assert world.gold(LATE_KETTLE, long) == world.gold(LATE_KETTLE, "Noted.")
    odds = 1 / (1 + math.exp(-0.03 * 14))
    assert share_preferring_first(long, "Noted.", 4000) == pytest.approx(odds, abs=0.024)


def test_rankings_are_permutations_that_agree_with_gold_in_most_pairs() -> None:
    random = Random(5)
    agreeing = pairs = 0
    for prompt in world.make_prompts(400, random):
        replies = tuple(world.make_reply(prompt, random.random(), random) for _ in range(4))
        ranked = world.rank(Group(prompt, replies))
        assert sorted(ranked.ranks or ()) == [0, 1, 2, 3]
        assert world.rank(Group(prompt, replies)) == ranked
        gold = [world.gold(prompt, reply) for reply in replies]
        agreeing += sum(gold[better] > gold[worse] for better, worse in ranked.preferred_pairs())
        pairs += sum(gold[better] != gold[worse] for better, worse in ranked.preferred_pairs())
    assert 0.82 < agreeing / pairs < 0.92


def test_annotators_of_two_names_disagree_as_their_noise_says() -> None:
    right, other = "Your kettle will reach you within two days.", "Your lamp will reach you within two days."
    groups = [Group(Prompt.of(f"Where is my kettle? {k}", LATE_KETTLE.meta), (right, other)) for k in range(4000)]
    assert [world.rank(group, "anna") for group in groups[:9]] == [world.rank(group, "anna") for group in groups[:9]]
    agree = sum(world.rank(group, "anna").ranks == world.rank(group, "ben").ranks for group in groups) / len(groups)
    odds = 1 / (1 + math.exp(-1.0 / 0.7))
    expected = odds**2 + (1 - odds) ** 2
    assert agree == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected) / 4000))


def test_annotate_ranks_the_distinct_ones_of_four_fresh_replies_to_every_prompt_of_the_run() -> None:
    class FixedSampler:
        prompts = (LATE_KETTLE, LATE_KETTLE, LATE_KETTLE)

        def __call__(self, prompts: Sequence[Prompt], k: int) -> list[Group]:
            replies = [(SOLUTION, GREETING, SYMPATHY, "Hi."), (SOLUTION, GREETING, SOLUTION, "Hi."), ("Hi.",) * 4]
            return [Group(prompt, row[:k]) for prompt, row in zip(prompts, replies, strict=True)]

    ranked = list(world.annotate(FixedSampler()))
    assert [group.responses for group in ranked] == [(SOLUTION, GREETING, SYMPATHY, "Hi."), (SOLUTION, GREETING, "Hi.")]
    assert all(sorted(group.ranks or ()) == [*range(len(group.responses))] for group in ranked)
