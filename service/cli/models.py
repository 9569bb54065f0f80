"""`gaitid models`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import confirm, connected, followed, require_success
from service.cli.failure import complaints
from service.cli.options import LOCAL, ApiKey, AsJson, Gallery, Url, Wait, Yes
from service.cli.output import print_answer, print_list

if TYPE_CHECKING:
    from service.client import Client, Job

app = typer.Typer(no_args_is_help=True, help="Models of a running service.")


@app.command("list")
def show_all(url: Url = LOCAL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List models."""
    with connected(url, api_key) as client:
        print_list(
            client.models(),
            {
                "model": lambda item: item.name,
                "source": lambda item: item.source,
                "architecture": lambda item: item.architecture,
                "parameters": lambda item: item.parameters,
                "digest": lambda item: item.digest[:12],
                "active in": lambda item: ", ".join(item.active_in),
                "created": lambda item: item.created_at,
            },
            as_json=as_json,
        )


@app.command("show")
def show(name: str, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Show a model and its card as JSON."""
    with connected(url, api_key) as client:
        print_answer(client.model(name))


@app.command("upload")
def upload(
    name: str,
    checkpoint: Annotated[
        Path,
        typer.Argument(
            exists=True, file_okay=False, help="A folder with weights.safetensors and card.json."
        ),
    ],
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Register a checkpoint as a model; `gaitid import-opengait` makes one of OpenGait's."""
    with connected(url, api_key) as client, complaints():
        print_answer(
            client.upload_model(
                name,
                weights=checkpoint / "weights.safetensors",
                card=checkpoint / "card.json",
            )
        )


@app.command("delete")
def delete(name: str, yes: Yes = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Remove a model that no gallery uses or may go back to."""
    confirm(f"Remove the model {name!r}?", yes=yes)
    with connected(url, api_key) as client:
        client.remove_model(name)
    typer.echo(f"{name} removed")


@app.command("activate")
def activate(
    name: str,
    gallery: Gallery = "default",
    wait: Wait = True,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Serve a gallery with a model, once everything is embedded with it."""
    with connected(url, api_key) as client:
        _ended(client, client.activate(name, gallery=gallery), wait=wait)


@app.command("rollback")
def rollback(
    gallery: Gallery = "default", wait: Wait = True, url: Url = LOCAL, api_key: ApiKey = None
) -> None:
    """Serve a gallery with the model before the last activation again."""
    with connected(url, api_key) as client:
        _ended(client, client.rollback(gallery=gallery), wait=wait)


def _ended(client: Client, job: Job, *, wait: bool) -> None:
    print_answer(require_success(followed(client, job)) if wait else job)
