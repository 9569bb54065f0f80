"""Galleries of this machine's deployment, to files: also what jobs run as their children."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands.deployment import database, settings_from
from service.commands.failure import CommandFailed
from service.commands.options import DataDir

app = typer.Typer()

GalleryName = Annotated[str, typer.Argument(help="The gallery's name.")]


@app.command("export-gallery")
def export_gallery(
    gallery: GalleryName,
    out: Annotated[Path, typer.Argument(help="The .zip to write.")],
    data_dir: DataDir = None,
) -> None:
    """Write a gallery's walks to a file that `python -m training pack` reads."""
    from service.errors import NotFound
    from service.gallery.export import export_gallery as export

    with database(settings_from(data_dir=data_dir)) as engine:
        try:
            walks = export(engine, gallery, out)
        except NotFound as error:
            raise CommandFailed(str(error)) from error
    typer.echo(f"{walks} walks")


@app.command("calibrate-gallery", hidden=True)
def calibrate_gallery(
    gallery: GalleryName,
    out: Annotated[Path, typer.Argument(help="The .json to write.")],
    checkpoint: Annotated[Path, typer.Option(exists=True, help="Folder of a checkpoint.")],
    target_fpir: Annotated[float, typer.Option(help="The rate of false matches to promise.")],
    data_dir: DataDir = None,
) -> None:
    """Find a gallery's threshold and write it to a file: a calibration job's command."""
    import json

    from models.calibration import CannotCalibrate
    from service.calibration import CalibrationModel, measure
    from service.errors import NotFound

    def tell(**event: Any) -> None:
        typer.echo(json.dumps(event))

    with database(settings_from(data_dir=data_dir)) as engine:
        try:
            model = CalibrationModel.read(checkpoint)
            measured = measure(
                engine,
                gallery,
                model,
                target_fpir,
                lambda done, total: tell(event="progress", step=done, total_steps=total),
            )
        except (NotFound, CannotCalibrate) as error:
            raise CommandFailed(str(error)) from error
    out.write_text(measured.model_dump_json(), encoding="utf-8")
    tell(event="done", metrics={"threshold": measured.operating_point.threshold})
