"""`gaitid enroll`, `identify` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import (
    LOCAL,
    ApiKey,
    AsJson,
    Gallery,
    Threshold,
    Url,
    WalkFile,
    asking,
    connected,
    json_object,
)
from service.cli.failure import WrongUsage, failing_on
from service.cli.output import print_answer, print_object, print_table, printable

if TYPE_CHECKING:
    from service.cli.bulk_enrolment import Outcome
    from service.client import Client

app = typer.Typer()

_PATIENT = 12  # attempts, over some minutes: a killed service holds a key for two


@app.command()
def enroll(
    who: Annotated[
        str, typer.Argument(help="A person's id; or a folder, with a folder for each person.")
    ],
    walks: Annotated[
        list[Path] | None, typer.Argument(exists=True, dir_okay=False, help="Walks of the person.")
    ] = None,
    walk: Annotated[
        str | None, typer.Option(help="Instead of files: one that `gaitid footage` listed.")
    ] = None,
    gallery: Gallery = "default",
    metadata: Annotated[
        str | None, typer.Option(help='A JSON object, such as {"view": "090"}, of the person.')
    ] = None,
    accept_conflict: Annotated[
        bool, typer.Option("--accept-conflict", help="Also walks that may be another person's.")
    ] = False,
    in_flight: Annotated[
        int, typer.Option(min=1, max=32, help="Requests at once, of a few walks of a folder.")
    ] = 4,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Enrol walks of one person, or of a whole folder of people.

    A folder: FOLDER/PERSON/WALK.zip in any upload format, or FOLDER/PERSON/WALK/ with an image for
    each frame; or, one level deeper, FOLDER/PERSON/CONDITION/VIEW.zip or VIEW/. A walk's metadata
    are in WALK.json beside it, else these names say condition and view, or WALK is VIEW_CONDITION,
    as in 090_nm-01.zip. Run it again after any failure: nothing is enrolled twice. Status 1 when a
    walk was refused or a folder skipped.
    """
    if walks and walk is not None:
        raise WrongUsage("give files or --walk, not both")
    if not walks and walk is None:
        if not Path(who).is_dir():
            raise WrongUsage(f"{who!r} is no folder; to enrol one person give walks as well")
        if metadata is not None:
            raise WrongUsage("--metadata is for one person; a folder has WALK.json for each walk")
        with connected(url, api_key, attempts=_PATIENT) as client:
            _enroll_folder(client, Path(who), gallery, in_flight, accept_conflict, as_json)
        return
    with connected(url, api_key) as client:
        enrolment = client.enroll(
            who, walks or (), walk=walk, gallery=gallery,
            metadata=json_object("--metadata", metadata), accept_conflict=accept_conflict,
        )  # fmt: skip
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


def _enroll_folder(
    client: Client, folder: Path, gallery: str, in_flight: int, accept: bool, as_json: bool
) -> None:
    """Enrol a folder; raises `typer.Exit` with 1 if a walk was refused or a folder skipped."""
    from service.cli.bulk_enrolment import UnusableFolder, enrol_all, walks_in
    from service.cli.progress import bar

    with failing_on(UnusableFolder, OSError):
        found = walks_in(folder)
    client.gallery(gallery)  # before the first walk is read: is there such a gallery?
    outcomes: list[Outcome] = []
    refused: list[Outcome] = []
    enrolling = enrol_all(client, found.walks, gallery, in_flight=in_flight, accept_conflict=accept)
    with bar("0 refused", len(found.walks)) as update:
        for outcome in enrolling:
            outcomes.append(outcome)
            if as_json:
                _print_outcome(folder, outcome)
            if outcome.refused is not None:
                refused.append(outcome)
            update(advance=1, description=f"{len(refused)} refused")
    if as_json:
        for outcome in found.skipped:
            _print_outcome(folder, outcome)
    else:
        known = sum(outcome.known for outcome in outcomes)
        added = len(outcomes) - len(refused) - known
        skipped = f", {len(found.skipped)} folders skipped" if found.skipped else ""
        typer.echo(f"{added} walks enrolled, {known} were already, {len(refused)} refused{skipped}")
        if unusable := [*refused, *found.skipped]:
            print_table(
                ("refused", "because"),
                ((outcome.walk.path.relative_to(folder), outcome.refused) for outcome in unusable),
            )
    if refused or found.skipped:
        raise typer.Exit(1)


def _print_outcome(folder: Path, outcome: Outcome) -> None:
    print_object(
        {
            "walk": str(outcome.walk.path.relative_to(folder)),
            "subject_id": outcome.walk.subject_id,
            "sequence_id": outcome.sequence_id,
            "already_enrolled": outcome.known,
            "refused": outcome.refused,
        }
    )


@asking(app, "identify")
def identify(
    client: Client,
    walk: WalkFile,
    gallery: Gallery = "default",
    galleries: Annotated[
        str | None, typer.Option(help="Up to ten, with commas between, instead of --gallery.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, max=100, help="Candidates to name.")] = 5,
    threshold: Threshold = None,
    filter: Annotated[
        str | None, typer.Option(help='Metadata of candidates: JSON, such as {"view": ["090"]}.')
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Similarity of each part.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say who walks there."""
    if galleries and gallery != "default":
        raise WrongUsage("give --gallery or --galleries, not both")
    answer = client.identify(
        walk, gallery=gallery, galleries=galleries.split(",") if galleries else (),
        top_k=top_k, threshold=threshold,
        filter=json_object("--filter", filter), explain=explain, include="metadata",
    )  # fmt: skip
    if as_json:
        print_answer(answer)
        return
    typer.echo(f"{answer.decision} (threshold {answer.threshold:.3f}, {answer.threshold_source})")
    named = any(candidate.display_name for candidate in answer.candidates)
    columns = [
        "rank",
        *(["gallery"] if galleries else []),
        "similarity",
        "subject",
        *(["name"] if named else []),
        "margin",
    ]
    columns += ["parts"] if explain else []
    rows = [
        [
            candidate.rank,
            *([candidate.gallery] if galleries else []),
            f"{candidate.similarity:.3f}",
            candidate.subject_id,
            *([candidate.display_name] if named else []),
            candidate.margin,
            *([" ".join(f"{part:.2f}" for part in candidate.parts)] if candidate.parts else []),
        ]
        for candidate in answer.candidates
    ]
    if rows:
        print_table(columns, rows)


@asking(app, "verify")
def verify(
    client: Client,
    subject_id: str,
    walk: WalkFile,
    gallery: Gallery = "default",
    threshold: Threshold = None,
    as_json: AsJson = False,
) -> None:
    """Say whether this is the person; status 1 when it is not."""
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
