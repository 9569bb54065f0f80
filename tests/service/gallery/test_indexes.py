"""One suite for every index behind the Protocol, against a naive loop."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from models.card import Metric
from models.comparison.similarity import part_similarity, similarity
from service.gallery import coded_index
from service.gallery.coded_index import CodedIndex, Stored, lists_for
from service.gallery.faiss_index import GPU_SCRATCH, FaissIndex
from service.gallery.growing_index import GrowingIndex
from service.gallery.index import GalleryIndex, Hits
from service.gallery.memory_index import MemoryIndex
from service.gallery.milvus_index import Milvus
from tests.service.searched import MilvusIndex

PARTS, CHANNELS = 4, 6

GALLERIES: Path = Path(tempfile.gettempdir())  # where files without names are no trouble
INDEXES: dict[str, Callable[[Metric], GalleryIndex]] = {
    "memory": lambda metric: MemoryIndex(PARTS, CHANNELS, metric),
    "faiss": lambda metric: FaissIndex(PARTS, CHANNELS, metric, shortlist=50),
    "codes": lambda metric: Enrolled(lambda stored: coded_by(metric, stored, GALLERIES)),
    "codes without a file": lambda metric: Enrolled(lambda stored: coded_by(metric, stored, None)),
    "codes from the third embedding on": lambda metric: growing(metric, exact_below=3),
}
Make = Callable[[Metric], GalleryIndex]


class Enrolled:
    """An index and the database that has what was added to it, as `stored` reads it."""

    def __init__(self, make: Callable[[Stored], GalleryIndex]) -> None:
        self.embeddings: dict[int, NDArray[np.float32]] = {}
        self.index = make(self.stored)

    def stored(self, wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        found = [key for key in wanted.tolist() if key in self.embeddings]
        rows = [self.embeddings[key] for key in found]
        return keys(*found), np.array(rows, np.float32).reshape(-1, PARTS, CHANNELS)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def nbytes(self) -> int:
        return self.index.nbytes

    def add(self, added: NDArray[np.int64], walks: NDArray[np.float32]) -> None:
        self.embeddings.update(zip(added.tolist(), walks, strict=True))
        self.index.add(added, walks)

    def remove(self, gone: NDArray[np.int64]) -> None:
        for key in gone.tolist():
            self.embeddings.pop(key, None)
        self.index.remove(gone)

    def search(
        self, probe: NDArray[np.float32], limit: int, among: NDArray[np.int64] | None = None
    ) -> Hits:
        return self.index.search(probe, limit, among)

    def part_similarity(
        self, probe: NDArray[np.float32], wanted: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        return self.index.part_similarity(probe, wanted)


def coded_by(
    metric: Metric, stored: Stored, folder: Path | None, sample: NDArray[np.float32] | None = None
) -> CodedIndex:
    lists = lists_for(embeddings(200, 99) if sample is None else sample)
    return CodedIndex(metric, (PARTS, CHANNELS), lists, stored, shortlist=60, folder=folder)


def growing(metric: Metric, exact_below: int, folder: Path | None = None) -> Enrolled:
    return Enrolled(
        lambda stored: GrowingIndex(
            PARTS,
            CHANNELS,
            metric,
            stored,
            shortlist=50,
            exact_below=exact_below,
            folder=folder,
        )
    )


def copied_to_gpu(resources: GpuResources, device: int, index: Any) -> Any:
    assert resources.scratch + resources.pinned <= GPU_SCRATCH, "each gallery has its own"
    return faiss.clone_index(index)


class GpuResources:
    """FAISS's, with its defaults."""

    def __init__(self) -> None:
        self.scratch, self.pinned = 1536 * 2**20, 256 * 2**20

    def setTempMemory(self, size: int) -> None:
        self.scratch = size

    def setPinnedMemory(self, size: int) -> None:
        self.pinned = size


@pytest.fixture(params=[*INDEXES, "faiss with the copy it keeps on a GPU", "milvus"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    if request.param == "milvus":
        milvus: Milvus = request.getfixturevalue("milvus")
        return lambda metric: MilvusIndex(milvus, PARTS, CHANNELS, metric)
    return INDEXES[request.param] if request.param in INDEXES else _on_fake_gpu(monkeypatch)


def _on_fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Metric], FaissIndex]:
    """No GPU is needed to see that the copy follows: here it lies in the same memory."""
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", GpuResources, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", copied_to_gpu, raising=False)
    return lambda metric: FaissIndex(PARTS, CHANNELS, metric, shortlist=50, gpu=True)


