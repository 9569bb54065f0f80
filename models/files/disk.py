"""What has to be on the disk before it counts."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Bring a file or folder to the disk, so that a power cut after a rename finds it whole.

    Raises:
        OSError: it is not there, or the disk is full or broken.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
