"""Alarms: figures of the rollouts that tell of a run that goes wrong.

docs/how-to/training.md says what each means and where its default comes from. An alarm is given once its figure has
been beyond the threshold for `alarm_batches` batches in a row, and again only after as many within it. All processes
see the same figures, so they decide alike.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import inf, isnan, nan
from statistics import fmean
from typing import TYPE_CHECKING, Any

from alignkit.companions import Alarm, Companion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alignkit.batch import GroupBatch
    from alignkit.options import AlarmOptions

RAISE = 1.5
"""Factor of the KL weight with `on_alarm = "raise-kl"`: two alarms double it."""


@dataclass(frozen=True)
class Rule:
    """Between which bounds a figure may be.

    Attributes:
        figure: in words.
        bounds: (threshold, mean of the first batches) -> (lowest, highest); NaN is never passed.
        above, below: what it means, and what to do.
        is_mean: whether the figure is a moving mean, which one batch hardly moves.
    """

    figure: str
    bounds: Callable[[float, float], tuple[float, float]]
    above: str = ""
    below: str = ""
    is_mean: bool = False


KL = Rule(
    "The mean KL to the reference, in nats per response,",
    lambda limit, _: (-inf, limit),
    above="the policy is far from its reference and may exploit the reward. Raise the KL weight or stop sooner.",
)
RULES = {
    "max_kl": KL,
    "alarm_kl": KL,
    "alarm_entropy": Rule(
        "The entropy, in nats per token,",
        lambda limit, first: (limit * first, inf),
        below="the policy says almost the same each time, so there is little left to learn from. Lower learning_rate, "
        "or raise the KL weight or ent_coef.",
    ),
    "alarm_length": Rule(
        "The mean length of a response, in tokens,",
        lambda limit, first: (first / limit, first * limit),
        above="the reward may favour length. Read some responses; raise the KL weight, or a penalty for length.",
        below="the reward may favour brevity. Read some responses; raise the KL weight.",
    ),
    "alarm_repetition": Rule(
        "The share of repeated runs of four tokens",
        lambda limit, first: (-inf, first + limit),
        above="the policy repeats itself, and the reward does not mind. Read some responses; raise the KL weight.",
    ),
    "alarm_cut_off": Rule(
        "The share of responses that end before the limit",
        lambda limit, _: (1 - limit, inf),
        below="the reward judges texts without an end. Raise sampling.max_tokens or missing_eos_penalty.",
    ),
    "alarm_gold": Rule(
        "The fall of gold's moving mean below its best, in standard errors,",
        lambda limit, _: (-inf, limit),
        above="the reward rises, but what it stands for falls (over-optimisation). Take checkpoints/best, or set "
        "stop.gold_fall.",
        is_mean=True,
    ),
}


class Alarms(Companion):
    """Watches the figures of each batch.

    Args:
        raise_kl: multiplies the weight of the KL.
    """

    name = "alarms"

    def __init__(self, options: AlarmOptions, raise_kl: Callable[[float], None]) -> None:
        self._options, self._raise_kl = options, raise_kl
        self._limits: dict[str, float] = {option: limit for option in RULES if (limit := getattr(options, option))}
        # judged: whether this batch is done. first: the first values of each rule. given: rule -> whether its alarm
        # holds. turned: rule -> the batches in a row that say otherwise.
        self._state: dict[str, Any] = {"step": 0, "judged": True, "first": {}, "given": {}, "turned": {}}

    def observe(self, batch: GroupBatch, step: int) -> dict[str, float]:
        self._state |= {"step": step + 1, "judged": False}
        return {}

    def check(self, figures: Mapping[str, float]) -> Sequence[Alarm]:
        if self._state["judged"]:
            return ()
        before = copy.deepcopy(self._state)
        self._state["judged"] = True
        found = [alarm for option in self._limits for alarm in self._judge(option, figures)]
        if any(alarm.stops for alarm in found):
            self._state = before  # the run that is resumed here decides anew
        elif found and self._options.on_alarm == "raise-kl":
            self._raise_kl(RAISE)
        return found

    def _judge(self, option: str, figures: Mapping[str, float]) -> list[Alarm]:
        """The alarm of a rule on a batch, if it is due."""
        value = figures.get(self._options.figures[option])
        if value is None:
            return []
        rule, limit, at_once = RULES[option], self._limits[option], option == "max_kl"
        batches = 1 if at_once else self._options.alarm_batches
        earlier = self._state["first"].setdefault(option, [])
        first = fmean(earlier) if len(earlier) >= batches else nan
        if len(earlier) < batches:
            earlier.append(value)
        low, high = rule.bounds(limit, first)
        given = self._state["given"].get(option, False)
        turned = self._state["turned"].get(option, 0) + 1 if (value < low or value > high) != given else 0
        due = turned == (1 if rule.is_mean and not given else batches)
        self._state["given"][option], self._state["turned"][option] = given != due, 0 if due else turned
        if given or not due:
            return []
        side, bound, meaning = ("above", high, rule.above) if value > high else ("below", low, rule.below)
        said = option if bound == limit else f"{option} = {limit:g}"
        said += "" if bound == limit or isnan(first) else f", first batches {first:.3g}"
        text = f"{rule.figure} is {value:.3g}, {side} {bound:.3g} ({said}): {meaning}"
        if self._options.on_alarm == "raise-kl" and not at_once:
            text += f" The KL weight is now {RAISE} times as high."
        record = {"step": self._state["step"], "alarm": option, "value": value, "threshold": bound}
        return [Alarm(text, record, stops=at_once or self._options.on_alarm == "stop")]

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._state |= copy.deepcopy(dict(state))
