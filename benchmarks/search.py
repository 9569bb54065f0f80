"""Searching a large gallery: which structure finds a shortlist, and what the service's index takes.

Walks are drawn around drawn people, five each, with the means and the spread, between people and
within one, of the embeddings of a dataset. Without a dataset the spread is that of the shipped
checkpoint on 120 rendered people, in rough figures. Every structure has one thread and a shortlist
of 100, which full embeddings rank. Milliseconds are of the processor, not of the clock.

    python -m benchmarks.search [PACK] [--walks N | --million] [--hnsw | --served] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.embedding import SHIPPED
from models.comparison.similarity import index_vectors
from models.encoder.encoder import Encoder
from service.gallery.coded_index import BITS, FILTERED, LISTS, PROBED, SAMPLE, CodedIndex, lists_for
from service.gallery.faiss_index import FaissIndex
from service.gallery.index import GalleryIndex, Keys
from training.data.pack import Pack
from training.evaluation.embedding import embed_with_encoder

PARTS, CHANNELS = 16, 32
D = PARTS * CHANNELS
WALKS_EACH = 5
SHORTLIST = 100
ROUNDS = 3
PIECE = 5000
TRAINING = 40 * LISTS
FLOOR = 0.1  # of the variance, in all directions: a few people do not show every one
CROSSING = (2_500, 5_000, 10_000, 20_000, 40_000)
Floats = NDArray[np.float32]


class Spread(NamedTuple):
    """How embeddings vary: the mean [d], and factors [d, d] between people and within one."""

    mean: Floats
    between: Floats
    within: Floats


def factor(covariance: NDArray[np.float64]) -> Floats:
    """What white noise is multiplied with to have a covariance [d, d], its floor included."""
    even = np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh((1 - FLOOR) * covariance + FLOOR * even)
    scaled: Floats = (vectors * np.sqrt(np.maximum(values, 0))).T.astype(np.float32)
    return scaled


def fitted(pack: Pack, encoder: Encoder) -> Spread:
    """The spread of a dataset's embeddings."""
    embeddings = embed_with_encoder(encoder, pack).reshape(len(pack), -1).astype(np.float64)
    people, who = np.unique([record.subject for record in pack.sequences], return_inverse=True)
    means = np.stack([embeddings[who == person].mean(axis=0) for person in range(len(people))])
    inner = embeddings - means[who]
    return Spread(
        embeddings.mean(axis=0).astype(np.float32),
        factor(np.cov(means.T)),
        factor(inner.T @ inner / (len(pack) - len(people))),
    )


def rough() -> Spread:
    """The spread of the shipped checkpoint, in rough figures: variances that fall off."""
    rng = np.random.default_rng(7)

    def falling(total: float, directions: float) -> Floats:
        variances = np.exp(-np.arange(D) / directions)
        basis = np.linalg.qr(rng.standard_normal((D, D)))[0]
        return factor(basis * (total * variances / variances.sum()) @ basis.T)

    mean = np.sqrt(0.12 / D) * rng.standard_normal(D)
    return Spread(mean.astype(np.float32), falling(8.0, 10), falling(8.8, 34))


