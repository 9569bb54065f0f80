"""Files and folders that are whole after a crash."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk.

    Raises:
        OSError: the disk refused.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(directory: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder of `files` in the place of `directory`, which may exist.

    A reader never finds a part of it. Where a folder is replaced, it is absent for the moment
    between two renamings.

    Raises:
        OSError: the disk refused; the old folder, if there was one, is in its place.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    # beside the target, so that renaming stays within one file system
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        for name, content in files.items():
            (fresh / name).write_bytes(content)
            sync(fresh / name)
        sync(fresh)
        if directory.exists():
            directory.rename(old)
        try:
            fresh.rename(directory)
        except OSError:
            if old.exists():
                old.rename(directory)
            raise
        sync(directory.parent)
