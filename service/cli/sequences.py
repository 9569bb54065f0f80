"""`gaitid sequences`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import Yes, asking, confirm
from service.cli.failure import WrongUsage, failing_on
from service.cli.output import print_answer

if TYPE_CHECKING:
    from service.client import Client

app = typer.Typer(no_args_is_help=True, help="Enrolled walks of a running service.")


@asking(app, "show")
def show(client: Client, sequence_id: str) -> None:
    """Show a sequence as JSON, without its silhouettes."""
    print_answer(client.sequence(sequence_id))


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
