"""`gaitid subjects`."""

from __future__ import annotations

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
