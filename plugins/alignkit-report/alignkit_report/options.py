"""Options of the receivers of metrics. Free of torch and of the trackers' own packages; keys come from the environment
only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar, Literal

from alignkit import Config, InputError


def is_installed(package: str) -> bool:
    """Whether there is such a package. A mere folder of this name, as trackers leave where they run, is none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


@dataclass(frozen=True, kw_only=True)
class TrackerOptions(Config):
    """What the options of all trackers share.

    Attributes:
        extra: the extra of this distribution that installs the tracker.
    """

    extra: ClassVar[str]

    name: str = ""
    """Name of the run; empty takes that of the run directory."""

    def packages(self) -> tuple[str, ...]:
        """The modules that these options need."""
        return (self.extra,)

    def check(self) -> None:
        """Looks whether the tracker is installed.

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
    """Folder of several runs, each of which writes into a folder of its name in there; empty writes into `tensorboard`
    in the run directory."""

    def check(self) -> None:
        super().check()
        if self.name and not self.folder:
            raise InputError("counts only together with folder", where="name", fix="set folder, or leave it out")


@dataclass(frozen=True, kw_only=True)
class ProjectOptions(TrackerOptions):
    """What the options of trackers share that keep the runs of a project together."""

    project: str = "alignkit"
    """Project, or experiment, that the run belongs to."""


@dataclass(frozen=True, kw_only=True)
class WandbOptions(ProjectOptions):
    """Weights & Biases. The key comes from WANDB_API_KEY or `wandb login`."""

    extra = "wandb"

    mode: Literal["auto", "online", "offline"] = "auto"
    """offline keeps the run in `wandb` in the run directory, from where `wandb sync` uploads it. auto: what WANDB_MODE
    says, or else online if WANDB_API_KEY is set, or else offline."""

    @property
    def effective_mode(self) -> str:
        """What `wandb.init` is given."""
        if self.mode != "auto":
            return self.mode
        return os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")


@dataclass(frozen=True, kw_only=True)
class MlflowOptions(ProjectOptions):
    """MLflow, with a server or a database file."""

    extra = "mlflow"

    tracking_uri: str = ""
    """Server or database, as `mlflow.set_tracking_uri` takes it. Empty: what MLFLOW_TRACKING_URI says, or else
    `mlflow/mlflow.db` in the run directory."""

    @property
    def is_local(self) -> bool:
        """Whether the run directory holds the database."""
        return not (self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))

    def packages(self) -> tuple[str, ...]:
        return ("mlflow", *(("sqlalchemy", "alembic") if self.is_local else ()))


@dataclass(frozen=True, kw_only=True)
class TrackioOptions(ProjectOptions):
    """trackio, on this machine or in a Hugging Face Space, to which the token of `hf auth login` gives access."""

    extra = "trackio"

    space: str = ""
    """The Space, `owner/name`. Empty: what TRACKIO_SPACE_ID says, or else this machine, in the folder TRACKIO_DIR."""
