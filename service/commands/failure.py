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


@contextmanager
def complaints() -> Iterator[None]:
    """Errors of `models` say what is wrong with a file; nobody needs their traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise CommandFailed(str(error)) from error
