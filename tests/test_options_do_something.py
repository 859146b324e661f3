"""Every option that an algorithm takes changes something, or is refused: a step, a figure, a file, a micro-batch.

Made from the registry: each option of each Optimizer is set to other values, one at a time, in a run of a few steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from alignkit.checking import OptionsError, default_of, option_names
from alignkit.companions import Alarm
from alignkit.components import Context
from alignkit.errors import InputError, StoppedByCheck
from alignkit.interfaces import Feed, Optimizer, RewardSource, Scorer
from alignkit.options import Config, Sampling
from alignkit.plugins import registry
from alignkit.records import Group, Prompt
from alignkit.testing import TinyOptions, TinyPolicy
from alignkit.testing.material import groups_for
from alignkit.testing.runs import weights
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed, RolloutFeed
from alignkit.versions import FIRST_PARTY

Options = Mapping[str, Any]

BASE: Options = {
    "learning_rate": 0.05, "warmup": 0.0, "n_epochs": 2, "minibatch_size": 2, "save_every": 1000,
    "iterations": 3, "batch_size": 3, "group_size": 3,
    "trust_region": 2.0, "damping": 0.01, "cg_iterations": 1, "line_search_steps": 3,
}  # fmt: skip
"""Few steps, large enough to leave a clip range and to need a line search."""

VALUES: Mapping[str, tuple[Any, ...]] = {
    "beta": (0.35,), "threshold": (1.3,), "missing_eos_penalty": (0.6,), "overlong_share": (0.8,),
    "reference_decay": (0.9,),
    "stop_kl": (1e-9,), "off_policy_kl": (1e-6,), "max_kl": (1e-9,), "reference_max_kl": (1e-9,), "kl_target": (1e-6,),
    "kl_horizon": (10.0,), "kl_coef_end": (0.7,), "trust_region": (0.01,), "penalty_target": (10.0,),
    "clip_range": (1e-3, 0.5), "clip_range_high": (1e-3, 0.5), "clip_range_value": (1e-3,), "dual_clip": (1.000001,),
    "reward_clip": (0.05,), "loss_length": (5.0,), "max_grad_norm": (1e-3,), "adam_beta2": (0.5,),
    "max_tokens": (1,), "save_every": (3,), "keep_checkpoints": (1,), "line_search_steps": (1,),
    "ptx_batch_size": (1,), "stop.gold": ({"plugin": "gold"},), "stop.plateau": (1,), "stop.plateau_delta": (10.0,),
    "stop.gold_fall": (0.1,), "stop.gold_window": (1,),
    "budget": ({"response_tokens": 1}, {"seconds": 1e-9}, {"flops": 1.0}),
    "alarm_kl": (1e-9,), "alarm_entropy": (1.0,), "alarm_length": (1.000001,),
    "alarm_cut_off": (1e-9,), "alarm_gold": (1.0,),
}  # fmt: skip
"""Values beside the default, where it takes a telling one; by default one more, half as much, or all others."""

NEEDS: Mapping[str, Options] = {
    "kl_place": {"kl_coef": 0.1, "kl_importance": False},
    "kl_estimator": {"kl_coef": 3.0},
    "kl_importance": {"kl_coef": 0.1, "kl_place": "loss"},
    "kl_controller": {"kl_coef": 0.1},
    "kl_target": {"kl_coef": 0.1, "kl_controller": "adaptive"},
    "kl_horizon": {"kl_coef": 0.1, "kl_controller": "adaptive"},
    "kl_coef_end": {"kl_controller": "linear", "kl_coef_end": 0.4},
    "reference_refresh_every": {"track_kl": True},
    "reference_decay": {"track_kl": True, "reference_refresh_every": 1, "reference_decay": 0.5},
    "reference_max_kl": {"track_kl": True, "reference_refresh_every": 1, "reference_decay": 0.5},
    "loss_length": {"aggregation": "sum"},
    "overlong_share": {"overlong_penalty": 0.5, "group_size": 8},
    "credit": {"missing_eos_penalty": 0.3},
    "normalize_rewards": {"missing_eos_penalty": 0.6},
    "ptx_batch_size": {"ptx_coef": 0.5},
    "f_alpha": {"f_divergence": "alpha"},
    "stop.plateau_delta": {"stop.plateau": 2, "iterations": 4},
    "stop.gold_fall": {"stop.gold": {"plugin": "gold"}, "stop.gold_window": 1},
    "stop.gold_window": {"stop.gold": {"plugin": "gold"}, "stop.gold_fall": 0.1},
    "alarm_gold": {"stop.gold": {"plugin": "gold"}, "stop.gold_window": 1, "alarm_batches": 1},
    "alarm_kl": {"track_kl": True, "alarm_batches": 1},
}
"""Options that are refused alone, and those with which they count (as far as the algorithm has these)."""

FEW = "these runs have too few batches for an alarm"
REASONS: Mapping[str, tuple[Options, str]] = {
    "track_kl": ({"kl_coef": 0.0}, "what it asks for is measured already where the KL has a weight"),
    "keep_checkpoints": ({"save_every": 3}, "these runs save none, to be fast"),
    "dual_clip": (
        {"learning_rate": 0.3, "n_epochs": 4, "group_size": 8},
        "the ratio of a bad response rises where steps are too large",
    ),
    "stop_kl": ({"minibatch_size": 1}, "these runs have too few steps a batch for any to be left out"),
    **{
        f"alarm_{name}": ({"alarm_batches": 1, "iterations": 5}, FEW) for name in ("kl", "entropy", "length", "cut_off")
    },
    "alarm_batches": ({"alarm_batches": 1, "alarm_cut_off": 1e-9}, FEW),
    "on_alarm": ({"alarm_cut_off": 1e-9, "alarm_batches": 1}, FEW),
}
"""Options that may change nothing alone, what is set beside them here, and why."""

LEFT_OUT = {
    "alarm_repetition": "these responses are too short to repeat four tokens (test_alarms)",
    "max_abstained": "the reward of these runs abstains on nothing (test_streams)",
    "adam": "8bit needs CUDA and bitsandbytes, and is refused without them (test_adam)",
    "critic_layers": "the tiny policy has no layers to copy (test_hf_value_branch)",
}
TEXTS = [Group(Prompt(text="ab"), (text,)) for text in ("ba", "aab", "b")]
PROMPTS = [Prompt(text=text) for text in ("a", "bab", "aa")]
OFFSETS = (1.0, 0.0, 3.0, 4.0, 5.0)
"""Added to all rewards of each batch, so that they fall first and rise then."""
ALGORITHMS = sorted(
    registration.name
    for registration in registry().registrations
    if registration.role == "optimizer" and registration.distribution in {*FIRST_PARTY} - {"alignkit-trl"}
)


class Reward(RewardSource[Config]):
    """0, a half or 1 for no a, one or more; a critic may start from it."""

    def score(self, groups: Any) -> list[list[float | None]]:
        return [[min(text.count("a"), 2) / 2 for text in group.responses] for group in groups]

    def start_critic(self) -> Scorer:
        return policy(seed=3).scorer()


class Gold(RewardSource[Config]):
    """High for the first batch."""

    calls = 0

    def score(self, groups: Any) -> list[list[float | None]]:
        self.calls += 1
        return [[5.0 if self.calls == 1 else 1.0] * len(group.responses) for group in groups]


class Rollouts(RolloutFeed):
    """Rollouts whose rewards have an offset for each batch."""

    def batch(self, index: int) -> Any:
        batch = super().batch(index)
        assert batch.rewards is not None
        return batch.replace(rewards=batch.rewards + OFFSETS[index])


class DiffersError(Exception):
    """A step says something else than that of the run it is held against: no need to go on."""


@dataclasses.dataclass
class Seen:
    """What can be seen of a run."""

    log: list[Options] = dataclasses.field(default_factory=list)
    alarms: list[Options] = dataclasses.field(default_factory=list)
    micro_batches: int = 0
    end: Any = None

    def differs(self, other: Seen) -> bool:
        return vars(self) != vars(other)


def policy(seed: int = 1) -> TinyPolicy:
    return TinyPolicy(TinyOptions(alphabet="ab", hidden=4, window=2), Context(seed=seed))


def data_for(feed: Feed) -> list[Group]:
    """Groups of a feed; what is ranked has scores too."""
    return [
        dataclasses.replace(group, scores=tuple(-float(rank) for rank in group.ranks)) if group.ranks else group
        for group in groups_for(feed)
    ]


def made(config: type[Config], flat: Options) -> Any:
    """Options from keys like `stop.plateau`. Raises OptionsError."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        table, _, name = key.rpartition(".")
        (nested.setdefault(table, {}) if table else nested)[name] = value
    return config(**nested)


