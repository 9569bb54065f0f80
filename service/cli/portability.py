"""`gaitid export`, `import`: whole galleries of a running service as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.connection import connected
from service.cli.failure import complaints
from service.cli.options import LOCAL, ApiKey, AsJson, Url
from service.cli.output import print_answer

app = typer.Typer()


@app.command("export")
def export(
    gallery: Annotated[str, typer.Argument(help="The gallery's name.")],
    out: Annotated[Path, typer.Argument(dir_okay=False, help="The .zip to write.")],
    embeddings: Annotated[
        bool, typer.Option(help="With the models' embeddings, which are made again otherwise.")
    ] = True,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Bring a whole gallery of a running service home as one file."""
    from service.cli.progress import transfer

    with (
        complaints(),
        connected(url, api_key) as client,
        transfer(gallery, None) as transferred,
    ):
        client.export_gallery(gallery, out, embeddings=embeddings, transferred=transferred)
    typer.echo(f"{out}: {out.stat().st_size} bytes")


@app.command("import")
def import_gallery(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An export.")],
    gallery: Annotated[str, typer.Option(help="Name of the gallery to make.")],
    url: Url = LOCAL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a new gallery of an exported one."""
    from service.cli.progress import transfer

    with (
        complaints(),
        connected(url, api_key) as client,
        transfer(file.name, file.stat().st_size) as transferred,
    ):
        made = client.import_gallery(file, gallery, transferred=transferred)
    if as_json:
        print_answer(made)
        return
    typer.echo(
        f"{gallery}: {made.gallery.subjects} subjects, {made.gallery.sequences} "
        f"sequences, {made.sequence_ids} ids, {made.embeddings['taken']} embeddings taken over"
    )
