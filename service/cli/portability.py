"""`gaitid export` and `import`: whole galleries of a running service as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import AsJson, GalleryName, asking
from service.cli.failure import failing_on
from service.cli.output import print_answer

if TYPE_CHECKING:
    from service.client import Client

app = typer.Typer()


@asking(app, "export")
def export(
    client: Client,
    gallery: GalleryName,
    out: Annotated[Path, typer.Argument(dir_okay=False, help="The .zip to write.")],
    embeddings: Annotated[
        bool, typer.Option(help="With the models' embeddings, which are made again otherwise.")
    ] = True,
) -> None:
    """Download a whole gallery of a running service as one file."""
    from service.cli.progress import transfer

    with failing_on(OSError), transfer(gallery, None) as transferred:
        client.export_gallery(gallery, out, embeddings=embeddings, transferred=transferred)
    typer.echo(f"{out}: {out.stat().st_size} bytes")


@asking(app, "import")
def import_gallery(
    client: Client,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An export.")],
    gallery: Annotated[str, typer.Option(help="Name of the gallery to make.")],
    as_json: AsJson = False,
) -> None:
    """Make a new gallery from an exported one."""
    from service.cli.progress import transfer

    with failing_on(OSError), transfer(file.name, file.stat().st_size) as transferred:
        made = client.import_gallery(file, gallery, transferred=transferred)
    if as_json:
        print_answer(made)
    else:
        typer.echo(
            f"{gallery}: {made.gallery.subjects} subjects, {made.gallery.sequences} sequences, "
            f"{made.sequence_ids} ids, {made.embeddings['taken']} embeddings taken over"
        )
