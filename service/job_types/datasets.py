"""Datasets that jobs name: packs in the data folder, and galleries, which are packed first."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from service.foundation.settings import Settings
from service.job_types.held_out_split import partition_of
from service.job_types.requests import Dataset, GalleryDataset
from service.jobs.plan import JobRefused, Step, partial, scratch

_INDEX = "index.json"


def find_pack(settings: Settings, name: str) -> Path | None:
    """The pack called `name`, with or without its suffix; None when there is none."""
    for candidate in (settings.datasets_dir / name, settings.datasets_dir / f"{name}.pack"):
        if (candidate / _INDEX).is_file():
            return candidate.absolute()
    return None


def dataset_steps(
    settings: Settings, dataset: Dataset, folder: Path, *, hold_out: bool = False
) -> tuple[tuple[Step, ...], Path]:
    """The steps that make a dataset ready, and the pack that is there afterwards.

    A gallery is exported and packed into the job's scratch, once: a job that resumes goes on with
    the walks that it began with. With `hold_out` a fifth of its people is not trained on.
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
    """Where a job has the walks of the gallery that is its dataset."""
    return scratch(folder) / "gallery.zip"


def program(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line of one of our programs, under this interpreter."""
    return (sys.executable, "-m", module, *arguments)


def device(settings: Settings) -> Mapping[str, str]:
    """The environment that keeps a run off a GPU which this deployment is not to use."""
    return {"CUDA_VISIBLE_DEVICES": ""} if settings.device == "cpu" else {}


def deployment(settings: Settings) -> Mapping[str, str]:
    """The environment in which another process of ours finds the same database and models."""
    environment = {
        "GAITID_DATA_DIR": str(settings.data_dir),
        "GAITID_SHIPPED_MODELS_DIR": str(settings.shipped_models_dir.absolute()),
        "GAITID_MODEL": settings.model,
        "GAITID_DEVICE": settings.device,
    }
    if settings.database_url is not None:
        environment["GAITID_DATABASE_URL"] = settings.database_url
    return environment
