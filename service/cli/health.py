"""`gaitid status`."""

from __future__ import annotations

import typer

from service.cli.connection import connected
from service.cli.options import LOCAL, ApiKey, AsJson, Url
from service.cli.output import print_answer

app = typer.Typer()


@app.command("status")
def status(url: Url = LOCAL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Say whether a service is ready, and with which model; status 1 when it is not."""
    with connected(url, api_key, patience=1) as client:
        answer = client.readiness()
    if as_json:
        print_answer(answer)
    else:
        typer.echo(f"{answer.status}, model {answer.model.name} ({answer.model.digest[:12]})")
