"""Galleries of this machine's deployment, to files: also what jobs run as their children."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands.deployment import audit_record, galleries, settings_from
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
    from service.errors import NotFound
    from service.gallery.export import GalleryChanged
    from service.gallery.export import export_gallery as export

    settings = settings_from(data_dir=data_dir)
    with galleries(settings) as engine, audit_record(settings, engine) as record:
        record.changed(Entry("export_gallery", gallery), COMMAND)
        try:
            walks = export(engine, gallery, out)
        except (NotFound, GalleryChanged) as error:
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
    from models.calibration import CannotCalibrate
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
                lambda done, total: _tell(event="progress", step=done, total_steps=total),
            )
        except (NotFound, CannotCalibrate) as error:
            raise CommandFailed(str(error)) from error
    out.write_text(measured.model_dump_json(), encoding="utf-8")
    _tell(event="done", metrics={"threshold": measured.operating_point.threshold})


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
                lambda done, total: _tell(event="progress", step=done, total_steps=total),
            )
        except (NotFound, CannotAudit) as error:
            raise CommandFailed(str(error)) from error
    out.write_text(audited.model_dump_json(), encoding="utf-8")
    _tell(event="done", metrics=audited.audit.totals.model_dump())


def _tell(**event: Any) -> None:
    typer.echo(json.dumps(event))
