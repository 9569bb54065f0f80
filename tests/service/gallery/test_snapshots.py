"""Snapshots of large indexes: a quick start that is never a second truth."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from models.comparison.scene import SceneFit, SceneTransform
from service.foundation.settings import Settings
from service.gallery.editing import edit_sequence
from service.gallery.growing_index import GrowingIndex
from service.gallery.live_index import LiveIndex, stored_embeddings
from service.gallery.operating_point import OperatingPoint
from service.gallery.records import Changes, Embedding, Metadata
from service.gallery.roster import Roster
from service.gallery.scenes import new_scene, put
from service.gallery.sealing import unlock
from service.gallery.snapshots import Snapshots
from service.gallery.store import GalleryStore
from service.gallery.tables import GalleryRow
from service.http.resources import open_engine
from service.privacy.erasure_transactions import erase_gallery, erase_sequence, erase_subject
from service.storage.database import now, writing
from service.storage.encryption import EncryptionKey
from tests.service.jobs.galleries import add, made_walk
from tests.service.requests import enrol as enrol_walk
from tests.service.requests import identify
from tests.service.server import Serve
from tests.service.walkers import walk

PARTS, CHANNELS, DIGEST = 2, 4, "d"
PEOPLE = 30
VIEWS = ("000", "090")


def embedding(seed: int) -> Embedding:
    return np.random.default_rng(seed).normal(size=(PARTS, CHANNELS)).astype(np.float32)


def enrol(store: GalleryStore, name: str, *seeds: int) -> list[str]:
    walks = [
        made_walk(embedding(seed), np.full((1, 64, 64), seed % 251, np.uint8)) for seed in seeds
    ]
    metadata: Metadata = {"view": VIEWS[seeds[0] % 2], "camera": 3, "indoors": True}
    return [one.sequence_id for one in add(store, "default", name, walks, DIGEST, metadata)]


class CountedStore(GalleryStore):
    """Counts the sequences that were read to follow the database."""

    read = 0

    def changes(self, gallery_id: str, since: int, digest: str) -> Changes:
        changes = super().changes(gallery_id, since, digest)
        self.read += len(changes.added)
        return changes


class Process:
    """What one process holds of the gallery `default`."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.store = CountedStore(engine)
        self.snapshots = Snapshots(engine, folder)
        roster = Roster()
        shape = (PARTS, CHANNELS)
        self.index = GrowingIndex(
            *shape,
            "cosine",
            partial(stored_embeddings, self.store, DIGEST, shape, None, roster),
            shortlist=10,
            exact_below=20,
            folder=folder.parent,
        )
        self.gallery_id = self.store.head("default").gallery_id
        self.live = LiveIndex(
            self.gallery_id,
            DIGEST,
            self.index,
            self.store,
            lambda _: {},
            roster=roster,
            snapshots=self.snapshots,
        )

    def follow(self) -> None:
        self.live.follow(self.store.head("default").revision)
        if self.index._coding is not None:
            wait([self.index._coding])

    def keep(self) -> None:
        self.follow()
        self.live._rest_until = 0.0
        self.live.keep()

    def finds(self, seed: int, **where: Any) -> list[str]:
        newest = self.store.head("default").revision
        found = self.live.search(newest, embedding(seed), 5, where=where)
        return [candidate.subject_id for candidate in found]


Start = Callable[[], Process]


@pytest.fixture
def folder(settings: Settings) -> Path:
    return settings.indexes_dir


@pytest.fixture
def start(engine: Engine, folder: Path) -> Start:
    """Starts a process over a gallery of `PEOPLE` with two walks each."""
    store = GalleryStore(engine)
    for person in range(PEOPLE):
        enrol(store, f"s{person}", 2 * person, 2 * person + 1)
    return lambda: Process(engine, folder)


@pytest.fixture
def kept(start: Start, folder: Path) -> Path:
    """A snapshot of that gallery."""
    start().keep()
    (path,) = folder.glob("*.npz")
    return path