def observed(component: type[Any], flat: Options, held_against: Seen | None = None) -> Seen:
    """A run with these options; it ends where it differs from another one. Raises InputError for what is refused."""
    options, seen = made(component.Config, flat), Seen()
    trained, reward = policy(), Reward()
    algorithm = component(options, Context(build=lambda *_: Gold()), policy=trained, reward=reward)
    loss = algorithm.loss

    def counted(batch: Any) -> Any:
        seen.micro_batches += 1
        return loss(batch)

    def on_step(record: Options) -> None:
        seen.log.append({name: value for name, value in record.items() if "_per_s" not in name})
        if held_against is not None and seen.log != held_against.log[: len(seen.log)]:
            raise DiffersError

    def on_notice(text: str) -> None:
        seen.alarms += [text.record] if isinstance(text, Alarm) else []

    algorithm.loss = counted
    if component.consumes is Feed.ROLLOUTS:
        feed: Any = Rollouts(PROMPTS, trained, reward, sampling=Sampling(max_tokens=3), options=options, seed=4)
    else:
        feed = OfflineFeed(data_for(component.consumes), getattr(algorithm, "scorer", trained))
    with TemporaryDirectory() as folder:
        try:
            result = train(
                algorithm, feed, folder=Path(folder), seed=5, on_step=on_step, on_notice=on_notice, texts=TEXTS
            )
            stopped = result.stopped
        except StoppedByCheck as check:
            stopped = str(check)
        except DiffersError:
            return seen
        files = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))
    seen.end = (stopped, files, weights(algorithm).tolist())
    return seen