def draw(spread: Spread, walks: int, probes: int, path: Path) -> tuple[Floats, Floats]:
    """A gallery [walks, d] in a file, and probes [probes, d]: of enrolled people, and a fifth not.

    Parts have the length that they have in index vectors.
    """
    rng = np.random.default_rng(0)
    gallery = np.lib.format.open_memmap(path, "w+", np.float32, (walks, D))

    def white(count: int) -> Floats:
        return rng.standard_normal((count, D), dtype=np.float32)

    def lengths(embeddings: Floats) -> Floats:
        return index_vectors(embeddings.reshape(-1, PARTS, CHANNELS))

    people = spread.mean + white(probes) @ spread.between
    for start in range(0, walks, PIECE):
        size = min(PIECE, walks - start)
        who = spread.mean + white(-(-size // WALKS_EACH)) @ spread.between
        if start == 0:
            enrolled = min(probes * 4 // 5, len(who))
            who[:enrolled] = people[:enrolled]
        drawn = np.repeat(who, WALKS_EACH, axis=0)[:size] + white(size) @ spread.within
        gallery[start : start + size] = lengths(drawn)
    return gallery, lengths(people + white(probes) @ spread.within)


def best_ten(gallery: Floats, probes: Floats, among: Keys | None = None) -> NDArray[np.int64]:
    """The true best ten of each probe [probes, 10], by the cosine metric."""
    found: list[tuple[Floats, NDArray[np.int64]]] = []
    for start in range(0, len(gallery), PIECE * 10):
        keys = np.arange(start, min(start + PIECE * 10, len(gallery)))
        keys = keys if among is None else np.intersect1d(keys, among, assume_unique=True)
        similarities = probes @ gallery[keys].T
        top = np.argpartition(-similarities, min(10, len(keys) - 1), axis=1)[:, :10]
        found.append((np.take_along_axis(similarities, top, 1), keys[top]))
    similarities, keys = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
    return np.take_along_axis(keys, np.argsort(-similarities, axis=1)[:, :10], 1)


def judge(search: Callable[[int], Keys], truth: NDArray[np.int64]) -> dict[str, float]:
    """Milliseconds of a search by the number of its probe, and how much of the ten it finds.

    The least of several rounds: what else runs on the machine only adds to them.
    """
    rounds = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        found = [search(number) for number in range(len(truth))]
        rounds.append(time.thread_time() - began)
    taken = min(rounds)
    shares = [len(np.intersect1d(*pair)) / 10 for pair in zip(found, truth, strict=True)]
    return {
        "ms": round(1000 * taken / len(truth), 2),
        "recall@10": round(float(np.mean(shares)), 4),
    }


def structures(hnsw: bool) -> Iterator[tuple[str, Any, float, Any]]:
    """FAISS's: a name, the empty index, its bytes a walk, and how it is searched."""
    lib: Any = faiss  # whose stubs know half of it
    inner = lib.METRIC_INNER_PRODUCT
    eight, four = lib.ScalarQuantizer.QT_8bit, lib.ScalarQuantizer.QT_4bit
    yield "all, float32", lib.IndexFlatIP(D), 4 * D, None
    yield "all, 8 bits", lib.IndexScalarQuantizer(D, eight, inner), D, None
    yield "all, 4 bits", lib.IndexScalarQuantizer(D, four, inner), D / 2, None
    for bits in (1, 2):
        index = lib.IndexRaBitQFastScan(D, inner, 32, bits)
        index.qb = 8
        yield f"all, RaBitQ {bits}", index, index.code_size, None
    few = round(PROBED * LISTS)
    index = lib.IndexIVFScalarQuantizer(lib.IndexFlatIP(D), D, LISTS, eight, inner)
    yield "lists, 8 bits", index, D + 8, lib.SearchParametersIVF(nprobe=few)
    coded = lib.IVFRaBitQSearchParameters()
    coded.nprobe, coded.qb = few, 8
    for bits in (1, 2):
        index = lib.IndexIVFRaBitQ(lib.IndexFlatIP(D), D, LISTS, inner, True, bits)
        yield f"lists, RaBitQ {bits}", index, index.code_size + 8, coded
        index = lib.IndexIVFRaBitQFastScan(lib.IndexFlatIP(D), D, LISTS, inner, 32, True, bits)
        yield f"lists, RaBitQ {bits}, blocks", index, index.code_size + 8, coded
    if hnsw:
        index = lib.IndexHNSWSQ(D, eight, 32, inner)
        yield "HNSW, 8 bits", index, D + 4 * 64, lib.SearchParametersHNSW(efSearch=400)


def compare(gallery: Floats, probes: Floats, hnsw: bool) -> dict[str, dict[str, float]]:
    """A row for every structure."""
    truth = best_ten(gallery, probes)
    step = max(1, len(gallery) // TRAINING)
    sample = np.ascontiguousarray(gallery[::step])
    rows: dict[str, dict[str, float]] = {}
    for name, index, size, parameters in structures(hnsw):
        if hasattr(index, "cp"):
            index.cp.niter = 8
        began = time.thread_time()
        index.train(sample)
        for start in range(0, len(gallery), PIECE):
            index.add(np.array(gallery[start : start + PIECE]))
        built = time.thread_time() - began

        def search(number: int, index: Any = index, parameters: Any = parameters) -> Keys:
            probe = probes[number]
            found = index.search(probe[None], SHORTLIST, params=parameters)[1][0]
            found = found[found >= 0]
            keys: Keys = found[np.argsort(-(gallery[found] @ probe))[:10]]
            return keys

        rows[name] = judge(search, truth) | {
            "bytes a walk": round(size),
            "build_s": round(built, 1),
        }
    return rows


def resident() -> int:
    """Memory in MB that belongs to this process alone."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024


def as_served(gallery: Floats, probes: Floats, folder: Path) -> dict[str, dict[str, float]]:
    """The service's own index of all walks, filtered and not."""

    def embeddings(start: int, end: int) -> Floats:
        return np.array(gallery[start:end]).reshape(-1, PARTS, CHANNELS)

    def stored(keys: Keys) -> tuple[Keys, Floats]:
        return keys, np.array(gallery[keys]).reshape(-1, PARTS, CHANNELS)

    how: dict[str, Any] = {"shortlist": SHORTLIST, "folder": folder}
    # As of a gallery whose lists were made when it had an eighth to all of its walks.
    half = range(0, len(gallery) // 2, -(-len(gallery) // 2 // SAMPLE))
    sample = stored(np.array(half))[1]
    before, began = resident(), time.thread_time()
    index = CodedIndex("cosine", (PARTS, CHANNELS), lists_for(sample), stored, **how)
    del sample
    for start in range(0, len(gallery), PIECE):
        part = embeddings(start, start + PIECE)
        index.add(np.arange(start, start + len(part)), part)
    built = {
        "build_s": round(time.thread_time() - began, 1),
        "resident_mb": resident() - before,
    }
    began = time.thread_time()
    kept = index.codes
    copied, began = time.thread_time() - began, time.thread_time()
    again = CodedIndex.restored("cosine", (PARTS, CHANNELS), kept, stored, **how)
    restored = time.thread_time() - began
    built |= {"copy_s": round(copied, 2), "restore_s": round(restored, 2)}
    del kept, again
    several = probes.reshape(-1, PARTS, CHANNELS)

    def searching(index: GalleryIndex, among: Keys | None) -> Callable[[int], Keys]:
        return lambda number: index.search(several[number], 10, among).keys

    rows = {"the service's": judge(searching(index, None), best_ten(gallery, probes)) | built}
    for every in (10, 100):
        among = np.arange(0, len(gallery), every)
        truth = best_ten(gallery, probes[:100], among)
        rows[f"the service's, 1 walk in {every}"] = judge(searching(index, among), truth)

    def timed(work: Callable[[int], None]) -> float:
        began = time.thread_time()
        for number in range(20):
            work(number)
        return round((time.thread_time() - began) * 50, 2)

    rows["the service's, remove a walk"] = {"ms": timed(lambda n: index.remove(np.array([n * 99])))}
    rows["the service's, add a walk"] = {
        "ms": timed(lambda n: index.add(np.array([len(gallery) + n]), several[n : n + 1]))
    }
    for size in (size for size in CROSSING if size <= len(gallery)):
        truth = best_ten(gallery[:size], probes)
        walks, keys = embeddings(0, size), np.arange(size)
        exact = FaissIndex(PARTS, CHANNELS, "cosine", shortlist=SHORTLIST)
        coded = CodedIndex("cosine", (PARTS, CHANNELS), lists_for(walks), stored, **how)
        for name, one in (("all compared", exact), ("coded", coded)):
            one.add(keys, walks)
            rows[f"{size} walks, {name}"] = judge(searching(one, None), truth)
    return rows


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pack", nargs="?", type=Path, help="a dataset whose spread is taken")
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--walks", type=int, default=50_000)
    parser.add_argument("--million", action="store_const", const=1_000_000, dest="walks")
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--hnsw", action="store_true", help="that too; it is slow to build")
    parser.add_argument("--served", action="store_true", help="the service's own index alone")
    parser.add_argument("--folder", type=Path, help="with room for 4 KB a walk")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    spread = rough()
    if options.pack is not None:
        spread = fitted(Pack.open(options.pack), Encoder.open(options.checkpoint, device="cpu"))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "gallery.npy"
        gallery, probes = draw(spread, options.walks, options.probes, path)
        rows = as_served(gallery, probes, Path(folder))
        if not options.served:
            rows |= compare(gallery, probes, options.hnsw)
    machine.publish(
        {
            "benchmark": f"searching {options.walks} walks",
            "machine": machine.describe(),
            "bits": BITS,
            "lists read": {"all": PROBED, "with a filter": FILTERED},
            "rows": rows,
        },
        options.out,
    )


if __name__ == "__main__":
    main()