def test_a_start_reads_the_snapshot_and_only_what_came_since(start: Start, kept: Path) -> None:
    before = start()
    enrol(before.store, "late", 1000)
    again = start()
    assert again.finds(1000)[0] == "late"
    assert again.store.read == 1
    again.follow()
    assert again.index.codes is not None, "nothing was coded anew"
    for person in range(PEOPLE):
        assert again.finds(2 * person)[0] == f"s{person}"
        newest = again.store.head("default").revision
        found = again.live.compare(newest, embedding(2 * person), f"s{person}")
        assert found is not None
        assert found.similarity == pytest.approx(1, abs=1e-5)
    assert kept.stat().st_mode & 0o077 == 0


def test_filters_are_the_same_after_a_start_from_the_snapshot(start: Start, kept: Path) -> None:
    assert kept.exists()
    filters: list[dict[str, Any]] = [
        {"view": "000"},
        {"view": ("000", "090")},
        {"camera": 3.0, "view": "090"},
        {"camera": True},
        {"indoors": 1},
        {"indoors": True},
        {"nothing": None},
    ]
    again = start()
    without = start()
    without.live._snapshots = None
    for where in filters:
        assert again.finds(7, **where) == without.finds(7, **where)
    assert again.store.read == 0
    assert without.store.read == 2 * PEOPLE


def test_enrolments_and_erasures_go_on_after_a_start_from_the_snapshot(
    engine: Engine, start: Start, kept: Path
) -> None:
    assert kept.exists()
    again = start()
    again.follow()
    erase_subject(engine, "default", "s3")
    (first, _) = enrol(again.store, "new", 6, 7)
    assert again.finds(6)[0] == "new"
    assert "s3" not in again.finds(6)
    erase_sequence(engine, first)
    edit_sequence(engine, lambda *_: None, sequence_id=_id_of(again, "new"), subject_id="s4")
    assert again.finds(7)[0] == "s4"
    assert again.live.subjects == PEOPLE - 1


def _id_of(process: Process, subject_id: str) -> str:
    newest = process.store.head("default").revision
    found = process.live.compare(newest, embedding(7), subject_id)
    assert found is not None
    return found.sequence_id


@pytest.mark.parametrize("what", ["sequence", "subject", "gallery", "correction"])
def test_a_snapshot_with_what_was_erased_or_corrected_is_removed_and_never_used(
    engine: Engine, start: Start, kept: Path, what: str
) -> None:
    before = start()
    before.follow()
    newest = before.store.head("default").revision
    sequence_id = before.live.search(newest, embedding(6), 1)[0].sequence_id
    change: dict[str, Callable[[], object]] = {
        "sequence": lambda: erase_sequence(engine, sequence_id),
        "subject": lambda: erase_subject(engine, "default", "s3"),
        "gallery": lambda: erase_gallery(engine, "default", keep=True),
        "correction": lambda: edit_sequence(
            engine, lambda *_: None, sequence_id=sequence_id, metadata={"view": "180"}
        ),
    }
    change[what]()
    assert before.snapshots.load(before.gallery_id, DIGEST) is None
    before.snapshots.sweep()
    assert not kept.exists()
    before.snapshots.sweep()  # and again: nothing


def test_a_sweep_leaves_what_fits_and_removes_what_cannot_be_read(
    start: Start, kept: Path, folder: Path
) -> None:
    (folder / "damaged.npz").write_bytes(b"PK\x03\x04 and no more")
    copied = kept.with_name(kept.name.replace("-d", "-other"))
    copied.write_bytes(kept.read_bytes())
    start().snapshots.sweep()
    assert [path for path in folder.iterdir() if path.name != "lock"] == [kept]