def embeddings(count: int, seed: int = 0) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    return draw.normal(0.3, 1, (count, PARTS, CHANNELS)).astype(np.float32)


def keys(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def naive(
    probe: NDArray[np.float32],
    held: dict[int, NDArray[np.float32]],
    limit: int,
    metric: Metric,
) -> list[int]:
    scored = [(-float(similarity(probe, one[None], metric)[0]), key) for key, one in held.items()]
    return [key for _, key in sorted(scored)][:limit]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("limit", [1, 5, 40, 1000])
def test_the_most_similar_come_first(make: Make, metric: Metric, limit: int) -> None:
    gallery, probe = embeddings(40), embeddings(1, seed=1)[0]
    index = make(metric)
    index.add(np.arange(100, 140, dtype=np.int64), gallery)
    hits = index.search(probe, limit)
    held = dict(zip(range(100, 140), gallery, strict=True))
    assert hits.keys.tolist() == naive(probe, held, limit, metric)
    expected = [float(similarity(probe, held[key][None], metric)[0]) for key in hits.keys.tolist()]
    np.testing.assert_allclose(hits.similarities, expected, atol=1e-6)


def test_a_shortlist_is_exact_for_cosine_far_beyond_its_length(make: Make) -> None:
    gallery = embeddings(600)
    index = make("cosine")
    index.add(np.arange(600, dtype=np.int64), gallery)
    for seed in range(1, 6):
        probe = embeddings(1, seed)[0]
        held = dict(enumerate(gallery))
        assert index.search(probe, 10).keys.tolist() == naive(probe, held, 10, "cosine")


def test_a_search_keeps_among_the_keys_it_is_given(make: Make) -> None:
    gallery, probe = embeddings(200), embeddings(1, seed=1)[0]
    index = make("cosine")
    index.add(np.arange(200, dtype=np.int64), gallery)
    for chosen in ([7], [7, 3, 190], list(range(0, 200, 2))):
        held = {key: gallery[key] for key in chosen}
        hits = index.search(probe, 5, keys(*chosen))
        assert hits.keys.tolist() == naive(probe, held, 5, "cosine")
    assert len(index.search(probe, 5, keys()).keys) == 0
    assert index.search(probe, 5, keys(7, 999)).keys.tolist() == [7]


def test_what_is_removed_is_not_found_and_the_rest_is(make: Make) -> None:
    gallery = embeddings(30)
    index = make("cosine")
    index.add(np.arange(30, dtype=np.int64), gallery)
    index.remove(keys(0, 7, 29, 777))
    assert len(index) == 27
    held = {key: gallery[key] for key in range(30) if key not in (0, 7, 29)}
    for key in (0, 7, 29, 3):
        assert index.search(gallery[key], 30).keys.tolist() == naive(
            gallery[key], held, 30, "cosine"
        )
    index.add(keys(50), gallery[7:8])
    assert index.search(gallery[7], 1).keys.tolist() == [50]
    index.remove(np.array(sorted([*held, 50]), np.int64))
    assert len(index) == 0
    assert len(index.search(gallery[0], 5).keys) == 0


def test_what_is_added_after_a_search_is_found_too(make: Make) -> None:
    gallery = embeddings(30)
    index = make("cosine")
    index.add(np.arange(20, dtype=np.int64), gallery[:20])
    assert index.search(gallery[3], 1).keys.tolist() == [3]
    index.remove(keys(3))
    index.search(gallery[3], 1)
    index.add(np.arange(20, 30, dtype=np.int64), gallery[20:])
    assert index.search(gallery[25], 1).keys.tolist() == [25]


def test_a_gpu_that_is_not_there_is_refused() -> None:
    if faiss.get_num_gpus():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="no GPU"):
        FaissIndex(PARTS, CHANNELS, "cosine", shortlist=50, gpu=True)


