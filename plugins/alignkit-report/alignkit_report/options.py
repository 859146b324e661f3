"""Options of the metric sinks. Imports neither torch nor the trackers; keys come only from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar, Literal

from alignkit import Config, InputError


def is_installed(package: str) -> bool:
    """Whether the package is installed. A plain folder of this name, as trackers leave behind, does not count."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


@dataclass(frozen=True, kw_only=True)
class TrackerOptions(Config):
    """Name in the tracker.

    Attributes:
        extra: the extra of this distribution that installs the tracker.
    """

    extra: ClassVar[str]

    name: str = ""
    """Name of the run; empty: the run directory's name."""

    def packages(self) -> tuple[str, ...]:
        """The modules that these options need."""
        return (self.extra,)

    def check(self) -> None:
        """Checks that the tracker is installed.

        Raises:
            InputError: it is not.
        """
        missing = [package for package in self.packages() if not is_installed(package)]
        if missing:
            raise InputError(
                f"needs the package {missing[0]!r}, which is not installed",
                fix=f'pip install "alignkit-report[{self.extra}]"',
            )


@dataclass(frozen=True, kw_only=True)
class TensorBoardOptions(TrackerOptions):
    """Event files for TensorBoard."""

    extra = "tensorboard"

    folder: str = ""
    """Folder for several runs; each run writes to a subfolder with its name. Empty: `tensorboard` in the run
    directory."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("folder", bool(self.folder), "name")


@dataclass(frozen=True, kw_only=True)
class ProjectOptions(TrackerOptions):
    """Project in the tracker."""

    project: str = "alignkit"
    """Project (or experiment) of the run."""


@dataclass(frozen=True, kw_only=True)
class WandbOptions(ProjectOptions):
    """Weights & Biases. The key comes from WANDB_API_KEY or `wandb login`."""

    extra = "wandb"

    mode: Literal["auto", "online", "offline"] = "auto"
    """offline keeps the run in `wandb` in the run directory; `wandb sync` uploads it from there. auto: WANDB_MODE if
    set; otherwise online if WANDB_API_KEY is set, else offline."""

    @property
    def effective_mode(self) -> str:
        """The mode for `wandb.init`."""
        if self.mode != "auto":
            return self.mode
        return os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")


@dataclass(frozen=True, kw_only=True)
class MlflowOptions(ProjectOptions):
    """MLflow, with a server or a database file."""

    extra = "mlflow"

    tracking_uri: str = ""
    """Server or database, as for `mlflow.set_tracking_uri`. Empty: MLFLOW_TRACKING_URI if set, otherwise
    `mlflow/mlflow.db` in the run directory."""

    @property
    def is_local(self) -> bool:
        """Whether the database is in the run directory."""
        return not (self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))

    def packages(self) -> tuple[str, ...]:
        return ("mlflow", *(("sqlalchemy", "alembic") if self.is_local else ()))


@dataclass(frozen=True, kw_only=True)
class TrackioOptions(ProjectOptions):
    """trackio, on this machine or in a Hugging Face Space, with the token of `hf auth login`."""

    extra = "trackio"

    space: str = ""
    """The Space, `owner/name`. Empty: TRACKIO_SPACE_ID if set, otherwise this machine, in the folder TRACKIO_DIR."""
