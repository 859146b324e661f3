"""A run directory in Python: what each stage said, the figures of every step, the samples, and what was trained."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import InputError
from alignkit.recipe.reading import checked
from alignkit.recipe.recipe import recipe_of
from alignkit.recipe.tables import REWARD_TRAINING
from alignkit.records import read_groups
from alignkit.runs.page import TEMPLATES, render
from alignkit.runs.report import policies_table, read_metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignkit.interfaces import Policy, RewardSource
    from alignkit.recipe.resolved import Resolved
    from alignkit.records import Group


class Run:
    """A run directory and what is in it; `alignkit.run` returns one, `Run.open` opens one that is there.

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
        """The run of a directory, finished or not.

        Raises:
            InputError: no run has been there.
        """
        folder = Path(path).expanduser()
        if not (folder / "run.json").is_file():
            raise InputError("there is no run here", where=str(folder), fix="give the directory that a run had as out")
        return cls(folder)

    @property
    def summary(self) -> dict[str, Any]:
        """`out`, and for each stage what it said: what `alignkit run --json` prints."""
        return {"out": str(self.path), **self._said}

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, one an optimisation step: `stage`, `step`, `time` and the figures."""
        return read_metrics(self.path / "metrics.jsonl")

    @property
    def samples(self) -> list[Group]:
        """What the policies before and after ("start" and "policy" in `source`) said to the evaluation's prompts.

        Empty where the run has not got as far as its evaluation.
        """
        path = self.path / "samples.jsonl"
        return list(read_groups(path)) if path.exists() else []

    def policy(self) -> Policy[Any]:
        """The policy that the last finished stage has left, loaded: the aligned one, or else that of SFT.

        Raises:
            InputError: no stage has trained a policy.
        """
        aligned = [stage for stage in self._said if stage.endswith("align")]
        if not aligned and "sft" not in self._said:
            raise InputError("no stage of this run has trained a policy", where=str(self.path), fix="run sft or align")
        saved = self.path / (aligned[-1].removesuffix("align") + "policy" if aligned else "sft")
        return self._read("policy").build("policy", folder=self.path, saved=saved)

    def reward(self) -> RewardSource[Any]:
        """The trained reward model, loaded, or else the reward of the recipe.

        Raises:
            InputError: the recipe has no reward, or its model is not trained yet.
        """
        return load_reward(self._read("reward"), self.path)

    @property
    def _said(self) -> dict[str, Any]:
        if self._stages is None:
            said: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))["stages"]
            return said
        return dict(self._stages)

    def _read(self, table: str) -> Resolved:
        """The recipe, or what its file says of a table and of the run."""
        if self._resolved is not None:
            return self._resolved
        tables = tomllib.loads((self.path / "recipe.toml").read_text(encoding="utf-8"))
        wanted = {name: tables[name] for name in ("run", table) if name in tables}
        return checked(recipe_of(wanted, flags={}, options={}))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {', '.join(self._said) or 'no stage has ended'})"

    def _repr_html_(self) -> str:
        said = self._said
        figures = said.get("eval", {})
        return render(
            TEMPLATES / "run.html",
            path=self.path,
            stages=[(name, what.get("seconds", ""), what.get("steps", "")) for name, what in said.items()],
            prompts=figures.get("prompts"),
            policies=policies_table(figures) if "policy" in figures else None,
        )


def load_reward(resolved: Resolved, folder: Path) -> RewardSource[Any]:
    """The reward of a run: the model that its reward stage has left in its directory, or the source that it names.

    Raises:
        InputError: the recipe has no reward, or its model is not trained yet.
    """
    saved = folder / "reward" if REWARD_TRAINING in resolved else None
    if saved is not None and not saved.exists():
        raise InputError(
            "the reward model is not trained yet", where="reward", fix="run the reward stage, or set reward.model"
        )
    return resolved.build("reward", folder=folder, saved=saved)