def test_a_snapshot_that_was_begun_before_an_erasure_does_not_appear_after_it(
    engine: Engine, start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start()
    process.follow()
    savez = np.savez

    def slow(*what: Any, **arrays: Any) -> None:
        savez(*what, **arrays)
        erase_subject(engine, "default", "s3")
        process.snapshots.sweep()

    monkeypatch.setattr(np, "savez", slow)
    process.keep()
    assert list(folder.glob("*.npz")) == []
    monkeypatch.undo()
    process.keep()
    (path,) = folder.glob("*.npz")
    assert b's3"' not in path.read_bytes()


def test_an_erasure_waits_for_a_snapshot_that_is_being_put_in_place(
    start: Start, kept: Path
) -> None:
    process = start()
    erased = threading.Event()
    with process.snapshots._locked():

        def sweep_then_say() -> None:
            process.snapshots.sweep()
            erased.set()

        sweep = threading.Thread(target=sweep_then_say)
        sweep.start()
        assert not erased.wait(0.2)
    sweep.join(10)
    assert erased.is_set()
    assert kept.exists()


def test_embeddings_that_were_made_anew_are_read_anew(
    engine: Engine, start: Start, kept: Path
) -> None:
    assert kept.exists()
    process = start()
    with Session(engine) as session, session.begin():
        session.execute(update(GalleryRow).values(index_epoch=GalleryRow.index_epoch + 1))
    assert process.snapshots.load(process.gallery_id, DIGEST) is None
    process.snapshots.sweep()
    assert not kept.exists()


def test_a_snapshot_made_through_another_scene_transform_is_removed_and_never_used(
    engine: Engine, start: Start, kept: Path
) -> None:
    before = start()
    before.follow()
    width = PARTS * CHANNELS
    transform = SceneTransform(np.zeros(width, np.float32), np.eye(width, dtype=np.float32), 1)
    point = OperatingPoint(
        threshold=0.5, interval=None, confidence=0.95, method="observed", target_fpir=0.1,
        gallery_subjects=2, gallery_sequences=4, calibrated_at=now(), digest=DIGEST,
    )  # fmt: skip
    with Session(writing(engine)) as session, session.begin():
        fit = SceneFit(transform, 0.1, (0.05, 0.2), 0.1, False, 2, 4)
        scene = new_scene(transform, point)
        put(session, before.gallery_id, DIGEST, fit, 1, scene, None)
    again = start()
    again.follow()
    assert again.store.read == 2 * PEOPLE, "nothing came from the snapshot"
    for process in (before, again):  # neither has the transform that is in use
        process.keep()
    before.snapshots.sweep()
    assert not kept.exists()


@pytest.mark.sqlite
def test_a_database_from_a_backup_does_not_take_the_snapshot_of_what_came_after(
    engine: Engine, start: Start, settings: Settings, folder: Path
) -> None:
    process = start()
    backup = settings.database_file.with_name("backup")
    with closing(sqlite3.connect(settings.database_file)) as connection:
        connection.execute(f"VACUUM INTO '{backup}'")
    enrol(process.store, "after", 500)
    process.keep()
    assert process.snapshots.load(process.gallery_id, DIGEST) is not None
    engine.dispose()
    for end in ("-wal", "-shm"):
        Path(f"{settings.database_file}{end}").unlink(missing_ok=True)
    backup.replace(settings.database_file)
    restored = open_engine(settings)
    again = Process(restored, folder)
    assert again.snapshots.load(again.gallery_id, DIGEST) is None
    for name in ("other", "another"):
        enrol(again.store, name, 600)
        assert again.snapshots.load(again.gallery_id, DIGEST) is None
    assert "after" not in again.finds(500)
    restored.dispose()


def changed(path: Path, **members: Any) -> None:
    """Replace members of the file: arrays, or None for none."""
    with zipfile.ZipFile(path) as file:
        kept = {name: file.read(name) for name in file.namelist()}
    for name, array in members.items():
        del kept[f"{name}.npy"]
        if array is not None:
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=True)
            kept[f"{name}.npy"] = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in kept.items():
            file.writestr(name, content)


def text(value: object) -> Any:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


