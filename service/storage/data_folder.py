"""Keep the data folder, which holds biometric data, from other users of the machine.

An older folder, or one made by hand, may be open to others. The start closes it where this user
may: a folder that others cannot enter hides everything inside.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import make_url

from service.foundation.settings import Settings

_log = logging.getLogger(__name__)

_OTHERS: Final = 0o077
_SECRET: Final = ("receipts.key", "jobs", "audit.sqlite")  # and the galleries' database


class NotPrivate(Exception):
    """Others can read what they must not, and this user cannot change that; the text says what."""


def open_data_folder(settings: Settings) -> None:
    """Make the data folder if it is missing, and close it and its contents to other users.

    Raises `NotPrivate`, and `OSError` if the folder cannot be made.
    """
    folder = settings.data_dir
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mended, left = [], []
    for path in _paths(settings):
        try:
            if _make_private(path):
                mended.append(path.name)
        except FileNotFoundError:  # SQLite's log, or a folder that just arrived
            continue
        except PermissionError as error:
            if path.name.startswith((*_SECRET, *(file.name for file in _databases(settings)))):
                raise NotPrivate(
                    f"other users of this machine may read {path}, which belongs to somebody else: "
                    f"give it to the user of the service, or take it from the others "
                    f"(chmod go-rwx)"
                ) from error
            left.append(path.name)
    if mended:
        _log.warning("other users could read what is kept, and cannot any more: %s", mended)
    if left:
        _log.warning("other users may read what belongs to somebody else: %s", left)


def _paths(settings: Settings) -> Iterator[Path]:
    """The folder, its entries, and databases in other folders."""
    folder = settings.data_dir
    yield folder
    yield from sorted(folder.iterdir())
    for database in _databases(settings):
        if database.parent.absolute() != folder.absolute():
            yield from (database.with_name(database.name + end) for end in ("", "-wal", "-shm"))


def _databases(settings: Settings) -> Iterator[Path]:
    """The files of the galleries and of the keys of walks, unless those are in PostgreSQL."""
    for url in (settings.resolved_database_url, settings.walk_keys_url):
        parsed = None if url is None else make_url(url)
        if parsed is not None and parsed.get_backend_name() == "sqlite" and parsed.database:
            yield Path(parsed.database)


def _make_private(path: Path) -> bool:
    """Returns whether access was taken from others; a link to a folder is left as it is."""
    mode = path.stat().st_mode
    if not mode & _OTHERS or (path.is_symlink() and stat.S_ISDIR(mode)):
        return False
    path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
    return True
