"""Settings of the C library's allocator for memory that a network freed.

Feature maps are megabytes each, which glibc asks the kernel for anew every time: thousands of page
faults, a fifth to a third of the time of one walk's embedding, and from a twentieth of a training
step's for a small network to a quarter for a large one. Other C libraries are left as they are, and
so is a GPU's memory, which PyTorch keeps by itself.
"""

from __future__ import annotations

import ctypes
from typing import Final

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_MMAP_MAX: Final = -4
_ARENA_MAX: Final = -8

_KEPT: Final = 256 * 2**20  # bytes at most, a few times what embedding a batch needs at once
_LARGEST: Final = 32 * 2**20  # bytes of one block; glibc takes no more


def keep_freed_memory() -> None:
    """For a service: keep some for the next walk, and hand back what a burst of work had taken."""
    _set({_TRIM_THRESHOLD: _KEPT, _MMAP_THRESHOLD: _LARGEST})


def keep_all_freed_memory() -> None:
    """For a program that ends with its training: every step needs as much as the last one.

    Call it before threads begin: there is one pool for all of them from then on.
    """
    _set({_TRIM_THRESHOLD: -1, _MMAP_MAX: 0, _ARENA_MAX: 1})


def _set(parameters: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in parameters.items():
            mallopt(parameter, value)
