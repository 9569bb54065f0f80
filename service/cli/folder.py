"""`gaitid enroll FOLDER`: progress while it goes on, and at the end what was refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from service.cli.connection import connected
from service.cli.failure import CommandFailed
from service.cli.output import print_object, print_table

if TYPE_CHECKING:
    from service.cli.bulk_enrolment import Outcome

_PATIENCE = 12  # attempts, over some minutes: a killed service holds a key for two


def enroll(
    folder: Path,
    gallery: str,
    url: str,
    api_key: str | None,
    *,
    in_flight: int,
    accept_conflict: bool,
    as_json: bool,
) -> None:
    """Enrol a folder; raises `typer.Exit` with 1 when a walk was refused."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from service.cli.bulk_enrolment import UnusableFolder, enrol_all, walks_in

    try:
        walks = walks_in(folder)
    except (UnusableFolder, OSError) as error:
        raise CommandFailed(str(error)) from error
    outcomes: list[Outcome] = []
    with connected(url, api_key, patience=_PATIENCE) as client:
        client.gallery(gallery)  # else a thousand walks are read to hear that there is none
        bar = Progress(
            TextColumn("{task.fields[refused]} refused"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        with bar:
            task = bar.add_task("", total=len(walks), refused=0)
            for outcome in enrol_all(
                client, walks, gallery, in_flight=in_flight, accept_conflict=accept_conflict
            ):
                outcomes.append(outcome)
                if as_json:
                    _print(folder, outcome)
                refused = sum(item.refused is not None for item in outcomes)
                bar.update(task, advance=1, refused=refused)
    if not as_json:
        _summarise(folder, outcomes)
    if any(outcome.refused is not None for outcome in outcomes):
        raise typer.Exit(1)


def _print(folder: Path, outcome: Outcome) -> None:
    print_object(
        {
            "walk": str(outcome.walk.path.relative_to(folder)),
            "subject_id": outcome.walk.subject_id,
            "sequence_id": outcome.sequence_id,
            "already_enrolled": outcome.known,
            "refused": outcome.refused,
        }
    )


def _summarise(folder: Path, outcomes: list[Outcome]) -> None:
    refused = [outcome for outcome in outcomes if outcome.refused is not None]
    known = sum(outcome.known for outcome in outcomes)
    added = len(outcomes) - len(refused) - known
    typer.echo(f"{added} walks enrolled, {known} were already, {len(refused)} refused")
    if refused:
        print_table(
            ("refused", "because"),
            ((outcome.walk.path.relative_to(folder), outcome.refused) for outcome in refused),
        )
