"""`gaitid subjects`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import AsJson, Gallery, Yes, asking, confirm, json_object
from service.cli.failure import WrongUsage
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
            "name": lambda item: item.display_name,
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


@asking(app, "edit")
def edit(
    client: Client,
    subject_id: str,
    name: Annotated[
        str | None, typer.Option(help="What people call the person; empty to remove it.")
    ] = None,
    metadata: Annotated[
        str | None, typer.Option(help='Replaces all of it: JSON, such as {"team": "B"}.')
    ] = None,
    gallery: Gallery = "default",
) -> None:
    """Set a person's display name or metadata."""
    if name is None and metadata is None:
        raise WrongUsage("give --name, --metadata, or both")
    print_answer(
        client.edit_subject(
            subject_id,
            gallery=gallery,
            display_name=... if name is None else name or None,
            metadata=json_object("--metadata", metadata),
        )
    )


@asking(app, "rename")
def rename(client: Client, subject_id: str, new_id: str, gallery: Gallery = "default") -> None:
    """Give a person another id."""
    print_answer(client.edit_subject(subject_id, gallery=gallery, new_id=new_id))


@asking(app, "merge")
def merge(
    client: Client,
    subject_id: str,
    into: Annotated[str, typer.Argument(help="Who is the same person, and remains.")],
    gallery: Gallery = "default",
    yes: Yes = False,
) -> None:
    """Give every sequence of a person to another subject, who is the same person."""
    confirm(f"Merge {subject_id!r} into {into!r} for good?", yes=yes)
    print_answer(client.edit_subject(subject_id, gallery=gallery, merge_into=into))


@asking(app, "delete")
def delete(client: Client, subject_id: str, gallery: Gallery = "default", yes: Yes = False) -> None:
    """Erase a person with every sequence, and show the receipt."""
    confirm(f"Erase {subject_id!r} from {gallery!r} with every sequence?", yes=yes)
    print_answer(client.erase_subject(subject_id, gallery=gallery))
