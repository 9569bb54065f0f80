"""What commands need that ask a running service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from service.cli.failure import CommandFailed
from service.cli.output import printable

if TYPE_CHECKING:
    from service.client import Client, ClientError, Job


@contextmanager
def connected(url: str, api_key: str | None, *, patience: int = 3) -> Iterator[Client]:
    """A client whose failures end the command with what the service says.

    Args:
        url: of the service.
        api_key: None for none.
        patience: how often a call is made at most; a person waits, a folder of walks has time.
    """
    from service.client import Client, ClientError, Retries

    try:
        client = Client(url, api_key=api_key, retries=Retries(attempts=patience))
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    try:
        with client:
            yield client
    except ClientError as error:
        raise CommandFailed(explained(error)) from error


def explained(error: ClientError) -> str:
    """What went wrong, and by which names the service's documentation and log have it."""
    from service.client import Refused

    said = "\n".join(printable(line) for line in str(error).split("\n"))
    if not isinstance(error, Refused):
        return said
    names = [f"{error.status} {error.slug}"]
    if error.request_id is not None:
        names.append(f"request {error.request_id}")
    return f"{said}\n  ({printable(', '.join(names))})"


def followed(client: Client, job: Job, *, quietly: bool = False) -> Job:
    """Follow a job to its end, with a progress bar on stderr unless `quietly`."""
    from rich.console import Console

    from service.cli.progress import follow

    return follow(client, job.id, console=Console(stderr=True, quiet=quietly))


def require_success(job: Job) -> Job:
    """The job; raises `CommandFailed` unless it has succeeded."""
    if job.status != "succeeded":
        raise CommandFailed(
            f"the job {job.id} {job.status}{': ' + printable(job.error) if job.error else ''}"
        )
    return job


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone; raises `CommandFailed` for anything but a yes."""
    if not yes and not typer.confirm(question, err=True):
        raise CommandFailed("nothing was done")