def keys_of(config: type[Config], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, type, default) of every option; those of a table inside one by one."""
    hints = get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, Config):
            yield from keys_of(hint, f"{field.name}.")
        else:
            yield prefix + field.name, hint, default_of(field)


def others(key: str, hint: Any, now: Any) -> list[Any]:
    """Other values of an option than the one it has now."""
    if key in VALUES:
        return [value for value in VALUES[key] if value != now]
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        return [choice for choice in choices if choice != now]
    if isinstance(now, bool):
        return [not now]
    assert isinstance(now, int | float), f"say in VALUES what {key} may be"
    return [now + 1 if isinstance(now, int) else now / 2 or 0.3]


class Trial:
    """Runs of one algorithm; those that others are held against are made once."""

    def __init__(self, component: type[Any]) -> None:
        self.component = component
        self.known = {*option_names(component.Config)}
        self._runs: dict[str, Seen] = {}

    def settings(self, *layers: Options) -> dict[str, Any]:
        """As far as the algorithm has these options."""
        return {key: value for layer in layers for key, value in layer.items() if key.partition(".")[0] in self.known}

    def run(self, settings: Options) -> Seen:
        if (name := repr(settings)) not in self._runs:
            self._runs[name] = observed(self.component, settings)
        return self._runs[name]

    def outcome(self, settings: Options, key: str, value: Any) -> str:
        """What comes of setting an option: refused, something or nothing."""
        try:
            made(self.component.Config, {**settings, key: value})
        except OptionsError:
            return "refused"
        before = self.run(settings)
        try:
            return (
                "something" if observed(self.component, {**settings, key: value}, before).differs(before) else "nothing"
            )
        except InputError:
            return "refused"

    def verdict(self, key: str, hint: Any, default: Any) -> str:
        """What is wrong with an option; empty where it does something, with every value that is accepted."""
        for layers in ((BASE, REASONS.get(key, ({}, ""))[0]), (BASE, NEEDS.get(key, {}))):
            settings = self.settings(*layers)
            found = {str(v): self.outcome(settings, key, v) for v in others(key, hint, settings.get(key, default))}
            if idle := [value for value, outcome in found.items() if outcome == "nothing"]:
                return f"{key} = {' or '.join(idle)} changes nothing"
            if "something" in found.values():
                return ""
        return f"{key} is always refused: is it an option?"


def owner_of(config: type[Config], key: str) -> type:
    """The class that declares an option, or the table that it stands in."""
    name = key.partition(".")[0]
    return next(owner for owner in config.__mro__ if name in vars(owner).get("__annotations__", {}))


@cache
def first_takers() -> dict[str, set[str]]:
    """Algorithm -> the options that no earlier one takes from the same class."""
    seen: set[tuple[type, str]] = set()
    found: dict[str, set[str]] = {}
    for name in ALGORITHMS:
        config = registry().load("optimizer", name).Config
        taken = {(owner_of(config, key), key) for key, _, _ in keys_of(config)}
        found[name] = {key for _, key in taken - seen}
        seen |= taken
    return found


def check(name: str, keys: set[str]) -> None:
    """Tries options of an algorithm."""
    component = registry().load("optimizer", name)
    assert issubclass(component, Optimizer)
    trial = Trial(component)
    start = trial.settings(BASE)
    assert not observed(component, start).differs(trial.run(start)), "two equal runs differ"
    tried = [option for option in keys_of(component.Config) if option[0] in keys - LEFT_OUT.keys()]
    idle = [said for option in tried if (said := trial.verdict(*option))]
    assert not idle, "\n".join(idle)
    assert observed(component, {**start, "max_tokens": 1}).micro_batches > trial.run(start).micro_batches


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_option_does_something_for_one_algorithm(name: str) -> None:
    check(name, first_takers()[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_option_does_something_for_every_algorithm(name: str) -> None:
    check(name, {key for key, _, _ in keys_of(registry().load("optimizer", name).Config)})
