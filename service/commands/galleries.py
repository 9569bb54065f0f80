"""`gaitid galleries`."""

from __future__ import annotations

from typing import Annotated

import typer

from service.commands.connection import confirm, connected
from service.commands.options import LOCAL, ApiKey, AsJson, Url, Yes
from service.commands.output import print_answer, print_list

app = typer.Typer(no_args_is_help=True, help="Galleries of a running service.")

Name = Annotated[str, typer.Argument(help="The gallery's name.")]


@app.command("list")
def show_all(url: Url = LOCAL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List galleries."""
    with connected(url, api_key) as client:
        print_list(
            client.galleries(),
            {
                "gallery": lambda item: item.name,
                "subjects": lambda item: item.subjects,
                "sequences": lambda item: item.sequences,
                "model": lambda item: item.model.name,
                "created": lambda item: item.created_at,
            },
            as_json=as_json,
        )


@app.command("show")
def show(name: Name, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Show a gallery as JSON."""
    with connected(url, api_key) as client:
        print_answer(client.gallery(name))


@app.command("create")
def create(name: Name, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Create an empty gallery."""
    with connected(url, api_key) as client:
        print_answer(client.create_gallery(name))


@app.command("delete")
def delete(name: Name, yes: Yes = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Erase a gallery with everybody in it, and show the receipt."""
    confirm(f"Erase the gallery {name!r} with everybody in it?", yes=yes)
    with connected(url, api_key) as client:
        print_answer(client.erase_gallery(name))