class _FullGpu:
    """A copy on a GPU whose memory somebody else has taken."""

    def add(self, _vectors: object) -> None:
        raise RuntimeError("StandardGpuResources: alloc fail type FlatData dev 0")

    def search(self, _query: object, _count: int) -> None:
        raise RuntimeError("StandardGpuResources: alloc fail type TemporaryMemoryOverflow dev 0")


def test_the_cpu_searches_while_a_gpu_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("StandardGpuResources: alloc fail type FlatData dev 0")

    gallery = embeddings(30)
    index = _on_fake_gpu(monkeypatch)("cosine")
    index.add(np.arange(20, dtype=np.int64), gallery[:20])
    for gpu in (refused, lambda *_: _FullGpu(), copied_to_gpu):
        monkeypatch.setattr(faiss, "index_cpu_to_gpu", gpu)
        assert index.search(gallery[3], 1).keys.tolist() == [3]


def test_what_a_gpu_has_no_room_for_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = embeddings(30)
    index = _on_fake_gpu(monkeypatch)("cosine")
    index.add(np.arange(20, dtype=np.int64), gallery[:20])
    index.search(gallery[3], 1)
    copy = index._gpu_copy
    monkeypatch.setattr(copy, "add", _FullGpu().add)
    index.add(np.arange(20, 30, dtype=np.int64), gallery[20:])
    assert len(index) == 30
    assert index.search(gallery[25], 1).keys.tolist() == [25]


def test_an_empty_index_finds_nothing(make: Make) -> None:
    index = make("euclidean")
    hits = index.search(embeddings(1)[0], 5)
    assert (len(hits.keys), len(hits.similarities), len(index)) == (0, 0, 0)
    index.add(keys(), embeddings(0))
    index.remove(keys())
    assert len(index) == 0


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_parts_are_those_of_the_embeddings(make: Make, metric: Metric) -> None:
    gallery, probe = embeddings(10), embeddings(1, seed=1)[0]
    index = make(metric)
    index.add(np.arange(10, dtype=np.int64), gallery)
    expected = part_similarity(probe, gallery[[8, 2]], metric)
    np.testing.assert_allclose(index.part_similarity(probe, keys(8, 2)), expected, atol=1e-6)


def test_a_part_of_no_length_has_no_direction(make: Make) -> None:
    gallery = embeddings(3)
    gallery[1, 2] = 0
    index = make("cosine")
    index.add(np.arange(3, dtype=np.int64), gallery)
    hits = index.search(gallery[1], 3)
    assert hits.keys[0] == 1
    assert hits.similarities[0] == pytest.approx((PARTS - 1) / PARTS, abs=1e-6)


def test_equals_are_ordered_by_key(make: Make) -> None:
    one = embeddings(1)
    index = make("cosine")
    index.add(keys(9, 4, 6), np.repeat(one, 3, axis=0))
    assert index.search(one[0], 3).keys.tolist() == [4, 6, 9]


def test_the_memory_it_takes_grows_with_what_it_holds(make: Make) -> None:
    index = make("cosine")
    assert index.nbytes == 0
    index.add(np.arange(10, dtype=np.int64), embeddings(10))
    assert index.nbytes >= 10 * PARTS * CHANNELS


PEOPLE, WALKS = 1500, 4


def people(walks: int, seed: int) -> NDArray[np.float32]:
    """Walks [PEOPLE * walks, p, c] of the same people whatever the seed, a person's in a row."""
    spread = np.random.default_rng(5).normal(0, 1, (12, PARTS * CHANNELS))
    who = np.random.default_rng(6).normal(0, 1, (PEOPLE, 12)) @ spread
    drawn = np.repeat(who, walks, axis=0)
    drawn += np.random.default_rng(seed).normal(0, 1.5, drawn.shape)
    return drawn.reshape(-1, PARTS, CHANNELS).astype(np.float32)


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Enrolled:
    """The codes of people, with no way round the codes for a few keys."""
    monkeypatch.setattr(coded_index, "_EXACT", 0)
    walks = people(WALKS, seed=0)
    index = Enrolled(lambda stored: coded_by("cosine", stored, tmp_path, walks))
    index.add(np.arange(len(walks)), walks)
    return index


