"""`gaitid models`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import AsJson, Gallery, Wait, Yes, asking, confirm, finish
from service.cli.failure import failing_on
from service.cli.output import print_answer, print_list

if TYPE_CHECKING:
    from service.client import Client

app = typer.Typer(no_args_is_help=True, help="Models of a running service.")


@asking(app, "list")
def show_all(client: Client, as_json: AsJson = False) -> None:
    """List models."""
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


@asking(app, "show")
def show(client: Client, name: str) -> None:
    """Show a model and its card as JSON."""
    print_answer(client.model(name))


@asking(app, "upload")
def upload(
    client: Client,
    name: str,
    checkpoint: Annotated[
        Path,
        typer.Argument(
            exists=True, file_okay=False, help="A folder with weights.safetensors and card.json."
        ),
    ],
) -> None:
    """Register a checkpoint as a model; `gaitid import-opengait` makes one of OpenGait's."""
    weights, card = checkpoint / "weights.safetensors", checkpoint / "card.json"
    with failing_on(OSError):
        print_answer(client.upload_model(name, weights=weights, card=card))


@asking(app, "delete")
def delete(client: Client, name: str, yes: Yes = False) -> None:
    """Remove a model that no gallery uses or may go back to."""
    confirm(f"Remove the model {name!r}?", yes=yes)
    client.remove_model(name)
    typer.echo(f"{name} removed")


@asking(app, "activate")
def activate(client: Client, name: str, gallery: Gallery = "default", wait: Wait = True) -> None:
    """Serve a gallery with a model, once everything is embedded with it."""
    job = client.activate(name, gallery=gallery)
    print_answer(finish(client, job) if wait else job)


@asking(app, "rollback")
def rollback(client: Client, gallery: Gallery = "default", wait: Wait = True) -> None:
    """Serve a gallery with the model before the last activation again."""
    job = client.rollback(gallery=gallery)
    print_answer(finish(client, job) if wait else job)
