"""The demo's results: the four models side by side, and the reward model compared with gold."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from alignkit import read_groups
from alignkit.algorithms import checked_scores
from alignkit.commands import Estimate, compare_samples, ranking_accuracy, split_by_prompt
from alignkit_demo.world import gold, liking

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from alignkit import Group, Policy, Prompt, RewardSource
    from alignkit.commands import Resolved

    Stages = Mapping[str, Any]

EXAMPLES = 3


def measure(folder: Path, resolved: Resolved, runs: Mapping[str, Stages]) -> dict[str, Any]:
    """The figures of the demo.

    Args:
        resolved: the recipe that starts from the SFT policy and has the trained reward model.
        runs: the results of the stages of pretraining, ppo and dpo, as `alignkit.runs.run.run` returns them.

    Returns:
        on: the prompts that the figures were measured on, and how many of them were trained on.
        models: a row for each of base, sft, dpo and ppo. `gold` and `reward` are means over sampled replies;
            `kl` is to the SFT policy, in nats per reply; `win_rate` is against the SFT policy by gold, a tie
            counting one half; `seconds` is the time of its own training, for PPO including the reward model's.
        reward_model: see `reward_model_figures`.
        examples: prompts with a reply from each model.
    """
    ppo, dpo = runs["ppo"], runs["dpo"]
    base, base_replies = base_report(folder, resolved)
    replies = {
        "base": base_replies,
        "sft": _replies(folder, "ppo", "start"),
        "dpo": _replies(folder, "dpo", "policy"),
        "ppo": _replies(folder, "ppo", "policy"),
    }
    models = [
        model_row("base", base["policy"], base["win_rate/gold"], runs["pretraining"]["sft"]["seconds"]),
        model_row("sft", ppo["eval"]["start"], {"value": 0.5}, ppo["sft"]["seconds"]),
        model_row("dpo", dpo["eval"]["policy"], dpo["eval"]["win_rate/gold"], dpo["align"]["seconds"]),
        model_row(
            "ppo",
            ppo["eval"]["policy"],
            ppo["eval"]["win_rate/gold"],
            ppo["reward"]["seconds"] + ppo["align"]["seconds"],
        ),
    ]
    return {
        "on": max((ppo["eval"], dpo["eval"]), key=lambda said: said["trained_on"])["on"],
        "models": models,
        "reward_model": reward_model_figures(folder, resolved),
        "examples": [
            {"prompt": sft.prompt.plain, **{name: groups[index].responses[0] for name, groups in replies.items()}}
            for index, sft in enumerate(replies["sft"][:EXAMPLES])
        ],
    }


def model_row(name: str, samples: Mapping[str, Any], win_rate: Mapping[str, float], seconds: float) -> dict[str, Any]:
    """One row of the table, from the results of the eval stage."""
    figures = {key: samples[key]["value"] for key in ("gold", "reward", "kl")}
    return {"model": name, **figures, "win_rate": win_rate["value"], "seconds": round(seconds, 1)}


def base_report(folder: Path, resolved: Resolved) -> tuple[dict[str, Any], list[Group]]:
    """The base model compared with the SFT policy as in the eval stage, and its replies."""
    options, context = resolved.eval, resolved.context()
    sft: Policy[Any] = resolved.build("policy")
    base: Policy[Any] = resolved.build("policy", saved=folder / "pretraining" / "sft")
    source = cast("Any", context.build("preferences", options.prompts or {}))
    prompts: list[Prompt] = [group.prompt for group in source.preferences(None)][: options.count]
    policies = {"start": sft, "policy": base}
    batches = {
        name: policy.generate(prompts, n=options.samples, sampling=resolved.sampling, seed=resolved.run.seed + 1)
        for name, policy in policies.items()
    }
    rewards = {name: cast("RewardSource[Any]", context.build("reward", spec)) for name, spec in options.rewards.items()}
    report, _ = compare_samples(batches, {"reward": resolved.build("reward"), **rewards}, policies=policies)
    return report, list(batches["policy"].groups)


def reward_model_figures(folder: Path, resolved: Resolved) -> dict[str, Any]:
    """How often the order of held-out replies agrees with the gold reward, over pairs.

    Returns:
        agreement: of the reward model.
        best_possible: of a reward model that knows the annotators' average taste, including their bias for length.
        annotators: of the annotators' own choices, with their noise.
    """
    preferences = list(read_groups(folder / "ppo" / "preferences.jsonl"))
    held_out = split_by_prompt(preferences, resolved.run.holdout)[1]
    learned = checked_scores(resolved.build("reward"), held_out)
    figures = {
        "agreement": agreement_with_gold(learned, held_out),
        "best_possible": agreement_with_gold(_each(liking, held_out), held_out),
        "annotators": agreement_with_gold(
            [[-float(rank) for rank in group.ranks or ()] for group in held_out], held_out
        ),
    }
    return {name: estimate.to_json() for name, estimate in figures.items()}


def agreement_with_gold(scores: Sequence[Sequence[float | None]], groups: Sequence[Group]) -> Estimate:
    """Share of the pairs with different gold rewards that the scores order the same way."""
    by_gold = [
        replace(group, scores=tuple(row)).ranked_by_scores()
        for group, row in zip(groups, _each(gold, groups), strict=True)
    ]
    return ranking_accuracy(scores, by_gold)


def _each(figure: Callable[[Prompt, str], float], groups: Sequence[Group]) -> list[list[float]]:
    return [[figure(group.prompt, reply) for reply in group.responses] for group in groups]


def _replies(folder: Path, run: str, policy: str) -> list[Group]:
    return [group for group in read_groups(folder / run / "samples.jsonl") if group.source == policy]