def recall(index: GalleryIndex, exact: MemoryIndex, among: NDArray[np.int64] | None) -> float:
    """How much of the best ten is found; what is found has its exact similarity."""
    shares = []
    for probe in people(1, seed=1)[::15]:
        found, true = index.search(probe, 10, among), exact.search(probe, 10, among)
        assert len(found.keys) == len(true.keys)
        assert among is None or np.isin(found.keys, among).all()
        both, here, there = np.intersect1d(found.keys, true.keys, return_indices=True)
        np.testing.assert_array_equal(found.similarities[here], true.similarities[there])
        shares.append(len(both) / len(true.keys))
    return float(np.mean(shares))


def test_codes_find_what_comparing_everything_finds(coded: Enrolled) -> None:
    walks = people(WALKS, seed=0)
    exact = MemoryIndex(PARTS, CHANNELS, "cosine")
    exact.add(np.arange(len(walks)), walks)
    assert recall(coded, exact, None) >= 0.99
    for among in (np.arange(0, len(walks), 7), np.arange(2000), np.arange(100), keys(3, 4)):
        assert recall(coded, exact, among) >= 0.99

    gone = np.arange(1, len(walks), 3)
    for index in (coded, exact):
        index.remove(gone)
    assert len(coded) == len(walks) - len(gone)
    assert recall(coded, exact, None) >= 0.99
    assert recall(coded, exact, np.arange(2000)) >= 0.99

    for index in (coded, exact):
        index.add(gone + len(walks), walks[gone])
    assert recall(coded, exact, None) >= 0.99


def of(index: Enrolled) -> CodedIndex:
    assert isinstance(index.index, CodedIndex)
    return index.index


def test_codes_take_a_fraction_of_the_memory(tmp_path: Path) -> None:
    sample = np.random.default_rng(0).normal(0, 1, (2000, 16, 32)).astype(np.float32)
    lists = lists_for(sample)
    index = CodedIndex(
        "cosine", (16, 32), lists, lambda _: (keys(), sample[:0]), shortlist=100, folder=tmp_path
    )
    index.add(np.arange(2000), sample)
    assert index.nbytes < sample.nbytes / 14


def test_zeros_are_written_over_what_is_removed(tmp_path: Path) -> None:
    walks = embeddings(40)
    index = Enrolled(lambda stored: coded_by("cosine", stored, tmp_path))
    index.add(np.arange(40), walks)
    rows = of(index)._rows
    assert rows is not None
    assert os.pread(rows._file, walks.nbytes, 0) == walks.tobytes()
    index.remove(keys(7, 8, 30))
    walks[[7, 8, 30]] = 0
    assert os.pread(rows._file, walks.nbytes, 0) == walks.tobytes()
    assert list(tmp_path.iterdir()) == [], "the file has no name"
    assert os.fstat(rows._file).st_mode & 0o077 == 0


def test_codes_that_were_kept_find_the_same_and_nothing_that_was_removed(coded: Enrolled) -> None:
    walks = people(WALKS, seed=0)
    coded.remove(np.arange(0, len(walks), 3))
    kept = of(coded).codes
    again = CodedIndex.restored(
        "cosine", (PARTS, CHANNELS), kept, coded.stored, shortlist=60, folder=None
    )
    assert len(again) == len(coded)
    probes = people(1, seed=1)[::15]
    for probe in probes:
        assert again.search(probe, 10).keys.tolist() == coded.search(probe, 10).keys.tolist()
    for index in (again, of(coded)):  # and they go on in the same way
        index.remove(np.arange(1, len(walks), 3))
    coded.add(np.arange(0, len(walks), 3), walks[::3])
    again.add(np.arange(0, len(walks), 3), walks[::3])
    for probe in probes:
        assert again.search(probe, 10).keys.tolist() == coded.search(probe, 10).keys.tolist()


def test_codes_do_not_hold_what_was_removed(coded: Enrolled) -> None:
    before = of(coded).codes
    coded.add(keys(100_000), embeddings(1, 8))
    coded.remove(keys(100_000))
    after = of(coded).codes
    assert after.blocks.tobytes() == before.blocks.tobytes()


