"""`gaitid import-opengait` and `embed`: checkpoints on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from service.cli.failure import WrongUsage, failing_on

app = typer.Typer()

ARCHITECTURES = (
    "gaitbase, deepgaitv2[-2d|-p3d|-3d], gaitset, gaitpart, gaitgl, swingait or skeletongaitpp."
)


@app.command("import-opengait")
def import_opengait(
    checkpoint: Annotated[Path, typer.Argument(exists=True, help="A .pt file of OpenGait's.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    architecture: Annotated[str, typer.Option(help=ARCHITECTURES)],
    name: Annotated[str | None, typer.Option(help="Name on the card.")] = None,
    metric: Annotated[
        Literal["cosine", "euclidean"], typer.Option(help="How its embeddings are compared.")
    ] = "euclidean",
    embedding_source: Annotated[
        Literal["embedding", "neck"],
        typer.Option(help="What is compared; neck where it was trained with use_emb2."),
    ] = "embedding",
) -> None:
    """Turn a checkpoint that OpenGait saved into one of ours."""
    from models.opengait.importing import convert

    with failing_on(ValueError, OSError):
        card = convert(
            checkpoint, out, architecture,
            name=name, metric=metric, embedding_source=embedding_source,
        )  # fmt: skip
    typer.echo(
        f"{out}: {card.architecture}, {card.parts} parts of {card.channels} channels, "
        f"{card.identities} identities, digest {card.digest}"
    )


@app.command()
def embed(
    checkpoint: Annotated[Path, typer.Option(exists=True, help="Folder of a checkpoint.")],
    out: Annotated[
        Path, typer.Option(help="The .npz to write: embeddings; of --normalised also logits.")
    ],
    walks: Annotated[list[Path] | None, typer.Argument(help="Walks in any upload format.")] = None,
    normalised: Annotated[
        Path | None,
        typer.Option(exists=True, help="Instead: an .npz of silhouettes, uint8, n × s × 64 × 44."),
    ] = None,
) -> None:
    """Embed walks with a checkpoint."""
    from models.encoder.embedding_file import embed_prepared, embed_walks

    if (normalised is None) == (not walks):
        raise WrongUsage("give walks, or --normalised, and not both")
    with failing_on(ValueError, OSError):
        if normalised is not None:
            count = embed_prepared(checkpoint, normalised, out)
        else:
            count = embed_walks(checkpoint, walks or [], out)
    typer.echo(f"{out}: {count} walks")
