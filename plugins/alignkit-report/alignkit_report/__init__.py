"""Reports on runs and files of preferences, and sinks for a run's metrics. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_report.options import MlflowOptions, TensorBoardOptions, TrackioOptions, WandbOptions
from alignkit_report.page import write_page

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1

__all__ = ["MlflowOptions", "TensorBoardOptions", "TrackioOptions", "WandbOptions", "write_page"]


@hookimpl
def register_metric_sinks(register: Register) -> None:
    register("tensorboard", "alignkit_report.sinks:TensorBoard", config=TensorBoardOptions)
    register("wandb", "alignkit_report.sinks:Wandb", config=WandbOptions)
    register("mlflow", "alignkit_report.sinks:Mlflow", config=MlflowOptions)
    register("trackio", "alignkit_report.sinks:Trackio", config=TrackioOptions)
