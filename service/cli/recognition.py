"""`gaitid enroll`, `identify`, `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli import folder
from service.cli.connection import connected
from service.cli.failure import WrongUsage
from service.cli.options import (
    LOCAL,
    ApiKey,
    AsJson,
    Gallery,
    Threshold,
    Url,
    WalkFile,
    json_object,
)
from service.cli.output import print_answer, print_table, printable

app = typer.Typer()


@app.command()
def enroll(
    who: Annotated[
        str, typer.Argument(help="A person's id; or a folder, with a folder for each person.")
    ],
    walks: Annotated[
        list[Path] | None, typer.Argument(exists=True, dir_okay=False, help="Walks of the person.")
    ] = None,
    gallery: Gallery = "default",
    metadata: Annotated[
        str | None, typer.Option(help='A JSON object, such as {"view": "090"}, of the person.')
    ] = None,
    accept_conflict: Annotated[
        bool, typer.Option("--accept-conflict", help="Also walks that may be another person's.")
    ] = False,
    in_flight: Annotated[
        int, typer.Option(min=1, max=32, help="Walks of a folder that are sent at once.")
    ] = 4,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Enrol walks of one person, or of a whole folder of people.

    A folder: FOLDER/PERSON/WALK.zip in any upload format, or FOLDER/PERSON/WALK/ with an image for
    each frame. A walk's metadata are in WALK.json beside it, else its name says VIEW_CONDITION, as
    in 090_nm-01.zip. Run it again after whatever happened: nothing is enrolled twice. Status 1 when
    a walk was refused.
    """
    if not walks:
        if not Path(who).is_dir():
            raise WrongUsage(f"{who!r} is no folder; to enrol one person give walks as well")
        if metadata is not None:
            raise WrongUsage("--metadata is for one person; a folder has WALK.json for each walk")
        folder.enroll(
            Path(who),
            gallery,
            url,
            api_key,
            in_flight=in_flight,
            accept_conflict=accept_conflict,
            as_json=as_json,
        )
        return
    with connected(url, api_key) as client:
        enrolment = client.enroll(
            who,
            walks,
            gallery=gallery,
            metadata=json_object("--metadata", metadata),
            accept_conflict=accept_conflict,
        )
    if as_json:
        print_answer(enrolment)
        return
    print_table(
        ("sequence", "frames", "score", "issues", ""),
        (
            (
                sequence.sequence_id,
                sequence.frames,
                sequence.quality.score,
                ", ".join(sequence.quality.issues) or "none",
                "already enrolled" if sequence.already_enrolled else "",
            )
            for sequence in enrolment.sequences
        ),
    )
    for conflict in enrolment.conflicts:
        typer.echo(
            f"{printable(conflict.where)} may be {printable(conflict.other.subject_id)}", err=True
        )


@app.command()
def identify(
    walk: WalkFile,
    gallery: Gallery = "default",
    top_k: Annotated[int, typer.Option(min=1, max=100, help="Candidates to name.")] = 5,
    threshold: Threshold = None,
    filter: Annotated[
        str | None, typer.Option(help='Metadata of candidates: JSON, such as {"view": ["090"]}.')
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Similarity of each part.")] = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Say who walks there."""
    with connected(url, api_key) as client:
        answer = client.identify(
            walk,
            gallery=gallery,
            top_k=top_k,
            threshold=threshold,
            filter=json_object("--filter", filter),
            explain=explain,
        )
    if as_json:
        print_answer(answer)
        return
    typer.echo(f"{answer.decision} (threshold {answer.threshold:.3f}, {answer.threshold_source})")
    columns = ["rank", "similarity", "subject", "margin", *(["parts"] if explain else [])]
    rows = [
        [
            candidate.rank,
            f"{candidate.similarity:.3f}",
            candidate.subject_id,
            candidate.margin,
            *([" ".join(f"{part:.2f}" for part in candidate.parts)] if candidate.parts else []),
        ]
        for candidate in answer.candidates
    ]
    if rows:
        print_table(columns, rows)


@app.command()
def verify(
    subject_id: str,
    walk: WalkFile,
    gallery: Gallery = "default",
    threshold: Threshold = None,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Say whether this is the person; status 1 when it is not."""
    with connected(url, api_key) as client:
        answer = client.verify(subject_id, walk, gallery=gallery, threshold=threshold)
    if as_json:
        print_answer(answer)
    else:
        typer.echo(
            f"{'verified' if answer.verified else 'not verified'}: similarity "
            f"{answer.similarity:.3f}, threshold {answer.threshold:.3f}"
        )
    if not answer.verified:
        raise typer.Exit(1)
