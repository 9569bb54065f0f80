"""`gaitid subjects`."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.connection import confirm, connected
from service.cli.options import LOCAL, ApiKey, AsJson, Gallery, Url, Yes
from service.cli.output import print_answer, print_list

app = typer.Typer(no_args_is_help=True, help="Who is enrolled in a running service.")


@app.command("list")
def show_all(
    gallery: Gallery = "default",
    url: Url = LOCAL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List who is enrolled."""
    with connected(url, api_key) as client:
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


@app.command("show")
def show(
    subject_id: str,
    gallery: Gallery = "default",
    url: Url = LOCAL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show a person's sequences."""
    with connected(url, api_key) as client:
        subject = client.subject(subject_id, gallery=gallery)
    print_list(
        subject.sequences,
        {
            "sequence": lambda item: item.sequence_id,
            "frames": lambda item: item.frames,
            "score": lambda item: item.quality.score,
            "metadata": lambda item: item.metadata,
            "created": lambda item: item.created_at,
        },
        as_json=as_json,
    )


@app.command("rename")
def rename(
    subject_id: str,
    new_id: str,
    gallery: Gallery = "default",
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Give a person another id."""
    with connected(url, api_key) as client:
        print_answer(client.edit_subject(subject_id, gallery=gallery, new_id=new_id))


@app.command("name")
def name(
    subject_id: str,
    display_name: Annotated[
        str | None, typer.Argument(help="In any script; without it the name is taken away.")
    ] = None,
    gallery: Gallery = "default",
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Set what people call a person."""
    with connected(url, api_key) as client:
        print_answer(client.edit_subject(subject_id, gallery=gallery, display_name=display_name))


@app.command("merge")
def merge(
    subject_id: str,
    into: Annotated[str, typer.Argument(help="Whose id remains.")],
    gallery: Gallery = "default",
    yes: Yes = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Give every sequence of a person to another one, who is the same."""
    confirm(f"Make {subject_id!r} one with {into!r}, for good?", yes=yes)
    with connected(url, api_key) as client:
        print_answer(client.merge_subjects(subject_id, into, gallery=gallery))


@app.command("delete")
def delete(
    subject_id: str,
    gallery: Gallery = "default",
    yes: Yes = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Erase a person with every sequence, and show the receipt."""
    confirm(f"Erase {subject_id!r} from {gallery!r} with every sequence?", yes=yes)
    with connected(url, api_key) as client:
        print_answer(client.erase_subject(subject_id, gallery=gallery))
