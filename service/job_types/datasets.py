"""The datasets of jobs: packs of the deployment, and galleries, which are packed first."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from service.foundation.settings import Settings
from service.job_types.commands import deployment, program
from service.job_types.held_out_split import partition_of
from service.job_types.requests import Dataset, GalleryDataset
from service.jobs.job_type import JobRefused, Step, partial
from service.jobs.scratch import scratch
from service.storage.file_store import FileStore, StoreDamaged, open_store

IN_STORE: Final = "datasets"
_INDEX: Final = "index.json"
_SUFFIX: Final = ".pack"
_UNUSED_S: Final = 7 * 86_400.0


def has_pack(settings: Settings, name: str) -> bool:
    """Whether there is a pack called `name`, with or without its suffix; nothing is fetched."""
    store = open_store(settings)
    if store is None:
        return find_pack(settings, name) is not None
    return any(store.find(f"{IN_STORE}/{one}") for one in (name, name + _SUFFIX))


def find_pack(settings: Settings, name: str) -> Path | None:
    """The folder, on this host, of the pack called `name`; None if it is missing.

    Fetched from the store, if there is one and this host has no copy of the pack as it is now.
    """
    store = open_store(settings)
    for one in (name, name + _SUFFIX):
        if store is not None:
            manifest = store.find(f"{IN_STORE}/{one}")
            if manifest is not None:
                return _fetched(settings, store, one, manifest.digest).absolute()
        elif (settings.datasets_dir / one / _INDEX).is_file():
            return (settings.datasets_dir / one).absolute()
    return None


def local_packs(settings: Settings) -> Iterator[Path]:
    """The folders of packs in the data folder."""
    if settings.datasets_dir.is_dir():
        for folder in sorted(settings.datasets_dir.iterdir()):
            if (folder / _INDEX).is_file():
                yield folder


def drop_unused_packs(settings: Settings) -> None:
    """Remove this host's copies of packs that the store has no more, or no job has used lately."""
    store, cache = open_store(settings), settings.cache_dir / IN_STORE
    if store is None or not cache.is_dir():
        return
    kept = set()
    for key in store.keys(IN_STORE):
        with suppress(StoreDamaged):
            manifest = store.find(key)
            kept.add(None if manifest is None else manifest.digest)
    for folder in cache.iterdir():
        if folder.name not in kept or time.time() - folder.stat().st_mtime > _UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)  # another process may do it too


def _fetched(settings: Settings, store: FileStore, name: str, digest: str) -> Path:
    """The copy of a pack, in a folder by digest, so that a pack that is put anew is another."""
    folder = settings.cache_dir / IN_STORE / digest
    if not (folder / name).is_dir():
        store.fetch(f"{IN_STORE}/{name}", folder / name)
    os.utime(folder)
    return folder / name


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
