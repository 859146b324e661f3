"""Names of the variants in `ops`, for options classes. Imports no torch."""

from __future__ import annotations

from typing import Literal

KLEstimator = Literal["k1", "k2", "k3", "full"]
KLControl = Literal["fixed", "adaptive", "linear", "target"]
KLPlace = Literal["reward", "loss"]
Surrogate = Literal["clip", "truncated"]
RatioLevel = Literal["token", "sequence", "sequence-mean"]
Mismatch = Literal["off", "token-truncate", "token-mask", "sequence-mask"]
Aggregation = Literal["token", "response", "sum"]
