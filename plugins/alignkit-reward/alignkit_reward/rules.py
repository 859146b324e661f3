"""The reward source `rules`: rules that can be checked by hand. The score is the weighted sum of the given rules."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

from alignkit import InputError, RewardSource
from alignkit_reward.numbers import number
from alignkit_reward.options import AnswerRule, JSONRule, KeywordRule, LengthRule, RulesOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from alignkit import Context, Group, Prompt

    Rule = Callable[[Prompt, str], float]


class RulesReward(RewardSource[RulesOptions]):
    """The weighted sum of length, keyword, pattern, JSON and answer rules."""

    def __init__(self, config: RulesOptions, context: Context | None = None) -> None:
        super().__init__(config, context)
        rules: list[tuple[float, Rule]] = [(w, pattern_rule(p)) for p, w in self.config.patterns.items()]
        if length := self.config.length:
            rules.append((length.weight, length_rule(length)))
        if keywords := self.config.keywords:
            rules.append((keywords.weight, keyword_rule(keywords)))
        if validity := self.config.json:
            rules.append((validity.weight, json_rule(validity)))
        if answer := self.config.answer:
            rules.append((answer.weight, answer_rule(answer)))
        self._rules = rules

    @classmethod
    def try_records(cls, config: RulesOptions, records: Iterable[tuple[str, Group]]) -> None:
        """Reads the right answers."""
        if config.answer:
            for place, group in records:
                try:
                    right_answer(group.prompt, config.answer)
                except InputError as error:
                    raise InputError(error.what, where=place, fix=f"{error.fix} ({error.where})") from error

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """The weighted sums.

        Raises:
            InputError: a prompt has no column with the right answer.
        """
        return [[self._total(group.prompt, response) for response in group.responses] for group in groups]

    def _total(self, prompt: Prompt, response: str) -> float:
        return math.fsum(weight * rule(prompt, response) for weight, rule in self._rules)


def length_rule(options: LengthRule) -> Rule:
    """0 outside the limits; otherwise 1, less the relative distance of the word count from the target."""

    def score(_: Prompt, response: str) -> float:
        words = len(response.split())
        if words < options.minimum or 0 < options.maximum < words:
            return 0.0
        return max(0.0, 1 - abs(words - options.target) / options.target) if options.target else 1.0

    return score


def keyword_rule(options: KeywordRule) -> Rule:
    """Distinct good words found minus distinct bad ones."""
    good, bad = (_words(words) for words in (options.good, options.bad))

    def score(_: Prompt, response: str) -> float:
        found = [sum(word.search(response) is not None for word in words) for words in (good, bad)]
        return float(found[0] - found[1])

    return score


def _words(words: Iterable[str]) -> list[re.Pattern[str]]:
    return [
        re.compile(rf"(?<!\w){re.escape(word.removesuffix('*'))}" + ("" if word.endswith("*") else r"(?!\w)"), re.I)
        for word in dict.fromkeys(words)
    ]


def pattern_rule(pattern: str) -> Rule:
    """1 if the regular expression matches somewhere."""
    compiled = re.compile(pattern)
    return lambda _, response: float(compiled.search(response) is not None)


def json_rule(options: JSONRule) -> Rule:
    """1 for valid JSON with the required keys."""

    def score(_: Prompt, response: str) -> float:
        try:
            value = json.loads(response)
        except (ValueError, RecursionError):
            return 0.0
        return float(not options.keys or (isinstance(value, dict) and all(key in value for key in options.keys)))

    return score


def answer_rule(options: AnswerRule) -> Rule:
    """1 if the last stated number equals the one in the prompt's column."""
    pattern = re.compile(options.pattern)

    def score(prompt: Prompt, response: str) -> float:
        right = right_answer(prompt, options)
        stated = [number(text) for text in pattern.findall(response)[-1:]]
        return float(any(x is not None and math.isclose(x, right, rel_tol=1e-9, abs_tol=1e-9) for x in stated))

    return score


def right_answer(prompt: Prompt, options: AnswerRule) -> float:
    """The number in the prompt's column. Raises InputError if there is none."""
    if options.column not in prompt.meta:
        raise InputError(
            f"the prompt has no column {options.column!r}, but {', '.join(sorted(prompt.meta)) or 'no columns'}",
            where="answer.column",
            fix="name the column with the right answers",
        )
    value = prompt.meta[options.column]
    stated = re.findall(options.pattern, value)[-1:] if isinstance(value, str) else []
    right = number(stated[0] if stated else str(value))
    if right is None:
        raise InputError(f"the right answer {value!r} is not a number", where="answer.column", fix="correct the data")
    return right
