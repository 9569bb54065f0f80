"""`gaitid export-gallery`, and the hidden commands that jobs run as their child processes.

They write their result to a file, and what they report to stdout, as a training does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.connection import GalleryName
from service.cli.deployment import DataDir, audit_record, existing, galleries, settings_from
from service.cli.failure import failing_on
from service.jobs.job import LEASE_VARIABLE

if TYPE_CHECKING:  # each command loads what it needs
    from sqlalchemy import Engine

    from service.foundation.settings import Settings
    from service.gallery.records import Progress
    from service.job_types.commands import Record
    from service.jobs.queue import JobQueue

app = typer.Typer()

Result = Annotated[Path, typer.Argument(help="The .json to write.")]
Checkpoint = Annotated[Path, typer.Option(exists=True, help="Folder of a checkpoint.")]


def report(**event: Any) -> None:
    """Report one event to the worker."""
    typer.echo(json.dumps(event))


def report_steps(done: int, total: int) -> None:
    """Report how many of the job's steps are done."""
    report(event="progress", step=done, total_steps=total)


@contextmanager
def _to_end_a_job(
    data_dir: Path | None,
) -> Iterator[tuple[Settings, Engine, JobQueue, Progress, Record]]:
    """What a command is given that ends its job itself, in an order that those commands share."""
    from service.access.audit.entries import SERVICE
    from service.jobs.queue import JobQueue

    settings = settings_from(data_dir=data_dir)
    with galleries(settings) as engine, audit_record(settings, engine) as record:
        queue = JobQueue.of(engine, settings)
        yield settings, engine, queue, report_steps, lambda entry: record.changed(entry, SERVICE)


@app.command("export-gallery")
def export_gallery(
    gallery: GalleryName,
    out: Annotated[Path, typer.Argument(help="The .zip to write.")],
    data_dir: DataDir = None,
) -> None:
    """Write a gallery's walks from the database to a file, as jobs do to train on them."""
    from service.access.audit.entries import COMMAND, Entry
    from service.foundation.errors import CutOff, NotFound
    from service.transfer.export import export_gallery as export

    settings = existing(data_dir)
    with galleries(settings) as engine, audit_record(settings, engine) as record:
        record.changed(Entry("export_gallery", gallery), COMMAND)
        with failing_on(CutOff, NotFound):
            walks = export(engine, gallery, out)
    typer.echo(f"{walks} walks")


@app.command("calibrate-gallery", hidden=True)
def calibrate_gallery(
    gallery: GalleryName,
    out: Result,
    checkpoint: Checkpoint,
    target_fpir: Annotated[float, typer.Option(help="The rate of false matches to promise.")],
    data_dir: DataDir = None,
) -> None:
    """Find a gallery's threshold: a calibration job's command."""
    from models.thresholds.calibration import CannotCalibrate
    from service.foundation.errors import NotFound
    from service.job_types.calibration import measure
    from service.serving.model_files import read_card

    with (
        galleries(settings_from(data_dir=data_dir)) as engine,
        failing_on(NotFound, CannotCalibrate),
    ):
        model = read_card(checkpoint)
        measured = measure(engine, gallery, model, target_fpir, report_steps)
    out.write_text(measured.model_dump_json(), encoding="utf-8")
    report(event="done", metrics={"threshold": measured.operating_point.threshold})


@app.command("audit-gallery", hidden=True)
def audit_gallery(
    gallery: GalleryName, out: Result, checkpoint: Checkpoint, data_dir: DataDir = None
) -> None:
    """Find what in a gallery attracts other people: an audit job's command."""
    from service.foundation.errors import NotFound
    from service.job_types.gallery_audit import CannotAudit, audit
    from service.serving.model_files import read_card

    with galleries(settings_from(data_dir=data_dir)) as engine, failing_on(NotFound, CannotAudit):
        audited = audit(engine, gallery, read_card(checkpoint), report_steps)
    out.write_text(audited.model_dump_json(), encoding="utf-8")
    report(event="done", metrics=audited.audit.totals.model_dump())


@app.command("reindex-gallery", hidden=True)
def reindex_gallery(gallery: GalleryName, out: Result, data_dir: DataDir = None) -> None:
    """Check and complete a gallery's embeddings: a reindex job's command."""
    from service.foundation.errors import ServiceError
    from service.job_types.reindexing import CannotReindex, reindex

    settings = settings_from(data_dir=data_dir)
    with galleries(settings) as engine, failing_on(ServiceError, CannotReindex):
        done = reindex(settings, engine, gallery, report_steps)
    out.write_text(done.model_dump_json(), encoding="utf-8")


@app.command("activate-model", hidden=True)
def activate_model(
    job_id: str,
    lease: Annotated[int, typer.Option(envvar=LEASE_VARIABLE, help="The number of its lease.")],
    data_dir: DataDir = None,
) -> None:
    """Re-embed a gallery and swap its model: an activation job's command, which ends the job."""
    from service.foundation.errors import ServiceError
    from service.job_types.activation import Activation, CannotActivate

    with _to_end_a_job(data_dir) as given, failing_on(ServiceError, CannotActivate):
        Activation(*given).run(job_id, lease)


@app.command("adapt-gallery", hidden=True)
def adapt_gallery(
    job_id: str,
    lease: Annotated[int, typer.Option(envvar=LEASE_VARIABLE, help="The number of its lease.")],
    data_dir: DataDir = None,
) -> None:
    """Fit a gallery's scene transform: an adaptation job's command, which ends the job."""
    from service.foundation.errors import ServiceError
    from service.job_types.adaptation import Adaptation, CannotAdapt

    with _to_end_a_job(data_dir) as given, failing_on(ServiceError, CannotAdapt):
        Adaptation(*given).run(job_id, lease)


@app.command("compare-models", hidden=True)
def compare_models(
    gallery: GalleryName,
    out: Result,
    checkpoint: Annotated[Path, typer.Option(exists=True, help="Folder of the new checkpoint.")],
    pack: Annotated[Path, typer.Option(exists=True, help="What it was trained on.")],
    data_dir: DataDir = None,
) -> None:
    """Compare a new model with a gallery's own on people it was not trained on."""
    from service.foundation.errors import ServiceError
    from service.job_types.gate import compare_with_active

    settings = settings_from(data_dir=data_dir)
    with galleries(settings) as engine, failing_on(ServiceError, ValueError, OSError):
        verdict = compare_with_active(settings, engine, gallery, checkpoint, pack, report_steps)
    out.write_text(verdict.model_dump_json(), encoding="utf-8")
