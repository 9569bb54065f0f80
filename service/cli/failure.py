"""How a command ends that cannot go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from service.foundation.errors import Unavailable


class CommandFailed(Exception):
    """The command cannot go on; the text is for the person who typed it."""

    status: ClassVar[int] = 1


class WrongUsage(CommandFailed):
    """Options or arguments are missing, contradict each other or cannot be read."""

    status = 2


class StorageRefused(CommandFailed):
    """The database or the store is busy, full or away, or a process was killed: a job goes on."""

    status = 75  # EX_TEMPFAIL, as `kill_with_parent` returns


@contextmanager
def failing_on(*kinds: type[Exception]) -> Iterator[None]:
    """End the command with the text of such an error, without a traceback."""
    try:
        yield
    except kinds as error:
        failed = StorageRefused if isinstance(error, Unavailable) else CommandFailed
        raise failed(str(error)) from error
