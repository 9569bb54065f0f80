"""The export is a contract with the training program: written here, read there."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from sqlalchemy import Engine

from service.foundation.errors import NotFound
from service.gallery.store import GalleryStore
from service.job_types.requests import Protocol
from service.transfer.export import export_gallery
from tests.service.jobs.galleries import enrol
from training.data.gallery_export import GalleryExport
from training.evaluation.protocols import PROTOCOLS


def test_an_exported_gallery_is_read_back_equal(engine: Engine, tmp_path: Path) -> None:
    store = GalleryStore(engine)
    store.ensure("default")
    store.ensure("other")
    many = enrol(store, "default", "a", 70)  # more than a page
    few = enrol(store, "default", "b", 2)
    enrol(store, "other", "c", 1)
    assert export_gallery(engine, "default", tmp_path / "gallery.zip") == 72
    assert (tmp_path / "gallery.zip").stat().st_mode & 0o077 == 0  # it is biometric data
    with GalleryExport(tmp_path / "gallery.zip") as export:
        listed = list(export.sequences())
        assert [entry.subject_id for entry in listed] == ["a"] * 70 + ["b"] * 2
        assert all(entry.metadata == {"view": "090"} for entry in listed)
        for sequence in (*many, *few):
            silhouettes = export.silhouettes(sequence.sequence_id)
            assert np.array_equal(silhouettes, sequence.walk.silhouettes)


def test_a_gallery_that_does_not_exist_is_not_exported(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        export_gallery(engine, "nope", tmp_path / "gallery.zip")
    assert not (tmp_path / "gallery.zip").exists()


def test_requests_name_the_protocols_that_the_training_program_has() -> None:
    assert set(get_args(Protocol)) == set(PROTOCOLS)
