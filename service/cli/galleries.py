"""`gaitid galleries`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import AsJson, GalleryName, Yes, asking, confirm
from service.cli.output import print_answer, print_list

if TYPE_CHECKING:
    from service.client import Client

app = typer.Typer(no_args_is_help=True, help="Galleries of a running service.")

MaxAgeDays = Annotated[
    int | None, typer.Option(min=1, help="Erase what was enrolled so many days ago.")
]


@asking(app, "list")
def show_all(client: Client, as_json: AsJson = False) -> None:
    """List galleries."""
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


@asking(app, "show")
def show(client: Client, name: GalleryName) -> None:
    """Show a gallery as JSON."""
    print_answer(client.gallery(name))


@asking(app, "create")
def create(client: Client, name: GalleryName, max_age_days: MaxAgeDays = None) -> None:
    """Create an empty gallery."""
    print_answer(client.create_gallery(name, max_age_days=max_age_days))


@asking(app, "keep")
def keep(
    client: Client, name: GalleryName, max_age_days: MaxAgeDays = None, yes: Yes = False
) -> None:
    """Set how long a gallery keeps its sequences: without --max-age-days for ever."""
    if max_age_days is not None:
        confirm(f"Erase what is older than {max_age_days} days in {name!r}, always?", yes=yes)
    print_answer(client.change_gallery(name, max_age_days=max_age_days))


@asking(app, "delete")
def delete(client: Client, name: GalleryName, yes: Yes = False) -> None:
    """Erase a gallery with everybody in it, and show the receipt."""
    confirm(f"Erase the gallery {name!r} with everybody in it?", yes=yes)
    print_answer(client.erase_gallery(name))