@pytest.mark.parametrize("wrong", ["sizes", "keys", "blocks", "lists"])
def test_codes_that_do_not_fit_together_are_refused(coded: Enrolled, wrong: str) -> None:
    kept = of(coded).codes
    bad = {
        "sizes": kept._replace(sizes=-kept.sizes),
        "keys": kept._replace(keys=np.zeros_like(kept.keys)),
        "blocks": kept._replace(blocks=kept.blocks[:-32]),
        "lists": kept._replace(lists=kept.lists._replace(directions=np.eye(3, dtype=np.float32))),
    }[wrong]
    with pytest.raises(ValueError, match=r"list|vectors"):
        CodedIndex.restored(
            "cosine", (PARTS, CHANNELS), bad, coded.stored, shortlist=60, folder=None
        )


def test_what_the_database_erased_a_moment_ago_is_not_found(tmp_path: Path) -> None:
    walks = embeddings(80)
    index = Enrolled(lambda stored: coded_by("cosine", stored, None))
    index.add(np.arange(80), walks)
    del index.embeddings[17]
    assert 17 not in index.search(walks[17], 80).keys
    assert index.part_similarity(walks[17], keys(17, 3))[0].tolist() == [0] * PARTS


def coding(index: Enrolled) -> Future[CodedIndex]:
    assert isinstance(index.index, GrowingIndex)
    assert index.index._coding is not None
    return index.index._coding


def inner(index: Enrolled) -> FaissIndex | CodedIndex:
    assert isinstance(index.index, GrowingIndex)
    return index.index._index


def test_a_gallery_that_grows_is_coded_while_it_is_searched(tmp_path: Path) -> None:
    walks = people(WALKS, seed=0)
    index = growing("cosine", 4000, tmp_path)
    index.add(np.arange(3999), walks[:3999])
    with pytest.raises(AssertionError):
        coding(index)
    index.add(keys(3999), walks[3999:4000])
    wait([coding(index)])
    exact = inner(index)
    assert isinstance(exact, FaissIndex)
    exact.remove(keys(17, 3000))  # as if the codes had not been made yet
    index.embeddings[5000] = walks[5000]
    exact.add(keys(5000), walks[5000:5001])
    assert index.search(walks[5000], 1).keys.tolist() == [5000]
    assert isinstance(inner(index), CodedIndex)
    assert inner(index).keys.tolist() == exact.keys.tolist()
    assert 17 not in index.search(walks[17], 4000).keys


def test_a_gallery_that_has_grown_eightfold_is_coded_anew(tmp_path: Path) -> None:
    walks = people(WALKS, seed=0)
    index = growing("cosine", 600, tmp_path)
    index.add(np.arange(600), walks[:600])
    wait([coding(index)])
    index.search(walks[0], 1)
    first = inner(index)
    index.add(np.arange(600, 4800), walks[600:4800])
    wait([coding(index)])
    assert index.search(walks[4000], 1).keys.tolist() == [4000]
    second = inner(index)
    assert isinstance(first, CodedIndex)
    assert isinstance(second, CodedIndex)
    assert len(second.codes.sizes) > len(first.codes.sizes)
    assert second.keys.tolist() == list(range(4800))


def test_a_gallery_stays_in_memory_while_the_disk_is_full(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    index = growing("cosine", 100, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        index.add(np.arange(100), embeddings(100))
        wait([coding(index)])
        index.add(keys(100), embeddings(1, 8))
    assert index.search(embeddings(1, 8)[0], 1).keys.tolist() == [100]
    assert "No space left" in caplog.text
    assert isinstance(inner(index), FaissIndex)
    index.add(np.arange(101, 200), embeddings(99, 9))
    wait([coding(index)])
    assert index.search(embeddings(99, 9)[5], 1).keys.tolist() == [106]
    assert isinstance(inner(index), CodedIndex)


def test_a_search_does_without_the_file_while_the_disk_is_full(
    monkeypatch: pytest.MonkeyPatch, coded: Enrolled, tmp_path: Path
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    again = CodedIndex.restored(
        "cosine", (PARTS, CHANNELS), of(coded).codes, coded.stored, shortlist=60, folder=tmp_path
    )
    monkeypatch.setattr(os, "pwrite", full)
    probe = people(1, seed=1)[5]
    assert again.search(probe, 10).keys.tolist() == coded.search(probe, 10).keys.tolist()
