"""A gallery in Milvus: what a replica holds, and where the shortlist's embeddings had best be read.

A gallery of drawn walks is written to a new SQLite database and from there to Milvus. Then searches
are timed in turns: as the service makes them, with embeddings from the database; with raw vectors
from Milvus beside the shortlist; the shortlist alone; and an index in this process. Milliseconds
are of the clock, medians and minima; megabytes are this process's own. The collections are dropped.

    python -m benchmarks.milvus ADDRESS [--walks N] [--folder FOLDER] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from benchmarks import machine
from benchmarks.search import CHANNELS, PARTS, SHORTLIST, draw, resident, rough
from benchmarks.start import DIGEST, fill
from models.comparison.similarity import index_vectors
from service.foundation.errors import Unavailable
from service.foundation.milvus_address import MilvusAddress
from service.foundation.settings import Settings
from service.gallery.faiss_index import FaissIndex
from service.gallery.index_collections import IndexCollections, Serves
from service.gallery.live_index import LiveIndex
from service.gallery.milvus_index import Milvus
from service.gallery.ranking import GallerySearch
from service.gallery.shared_index import SharedIndex
from service.gallery.store import GalleryStore
from service.gallery.tables import SequenceRow
from service.http.resources import open_engine

SHAPE = (PARTS, CHANNELS)
PROBES = 40
TURNS = 3
NOISE = 0.7  # length of what is added to a walk, which has length 1, to make a probe


def begun(index: GallerySearch, newest: int) -> dict[str, float]:
    """What following the gallery takes."""
    before, began = resident(), time.process_time()
    index.follow(newest)
    taken = round(time.process_time() - began, 1)
    return {"follows, CPU s": taken, "holds, MB": max(0, resident() - before)}


def patiently(work: Callable[[int], Any], number: int) -> Any:
    """What the work gives, however late Milvus is."""
    while True:
        try:
            return work(number)
        except Unavailable:
            time.sleep(1)


def timed(works: dict[str, Callable[[int], Any]]) -> dict[str, dict[str, float]]:
    """Milliseconds of each work by the number of its probe, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(TURNS):
        for number in range(PROBES):
            for name, work in works.items():
                began = time.perf_counter()
                try:
                    work(number)
                except Unavailable:  # a machine so busy that Milvus is late
                    continue
                if turn:  # the first warms caches
                    taken[name].append(1000 * (time.perf_counter() - began))
    return {
        name: {"p50_ms": round(float(np.median(one)), 2), "least_ms": round(min(one), 2)}
        for name, one in taken.items()
    }


def measure(settings: Settings, address: MilvusAddress, walks: int) -> tuple[dict[str, Any], str]:
    """Rows of the result, and the server's version."""
    from pymilvus import MilvusClient

    fill(settings, walks)
    engine = open_engine(settings)
    store = GalleryStore(engine)
    head = store.head("default")
    with tempfile.TemporaryDirectory(dir=settings.data_dir) as folder:
        gallery, _ = draw(rough(), walks, 1, Path(folder) / "walks.npy")  # as `fill` has it
        held = np.array(gallery)
    near = held[:: walks // PROBES][:PROBES]
    noise = np.random.default_rng(2).normal(0, NOISE / np.sqrt(PARTS * CHANNELS), near.shape)
    probes = index_vectors((near + noise).reshape(-1, *SHAPE).astype(np.float32))
    several = probes.reshape(-1, *SHAPE)
    truth = np.argsort(-(probes @ held.T), axis=1)[:, :10] // 5  # subjects have five walks each

    milvus = Milvus(address)
    collections = IndexCollections(engine, milvus)
    serves = Serves(head.gallery_id, DIGEST, None, 0)

    def shared() -> SharedIndex:
        return SharedIndex(serves, SHAPE, "cosine", store, collections, lambda _: {})

    rows: dict[str, Any] = {}
    writer = shared()
    rows["Milvus, writes the gallery"] = begun(writer, head.revision)
    writer.keep()
    replica = shared()
    rows["Milvus, a replica"] = begun(replica, head.revision)
    index = FaissIndex(*SHAPE, "cosine", shortlist=SHORTLIST)
    live = LiveIndex(head.gallery_id, DIGEST, index, store, lambda _: {})
    rows["in this process, all compared"] = begun(live, head.revision)

    collection = collections.of(serves)
    client = MilvusClient(address.uri)
    milvus.compact(collection.name)
    vectors = index_vectors(several)

    def shortlist(number: int) -> set[str]:
        one = vectors[number][None]
        return milvus.nearest(collection.name, one, SHORTLIST, None, collection.written).ids

    def with_vectors(number: int) -> Any:
        return client.search(
            collection.name,
            [vectors[number]],
            limit=SHORTLIST,
            output_fields=["vector"],
            search_params={"metric_type": "IP", "params": {"nprobe": 348}},
            consistency_level="Bounded",
        )

    def named(number: int) -> Any:
        columns = (SequenceRow.id, SequenceRow.subject_id, SequenceRow.details)
        with Session(engine) as session:
            return session.execute(
                select(*columns).where(
                    SequenceRow.gallery_id == head.gallery_id, SequenceRow.id.in_(ids[number])
                )
            ).all()

    def searching(one: GallerySearch) -> Callable[[int], Any]:
        return lambda number: one.search(head.revision, several[number], 10)

    ids = [patiently(shortlist, number) for number in range(PROBES)]
    rows |= timed(
        {
            "Milvus, a search": searching(replica),
            "Milvus, the shortlist alone": shortlist,
            "Milvus, the shortlist with its raw vectors": with_vectors,
            "the shortlist's rows and embeddings from the database": lambda number: store.enrolled(
                head.gallery_id, DIGEST, sequence_ids=ids[number]
            ),
            "their rows alone": named,
            "in this process, a search": searching(live),
        }
    )
    shares = []
    for number in range(PROBES):
        found = {one.subject_id for one in patiently(searching(replica), number)}
        true = {f"s{subject + 1:07}" for subject in truth[number]}
        shares.append(len(found & true) / len(true))
    rows["Milvus, a search"]["subjects of the true best ten found"] = round(
        float(np.mean(shares)), 4
    )
    milvus.drop(collection.name)
    engine.dispose()
    return rows, client.get_server_version()


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("address", help="milvus://HOST:PORT")
    parser.add_argument("--walks", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="with room for 9 KB a walk")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    address = MilvusAddress.parse(options.address)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows, version = measure(Settings(data_dir=Path(folder)), address, options.walks)
    machine.publish(
        {
            "benchmark": f"a gallery of {options.walks} walks in Milvus",
            "machine": machine.describe(),
            "server": version,
            "rows": rows,
        },
        options.out,
    )


if __name__ == "__main__":
    main()