HOSTILE: dict[str, dict[str, Any]] = {
    "no codes": {"blocks": None},
    "a pickle": {"subjects": np.array([{"a": 1}], object)},
    "a mark of other types": {"mark": text({"format": "1", "gallery_id": []})},
    "a mark that is no object": {"mark": text([1])},
    "a long mark": {"mark": np.zeros(10_000, np.uint8)},
    "fewer blocks": {"blocks": np.zeros(7, np.uint8)},
    "keys below zero": {"keys": np.arange(-1, 2 * PEOPLE - 1)},
    "one key twice": {"keys": np.zeros(2 * PEOPLE, np.int64)},
    "huge keys": {"keys": np.arange(2 * PEOPLE) + 2**61},
    "other numbers": {"centres": np.zeros((3, 8), np.float64)},
    "no numbers": {"centres": np.full((1, 8), np.nan, np.float32)},
    "other vectors": {"directions": np.eye(9, dtype=np.float32)},
    "sizes that wrap around": {"sizes": np.array([2**62], np.int64)},
    "a subject too many": {"subjects": text([f"s{number}" for number in range(PEOPLE + 1)])},
    "one subject twice": {"subjects": text(["s0"] * PEOPLE)},
    "subjects that are no names": {"subjects": text([[0]] * PEOPLE)},
    "metadata that is none": {"kinds": text([[["view", "other", {"a": 1}]]] * 2)},
    "a sequence in no group": {"kind_of": np.full(2 * PEOPLE, -1, np.int32)},
    "ids that are no text": {"sequence_ids": np.full(2 * PEOPLE, b"\xff" * 36)},
    "one id twice": {"sequence_ids": np.full(2 * PEOPLE, b"a" * 36)},
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_does_not_hold_what_it_should_is_not_used(
    start: Start, kept: Path, members: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    changed(kept, **members)
    process = start()
    assert process.finds(6)[0] == "s3"
    assert process.store.read == 2 * PEOPLE, "all was read from the database"
    assert "is not used" in caplog.text


def test_a_compressed_file_is_not_used(start: Start, kept: Path) -> None:
    with zipfile.ZipFile(kept) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(kept, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    process = start()
    assert process.snapshots.load(process.gallery_id, DIGEST) is None


def test_a_damaged_file_is_not_used_wherever_the_damage_is(start: Start, kept: Path) -> None:
    whole = kept.read_bytes()
    process = start()
    draw = np.random.default_rng(0)
    wrong = []
    true = process.snapshots.load(process.gallery_id, DIGEST)
    assert true is not None
    for _ in range(300):
        damaged = bytearray(whole)
        place = int(draw.integers(len(whole)))
        damaged[place] ^= 1 << int(draw.integers(8))
        cut = int(draw.integers(len(whole))) if draw.random() < 0.2 else len(whole)
        kept.write_bytes(damaged[:cut])
        found = process.snapshots.load(process.gallery_id, DIGEST)
        if found is not None and not same(found.codes, true.codes):
            wrong.append(place)
    assert wrong == []


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(
        same(mine, theirs) if isinstance(mine, tuple) else np.array_equal(mine, theirs)
        for mine, theirs in zip(one, other, strict=True)
    )


def test_processes_that_write_at_once_leave_one_whole_snapshot(start: Start, folder: Path) -> None:
    processes = [start() for _ in range(4)]
    for process in processes:
        process.follow()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Process.keep, processes * 3))
    assert len(list(folder.glob("*.npz"))) == 1
    assert start().snapshots.load(processes[0].gallery_id, DIGEST) is not None
    assert {path.name for path in folder.iterdir() if path.suffix != ".npz"} == {"lock"}


KEEP = """
import sys
from pathlib import Path
from service.foundation.settings import Settings
from service.http.resources import open_engine
from tests.service.gallery.test_snapshots import Process

settings = Settings(data_dir=Path(sys.argv[1]))
process = Process(open_engine(settings), settings.indexes_dir)
process.follow()
print("begins", flush=True)
while True:
    process.live._kept = 0
    process.keep()
"""


@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_a_whole_snapshot_or_none(
    engine: Engine, start: Start, settings: Settings, folder: Path
) -> None:
    for delay in (0.0, 0.003, 0.01, 0.03, 0.1):
        with subprocess.Popen(
            [sys.executable, "-c", KEEP, str(settings.data_dir)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "begins\n"
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
        left = [path for path in folder.iterdir() if path.name != "lock"] if folder.exists() else []
        assert len(left) <= 1
        process = start()
        assert not left or process.snapshots.load(process.gallery_id, DIGEST) is not None
        process.keep()  # nobody holds the lock
    engine.dispose()


def test_a_full_disk_means_no_snapshot_and_a_warning(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    process = start()
    process.follow()
    monkeypatch.setattr(os, "fsync", full)
    process.keep()
    assert "No space left" in caplog.text
    assert list(folder.glob("*.npz")) == []
    assert process.finds(6)[0] == "s3"


def test_an_encrypted_gallery_has_no_snapshot_and_loses_the_one_from_before(
    engine: Engine, start: Start, kept: Path, folder: Path
) -> None:
    plain = start()
    plain.follow()
    unlock(engine, [EncryptionKey(b"k" * 32)])
    process = start()
    assert process.snapshots.load(process.gallery_id, DIGEST) is None
    process.snapshots.sweep()
    assert not kept.exists()
    process.keep()
    assert list(folder.glob("*.npz")) == []


def test_a_small_gallery_has_no_snapshot(engine: Engine, folder: Path) -> None:
    process = Process(engine, folder)
    enrol(process.store, "anna", 1, 2)
    process.keep()
    assert not folder.exists()


def test_a_snapshot_is_written_again_when_the_gallery_has_grown_but_not_without_a_rest(
    start: Start, kept: Path
) -> None:
    process = start()
    process.keep()
    first = kept.stat().st_mtime_ns
    process.live._rest_until = 0.0
    process.live.keep()
    assert kept.stat().st_mtime_ns == first, "nothing has changed"
    enrol(process.store, "late", 1000, 1001)
    process.follow()
    process.live.keep()
    second = kept.stat().st_mtime_ns
    assert second > first
    enrol(process.store, "later", 1002, 1003)
    process.follow()
    process.live.keep()
    assert kept.stat().st_mtime_ns == second, "it rests"


def test_a_service_has_no_snapshot_with_whom_it_has_erased_when_it_answers(
    serve: Serve, settings: Settings
) -> None:
    client = serve(exact_below=3)
    for number in range(6):
        enrol_walk(client, f"s{number}", walk(number))
    until = time.monotonic() + 30
    while not (paths := list(settings.indexes_dir.glob("*.npz"))):
        identify(client, walk(2))
        assert time.monotonic() < until, "no snapshot was written"
        time.sleep(0.1)
    assert b'"s0"' in paths[0].read_bytes()
    client.delete("/subjects/s0").raise_for_status()
    assert list(settings.indexes_dir.glob("*.npz")) == []
    again = serve(exact_below=3)
    found = identify(again, walk(0)).json()["candidates"]
    assert "s0" not in [candidate["subject_id"] for candidate in found]


def test_a_service_that_starts_with_a_snapshot_answers_as_before(
    serve: Serve, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve(exact_below=3)
    for number in range(6):
        enrol_walk(client, f"s{number}", walk(number))
    before = identify(client, walk(2)).json()["candidates"]
    until = time.monotonic() + 30
    while not list(settings.indexes_dir.glob("*.npz")):
        assert time.monotonic() < until, "no snapshot was written"
        time.sleep(0.1)
    again = serve(exact_below=3)
    after = identify(again, walk(2)).json()["candidates"]
    assert [one["subject_id"] for one in after] == [one["subject_id"] for one in before]
    for one, other in zip(before, after, strict=True):
        assert one["similarity"] == pytest.approx(other["similarity"], abs=1e-6)
