"""What a process does before it can search a large gallery: with a snapshot, and without.

A gallery of drawn walks, five a person and of three views, is written to a new database. One
process follows it, codes it and keeps a snapshot; another begins with that. Seconds are of the
processor, of all threads; megabytes are the process's own. The database is larger than SQLite's
cache, and in the page cache of the machine as far as there is room.

    python -m benchmarks.start [--walks N | --million] [--folder FOLDER] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path

import numpy as np
from sqlalchemy import insert, update

from benchmarks import machine
from benchmarks.search import CHANNELS, PARTS, PIECE, SHORTLIST, WALKS_EACH, draw, resident, rough
from service.foundation.settings import Settings
from service.gallery.growing_index import GrowingIndex
from service.gallery.live_index import LiveIndex, stored_embeddings
from service.gallery.roster import Roster
from service.gallery.sealing import sealing_of
from service.gallery.snapshots import Snapshots
from service.gallery.store import GalleryStore
from service.gallery.tables import EmbeddingRow, GalleryRow, SequenceRow, SubjectRow
from service.http.resources import open_engine
from service.storage.database import new_id, now, writing

DIGEST = "d" * 64
SILHOUETTES = 4000  # bytes of a walk; nothing reads them here
VIEWS = ("000", "090", "180")
QUALITY = {"score": 1.0, "issues": [], "frames_in": 40, "dropped": {}}


def fill(settings: Settings, walks: int) -> None:
    """Write a gallery as enrolments would, but in large transactions."""
    engine = open_engine(settings)
    store, sealing = GalleryStore(engine), sealing_of(engine)
    store.ensure("default")
    gallery_id, at = store.head("default").gallery_id, now()
    noise = np.random.default_rng(1).bytes(2 * SILHOUETTES)
    with tempfile.TemporaryDirectory(dir=settings.data_dir) as folder:
        drawn, _ = draw(rough(), walks, 1, Path(folder) / "walks.npy")
        for start in range(0, walks, PIECE):
            sequences, embeddings, subjects = [], [], []
            for number, vector in enumerate(np.array(drawn[start : start + PIECE]), start):
                sequence_id, revision = new_id(), number // WALKS_EACH + 1
                subject = {"gallery_id": gallery_id, "subject_id": f"s{revision:07}"}
                if number % WALKS_EACH == 0:
                    subjects.append({**subject, "created_at": at})
                view = VIEWS[number % len(VIEWS)]
                sequences.append(
                    {
                        **subject,
                        "id": sequence_id,
                        "revision": revision,
                        "frames": 40,
                        "silhouettes": noise[number % SILHOUETTES :][:SILHOUETTES],
                        "content_hash": f"{number:064x}",
                        "quality": QUALITY,
                        "metadata": {"view": view, "camera": number % 100},
                        "view": view,
                        "created_at": at,
                    }
                )
                row = sealing.seal_embedding(sequence_id, DIGEST, vector.reshape(PARTS, CHANNELS))
                columns = ("sequence_id", "digest", "parts", "channels", "vector", "checksum")
                embeddings.append({name: getattr(row, name) for name in columns})
            with writing(engine).begin() as connection:
                for table, rows in (
                    (SubjectRow, subjects),
                    (SequenceRow, sequences),
                    (EmbeddingRow, embeddings),
                ):
                    connection.execute(insert(table), rows)
                connection.execute(update(GalleryRow).values(revision=revision))
    engine.dispose()


def begin(settings: Settings, *, keep: bool) -> Mapping[str, float]:
    """Follow the gallery as a new process does; with `keep` until its snapshot is written."""
    engine = open_engine(settings)
    store = GalleryStore(engine)
    head = store.head("default")
    roster = Roster()
    before, began = resident(), time.process_time()
    shape = (PARTS, CHANNELS)
    index = GrowingIndex(
        *shape,
        "cosine",
        partial(stored_embeddings, store, DIGEST, shape, None, roster),
        shortlist=SHORTLIST,
        exact_below=settings.exact_below,
        folder=settings.data_dir,
    )
    live = LiveIndex(
        head.gallery_id,
        DIGEST,
        index,
        store,
        lambda _: {},
        roster=roster,
        snapshots=Snapshots(engine, settings.indexes_dir),
    )
    live.follow(head.revision)
    probe = np.ones(shape, np.float32)
    live.search(head.revision, probe, 10)
    row = {"until a search, s": round(time.process_time() - began, 1)}
    if keep:
        while index._coding is not None:
            wait([index._coding])
            live.search(head.revision, probe, 10)
        row["until coded, s"] = round(time.process_time() - began, 1)
        began = time.process_time()
        live.keep()
        row["writing the snapshot, s"] = round(time.process_time() - began, 1)
        (path,) = settings.indexes_dir.glob("*.npz")
        row["snapshot, MB"] = round(path.stat().st_size / 1e6)
    row["resident, MB"] = resident() - before
    return row


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--walks", type=int, default=50_000)
    parser.add_argument("--million", action="store_const", const=1_000_000, dest="walks")
    parser.add_argument("--folder", type=Path, help="with room for 9 KB a walk")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        settings = Settings(data_dir=Path(folder))
        fill(settings, options.walks)
        database = settings.database_file.stat().st_size / options.walks
        rows: dict[str, Mapping[str, float]] = {"the database": {"bytes a walk": round(database)}}
        for name, keep in (("without a snapshot", True), ("with a snapshot", False)):
            spawned = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawned) as process:
                rows[name] = process.submit(begin, settings, keep=keep).result()
    machine.publish(
        {
            "benchmark": f"starting with {options.walks} walks",
            "machine": machine.describe(),
            "rows": rows,
        },
        options.out,
    )


if __name__ == "__main__":
    main()
