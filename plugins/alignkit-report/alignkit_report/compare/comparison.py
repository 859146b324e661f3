"""Plans and runs a comparison in its folder, and writes comparison.json.

shared/STAGE-DIGEST are run directories of the stages before alignment, runs/VARIANT/seed-N those of the cells, logs/
what they printed. The same command again repeats nothing that is done.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from alignkit import InputError, write_synced
from alignkit.commands import read_recipe
from alignkit_report.compare import RESULTS
from alignkit_report.compare.budget import Spending, check_budget, keep_groups, mean_spent, spending, spent_in
from alignkit_report.compare.jobs import Job, Jobs
from alignkit_report.compare.ranked import SideBySide, figure_of, ranking
from alignkit_report.compare.results import COST, Measured, duels, of_reward_models, of_start, of_variant
from alignkit_report.compare.shared import in_levels, is_done, shared_stages, start_from
from alignkit_report.overopt.best_of import check_best_of, pools_of
from alignkit_report.overopt.curves import tracking
from alignkit_report.overopt.findings import of_comparison
from alignkit_report.overopt.frontier import cost_frontier

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from alignkit import Group
    from alignkit.commands import Reporter, Resolved
    from alignkit_report.compare.budget import Budget
    from alignkit_report.compare.cells import Cell
    from alignkit_report.compare.jobs import Place
    from alignkit_report.compare.shared import SharedStage


@dataclass
class Comparison:
    """A comparison in its folder.

    Attributes:
        options: `-o` of every run.
        judge: the reward that decides duels; empty for `gold`, or the only other one, or the learned one.
        budget: what each run may spend; None for what the recipe says.
        place: makes the place where jobs run, once all recipes are checked; None: this machine.
        best_of: samples per prompt for the start's best of n along n; 0 for none.
        side_by_side: whether the judge compares replies instead of scoring each.
    """

    recipe: Path | None
    cells: Sequence[Cell]
    folder: Path
    options: Sequence[str] = ()
    judge: str = ""
    budget: Budget | None = None
    jobs: int = 1
    place: Callable[[], Place] | None = None
    best_of: int = 0
    side_by_side: bool = False
    failed: dict[str, str] = field(default_factory=dict)

    def check(self) -> dict[Cell, Resolved]:
        """Every cell's recipe, before anything runs.

        Raises:
            InputError: a recipe is wrong, or an algorithm can't be held to the budget.
        """
        resolved = {cell: self._resolved(cell) for cell in self.cells}
        for one in resolved.values():
            one.part("policy")
            if "optimizer" not in one.names:
                raise InputError("no algorithm to compare", where="--optimizers", fix="name some, separated by commas")
            check_best_of(one, self.best_of)
            check_budget(one, self.budget)
        self.judge = self._judge(next(iter(resolved.values())))
        return resolved

    def run(self, reporter: Reporter) -> dict[str, Any]:
        """Runs what is not done, and returns what comparison.json says.

        Raises:
            InputError: a recipe is wrong, or a cell's folder holds a run of another one.
        """
        resolved = self.check()
        chains = {cell: shared_stages(one) for cell, one in resolved.items()}
        jobs = Jobs(self.jobs, reporter.note, self.place() if self.place else None)
        for level in in_levels(list(chains.values())):
            self._run_shared(level, chains, jobs)
        spent = self._run_cells(resolved, chains, jobs)
        found = self._results(resolved, spent)
        write_synced(self.folder / RESULTS, json.dumps(found, indent=1) + "\n")
        return found

    def _resolved(self, cell: Cell, more: Sequence[str] = ()) -> Resolved:
        overrides = [*self.options, *cell.overrides(), *more]
        return read_recipe(self.recipe, flags={"optimizer": cell.variant.optimizer}, overrides=overrides)

    def _judge(self, resolved: Resolved) -> str:
        known = [*resolved.eval.rewards, *(["reward"] if "reward" in resolved.names else [])]
        if not known:
            raise InputError(
                "nothing says which replies are better", where="--gold", fix="name a reward, or add [eval.rewards]"
            )
        chosen = self.judge or ("gold" if "gold" in known else known[0])
        if chosen not in known:
            raise InputError(f"the recipe has no reward {chosen!r}", where="--judge", fix=f"one of {', '.join(known)}")
        if self.side_by_side:
            ranking(resolved, chosen)
        return chosen

    def _words(self, command: str, out: Path, overrides: Sequence[str]) -> tuple[str, ...]:
        recipe = [] if self.recipe is None else [str(self.recipe)]
        options = [word for override in overrides for word in ("-o", override)]
        return (command, *recipe, *options, "--out", str(out), "--quiet")

    def _run_shared(self, level: Sequence[SharedStage], chains: dict[Cell, list[SharedStage]], jobs: Jobs) -> None:
        waiting = []
        for stage in level:
            out = self.folder / "shared" / stage.folder
            if is_done(out, stage.name) or (stage.parent and self._broken(stage.parent)):
                continue
            if stage.parent and not out.exists():
                start_from(self.folder / "shared" / stage.parent.folder, out)
            cell = next(cell for cell, chain in chains.items() if stage in chain)
            begun = any(out.glob(f"{'sft' if stage.name == 'sft' else 'reward'}/checkpoints/*"))
            # Its command reads the whole recipe, so it needs an algorithm, whichever.
            chosen = [f"optimizer.plugin={cell.variant.optimizer}"] if cell.variant.optimizer else []
            overrides = [*self.options, *cell.overrides(), *chosen]
            words = (*self._words(stage.name, out, overrides), "--resume" if begun else "--overwrite")
            waiting.append((stage, Job(f"{stage.name} (seed {cell.seed})", words, self._log(stage.folder))))
        for (stage, _), ended in zip(waiting, jobs.run([job for _, job in waiting]), strict=True):
            if ended.code:
                self.failed[stage.folder] = ended.said

    def _broken(self, stage: SharedStage) -> bool:
        return stage.folder in self.failed or bool(stage.parent and self._broken(stage.parent))

    def _run_cells(
        self, resolved: dict[Cell, Resolved], chains: dict[Cell, list[SharedStage]], jobs: Jobs
    ) -> dict[Cell, Spending]:
        spent, waiting = {}, []
        for cell, chain in chains.items():
            last = chain[-1] if chain else None
            if last and self._broken(last):
                self.failed[cell.name] = "a stage before it failed"
                continue
            source = self.folder / "shared" / last.folder if last else None
            kept = spending(resolved[cell], self.budget, source)
            spent[cell] = replace(kept, overrides=(*kept.overrides, *tracking(resolved[cell])))
            out = self.folder / "runs" / cell.folder
            own = self._resolved(cell, spent[cell].overrides) if spent[cell].overrides else resolved[cell]
            self._prepare(own, source, out, spent[cell])
            if not is_done(out, "eval"):
                waiting.append((cell, self._job(cell, out, spent[cell])))
        for (cell, _), ended in zip(waiting, jobs.run([job for _, job in waiting]), strict=True):
            if ended.code:
                self.failed[cell.name] = ended.said
        return spent

    def _prepare(self, own: Resolved, source: Path | None, out: Path, spent: Spending) -> None:
        """Gives a cell its start, unless it has begun."""
        if (out / "run.json").exists():
            if json.loads((out / "run.json").read_text(encoding="utf-8"))["digest"] != own.digest:
                raise InputError("holds a run of another recipe", where=str(out), fix="choose another --out")
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out, ignore_errors=True)
        if source is not None:
            change = partial(keep_groups, own, count=spent.groups) if spent.groups else None
            start_from(source, out, own.digest, change)

    def _job(self, cell: Cell, out: Path, spent: Spending) -> Job:
        overrides = [*self.options, *cell.overrides(), *spent.overrides]
        optimizer = ("--optimizer", cell.variant.optimizer) if cell.variant.optimizer else ()
        words = (*self._words("run", out, overrides), *optimizer, "--resume")
        return Job(cell.name, words, self._log(cell.folder.replace("/", "-")), out / COST)

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _measured(
        self, done: dict[str, list[tuple[int, Resolved, Path]]], resolved: Resolved
    ) -> dict[str, list[Measured]]:
        """Every variant's finished runs; with the judge's places where it compares replies side by side."""
        samples: dict[tuple[str, int], list[Group]] = {}
        judge = SideBySide(resolved, self.judge, self.folder / "shared") if self.side_by_side else None
        for seed in {seed for of in done.values() for seed, *_ in of} if judge else ():
            runs = {name: folder for name, of in done.items() for own, _, folder in of if own == seed}
            samples |= {(name, seed): found for name, found in judge.of_seed(runs).items()} if judge else {}
        return {
            name: [Measured.read(folder, seed, samples.get((name, seed))) for seed, _, folder in of]
            for name, of in done.items()
        }

    def _results(self, resolved: dict[Cell, Resolved], spent: dict[Cell, Spending]) -> dict[str, Any]:
        done: dict[str, list[tuple[int, Resolved, Path]]] = {}
        costs: dict[str, list[dict[str, float]]] = {}
        for cell in self.cells:
            folder = self.folder / "runs" / cell.folder
            if cell.name not in self.failed and is_done(folder, "eval"):
                done.setdefault(cell.variant.name, []).append((cell.seed, resolved[cell], folder))
                costs.setdefault(cell.variant.name, []).append(spent_in(folder, spent[cell]))
        one, seeds = next(iter(resolved.values())), sorted({cell.seed for cell in self.cells})
        runs = self._measured(done, one)
        whole = {name: of for name, of in runs.items() if [run.seed for run in of] == seeds}
        judge = figure_of(self.judge) if self.side_by_side else self.judge
        budget = self.budget.text if self.budget else None
        found: dict[str, Any] = {"judge": judge, "seeds": seeds, "budget": budget, "failed": self.failed}
        found["rewards"] = [*(["reward"] if "reward" in one.names else []), *one.eval.rewards]
        found["variants"] = {
            name: {"spent": mean_spent(costs[name]), **of_variant(of, judge)} for name, of in whole.items()
        }
        if whole:
            first = next(iter(whole.values()))
            found |= {"on": first[0].on, "start": of_start(first), **duels(whole, judge)}
            found["reward_models"] = of_reward_models(whole)
            for name, rating in found.pop("ratings").items():
                found["variants"][name]["rating"] = rating
        pools = pools_of(done, self.folder / "shared", self.best_of)
        found["cost_frontier"] = cost_frontier(found["variants"])
        return {**found, **of_comparison({name: [(s, f) for s, _, f in of] for name, of in done.items()}, pools)}
