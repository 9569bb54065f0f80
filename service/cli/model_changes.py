"""What jobs run as their children that change a gallery's model, or ask whether to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.deployment import audit_record, galleries, settings_from
from service.cli.events import tell_steps
from service.cli.failure import CommandFailed, complaints
from service.cli.options import DataDir
from service.jobs.job import LEASE_VARIABLE

app = typer.Typer()


@app.command("activate-model", hidden=True)
def activate_model(
    job_id: str,
    lease: Annotated[int, typer.Option(envvar=LEASE_VARIABLE, help="Its worker's, by number.")],
    data_dir: DataDir = None,
) -> None:
    """Re-embed a gallery and swap its model: an activation job's command, which ends the job."""
    from service.access.audit.entries import SERVICE, Entry
    from service.foundation.errors import ServiceError
    from service.job_types.activation import Activation, CannotActivate
    from service.jobs.queue import JobQueue

    settings = settings_from(data_dir=data_dir)
    with galleries(settings) as engine, audit_record(settings, engine) as record:

        def swapped(entry: Entry) -> None:
            record.changed(entry, SERVICE)

        queue = JobQueue.of(engine, settings)
        try:
            Activation(settings, engine, queue, tell_steps, swapped).run(job_id, lease)
        except (ServiceError, CannotActivate) as error:
            raise CommandFailed(str(error)) from error


@app.command("hold-out", hidden=True)
def hold_out(
    export: Annotated[Path, typer.Argument(exists=True, help="A file of export-gallery's.")],
    out: Annotated[Path, typer.Argument(help="The partition's .json to write.")],
) -> None:
    """Say whom a training may learn and whom not: a command of a distillation that is compared."""
    from service.job_types.held_out_split import partition_of

    with complaints():
        out.write_text(partition_of(export), encoding="utf-8")


@app.command("compare-models", hidden=True)
def compare_models(
    gallery: Annotated[str, typer.Argument(help="The gallery's name.")],
    out: Annotated[Path, typer.Argument(help="The .json to write.")],
    checkpoint: Annotated[Path, typer.Option(exists=True, help="Folder of the new checkpoint.")],
    pack: Annotated[Path, typer.Option(exists=True, help="What it was trained on.")],
    data_dir: DataDir = None,
) -> None:
    """Compare a new model with a gallery's own on people it was not trained on."""
    from service.foundation.errors import ServiceError
    from service.job_types.gate import compare_with_active

    settings = settings_from(data_dir=data_dir)
    with galleries(settings) as engine, complaints():
        try:
            verdict = compare_with_active(settings, engine, gallery, checkpoint, pack, tell_steps)
        except ServiceError as error:
            raise CommandFailed(str(error)) from error
    out.write_text(verdict.model_dump_json(), encoding="utf-8")
