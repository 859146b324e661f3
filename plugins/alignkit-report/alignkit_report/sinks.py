"""Sinks for a run's metrics and samples, through accelerate's experiment trackers."""

from __future__ import annotations

import sys
from abc import abstractmethod
from contextlib import ExitStack, contextmanager, redirect_stdout
from itertools import repeat
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from accelerate import PartialState, tracking

from alignkit import MetricSink
from alignkit_report.options import (
    MlflowOptions,
    TensorBoardOptions,
    TrackerOptions,
    TrackioOptions,
    WandbOptions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from alignkit import Context, Group

OptionsT = TypeVar("OptionsT", bound=TrackerOptions)


COLUMNS = ("prompt", "from", "response", "score")


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Samples for tools without tables."""
    return "\n\n".join(
        "\n".join(f"{name}: {said}" for name, said in zip(COLUMNS, row, strict=True) if said) for row in rows
    )


class TrackerSink(MetricSink[OptionsT]):
    """Writes each figure as `stage/figure` at its step, so that stages, which all count from 1, stay apart.

    The tracker starts with the first record. By then the engine has chosen a device, which accelerate would otherwise
    choose here; and a run that trains nothing leaves nothing behind. A tracker's prints go to stderr, because stdout is
    for results.
    """

    def __init__(self, config: OptionsT | None = None, context: Context | None = None) -> None:
        super().__init__(config, context)
        self._folder = (self.context.folder or Path()).resolve()
        self._name = self.config.name or self._folder.name
        self._tracker: Any = None
        self._ends = ExitStack()

    @abstractmethod
    def make(self, ends: ExitStack) -> Any:
        """accelerate's tracker, not started yet.

        Args:
            ends: collects what must be undone after the tracker has ended.
        """

    def log(self, values: Mapping[str, float], stage: str, step: int) -> None:
        """Passes figures to the started tracker."""
        self._tracker.log(values, step=step)

    @abstractmethod
    def log_table(self, rows: Sequence[Sequence[str]], stage: str, step: int) -> None:
        """Passes samples to the started tracker, in rows of COLUMNS."""

    def finish(self) -> None:
        """Ends the started tracker."""
        self._tracker.finish()

    def write(self, record: Mapping[str, Any]) -> None:
        stage, step = record["stage"], record["step"]
        figures = {name: value for name, value in record.items() if isinstance(value, Real) and name != "step"}
        with self._started():
            self.log({f"{stage}/{name}": float(value) for name, value in figures.items()}, stage, step)

    def write_samples(self, groups: Sequence[Group], stage: str, step: int) -> None:
        rows = [
            [group.prompt.plain, group.source, response, "" if score is None else f"{score:.4g}"]
            for group in groups
            for response, score in zip(group.responses, group.scores or repeat(None), strict=False)
        ]
        with self._started():
            self.log_table(rows, stage, step)

    @contextmanager
    def _started(self) -> Iterator[None]:
        PartialState()  # accelerate's trackers ask it for this process's rank, and trl may have reset it
        with redirect_stdout(sys.stderr):
            if self._tracker is None:
                self._start()
            yield

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._ends.close()

    def _start(self) -> None:
        with ExitStack() as ends:
            tracker = self.make(ends)
            tracker.start()
            self._tracker = tracker
            ends.callback(self.finish)
            self._ends = ends.pop_all()


class TensorBoard(TrackerSink[TensorBoardOptions]):
    """Event files."""

    Config = TensorBoardOptions

    def make(self, ends: ExitStack) -> Any:
        folder = self.config.folder
        if not folder:
            return tracking.TensorBoardTracker("tensorboard", self._folder)
        return tracking.TensorBoardTracker(self._name, Path(folder).expanduser())

    def log_table(self, rows: Sequence[Sequence[str]], stage: str, step: int) -> None:
        self._tracker.log({f"{stage}/samples": as_text(rows)}, step=step)


class Wandb(TrackerSink[WandbOptions]):
    """Weights & Biases. It drops figures whose step is lower than an earlier one, so each stage gets its own axis,
    `stage/step`. Metadata is off, because it contains the command line, which may contain keys."""

    Config = WandbOptions

    def make(self, ends: ExitStack) -> Any:
        self._stages: set[str] = set()
        return tracking.WandBTracker(
            self.config.project,
            name=self._name,
            dir=str(self._folder),
            mode=self.config.effective_mode,
            settings={"console": "off", "x_disable_meta": True},
        )

    def log(self, values: Mapping[str, Any], stage: str, step: int) -> None:
        axis = f"{stage}/step"
        if stage not in self._stages:
            self._stages.add(stage)
            self._tracker.tracker.define_metric(f"{stage}/*", step_metric=axis)
        self._tracker.log({**values, axis: step})

    def log_table(self, rows: Sequence[Sequence[str]], stage: str, step: int) -> None:
        import wandb

        self.log({f"{stage}/samples": wandb.Table(list(COLUMNS), rows)}, stage, step)


class Mlflow(TrackerSink[MlflowOptions]):
    """MLflow. Its store is a setting of the whole process, so the previous one is restored at the end."""

    Config = MlflowOptions

    def make(self, ends: ExitStack) -> Any:
        import mlflow

        uri, artifacts = self.config.tracking_uri, None
        if self.config.is_local:
            folder = self._folder / "mlflow"
            folder.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
        if uri:
            ends.callback(mlflow.set_tracking_uri, mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None)
            mlflow.set_tracking_uri(uri)
        return tracking.MLflowTracker(self.config.project, logging_dir=artifacts, run_name=self._name)

    def log_table(self, rows: Sequence[Sequence[str]], stage: str, step: int) -> None:
        import mlflow

        mlflow.log_text(as_text(rows), f"samples/{stage}/step-{step}.txt")


class Trackio(TrackerSink[TrackioOptions]):
    """trackio. After accelerate's own end a run stays trackio's current one and would end again at exit."""

    Config = TrackioOptions

    def make(self, ends: ExitStack) -> Any:
        return tracking.TrackioTracker(self.config.project, name=self._name, space_id=self.config.space or None)

    def log_table(self, rows: Sequence[Sequence[str]], stage: str, step: int) -> None:
        import trackio

        self._tracker.log({f"{stage}/samples": trackio.Table(list(COLUMNS), rows)}, step=step)

    def finish(self) -> None:
        import trackio

        trackio.finish()
