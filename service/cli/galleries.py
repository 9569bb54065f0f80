"""`gaitid galleries`."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.connection import confirm, connected
from service.cli.options import LOCAL, ApiKey, AsJson, Url, Yes
from service.cli.output import print_answer, print_list

app = typer.Typer(no_args_is_help=True, help="Galleries of a running service.")

MaxAgeDays = typer.Option(min=1, help="Erase what was enrolled so many days ago.")
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
                "days kept": lambda item: item.max_age_days,
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
def create(
    name: Name,
    max_age_days: Annotated[int | None, MaxAgeDays] = None,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Create an empty gallery."""
    with connected(url, api_key) as client:
        print_answer(client.create_gallery(name, max_age_days=max_age_days))


@app.command("keep")
def keep(
    name: Name,
    max_age_days: Annotated[int | None, MaxAgeDays] = None,
    yes: Yes = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Set how long a gallery keeps its sequences: without --max-age-days for ever."""
    if max_age_days is not None:
        confirm(f"Erase what is older than {max_age_days} days in {name!r}, always?", yes=yes)
    with connected(url, api_key) as client:
        print_answer(client.change_gallery(name, max_age_days=max_age_days))


@app.command("delete")
def delete(name: Name, yes: Yes = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Erase a gallery with everybody in it, and show the receipt."""
    confirm(f"Erase the gallery {name!r} with everybody in it?", yes=yes)
    with connected(url, api_key) as client:
        print_answer(client.erase_gallery(name))
