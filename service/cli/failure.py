"""How a command ends that cannot go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class CommandFailed(Exception):
    """The command cannot go on; the text is for the person who typed it."""

    status: ClassVar[int] = 1


class WrongUsage(CommandFailed):
    """Options or arguments do not go together, or say nothing."""

    status = 2


class StorageRefused(CommandFailed):
    """The database is busy, full or out of reach; later it may go. A job is tried again."""

    status = 75  # EX_TEMPFAIL, as the guard's


@contextmanager
def complaints() -> Iterator[None]:
    """Errors of `models` say what is wrong with a file; nobody needs their traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise CommandFailed(str(error)) from error
