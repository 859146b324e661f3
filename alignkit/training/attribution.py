"""What an algorithm raises or returns wrongly carries its name and method."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from alignkit.errors import PluginError
from alignkit.plugins import blamed

if TYPE_CHECKING:
    from collections.abc import Callable

    from alignkit.companions import Metrics

ResultT = TypeVar("ResultT")


def attributed(method: Callable[..., ResultT]) -> Callable[..., ResultT]:
    """The bound method; its errors name its object's class and the method."""

    @wraps(method)
    def called(*given: Any, **named: Any) -> ResultT:
        with blamed(_owner(method), f"{method.__name__}() failed"):
            return method(*given, **named)

    return called


def checked_loss(compute: Callable[..., Any], batch: Any) -> tuple[torch.Tensor, Metrics]:
    """What an algorithm's `loss` returns for a batch.

    Raises:
        PluginError: it raised, or returned something else than a scalar tensor and a mapping of figures.
    """
    match attributed(compute)(batch):
        case (torch.Tensor() as loss, dict() as metrics) if loss.ndim == 0:
            return loss, metrics
        case (torch.Tensor() as loss, _):
            found = f"a loss of shape {list(loss.shape)}" if loss.ndim else "no mapping of figures"
        case other:
            found = type(other).__name__
    raise PluginError(f"{_owner(compute)}: loss() must return a scalar tensor and a mapping of figures, found {found}")


def _owner(method: Callable[..., Any]) -> str:
    return f"optimizer {type(getattr(method, '__self__', method)).__name__}"
