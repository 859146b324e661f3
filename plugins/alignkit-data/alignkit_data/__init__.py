"""Preference sources `dataset`, `function`, `candidates` and `mix`, and the export to TRL's columns. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_data.export import to_trl_rows, write_parquet
from alignkit_data.loading import Detected
from alignkit_data.messages import content_of, text_of
from alignkit_data.options import CandidatesOptions, DatasetOptions, FunctionOptions, MixOptions
from alignkit_data.source import Dataset, FunctionSource

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1

__all__ = [
    "CandidatesOptions",
    "Dataset",
    "DatasetOptions",
    "Detected",
    "FunctionOptions",
    "FunctionSource",
    "MixOptions",
    "content_of",
    "text_of",
    "to_trl_rows",
    "write_parquet",
]


@hookimpl
def register_preference_sources(register: Register) -> None:
    register("dataset", "alignkit_data.source:Dataset", config=DatasetOptions)
    register("function", "alignkit_data.source:FunctionSource", config=FunctionOptions)
    register("candidates", "alignkit_data.source:Candidates", config=CandidatesOptions)
    register("mix", "alignkit_data.mix:Mix", config=MixOptions)
