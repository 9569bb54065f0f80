"""`gaitid status` and `audit`: the service, and the record of who did what."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import AsJson, asking
from service.cli.failure import CommandFailed, WrongUsage, failing_on
from service.cli.output import print_answer

if TYPE_CHECKING:
    from service.client import Client

app = typer.Typer()


@asking(app, "status", attempts=1)
def status(client: Client, as_json: AsJson = False) -> None:
    """Say whether a service is ready, and with which model; status 1 when it is not."""
    answer = client.readiness()
    if as_json:
        print_answer(answer)
    else:
        typer.echo(f"{answer.status}, model {answer.model.name} ({answer.model.digest[:12]})")


@asking(app, "audit")
def audit(
    client: Client,
    since: Annotated[
        str | None, typer.Option(help="From then on, such as 2026-11-01T00:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before then.")] = None,
    gallery: Annotated[str | None, typer.Option(help="Only of this gallery.")] = None,
    after: Annotated[int, typer.Option(min=0, help="Only lines with a higher number.")] = 0,
    check: Annotated[
        bool, typer.Option(help="Say instead whether the lines are unchanged; else status 1.")
    ] = False,
) -> None:
    """Write the audit record of a running service as JSON lines."""
    from service.access.audit import chain

    if check and (gallery is not None or until is not None):
        raise WrongUsage("--check needs every line up to the newest: leave out --gallery, --until")
    lines = client.audit(since=since, until=until, gallery=gallery, after=after)
    if not check:
        for line in lines:
            typer.echo(line)
        return
    with failing_on(chain.Broken):
        try:
            checked = chain.check(json.loads(line) for line in lines)
        except (ValueError, KeyError, TypeError) as error:
            raise CommandFailed("the service sends lines that are no audit record") from error
    typer.echo(
        f"{checked.lines} lines, {checked.first} to {checked.last}, unchanged; "
        f"the last one's hash is {checked.hash}"
    )
