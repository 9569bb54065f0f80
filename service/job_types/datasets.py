"""The datasets of jobs: packs in the data folder, and galleries, which are packed first."""

from __future__ import annotations

from pathlib import Path

from service.foundation.settings import Settings
from service.job_types.commands import deployment, program
from service.job_types.held_out_split import partition_of
from service.job_types.requests import Dataset, GalleryDataset
from service.jobs.job_type import JobRefused, Step, partial
from service.jobs.scratch import scratch

_INDEX = "index.json"


def find_pack(settings: Settings, name: str) -> Path | None:
    """The pack called `name`, with or without its suffix; None if it is missing."""
    for candidate in (settings.datasets_dir / name, settings.datasets_dir / f"{name}.pack"):
        if (candidate / _INDEX).is_file():
            return candidate.absolute()
    return None


def dataset_steps(
    settings: Settings, dataset: Dataset, folder: Path, *, hold_out: bool = False
) -> tuple[tuple[Step, ...], Path]:
    """The steps that make a dataset ready, and the pack that they make.

    A gallery is exported and packed into the job's scratch, once: a job that resumes goes on with
    the same walks. With `hold_out` a fifth of its people is not trained on.
    """
    if not isinstance(dataset, GalleryDataset):
        found = find_pack(settings, dataset)
        if found is None:
            raise JobRefused(f"the dataset {dataset!r} is no longer there")
        return (), found
    export, pack = gallery_export(folder), scratch(folder) / "dataset.pack"
    partition = scratch(folder) / "partition.json"
    packing = ["pack", str(export), "--out", str(partial(pack)), "--format", "gallery"]
    if hold_out:
        packing += ["--partition", str(partition)]

    def hold_people_out() -> None:
        try:
            partition.write_text(partition_of(export), encoding="utf-8")
        except ValueError as error:
            raise JobRefused(str(error)) from error

    return (
        Step(
            "exporting the gallery",
            program("service", "export-gallery", dataset.gallery, str(partial(export))),
            output=export,
            environment=deployment(settings),
        ),
        Step(
            "packing the gallery",
            program("training", *packing),
            output=pack,
            prepare=hold_people_out if hold_out else None,
        ),
    ), pack


def gallery_export(folder: Path) -> Path:
    """The file of the exported gallery that is a job's dataset."""
    return scratch(folder) / "gallery.zip"
