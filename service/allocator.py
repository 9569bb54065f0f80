"""What the C library does with memory that a search gave back."""

from __future__ import annotations

import ctypes
from typing import Final

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3

_KEPT: Final = 256 * 2**20  # bytes at most, a few times what embedding a batch needs at once
_LARGEST: Final = 32 * 2**20  # bytes of one block; glibc takes no more


def keep_freed_memory() -> None:
    """Have freed memory kept for the next allocation instead of handed back to the kernel.

    A network's feature maps are megabytes each, which glibc asks the kernel for anew every time:
    thousands of page faults, a fifth to a third of the time that one walk's embedding takes. Other
    C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGEST)
