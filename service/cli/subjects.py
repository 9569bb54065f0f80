"""`gaitid subjects`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from service.cli.connection import AsJson, Gallery, Yes, asking, confirm
from service.cli.output import print_answer, print_list

if TYPE_CHECKING:
    from service.client import Client

app = typer.Typer(no_args_is_help=True, help="Who is enrolled in a running service.")


@asking(app, "list")
def show_all(client: Client, gallery: Gallery = "default", as_json: AsJson = False) -> None:
    """List who is enrolled."""
    print_list(
        client.subjects(gallery=gallery),
        {
            "subject": lambda item: item.subject_id,
            "sequences": lambda item: item.sequences,
            "created": lambda item: item.created_at,
        },
        as_json=as_json,
    )


@asking(app, "show")
def show(
    client: Client, subject_id: str, gallery: Gallery = "default", as_json: AsJson = False
) -> None:
    """Show a person's sequences."""
    print_list(
        client.subject(subject_id, gallery=gallery).sequences,
        {
            "sequence": lambda item: item.sequence_id,
            "frames": lambda item: item.frames,
            "score": lambda item: item.quality.score,
            "metadata": lambda item: item.metadata,
            "created": lambda item: item.created_at,
        },
        as_json=as_json,
    )


@asking(app, "delete")
def delete(client: Client, subject_id: str, gallery: Gallery = "default", yes: Yes = False) -> None:
    """Erase a person with every sequence, and show the receipt."""
    confirm(f"Erase {subject_id!r} from {gallery!r} with every sequence?", yes=yes)
    print_answer(client.erase_subject(subject_id, gallery=gallery))
