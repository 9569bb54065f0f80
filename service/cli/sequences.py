"""`gaitid sequences`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.connection import confirm, connected
from service.cli.failure import WrongUsage, complaints
from service.cli.options import LOCAL, ApiKey, Url, Yes, json_object
from service.cli.output import print_answer

app = typer.Typer(no_args_is_help=True, help="Enrolled walks of a running service.")


@app.command("show")
def show(sequence_id: str, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Show a sequence as JSON, without its silhouettes."""
    with connected(url, api_key) as client:
        print_answer(client.sequence(sequence_id))


@app.command("edit")
def edit(
    sequence_id: str,
    metadata: Annotated[
        str | None, typer.Option(help='Replaces all of it: JSON, such as {"view": "090"}.')
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Whose it is: somebody enrolled.")] = None,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Correct a sequence's metadata, or whose it is."""
    if metadata is None and subject is None:
        raise WrongUsage("give --metadata, --subject, or both")
    content = json_object("--metadata", metadata)
    with connected(url, api_key) as client:
        print_answer(client.edit_sequence(sequence_id, metadata=content, subject_id=subject))


@app.command("download")
def download(
    sequence_id: str,
    out: Annotated[
        Path, typer.Argument(help="FILE.npz: silhouettes; .gif: as a film; .png: energy image.")
    ],
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Write a sequence's silhouettes to a file; its ending says as what."""
    with connected(url, api_key) as client:
        match out.suffix.lower():
            case ".npz":
                content = client.silhouettes(sequence_id)
            case ".gif":
                content = client.film(sequence_id)
            case ".png":
                content = client.energy_image(sequence_id)
            case _:
                raise WrongUsage(f"{out}: .npz, .gif or .png?")
    with complaints():
        out.write_bytes(content)
    typer.echo(f"{out}: {len(content)} bytes")


@app.command("delete")
def delete(sequence_id: str, yes: Yes = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Erase a sequence, and its subject with the last one, and show the receipt."""
    confirm(f"Erase the sequence {sequence_id!r}?", yes=yes)
    with connected(url, api_key) as client:
        print_answer(client.erase_sequence(sequence_id))
