"""How a command ends that cannot go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class CommandFailed(Exception):
    """The command cannot go on; the text is for the person who typed it."""


@contextmanager
def complaints() -> Iterator[None]:
    """Errors of `models` say what is wrong with a file; nobody needs their traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise CommandFailed(str(error)) from error
