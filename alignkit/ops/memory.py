"""Work that is done again in smaller parts when memory runs out."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

ResultT = TypeVar("ResultT")

_SIGNS = ("out of memory", "can't allocate memory", "could not create a primitive", "alloc_failed", "bad_alloc")
"""Parts of the messages of CUDA, MPS, torch's CPU allocator, oneDNN, cuBLAS and C++."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or on the CPU."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    caused = error.__cause__ is not None and is_out_of_memory(error.__cause__)
    return known or caused or any(sign in str(error).lower() for sign in _SIGNS)


def until_it_fits(compute: Callable[[int], ResultT], size: int, smaller: Callable[[int], None]) -> ResultT:
    """`compute(size)`; when memory runs out, again with half the size, down to 1.

    Args:
        smaller: told each new size before it is tried.
    """
    while True:
        try:
            return compute(size)
        except Exception as error:
            if size <= 1 or not is_out_of_memory(error):
                raise
        size //= 2
        smaller(size)
