"""Several processes over one database: everybody reads their own writes and everybody else's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pytest
from sqlalchemy import Engine

from service.foundation.errors import NotFound
from service.gallery.cache import GalleryCache
from service.gallery.index import Hits, Keys
from service.gallery.live_index import LiveIndex
from service.gallery.memory_index import MemoryIndex
from service.gallery.ranking import GallerySearch
from service.gallery.records import Embedding, Walk
from service.gallery.store import GalleryStore
from service.privacy.erasure_transactions import erase_gallery, erase_sequence, erase_subject
from service.serving.reembedding import Reembedding
from tests.service.jobs.galleries import add, made_walk
from tests.service.searched import both, searched_gallery

PARTS, CHANNELS = 2, 3


def embedding(seed: int) -> Embedding:
    return np.random.default_rng(seed).normal(size=(PARTS, CHANNELS)).astype(np.float32)


def walk(seed: int) -> Walk:
    return made_walk(embedding(seed), np.full((3, 64, 64), seed, np.uint8))


def enrol(store: GalleryStore, subject: str, *seeds: int, digest: str = "d") -> list[str]:
    return [item.sequence_id for item in add(store, "default", subject, map(walk, seeds), digest)]


def encode(walks: Sequence[np.ndarray]) -> np.ndarray:
    """Another checkpoint: embeds a walk by its grey level, as `embedding` does."""
    return np.stack([embedding(int(walk[0, 0, 0])) for walk in walks])


class Process:
    """What one process holds."""

    def __init__(self, engine: Engine, digest: str = "d", piece: int = 2048) -> None:
        self.store = GalleryStore(engine, piece=piece)
        self.embedded: list[str] = []
        reembedding = Reembedding(self.store, encode, digest)

        def embed(sequence_ids: Sequence[str]) -> Mapping[str, Embedding]:
            self.embedded += sequence_ids
            return reembedding.some(sequence_ids)

        def make(gallery_id: str) -> GallerySearch:
            shape = (PARTS, CHANNELS)
            return searched_gallery(gallery_id, digest, shape, "cosine", self.store, embed)

        self.digest = digest
        self.make = make
        self.cache = GalleryCache(max_bytes=2**20)

    def finds(self, seed: int, subjects: int = 10) -> list[str]:
        gallery_id, newest, _ = self.store.head("default")
        index = self.cache.get(gallery_id, self.digest, lambda: self.make(gallery_id))
        found = index.search(newest, embedding(seed), subjects)
        return [candidate.subject_id for candidate in found]


@both
def test_every_process_sees_every_enrolment_and_erasure_at_its_next_search(
    engine: Engine,
) -> None:
    one, two = Process(engine), Process(engine)
    assert one.finds(1) == two.finds(1) == []
    (first,) = enrol(one.store, "anna", 1)
    assert one.finds(1) == two.finds(1) == ["anna"]
    enrol(two.store, "bert", 2, 3)
    assert one.finds(2)[0] == two.finds(2)[0] == "bert"
    erase_sequence(engine, first)
    assert one.finds(1) == two.finds(1) == ["bert"]
    enrol(one.store, "anna", 1)
    erase_subject(engine, "default", "bert")
    late = Process(engine)
    assert one.finds(2) == two.finds(2) == late.finds(2) == ["anna"]


@both
def test_a_gallery_made_anew_is_another_one(engine: Engine) -> None:
    process = Process(engine)
    enrol(process.store, "anna", 1)
    assert process.finds(1) == ["anna"]
    erase_gallery(engine, "default", keep=True)
    assert process.finds(1) == []
    enrol(process.store, "bert", 2)
    assert process.finds(1) == ["bert"]


@both
def test_what_another_model_embedded_is_embedded_once_by_this_one(engine: Engine) -> None:
    enrol(GalleryStore(engine), "anna", 1, 2, digest="old")
    process = Process(engine, digest="new")
    assert process.finds(1) == ["anna"]
    assert len(process.embedded) == 2
    enrol(GalleryStore(engine), "bert", 3, digest="old")
    assert process.finds(3)[0] == "bert"
    assert len(process.embedded) == 3
    again = Process(engine, digest="new")
    assert again.finds(3)[0] == "bert"
    assert again.embedded == []


def test_everything_is_embedded_before_the_start_and_only_what_lacks_it(engine: Engine) -> None:
    store = GalleryStore(engine)
    for person in range(40):
        enrol(store, f"s{person}", person, digest="old")
    heard: list[tuple[int, int]] = []
    reembedding = Reembedding(store, encode, "new")
    assert reembedding.everything(lambda done, total: heard.append((done, total))) == 40
    assert heard == [(0, 40), (32, 40)]
    assert store.count_without("new") == 0
    assert store.count_without("old") == 0
    assert reembedding.everything(lambda done, total: None) == 0


def test_embeddings_of_a_sequence_erased_meanwhile_are_not_kept(engine: Engine) -> None:
    store = GalleryStore(engine)
    (erased,) = enrol(store, "anna", 1)
    (left,) = enrol(store, "bert", 2)
    erase_sequence(engine, erased)
    store.add_embeddings("new", {erased: embedding(1), left: embedding(2)}.items())
    assert store.count_without("new") == 0
    store.add_embeddings("new", {left: embedding(2)}.items())  # twice is once


@both
def test_an_enrolment_that_fails_at_its_end_leaves_nothing(engine: Engine) -> None:
    process = Process(engine)
    enrol(process.store, "anna", 1)
    before = process.store.gallery("default")

    def enrol_and_fail() -> None:
        with process.store.enrolling(before.gallery_id, "bert") as transaction:
            transaction.add(process.store.seal([walk(seed) for seed in (2, 3)], {}, "d"))
            raise NotFound("refused in the transaction")

    with pytest.raises(NotFound):
        enrol_and_fail()
    assert process.store.gallery("default") == before
    assert process.finds(2) == ["anna"]


def test_the_cache_drops_what_was_not_searched_for_longest(engine: Engine) -> None:
    store = GalleryStore(engine)
    for name in ("a", "b", "c"):
        store.ensure(name)
        add(store, name, "anna", [walk(1)], "d")
    size = PARTS * CHANNELS * 4
    cache = GalleryCache(max_bytes=2 * size)
    ids = {name: store.head(name)[0] for name in ("a", "b", "c")}

    def get(name: str, digest: str = "d") -> GallerySearch:
        return cache.get(
            ids[name],
            digest,
            lambda: LiveIndex(
                ids[name], digest, MemoryIndex(PARTS, CHANNELS, "cosine"), store, lambda _: {}
            ),
        )

    for name in ("a", "b", "a", "c"):
        get(name).search(store.head(name)[1], embedding(1), 1)
    get("c")
    assert [name for name in ids if cache.held(ids[name])] == ["a", "c"]
    assert not cache.has_room_for([get("a")])
    get("a", "another model")
    assert set(cache.held(ids["a"])) == {"d", "another model"}
    cache.drop_model("d")
    assert cache.has_room_for([get("a", "another model")])
    assert set(cache.held(ids["a"])) == {"another model"}
    cache.drop(ids["a"])
    assert len(cache) == 0


@both
def test_a_long_history_is_followed_in_pieces(engine: Engine) -> None:
    process = Process(engine, piece=4)
    first = enrol(process.store, "anna", 1)
    for person in range(5):
        enrol(process.store, f"s{person}", person + 10, person + 20)
    enrol(process.store, "crowd", *range(30, 37))  # more than a piece, in one revision
    enrol(process.store, "last", 40)
    erase_sequence(engine, first[0])
    assert process.store.changes(process.store.head("default")[0], 0, "d").revision < 8
    everybody = {*(f"s{person}" for person in range(5)), "crowd", "last"}
    assert set(process.finds(1, 100)) == everybody
    assert process.finds(40)[0] == "last"
    assert process.finds(33)[0] == "crowd"


@both
def test_a_tie_between_sequences_of_one_subject_is_one_candidate(engine: Engine) -> None:
    process = Process(engine)
    enrol(process.store, "anna", 1, 1, 1)
    assert process.finds(1) == ["anna"]


def test_a_subject_with_many_sequences_costs_a_search_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(engine)
    enrol(process.store, "anna", *range(30))
    enrol(process.store, "bert", 200)
    passes: list[int] = []
    search = MemoryIndex.search

    def counted(
        index: MemoryIndex, probe: Embedding, limit: int, among: Keys | None = None
    ) -> Hits:
        passes.append(limit)
        return search(index, probe, limit, among)

    monkeypatch.setattr(MemoryIndex, "search", counted)
    assert process.finds(1, 2) == ["anna", "bert"]
    assert process.finds(1, 100) == ["anna", "bert"]  # there are no more
    assert len(passes) == 2


def test_an_index_that_replaces_another_is_not_what_makes_room(engine: Engine) -> None:
    store = GalleryStore(engine)
    cache = GalleryCache(max_bytes=2 * PARTS * CHANNELS * 4)
    ids = {}
    for name in ("a", "b"):
        store.ensure(name)
        add(store, name, "anna", [walk(1)], "d")
        ids[name] = store.head(name)[0]

    def followed(name: str) -> LiveIndex:
        index = MemoryIndex(PARTS, CHANNELS, "cosine")
        gallery = LiveIndex(ids[name], "d", index, store, lambda _: {})
        gallery.follow(store.head(name)[1])
        return gallery

    for name in ids:
        cache.get(ids[name], "d", partial(followed, name))
    add(store, "a", "bert", [walk(2)], "d")
    newer = followed("a")
    cache.replace(ids["a"], "d", newer)
    assert cache.held(ids["a"]) == {"d": newer}
    assert not cache.held(ids["b"])
