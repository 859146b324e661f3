"""The stages: each reads files, trains, labels or measures, and writes files."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alignkit.errors import InputError, StoppedByCheck, blamed
from alignkit.interfaces import Algorithm, Feed, Policy, PreferenceSource, RewardSource
from alignkit.preferences import ranked_by_ai
from alignkit.recipe.tables import REWARD_TRAINING
from alignkit.records import Group, Prompt, read_groups, write_groups
from alignkit.runs import evaluation
from alignkit.runs.algorithm import save_trained, train_algorithm
from alignkit.runs.candidates import PolicySampler
from alignkit.runs.history import History, RecordT, history_of, split_by_prompt
from alignkit.runs.plan import consumed_by, wants_texts
from alignkit.runs.results import Run, from_reports, load_reward
from alignkit.runs.rounds import keep_reference, ranker, round_folder, round_seed, samples_at_the_start
from alignkit.runs.rundir import MetricsFile, RunDir
from alignkit.training.processes import in_first
from alignkit.training.scores import checked_scores, score_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from alignkit.batch import GroupBatch
    from alignkit.options import ComponentSpec, Config
    from alignkit.recipe.resolved import Resolved
    from alignkit.runs.reporting import Reporter
    from alignkit.samplers import Sampler

SHOWN_PROMPTS = 8
"""Of the evaluation, whose responses go to the metric sinks."""


class Stages:
    """The stages of a run. Each public method is a stage and returns its summary as JSON types."""

    def __init__(
        self,
        resolved: Resolved,
        rundir: RunDir,
        reporter: Reporter,
        write_to_sinks: Callable[[Mapping[str, Any]], None],
        sampler: Sampler[Any],
        *,
        resume: bool,
        force: bool,
    ) -> None:
        self._resolved, self._rundir, self._reporter = resolved, rundir, reporter
        self._write_to_sinks, self._sampler = write_to_sinks, sampler
        self._resume, self._force = resume, force
        self._metrics = MetricsFile(rundir.path / "metrics.jsonl")
        self._seed: int = resolved.run.seed
        self._rankings: dict[int, list[Group]] = {}
        self._figures: Mapping[str, Any] = {}
        if resolved.run.threads:
            torch.set_num_threads(resolved.run.threads)

    def sft(self) -> dict[str, Any]:
        """Demonstrations -> sft/."""
        groups = self._split("demonstrations", self._read("demonstrations"))[0]
        in_first(lambda: write_groups(self._path / "demonstrations.jsonl", groups))
        policy = self._policy(None)
        optimizer = self._build("sft", policy=policy)
        return {"demonstrations": len(groups), **self._train("sft", None, optimizer, groups)}

    def preferences(self, number: int = 1) -> dict[str, Any]:
        """The preference source, with the current policy -> preferences.jsonl, in a later round its own."""
        self._figures = in_first(lambda: self._write_preferences(number))
        groups = self._ranked(number)
        labels = sum(len(group.labels or ()) for group in groups)
        pairs = sum(len(group.preferred_pairs()) for group in groups)
        return {"groups": len(groups), "pairs": pairs} | ({"labels": labels} if labels else {}) | dict(self._figures)

    def _write_preferences(self, number: int) -> Mapping[str, Any]:
        """Returns the source's figures."""
        groups = self._fresh_preferences(number) if self._samples(number) else self._read("preferences")
        write_groups(self._preferences_of(number), groups)
        self._rankings[number] = groups
        return self._figures

    def reward(self) -> dict[str, Any]:
        """Preferences -> reward/, with its accuracy on held-out prompts."""
        policy = self._policy(self._start)
        train_groups, held_out = self._preference_split
        optimizer = self._build(REWARD_TRAINING, policy=policy)
        summary = self._train("reward", self._start, optimizer, train_groups)
        return in_first(lambda: self._measured_reward(train_groups, held_out or train_groups)) | summary

    def _measured_reward(self, train_groups: list[Group], others: list[Group]) -> dict[str, Any]:
        source = self._reward_source()
        source.calibrate(list(islice(self._demonstrations or train_groups, 512)))
        return ranking_report(source, others, history_of(self._path / "reward"))

    def align(self, number: int = 0) -> dict[str, Any]:
        """Preferences, or prompts and a reward -> policy/; in rounds -> rounds/N/policy, and the last one -> policy/
        too."""
        start = self._start_of(number)
        policy = self._policy(start)
        if consumed_by(self._resolved) is not Feed.ROLLOUTS:
            groups = self._ranked(number) if self._samples(number) else self._preference_split[0]
            optimizer = self._build("optimizer", policy=policy)
            if number > 1 and self._resolved.run.round_reference == "kept":
                keep_reference(optimizer, lambda: self._policy(self._start))
            folder = f"{round_folder(number)}/policy" if number else "policy"
            summary = self._train(folder, start, optimizer, groups)
            if number and number == self._resolved.run.rounds:
                in_first(lambda: self._save_again(optimizer, folder))
            return summary
        optimizer = self._build("optimizer", policy=policy, reward=self._reward_source())
        texts = self._texts() if wants_texts(self._resolved) else []
        return self._train("policy", start, optimizer, self._prompt_split[0], texts)

    def _save_again(self, optimizer: Algorithm[Any], folder: str) -> None:
        """The last round's policy -> policy/."""
        save_trained(optimizer, self._path / "policy")
        history_of(self._path / folder).write(self._path / "policy")

    def eval(self) -> dict[str, Any]:
        """The final policy against the initial one, on held-out or given prompts -> samples.jsonl."""
        return in_first(self._evaluate)

    def _evaluate(self) -> dict[str, Any]:
        options = self._resolved.eval
        before, after = self._against(options.against), self._aligned
        start, final = self._policy(before), self._policy(after)
        prompts = self._eval_prompts()[: options.count]
        history = history_of(self._source(before), *self._rewards, options.rewards) | history_of(self._source(after))
        measured_on = history.of_measuring_on(prompts)
        self._reporter.note(f"eval: on {measured_on['on']}")
        rewards: dict[str, RewardSource[Any]] = {
            name: self._build_spec("reward", spec) for name, spec in options.rewards.items()
        }
        if "reward" in self._resolved.names:
            rewards = {"reward": self._reward_source(), **rewards}
        policies = {"start": start, "policy": final}
        batches = {name: self._sampled(policy, prompts, options.samples) for name, policy in policies.items()}
        if options.best_of > 1:
            for name, policy in list(policies.items()):
                many = self._sampled(policy, prompts, options.samples * options.best_of)
                scores = checked_scores(rewards["reward"], many.groups)
                chosen = f"{name}, best of {options.best_of}"
                batches[chosen] = evaluation.best_of(many, scores, options.best_of)
                policies[chosen] = policy
        report, values = evaluation.compare_samples(batches, rewards, policies=policies, best_of=options.best_of)
        samples = [evaluation.with_figures(batch.groups, values[name], name) for name, batch in batches.items()]
        groups = [group for of_prompt in zip(*samples, strict=True) for group in of_prompt]
        texts = self._measured_texts(options.texts, {name: policies[name] for name in ("start", "policy")}, report)
        for found in from_reports(evaluation.MEASURES, groups, policies, options.tasks):
            for name, measures in found.items():
                report[name][evaluation.MEASURES] |= measures
        self._rundir.clear("eval")  # not earlier: where the new one fails, the earlier one stays
        write_groups(self._path / "samples.jsonl", groups)
        if texts:
            write_groups(self._path / "texts.jsonl", texts)
        shown = [group.to_json() for group in groups[: SHOWN_PROMPTS * len(batches)]]
        self._write_to_sinks({"stage": "eval", "step": 0, "samples": shown})
        return {**measured_on, **report}

    def _measured_texts(
        self, spec: ComponentSpec | None, policies: Mapping[str, Policy[Any]], report: dict[str, Any]
    ) -> list[Group]:
        """Texts with their figures; their perplexity -> the report."""
        texts = self._groups_from(self._build_spec("preferences", spec)) if spec else []
        measured: list[Group] = []
        for name, policy in policies.items() if spec else ():
            found, rows = evaluation.perplexity(policy, texts)
            report[name][evaluation.MEASURES]["perplexity"] = found.to_json()
            measured += evaluation.with_figures(texts, rows, name)
        return measured

    def _sampled(self, policy: Policy[Any], prompts: Sequence[Prompt], n: int) -> GroupBatch:
        self._sampler.sync(policy, 0)
        return self._sampler.generate(prompts, n=n, sampling=self._resolved.sampling, seed=self._seed + 1)

    @property
    def _path(self) -> Path:
        return self._rundir.path

    def _ranked(self, number: int = 1) -> list[Group]:
        """The preferences of a round, read at most once."""
        if number not in self._rankings:
            self._rankings[number] = list(read_groups(self._preferences_of(number)))
        return self._rankings[number]

    def _preferences_of(self, number: int) -> Path:
        return self._path / (round_folder(number) if number > 1 else "") / "preferences.jsonl"

    def _start_of(self, number: int) -> Path | None:
        """The policy that a round starts from: the previous round's, if there is one."""
        return self._start if number < 2 else self._path / round_folder(number - 1) / "policy"

    def _samples(self, number: int) -> bool:
        """Whether the round samples its preferences from the policy at its start."""
        return number > 1 or samples_at_the_start(self._resolved)

    def _fresh_preferences(self, number: int) -> list[Group]:
        """Ranked responses of the policy at the start of a round, to the training prompts."""
        seed, prompts = round_seed(self._seed, number), self._prompt_split[0]
        reward = self._reward_source() if "reward" in self._resolved.names else None
        source = ranker(self._resolved, reward, replace(self._resolved.context(self._path), seed=seed))
        sampling = self._resolved.sampling
        load = partial(self._policy, self._start_of(number))
        ask = PolicySampler(load, lambda: prompts, sampling, seed, sampler=self._sampler)
        groups = self._groups_from(source, ask)
        if not groups:
            raise StoppedByCheck(f"round {number}: all responses to each of {len(prompts)} prompts tie")
        self._reporter.note(f"preferences: {described(groups)}")
        return groups

    @property
    def _start(self) -> Path | None:
        """The policy that alignment starts from: the SFT stage's, if there was one."""
        return self._path / "sft" if self._rundir.is_done("sft") else None

    @property
    def _aligned(self) -> Path | None:
        """The aligned policy; the recipe's own if it is to be compared with another model, and this run has none."""
        folder = self._path / "policy"
        return folder if folder.exists() or self._resolved.eval.against in ("sft", "base") else None

    def _source(self, folder: Path | None) -> Path | Config:
        """Where a policy comes from: a folder, else the recipe's options."""
        options: Config = self._resolved.config("policy")
        return folder or options

    @property
    def _rewards(self) -> tuple[Path | Config, ...]:
        """Where the reward comes from: the folder of its training, and the recipe's options."""
        return (self._path / "reward", self._resolved.config("reward")) if "reward" in self._resolved.names else ()

    def _against(self, name: str) -> Path | None:
        if name == "sft":
            return self._start
        return None if name == "base" else Path(name)

    def _build(self, table: str, **keywords: Any) -> Any:
        return self._resolved.build(table, folder=self._path, **keywords)

    def _build_spec(self, role: str, spec: ComponentSpec) -> Any:
        return self._resolved.context(self._path).build(role, spec)

    def _policy(self, folder: Path | None) -> Policy[Any]:
        policy: Policy[Any] = self._build("policy", saved=folder)
        said = policy.explain()
        if said and self._rundir.state.get("notes", {}).get("policy") != said:
            self._rundir.remember("policy", said)
            self._reporter.note(f"policy: {said}")
        return policy

    def _reward_source(self) -> RewardSource[Any]:
        return load_reward(self._resolved, self._path)

    def _read(self, table: str) -> list[Group]:
        """All groups of a table's source; reports what they look like."""
        source = self._build(table)
        groups = self._groups_from(source)
        if not groups:
            labels = table == "preferences" and "prompts" not in self._resolved.names
            fix = "if it labels replies to prompts, name those: -o prompts.path=FILE, or [prompts]" if labels else ""
            raise InputError("the source has no records", where=table, fix=fix)
        self._reporter.note(f"{table}: {source.explain() or described(groups)}")
        return groups

    def _groups_from(self, source: PreferenceSource[Any], ask: PolicySampler | None = None) -> list[Group]:
        resolved, other = self._resolved, partial(self._build_spec, "policy")
        load, prompts = partial(self._policy, self._start), lambda: self._prompts
        ask = ask or PolicySampler(
            load, prompts, resolved.sampling, self._seed, resolved.candidates, other, self._sampler
        )
        with blamed(f"preferences {type(source).__name__}"):
            groups = list(source.preferences(ask))
            self._figures = source.figures()
        return groups

    @cached_property
    def _prompts(self) -> list[Prompt]:
        """Distinct prompts of [prompts], else of the preferences, in order."""
        if "prompts" in self._resolved.names:
            groups = self._groups_from(self._build("prompts"))
        else:
            groups = self._ranked() if self._preferences_of(1).exists() else []
        return list({group.prompt.identity: group.prompt for group in groups}.values())

    @cached_property
    def _prompt_split(self) -> tuple[list[Prompt], list[Prompt]]:
        return self._split("prompts", self._prompts)

    @cached_property
    def _preference_split(self) -> tuple[list[Group], list[Group]]:
        return self._split("preferences", self._ranked())

    def _split(self, table: str, records: Sequence[RecordT]) -> tuple[list[RecordT], list[RecordT]]:
        """(rest, held out), where the run has prompts to be measured on. The same prompts in every stage."""
        share = self._resolved.run.holdout if {"prompts", "preferences"} & self._resolved.names.keys() else 0.0
        rest, held = split_by_prompt(records, share)
        if held:
            self._reporter.note(f"{table}: {len(held)} of {len(records)} are held out")
        return rest, held

    def _eval_prompts(self) -> list[Prompt]:
        if self._resolved.eval.prompts:
            source = self._build_spec("preferences", self._resolved.eval.prompts)
            return [group.prompt for group in self._groups_from(source)]
        rest, held = self._prompt_split
        return held or rest

    def _texts(self) -> list[Group]:
        """The texts of [ptx], else the demonstrations."""
        table = "ptx" if "ptx" in self._resolved.names else "demonstrations"
        kept = self._demonstrations if table == "demonstrations" else None
        return self._split(table, list(kept) if kept else self._read(table))[0]

    @property
    def _demonstrations(self) -> Iterator[Group] | None:
        """What the SFT stage learned from, if there was one."""
        file = self._path / "demonstrations.jsonl"
        return read_groups(file) if file.exists() else None

    def _train(
        self,
        folder: str,
        start: Path | None,
        optimizer: Algorithm[Any],
        data: Sequence[Group] | Sequence[Prompt],
        texts: Sequence[Group] = (),
    ) -> dict[str, Any]:
        """Trains, saves the result in `folder`, and returns the last metrics and why it ended early, if it did."""
        path = self._path / folder
        if not data:
            what = "all of the training data is held out"
            raise InputError(what, where="run.holdout", fix="lower it, or add prompts")

        def write(record: Mapping[str, Any]) -> None:
            self._metrics.write(folder, record)
            self._write_to_sinks({"stage": folder, **record})

        result = train_algorithm(
            optimizer,
            data,
            name=folder,
            folder=path,
            sampling=self._resolved.sampling,
            seed=self._seed,
            reporter=self._reporter,
            write=write,
            fingerprint=self._resolved.digest,
            history=history_of(self._source(start), *(self._rewards if optimizer.reward else ())),
            texts=texts,
            sampler=self._sampler,
            resume=self._resume,
            force=self._force,
            shard=self._resolved.run.shard == "fsdp2",
        )
        in_first(lambda: save_trained(optimizer, path))
        summary = {"steps": result.steps, "train_seconds": round(result.seconds, 2), "tokens": result.tokens}
        self._reporter.finish(summary)
        spent = {unit: round(amount, 2) for unit, amount in result.spent.items()}
        worth = optimizer.reward.worth() if optimizer.reward else ""
        alarms = [said["text"] for said in Run(self._path).alarms if said["stage"] == folder]
        told = {
            name: said
            for name, said in (("spent", spent), ("stopped", result.stopped), ("alarms", alarms), ("worth", worth))
            if said
        }
        return {**summary, **told, "metrics": {name: float(f"{value:.6g}") for name, value in result.metrics.items()}}


def described(groups: Sequence[Group]) -> str:
    """The number of groups and the first one, for people."""
    sample = groups[0]
    ranks = f" (ranks {list(sample.ranks)})" if sample.ranks else ""
    shown = " | ".join(response[:80] for response in sample.responses[:2])
    return f"{len(groups)} groups; first: {sample.prompt.plain[-80:]!r} -> {shown!r}{ranks}"


def ranking_report(source: RewardSource[Any], groups: Sequence[Group], history: History) -> dict[str, Any]:
    """Accuracy on ranked pairs with its interval (if AIs alone ranked them: agreement with these AIs), that of the
    shorter response, and what else the installed reports measure."""
    ranked = [group for group in groups if group.preferred_pairs()]
    if not ranked:
        return {}
    scored = score_groups(source, ranked)
    accuracy = evaluation.ranking_accuracy([group.scores or () for group in scored], ranked)
    found = {
        **history.of_measuring_on(list({group.prompt.key: group.prompt for group in ranked}.values())),
        "agreement_with_ai" if all(map(ranked_by_ai, ranked)) else "accuracy": accuracy.to_json(),
        "shorter_wins": evaluation.shorter_wins(ranked).to_json(),
    }
    for more in from_reports("calibration", scored):
        found |= more
    return found
