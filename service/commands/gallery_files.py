"""Galleries of this machine's deployment, to files: also what jobs run as their children."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.deployment import audit_record, existing, galleries, settings_from
from service.commands.events import tell, tell_steps
from service.commands.failure import CommandFailed
from service.commands.options import DataDir

app = typer.Typer()

GalleryName = Annotated[str, typer.Argument(help="The gallery's name.")]
Checkpoint = Annotated[Path, typer.Option(exists=True, help="Folder of a checkpoint.")]


@app.command("export-gallery")
def export_gallery(
    gallery: GalleryName,
    out: Annotated[Path, typer.Argument(help="The .zip to write.")],
    data_dir: DataDir = None,
) -> None:
    """Write a gallery's walks to a file, out of the database, as jobs do to train on them."""
    from service.audit.entries import COMMAND, Entry
    from service.errors import CutOff, NotFound
    from service.gallery.export import export_gallery as export

    settings = existing(data_dir)
    with galleries(settings) as engine, audit_record(settings, engine) as record:
        record.changed(Entry("export_gallery", gallery), COMMAND)
        try:
            walks = export(engine, gallery, out)
        except (CutOff, NotFound) as error:
            raise CommandFailed(str(error)) from error
    typer.echo(f"{walks} walks")


@app.command("calibrate-gallery", hidden=True)
def calibrate_gallery(
    gallery: GalleryName,
    out: Annotated[Path, typer.Argument(help="The .json to write.")],
    checkpoint: Checkpoint,
    target_fpir: Annotated[float, typer.Option(help="The rate of false matches to promise.")],
    data_dir: DataDir = None,
) -> None:
    """Find a gallery's threshold and write it to a file: a calibration job's command."""
    from models.thresholds.calibration import CannotCalibrate
    from service.calibration import CalibrationModel, measure
    from service.errors import NotFound

    with galleries(settings_from(data_dir=data_dir)) as engine:
        try:
            model = CalibrationModel.read(checkpoint)
            measured = measure(
                engine,
                gallery,
                model,
                target_fpir,
                tell_steps,
            )
        except (NotFound, CannotCalibrate) as error:
            raise CommandFailed(str(error)) from error
    out.write_text(measured.model_dump_json(), encoding="utf-8")
    tell(event="done", metrics={"threshold": measured.operating_point.threshold})


@app.command("audit-gallery", hidden=True)
def audit_gallery(
    gallery: GalleryName,
    out: Annotated[Path, typer.Argument(help="The .json to write.")],
    checkpoint: Checkpoint,
    data_dir: DataDir = None,
) -> None:
    """Audit a gallery and write what was found to a file: an audit job's command."""
    from service.errors import NotFound
    from service.gallery_audit import AuditModel, CannotAudit, audit

    with galleries(settings_from(data_dir=data_dir)) as engine:
        try:
            audited = audit(
                engine,
                gallery,
                AuditModel.read(checkpoint),
                tell_steps,
            )
        except (NotFound, CannotAudit) as error:
            raise CommandFailed(str(error)) from error
    out.write_text(audited.model_dump_json(), encoding="utf-8")
    tell(event="done", metrics=audited.audit.totals.model_dump())


@app.command("reindex-gallery", hidden=True)
def reindex_gallery(
    gallery: GalleryName,
    out: Annotated[Path, typer.Argument(help="The .json to write.")],
    data_dir: DataDir = None,
) -> None:
    """Check and complete a gallery's embeddings: a reindex job's command."""
    from service.errors import ServiceError
    from service.reindexing import CannotReindex, reindex

    settings = settings_from(data_dir=data_dir)
    with galleries(settings) as engine:
        try:
            done = reindex(settings, engine, gallery, tell_steps)
        except (ServiceError, CannotReindex) as error:
            raise CommandFailed(str(error)) from error
    out.write_text(done.model_dump_json(), encoding="utf-8")
