"""`gaitid audit`: the record of who did what."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from service.cli.connection import connected
from service.cli.failure import CommandFailed, WrongUsage
from service.cli.options import LOCAL, ApiKey, Url

app = typer.Typer()


@app.command()
def audit(
    since: Annotated[
        str | None, typer.Option(help="From then on, such as 2026-11-01T00:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before then.")] = None,
    gallery: Annotated[str | None, typer.Option(help="Only of this gallery.")] = None,
    after: Annotated[int, typer.Option(min=0, help="Only lines with a higher number.")] = 0,
    check: Annotated[
        bool, typer.Option(help="Say instead whether the lines are unchanged; else status 1.")
    ] = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Write the audit record of a running service as JSON lines."""
    from service.access.audit import chain

    if check and (gallery is not None or until is not None):
        raise WrongUsage(
            "--check takes every line up to the newest, so it cannot be told with --gallery or "
            "--until"
        )
    with connected(url, api_key) as client:
        lines = client.audit(since=since, until=until, gallery=gallery, after=after)
        if not check:
            for line in lines:
                typer.echo(line)
            return
        try:
            checked = chain.check(json.loads(line) for line in lines)
        except chain.Broken as error:
            raise CommandFailed(str(error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise CommandFailed(f"{url} sends lines that are none of an audit record") from error
    typer.echo(
        f"{checked.lines} lines, {checked.first} to {checked.last}, unchanged; "
        f"the last one's hash is {checked.hash}"
    )
