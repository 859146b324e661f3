"""A run directory in Python: stage summaries, metrics, samples and trained models."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import InputError, blamed, describe_error
from alignkit.recipe.tables import REWARD_TRAINING
from alignkit.records import Group, read_groups

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignkit.interfaces import Policy, RewardSource
    from alignkit.recipe.resolved import Resolved


EVENTS = frozenset({"alarm", "planned", "samples"})
"""Keys of records in metrics.jsonl that hold no figures of a step."""

SAMPLE_FIGURES = "figures"
"""Key, in the meta of stored samples, of the KL and the rewards of each response."""


class Run:
    """A run directory. `alignkit.run` returns one, `Run.open` opens an existing one.

    Attributes:
        path: the directory.
    """

    def __init__(
        self, path: Path, *, resolved: Resolved | None = None, stages: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self._resolved, self._stages = resolved, stages

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Opens a run directory, finished or not.

        Raises:
            InputError: it holds no run.
        """
        folder = Path(path).expanduser()
        if not (folder / "run.json").is_file():
            near = sorted((folder if folder.is_dir() else folder.parent).glob("*/run.json"))
            raise InputError(
                "this directory holds no run" if folder.is_dir() else "no such directory",
                where=str(folder),
                fix=f"give {' or '.join(str(one.parent) for one in near[:3])}" if near else "give a run's --out",
            )
        return cls(folder)

    @property
    def summary(self) -> dict[str, Any]:
        """What `eval` measured on, `out`, each stage's summary and what AIs' labels are worth, as `alignkit run --json`
        prints them."""
        stages = self.stages
        measured = {"measured_on": stages["eval"].get("on", "")} if "eval" in stages else {}
        worth = worth_of_labels(stages)
        return {**measured, "out": str(self.path), **stages, **({"worth": worth} if worth else {})}

    @property
    def state(self) -> dict[str, Any]:
        """What run.json says: `stages`, `argv`, `versions`, `notes`."""
        return read_state(self.path)

    @property
    def stages(self) -> dict[str, Any]:
        """The summary of each stage that is done."""
        return dict(read_state(self.path)["stages"] if self._stages is None else self._stages)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, one per optimisation step: `stage`, `step`, `time` and the figures."""
        return [record for record in read_records(self.path / "metrics.jsonl") if not EVENTS & record.keys()]

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """The alarms so far (docs/how-to/training.md): `stage`, `step`, `alarm`, `value`, `threshold` and `text`."""
        return [event for event in self.events if "alarm" in event]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What else metrics.jsonl says of a `stage` and `step`: alarms, the number of `planned` steps, and `samples`
        that a step starts to learn from, as groups in JSON."""
        return [record for record in read_records(self.path / "metrics.jsonl") if EVENTS & record.keys()]

    @property
    def samples(self) -> list[Group]:
        """Responses before and after (`source` is "start" or "policy") to the evaluation's prompts.

        Empty until the run has been evaluated.
        """
        path = self.path / "samples.jsonl"
        return list(read_groups(path)) if path.exists() else []

    @property
    def trained(self) -> Path:
        """The folder of the newest trained policy: the aligned one, else the SFT one.

        Raises:
            InputError: no stage has trained a policy yet.
        """
        aligned = [stage for stage in self.stages if stage.endswith("align")]
        if not aligned and "sft" not in self.stages:
            raise InputError("this run has not trained a policy yet", where=str(self.path), fix="run sft or align")
        return self.path / (aligned[-1].removesuffix("align") + "policy" if aligned else "sft")

    def policy(self) -> Policy[Any]:
        """Loads the policy in `trained`.

        Raises:
            InputError: no stage has trained a policy yet.
        """
        saved = self.trained
        policy: Policy[Any] = self._read("policy").build("policy", folder=self.path, saved=saved)
        return policy

    def reward(self) -> RewardSource[Any]:
        """Loads the trained reward model, else the recipe's reward.

        Raises:
            InputError: the recipe has no reward, or its model is not trained yet.
        """
        return load_reward(self._read("reward"), self.path)

    def problems(self) -> list[str]:
        """What is damaged: run.json, and checkpoints that don't verify, with the file's name."""
        from alignkit.training.checkpoint import checkpoint_folders, problem_with

        try:
            read_state(self.path)
            found = []
        except InputError as error:
            found = [f"run.json {error.what}"]
        folders = sorted({step.parent for step in self.path.rglob("step-*")})
        return found + [
            f"{folder.relative_to(self.path)}/{problem}"
            for folder in folders
            for step in checkpoint_folders(folder)
            if (problem := problem_with(step))
        ]

    def _read(self, table: str) -> Resolved:
        """The recipe, or from its file only the table and [run]."""
        from alignkit.recipe.reading import checked
        from alignkit.recipe.recipe import recipe_of

        if self._resolved is not None:
            return self._resolved
        tables = tomllib.loads((self.path / "recipe.toml").read_text(encoding="utf-8"))
        wanted = {name: tables[name] for name in ("run", table) if name in tables}
        return checked(recipe_of(wanted, flags={}, options={}))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {', '.join(self.stages) or 'no stage is done'})"

    def write_reports(self) -> str:
        """Has the installed distributions write their reports of the run; returns the paths, for people."""
        return ", ".join(map(str, from_reports("write_report", self)))

    def _repr_html_(self) -> str | None:
        return "".join(map(str, from_reports("notebook_html", self))) or None


def from_reports(function: str, *subjects: Any) -> list[Any]:
    """What a function of each module in the group `alignkit.reports` (docs/how-to/plugins.md) returns; one may lack it,
    or return nothing."""
    found = []
    for point in sorted(entry_points(group="alignkit.reports"), key=lambda p: p.name):
        with blamed(f"report {point.name}"):
            if report := getattr(point.load(), function, None):
                found.append(report(*subjects))
    return [said for said in found if said]


def read_state(folder: Path) -> dict[str, Any]:
    """The run.json of a run directory.

    Raises:
        InputError: it is damaged.
    """
    path = folder / "run.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(said, dict) for said in state["stages"].values()):
            raise TypeError("a stage is no table")
        return {"digest": "", **state}
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"is damaged ({describe_error(error)}); the models and checkpoints beside it are untouched",
            where=str(path),
            fix="restore it from a copy, or start again with another --out or --overwrite",
        ) from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without lines that are none, such as a truncated last one."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            records += [record] if {"stage", "step"} <= record.keys() else []
        except (ValueError, AttributeError):
            continue
    return records


def worth_of_labels(summary: Mapping[str, Any]) -> str:
    """How far to trust the labels of each stage, in its source's words, and what the reward model's figure means."""
    said = [f"{name}: {stage['worth']}" for name, stage in summary.items() if stage.get("worth")]
    figure = summary.get("reward", {}).get("agreement_with_ai")
    if figure:
        said.append(f"The reward model agrees with the AI on {figure['value']:.1%} of its pairs, which is no accuracy")
    return ". ".join(said)


def load_reward(resolved: Resolved, folder: Path) -> RewardSource[Any]:
    """The reward of a run: the model that its reward stage trained, or the source in its recipe.

    Raises:
        InputError: the recipe has no reward, or its model is not trained yet.
    """
    saved = folder / "reward" if REWARD_TRAINING in resolved else None
    if saved is not None and not saved.exists():
        raise InputError(
            "the reward model is not trained yet", where="reward", fix="run the stage reward, or set reward.model"
        )
    source: RewardSource[Any] = resolved.build("reward", folder=folder, saved=saved)
    return source
