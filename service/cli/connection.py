"""What the commands share that ask a running service: their options and the client."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer

from service.cli.failure import CommandFailed, WrongUsage
from service.cli.output import printable

if TYPE_CHECKING:
    from service.client import Client, ClientError, Job

P = ParamSpec("P")

LOCAL = "http://127.0.0.1:8000"

Url = Annotated[
    str, typer.Option(envvar="GAITID_URL", help="Where the service listens.", show_default=True)
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="GAITID_API_KEY", help="Better set in the environment.")
]
Gallery = Annotated[str, typer.Option(help="The gallery to use.")]
GalleryName = Annotated[str, typer.Argument(help="The gallery's name.")]
WalkFile = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A walk's file.")]
Threshold = Annotated[
    float | None, typer.Option(min=-1, max=1, help="Instead of the gallery's or the model's.")
]
TargetFpir = Annotated[float, typer.Option(help="At most this share of strangers may be matched.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answers as JSON; of lists an object a line.")]
Wait = Annotated[bool, typer.Option(help="Follow the job to its end.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def asking(
    app: typer.Typer, name: str, *, attempts: int = 3
) -> Callable[[Callable[Concatenate[Client, P], None]], Callable[..., None]]:
    """Make a command of `app` from a function whose first parameter is the client.

    The command gets the options --url and --api-key in its place.

    Args:
        app: gets the command.
        name: of the command.
        attempts: see `connected`.
    """

    def register(function: Callable[Concatenate[Client, P], None]) -> Callable[..., None]:
        client, *own = inspect.signature(function).parameters.values()
        del function.__annotations__[client.name]  # its class is not imported yet
        hints = get_type_hints(function, include_extras=True)
        parameters = [item.replace(annotation=hints[item.name]) for item in own]
        for option, kind, default in (("url", Url, LOCAL), ("api_key", ApiKey, None)):
            parameters.append(
                inspect.Parameter(
                    option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
                )
            )

        @functools.wraps(function)
        def command(*, url: str, api_key: str | None, **given: Any) -> None:
            with connected(url, api_key, attempts=attempts) as client:
                function(client, **given)  # type: ignore[call-arg]

        command.__annotations__ = {item.name: item.annotation for item in parameters}
        command.__dict__["__signature__"] = inspect.Signature(parameters)
        return app.command(name)(command)

    return register


@contextmanager
def connected(url: str, api_key: str | None, *, attempts: int = 3) -> Iterator[Client]:
    """Yield a client whose errors end the command with what the service says.

    Args:
        url: of the service.
        api_key: None for none.
        attempts: the most attempts per call; few where a person waits.
    """
    from service.client import Client, ClientError, Retries

    try:
        client = Client(url, api_key=api_key, retries=Retries(attempts=attempts))
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    try:
        with client:
            yield client
    except ClientError as error:
        raise CommandFailed(explained(error)) from error


def explained(error: ClientError) -> str:
    """Return what went wrong, with the names that the documentation and the log use for it."""
    from service.client import Refused

    said = "\n".join(printable(line) for line in str(error).split("\n"))
    if not isinstance(error, Refused):
        return said
    request = "" if error.request_id is None else f", request {error.request_id}"
    return f"{said}\n  ({printable(f'{error.status} {error.slug}{request}')})"


def finish(client: Client, job: Job, *, quiet: bool = False) -> Job:
    """Follow a job to its end, with a progress bar on stderr unless `quiet`.

    Raises:
        CommandFailed: it has not succeeded.
    """
    from rich.console import Console

    from service.cli.progress import follow

    return require_success(follow(client, job.id, console=Console(stderr=True, quiet=quiet)))


def require_success(job: Job) -> Job:
    """Return the job; raises `CommandFailed` unless it has succeeded."""
    if job.status != "succeeded":
        raise CommandFailed(
            f"the job {job.id} {job.status}{': ' + printable(job.error) if job.error else ''}"
        )
    return job


def json_object(option: str, text: str | None) -> dict[str, Any] | None:
    """Parse a JSON object that was given as an option; raises `WrongUsage`."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise WrongUsage(f"{option} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise WrongUsage(f"{option} must be a JSON object")
    return value


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone; raises `CommandFailed` unless the answer is yes."""
    if not yes and not typer.confirm(question, err=True):
        raise CommandFailed("nothing was done")
