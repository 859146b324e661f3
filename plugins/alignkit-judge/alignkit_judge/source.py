"""The judge as preference source, which ranks responses, and as reward, which scores them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from alignkit import InputError, PreferenceSource, RewardSource
from alignkit.preferences import agreement_with_people, stored_annotations, with_annotations
from alignkit_judge.options import JudgePreferenceOptions, JudgeRewardOptions
from alignkit_judge.panel import Panel
from alignkit_judge.questions import Question
from alignkit_judge.rubrics import RUBRICS, by_principle, draw, principles_of
from alignkit_judge.votes import Ballot, first_wins, orders_agree, outcome, position_counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set

    from alignkit import Ask, Context, Group
    from alignkit_judge.options import JudgeOptions
    from alignkit_judge.questions import Answer
    from alignkit_judge.votes import Outcome


MOST = 9
"""Responses that a judge tells apart, by the letters A to I."""


class Criteria:
    """What to judge an item by: a rubric, the user's own words, or a principle drawn from the constitution."""

    def __init__(self, options: JudgeOptions, seed: int) -> None:
        self._principles = principles_of(options.constitution) if options.constitution else []
        self._words = options.criterion or RUBRICS[options.rubric]
        self._seed = seed

    def of(self, group: Group) -> str:
        """The criterion of a group's prompt."""
        if not self._principles:
            return self._words
        return by_principle(draw(self._principles, self._seed, group.prompt.key))


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and where its answer belongs.

    Attributes:
        turn: number of the order.
        shown: indices of the responses shown.
    """

    question: Question
    turn: int
    shown: tuple[int, ...]


class JudgeSource(PreferenceSource[JudgePreferenceOptions]):
    """Ranks responses by the judges' verdicts."""

    samples = True

    def __init__(self, config: JudgePreferenceOptions, context: Context | None = None) -> None:
        super().__init__(config, context)
        self._source: PreferenceSource[Any] | None = None
        if config.responses is not None:
            self._source = cast("PreferenceSource[Any]", self.context.build("preferences", config.responses))
        self._criteria = Criteria(config, self.context.seed)
        self.panel = Panel(config, self.context)
        self._said = ""
        self._figures: Mapping[str, Any] = {}

    def preferences(self, ask: Ask) -> Iterator[Group]:
        """One ranked group for each prompt, ties included, with each verdict in `meta.annotations`.

        Raises:
            StoppedByCheck: the budget is spent, a server doesn't answer or replies are no verdicts; the verdicts are
                saved.
            InputError: a judge can't be used, or abstained from everything.
            Interrupted: SIGINT or SIGTERM, after the answers under way are saved.
        """
        if self._source is not None:
            candidates = list(self._source.preferences(ask))
        else:
            self.panel.reach()
            candidates = ask(ask.prompts, self.config.k)
        judged = self.judge(
            [group for group in (one.without_duplicates() for one in candidates) if len(group.responses) > 1]
        )
        kept = judged if self.config.abstentions == "keep" else [group for group in judged if group.ranks is not None]
        if judged and not kept:
            raise InputError(
                self._said, where="judge", fix="use another judge, or read its answers with abstentions = 'keep'"
            )
        yield from kept

    def first(self) -> Iterator[tuple[str, Group]]:
        """The first groups to judge.

        Raises:
            InputError: one has more responses than a judge can tell apart, or none has two.
        """
        records = list(self._source.first()) if self._source is not None else []
        for place, group in records:
            if (count := len(group.without_duplicates().responses)) > MOST:
                raise InputError(f"can't judge {count} responses at once", where=place, fix=f"give at most {MOST}")
            yield place, replace(group, ranks=(0,) * len(group.responses))
        if records and all(len(group.responses) == 1 for _, group in records):
            raise InputError("one response, which is nothing to compare", where=records[0][0], fix="give two or more")

    def judge(self, groups: Sequence[Group]) -> list[Group]:
        """The groups in order, with the judges' ranks; None if they abstained. A ranked group loses the responses that
        no verdict connects to the largest connected part.

        Raises:
            StoppedByCheck, InputError: as in `preferences`.
        """
        asked = [self._questions(group) for group in groups]
        flat = [entry.question for entries in asked for entry in entries]
        answers = [iter(said) for said in self.panel.ask(flat)]
        ballots: list[list[Ballot]] = []
        spent: list[list[Answer]] = []
        for group, entries in zip(groups, asked, strict=True):
            said = [[next(of_judge) for _ in entries] for of_judge in answers]
            ballots.append(self._ballots(entries, said, len(group.responses)))
            spent.append([answer for of_judge in said for answer in of_judge])
        outcomes = [
            outcome(of_group, len(group.responses), self.config.min_margin)
            for group, of_group in zip(groups, ballots, strict=True)
        ]
        names = frozenset(self.panel.names)
        judged = [_judged(*parts, names) for parts in zip(groups, outcomes, spent, strict=True)]
        self._figures = self._counted(groups, judged, outcomes, ballots)
        self._said = self._summary(outcomes, ballots)
        return judged

    def explain(self) -> str:
        """What was judged, how often the judges disagree or abstain, their position bias, and the cost."""
        return self._said

    def figures(self) -> Mapping[str, Any]:
        """`judge`: counts of pairs, cost, agreement of orders and with people, position bias; `worth`: the same in
        words."""
        return {"judge": self._figures, "worth": _worth(self._figures)} if self._figures else {}

    def _questions(self, group: Group) -> list[Asked]:
        config, count = self.config, len(group.responses)
        if count > MOST:
            raise InputError(f"can't judge {count} responses at once", where="judge", fix=f"give at most {MOST}")
        if config.protocol == "pointwise":
            shown: list[tuple[int, tuple[int, ...]]] = [(0, (index,)) for index in range(count)]
        else:
            shown = [
                (turn, part)
                for turn, order in enumerate(self._orders(group))
                for part in (combinations(order, 2) if config.protocol == "pairwise" else [order])
            ]
        criterion = self._criteria.of(group)
        return [
            Asked(
                Question(
                    config.protocol,
                    group.prompt.plain,
                    tuple(group.responses[index] for index in indices),
                    criterion,
                    config.reasoning,
                    sample,
                ),
                turn,
                indices,
            )
            for turn, indices in shown
            for sample in range(config.samples)
        ]

    def _orders(self, group: Group) -> list[tuple[int, ...]]:
        first = tuple(range(len(group.responses)))
        if self.config.orders == "both":
            return [first, first[::-1]]
        drawn = list(first)
        random.Random(f"order/{self.context.seed}/{group.prompt.key}").shuffle(drawn)
        return [tuple(drawn)]

    def _ballots(self, entries: Sequence[Asked], said: Sequence[Sequence[Answer]], count: int) -> list[Ballot]:
        if self.config.protocol == "pointwise":
            return self._scored(entries, said, count)
        return [
            Ballot(
                name,
                entry.turn,
                entry.shown,
                answer.values if answer.values is not None else (None,) * len(entry.shown),
                reason=answer.reason,
            )
            for name, answers in zip(self.panel.names, said, strict=True)
            for entry, answer in zip(entries, answers, strict=True)
        ]

    def _scored(self, entries: Sequence[Asked], said: Sequence[Sequence[Answer]], count: int) -> list[Ballot]:
        """A ballot for each judge and sample, with the scores of all responses."""
        found = []
        everything = tuple(range(count))
        for name, answers in zip(self.panel.names, said, strict=True):
            for sample in range(self.config.samples):
                scores = {
                    entry.shown[0]: answer
                    for entry, answer in zip(entries, answers, strict=True)
                    if entry.question.sample == sample
                }
                values = tuple(known[0] if (known := scores[index].values) else None for index in everything)
                reason = next((answer.reason for answer in scores.values() if answer.reason), "")
                found.append(Ballot(name, 0, everything, values, scored=True, reason=reason))
        return found

    def _summary(self, outcomes: Sequence[Outcome], ballots: Sequence[Sequence[Ballot]]) -> str:
        told = self._figures
        ranked = sum(len(set(found.ranks.values())) > 1 for found in outcomes)
        tied = sum(len(set(found.ranks.values())) == 1 for found in outcomes)
        flat = [ballot for of_group in ballots for ballot in of_group]
        reasons = Counter(ballot.reason for ballot in flat if ballot.reason)
        abstained = len(outcomes) - ranked - tied
        parts = [
            f"{len(outcomes)} groups judged by {', '.join(self.panel.names)}: {ranked} ranked, {tied} tied, "
            f"{abstained} abstained"
        ]
        if reasons:
            parts.append("no verdict: " + ", ".join(f"{reason} {times}" for reason, times in reasons.most_common(5)))
        if bias := told["position_bias"]:
            interval = f"[{100 * bias['low']:+.0f}, {100 * bias['high']:+.0f}]"
            parts.append(f"the first position wins {100 * bias['value']:+.1f} points {interval} more than half")
        if orders := told["orders_agree"]:
            parts.append(f"orders disagree in {1 - orders['value']:.0%}")
        circles = sum(bool(found.cycles) for found in outcomes)
        if circles:
            parts.append(f"{circles} groups have intransitive verdicts")
        return "; ".join([*parts, self.panel.spent()])

    def _counted(
        self,
        groups: Sequence[Group],
        judged: Sequence[Group],
        outcomes: Sequence[Outcome],
        ballots: Sequence[Sequence[Ballot]],
    ) -> Mapping[str, Any]:
        budget, verdicts = self.panel.budget, [vote for found in outcomes for vote in found.verdicts.values()]
        asked = sum(len(group.responses) * (len(group.responses) - 1) // 2 for group in groups)
        flat = (ballot for of_group in ballots for ballot in of_group)
        first = first_wins(position_counts(flat, self.config.min_margin)).to_json()
        bias = first and {**first, **{name: round(first[name] - 0.5, 4) for name in ("value", "low", "high")}}
        return {
            "judges": self.panel.names,
            "pairs_asked": asked,
            "answered": len(verdicts),
            "tied": verdicts.count(0),
            "abstained": asked - len(verdicts),
            "requests": budget.requests,
            "paid": budget.paid,
            "tokens": budget.tokens,
            "money": round(budget.money, 6),
            "answers_from_cache": self.panel.cached,
            "orders_agree": orders_agree(outcomes).to_json(),
            "position_bias": bias,
            "agreement_with_people": agreement_with_people(judged).to_json(),
        }


class JudgeReward(RewardSource[JudgeRewardOptions]):
    """Scores each response from 1 to 10.

    Raises:
        InputError: a server can't be reached, and there are no saved verdicts of it.
    """

    def __init__(self, config: JudgeRewardOptions, context: Context | None = None) -> None:
        super().__init__(config, context)
        self._criteria = Criteria(config, self.context.seed)
        self.panel = Panel(config, self.context)
        self.panel.reach()
        self._abstained = 0.0
        self._asked = self._silent = 0

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """The mean of the judges' mean scores; None if one of them abstained.

        Raises:
            StoppedByCheck: the budget is spent, or a server doesn't answer; the verdicts are saved.
            InputError: a judge can't be used.
        """
        numbers = range(self.config.samples)
        questions = [
            Question("pointwise", group.prompt.plain, (text,), self._criteria.of(group), self.config.reasoning, number)
            for group in groups
            for text in group.responses
            for number in numbers
        ]
        answers = [iter(said) for said in self.panel.ask(questions)]
        scores = [
            [_mean([[next(of_judge) for _ in numbers] for of_judge in answers]) for _ in group.responses]
            for group in groups
        ]
        flat = [score for row in scores for score in row]
        silent = sum(score is None for score in flat)
        self._abstained = silent / max(len(flat), 1)
        self._asked, self._silent = self._asked + len(flat), self._silent + silent
        return scores

    def figures(self) -> Mapping[str, float]:
        """`judge_abstained`: share of responses without a score; `judge_requests`, `judge_tokens`, `judge_money`: this
        run's so far."""
        budget = self.panel.budget
        spent = {"requests": budget.requests, "tokens": budget.tokens, "money": budget.money}
        return {"judge_abstained": self._abstained, **{f"judge_{name}": float(n) for name, n in spent.items()}}

    def worth(self) -> str:
        if not self._asked:
            return ""
        return (
            f"{', '.join(self.panel.names)} scored {self._asked - self._silent} of {self._asked} responses"
            f" ({self.panel.spent()}), and nobody has checked its scores"
        )


def _mean(said: Sequence[Sequence[Answer]]) -> float | None:
    known = [[answer.values[0] for answer in answers if answer.values] for answers in said]
    return fmean(fmean(scores) for scores in known) if all(known) else None


def _worth(figures: Mapping[str, Any]) -> str:
    """What the labels are worth, in one line."""
    people, orders, bias = (figures[name] for name in ("agreement_with_people", "orders_agree", "position_bias"))
    money = f", {figures['money']:.10g} money" if figures["money"] else ""
    parts = [
        f"{', '.join(figures['judges'])} judged {figures['answered']} of {figures['pairs_asked']} pairs"
        f" ({figures['tied']} ties, {figures['abstained']} abstentions; {figures['tokens']} tokens{money})",
        f"its orders agree on {_percent(orders)}" if orders else "",
        f"the first position wins {100 * bias['value']:+.1f} points"
        f" [{100 * bias['low']:+.0f}, {100 * bias['high']:+.0f}] more than half"
        if bias
        else "",
        f"it agrees with a random person on {_percent(people)} of {people['n']} pairs"
        if people
        else "nobody has checked its labels (alignkit label audit RUN)",
    ]
    return ", ".join(filter(None, parts))


def _percent(share: Mapping[str, Any]) -> str:
    return f"{share['value']:.0%} [{round(100 * share['low'])}, {round(100 * share['high'])}]"


def _judged(group: Group, found: Outcome, answers: Sequence[Answer], names: Set[str]) -> Group:
    """The group with the verdicts as annotations, beside those that others gave it, and figures in `meta.judge` and
    `meta.cost`.

    Args:
        names: of the judges, whose earlier verdicts these replace.
    """
    figures: dict[str, Any] = {
        name: round(getattr(found, name), 4) for name in ("margin", "orders_disagree", "judges_disagree", "abstained")
    }
    if found.cycles:
        figures["cycles"] = [list(cycle) for cycle in found.cycles]
    cost = {name: sum(getattr(answer, name) for answer in answers) for name in ("requests", "tokens", "money")}
    meta = {**group.meta, "judge": figures, "cost": {name: value for name, value in cost.items() if value}}
    others = [one for one in stored_annotations(group) if one.annotator not in names]
    if any(one.kind == "human" for one in others):
        meta["ranks_by"] = "ai"
    bare = replace(group, meta=meta, ranks=None, scores=None, labels=None, source="judge")
    noted = with_annotations(bare, [*others, *found.annotations])
    if not found.ranks:
        return noted
    chosen = noted.choose(sorted(found.ranks))
    return replace(chosen, ranks=tuple(found.ranks[index] for index in sorted(found.ranks)))
