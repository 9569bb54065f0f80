"""`gaitid sequences`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import Yes, asking, confirm, json_object
from service.cli.failure import WrongUsage, failing_on
from service.cli.output import print_answer

if TYPE_CHECKING:
    from service.client import Client

app = typer.Typer(no_args_is_help=True, help="Enrolled walks of a running service.")


@asking(app, "show")
def show(client: Client, sequence_id: str) -> None:
    """Show a sequence as JSON, without its silhouettes."""
    print_answer(client.sequence(sequence_id))


@asking(app, "edit")
def edit(
    client: Client,
    sequence_id: str,
    metadata: Annotated[
        str | None, typer.Option(help='Replaces all of it: JSON, such as {"view": "090"}.')
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Whose it is: somebody enrolled.")] = None,
) -> None:
    """Correct a sequence's metadata, or whose it is."""
    if metadata is None and subject is None:
        raise WrongUsage("give --metadata, --subject, or both")
    content = json_object("--metadata", metadata)
    print_answer(client.edit_sequence(sequence_id, metadata=content, subject_id=subject))


@asking(app, "download")
def download(
    client: Client,
    sequence_id: str,
    out: Annotated[
        Path, typer.Argument(help="FILE.npz: silhouettes; .gif: as a film; .png: energy image.")
    ],
) -> None:
    """Write a sequence's silhouettes to a file; its ending says as what."""
    kinds = {".npz": client.silhouettes, ".gif": client.film, ".png": client.energy_image}
    fetch = kinds.get(out.suffix.lower())
    if fetch is None:
        raise WrongUsage(f"{out}: .npz, .gif or .png?")
    content = fetch(sequence_id)
    with failing_on(OSError):
        out.write_bytes(content)
    typer.echo(f"{out}: {len(content)} bytes")


@asking(app, "delete")
def delete(client: Client, sequence_id: str, yes: Yes = False) -> None:
    """Erase a sequence, and its subject with the last one, and show the receipt."""
    confirm(f"Erase the sequence {sequence_id!r}?", yes=yes)
    print_answer(client.erase_sequence(sequence_id))
