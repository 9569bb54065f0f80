"""A gallery in Milvus: nothing is missed, nobody erased is found, whatever fails in between."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from models.comparison.similarity import index_vectors
from service.foundation.errors import Unavailable
from service.gallery import index_collections, milvus_index
from service.gallery.active_model import renew_indexes
from service.gallery.editing import Corrected, edit_sequence
from service.gallery.index_collections import IndexCollections, Serves
from service.gallery.milvus_index import Milvus, expression, facts
from service.gallery.records import Embedding, Metadata
from service.gallery.shared_index import SharedIndex
from service.gallery.store import GalleryStore
from service.gallery.tables import GalleryRow, IndexCollectionRow
from service.privacy.erasure_transactions import erase_gallery, erase_sequence, erase_subject
from service.storage.database import writing
from tests.service.jobs.galleries import add, made_walk
from tests.service.searched import open_milvus

SHAPE = (2, 3)


def embedding(seed: int) -> Embedding:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def enrol(store: GalleryStore, subject: str, *seeds: int, **said: str) -> list[str]:
    walks = [made_walk(embedding(seed), np.full((2, 64, 64), seed, np.uint8)) for seed in seeds]
    return [one.sequence_id for one in add(store, "default", subject, walks, "d", dict(said))]


class Replica:
    """What one process holds of the gallery `default`."""

    def __init__(self, engine: Engine, milvus: Milvus, *, epoch: int = 0, tail: int = 1000) -> None:
        self.store = GalleryStore(engine, piece=4)
        self.milvus = milvus
        self.collections = IndexCollections(engine, milvus)
        self.gallery_id = self.store.head("default").gallery_id
        self.serves = Serves(self.gallery_id, "d", None, epoch)
        self.index = SharedIndex(
            self.serves,
            SHAPE,
            "cosine",
            self.store,
            self.collections,
            lambda _: {},
            longest_tail=tail,
        )

    def finds(self, seed: int, subjects: int = 10, **how: Any) -> list[str]:
        newest = self.store.head("default").revision
        found = self.index.search(newest, embedding(seed), subjects, **how)
        return [one.subject_id for one in found]

    def follow(self) -> None:
        self.index.follow(self.store.head("default").revision)

    def write(self) -> None:
        self.follow()
        self.index.keep()
        self.follow()

    @property
    def tail(self) -> int:
        return len(self.index._tail.roster)

    @property
    def name(self) -> str:
        return self.collections.of(self.serves).name

    def in_milvus(self, *seeds: int) -> set[str]:
        """The ids that Milvus itself finds for these walks, best ones only."""
        vectors = index_vectors(np.stack([embedding(seed) for seed in seeds]))
        return self.milvus.nearest(self.name, vectors, 1, None, 0).ids


@pytest.fixture
def replica(engine: Engine, milvus: Milvus) -> Replica:
    return Replica(engine, milvus)


def rows(engine: Engine) -> Sequence[IndexCollectionRow]:
    with Session(engine) as session:
        return session.scalars(select(IndexCollectionRow)).all()


def test_what_is_written_leaves_the_process_and_is_found_as_before(replica: Replica) -> None:
    for person in range(12):
        enrol(replica.store, f"p{person}", person, person + 100)
    before = replica.finds(3)
    assert (replica.tail, before[0]) == (24, "p3")
    assert replica.index.nbytes > 0
    replica.write()
    assert (replica.tail, replica.index.nbytes) == (0, 0)
    assert replica.milvus.count(replica.name) == 24
    assert replica.finds(3) == before
    late = Replica(replica.store.engine, replica.milvus)
    assert late.finds(3) == before
    assert late.tail == 0, "a start reads nothing"
    assert late.index.subjects == 12


def test_who_was_erased_is_not_found_though_milvus_has_them(replica: Replica) -> None:
    kept, gone = enrol(replica.store, "anna", 1)[0], enrol(replica.store, "bert", 2)[0]
    replica.write()
    erase_subject(replica.store.engine, "default", "bert")
    assert replica.in_milvus(1, 2) == {kept, gone}
    assert replica.finds(2) == ["anna"]
    newest = replica.store.head("default").revision
    assert replica.index.compare(newest, embedding(2), "bert") is None


def test_what_was_corrected_is_found_as_what_it_is_now(replica: Replica) -> None:
    (walk,) = enrol(replica.store, "anna", 1, view="000")
    enrol(replica.store, "bert", 2, view="000")
    replica.write()

    def nothing(_session: Session, _corrected: Corrected[Any]) -> None:
        return None

    edit_sequence(replica.store.engine, nothing, sequence_id=walk, metadata={"view": "090"})
    for _ in range(2):  # before Milvus knows, and after
        assert replica.finds(1, where={"view": "090"}) == ["anna"]
        assert replica.finds(1, where={"view": "000"}) == ["bert"]
        replica.write()


def test_filters_are_those_of_json(replica: Replica) -> None:
    every: list[Metadata] = [{"n": 1}, {"n": True}, {"n": "1"}, {"n": None}, {}]
    for person, said in enumerate(every):
        one = made_walk(embedding(person), np.full((2, 64, 64), person, np.uint8))
        add(replica.store, "default", f"p{person}", [one], "d", said)
    replica.write()
    assert replica.finds(0, where={"n": 1.0}) == ["p0"]
    assert replica.finds(0, where={"n": True}) == ["p1"]
    assert set(replica.finds(0, where={"n": ("1", None)})) == {"p2", "p3"}
    assert replica.finds(0, where={"n": '"] or id != ["'}) == []


def test_milvus_is_told_hashes_of_what_is_said() -> None:
    said = facts({"place": "north gate", "camera": 3})
    assert len(said) == 2
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in said)
    assert facts({"camera": 3.0}) == said[1:]
    assert said[0] in expression({"place": ("south", "north gate")})
    assert "north" not in expression({"place": "north gate"})


def test_the_best_of_each_of_many_subjects_is_found_behind_one_with_many_walks(
    replica: Replica,
) -> None:
    crowd = [made_walk(embedding(1), np.full((2, 64, 64), 1, np.uint8)) for _ in range(150)]
    add(replica.store, "default", "crowd", crowd, "d")
    enrol(replica.store, "anna", 7)
    replica.write()
    assert replica.finds(1, 2) == ["crowd", "anna"]


def test_replicas_that_write_at_once_lose_nothing(engine: Engine, milvus: Milvus) -> None:
    replicas = [Replica(engine, milvus) for _ in range(3)]

    def work(number: int) -> None:
        one = replicas[number]
        for step in range(6):
            enrol(one.store, f"p{number}-{step}", 10 * number + step)
            one.write()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, range(3)))
    replicas[0].write()
    assert milvus.count(replicas[0].name) == 18
    everybody = {f"p{number}-{step}" for number in range(3) for step in range(6)}
    for one in replicas:
        assert set(one.finds(1, 30)) == everybody
    assert len(rows(engine)) == 1


def test_a_process_that_dies_while_it_writes_is_followed_by_another(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, milvus = replica.store.engine, replica.milvus
    for person in range(10):
        enrol(replica.store, f"p{person}", person)
    erased = enrol(replica.store, "erased", 50)
    written: list[str] = []
    write = Milvus.write

    def dies(self: Milvus, name: str, ids: Sequence[str], *rest: Any) -> None:
        write(self, name, ids, *rest)
        written.extend(ids)
        if len(written) > 5:
            raise SystemExit

    with monkeypatch.context() as dying:
        dying.setattr(Milvus, "write", dies)
        dying.setattr(IndexCollections, "release", lambda *_: None)  # as if killed
        replica.follow()
        with pytest.raises(SystemExit):
            replica.index.keep()
    erase_sequence(engine, erased[0])
    other = Replica(engine, milvus)
    assert other.finds(9)[0] == "p9"
    other.follow()
    other.index.keep()
    assert other.tail > 0, "the first writer may still live"
    monkeypatch.setattr(index_collections, "_SILENT_S", 0.0)
    other.index.keep()
    other.follow()
    assert other.tail == 0
    assert milvus.count(other.name) == 10
    assert other.finds(9)[0] == "p9"


def test_a_collection_that_was_never_finished_is_made_anew_under_another_name(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the writer that was taken for dead still writes does not reach the new one."""
    enrol(replica.store, "anna", 1)
    first = replica.name
    assert replica.collections.claim(replica.serves, "another process")
    replica.milvus.create(first, 6)
    monkeypatch.setattr(index_collections, "_SILENT_S", 0.0)
    replica.write()
    replica.write()
    assert replica.name != first
    assert replica.milvus.count(replica.name) == 1
    replica.collections.sweep()
    assert first not in replica.milvus.names()


def test_a_writer_that_was_replaced_takes_back_what_was_erased_meanwhile(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, milvus = replica.store.engine, replica.milvus
    enrol(replica.store, "anna", 1)
    replica.write()
    (late,) = enrol(replica.store, "bert", 2)
    replica.follow()
    other = Replica(engine, milvus)
    monkeypatch.setattr(index_collections, "_SILENT_S", 0.0)
    write = Milvus.write

    def stalls(self: Milvus, *what: Any) -> None:
        """Before the write arrives, the walk is erased and another process has written that."""
        monkeypatch.setattr(Milvus, "write", write)
        erase_sequence(engine, late)
        for _ in range(2):
            other.write()
        assert milvus.count(other.name) == 1
        write(self, *what)

    monkeypatch.setattr(Milvus, "write", stalls)
    replica.index.keep()
    assert milvus.count(replica.name) == 1
    assert replica.finds(2) == ["anna"]


def test_a_collection_that_was_lost_is_made_anew(replica: Replica) -> None:
    enrol(replica.store, "anna", 1)
    replica.write()
    lost = replica.name
    replica.milvus.drop(lost)
    assert replica.finds(1) == ["anna"]
    replica.write()
    assert replica.name != lost
    assert replica.milvus.count(replica.name) == 1
    assert replica.finds(1) == ["anna"]


def test_a_search_that_would_need_a_long_tail_is_asked_to_wait(
    engine: Engine, milvus: Milvus
) -> None:
    replica = Replica(engine, milvus, tail=5)
    for person in range(6):
        enrol(replica.store, f"p{person}", person)
    with pytest.raises(Unavailable) as refused:
        replica.finds(1)
    assert (refused.value.problem_slug, refused.value.retry_after) == ("index-behind", 5.0)
    replica.follow()
    assert replica.finds(1)[0] == "p1"
    assert replica.tail <= 5


def test_work_that_takes_long_ends_with_the_service(engine: Engine, milvus: Milvus) -> None:
    stopping = Event()

    def go_on() -> None:
        if stopping.is_set():
            raise Unavailable("stops", retry_after=1.0)

    replica = Replica(engine, milvus, tail=0)
    replica.index._go_on = go_on
    enrol(replica.store, "anna", 1)
    stopping.set()
    with pytest.raises(Unavailable, match="stops"):
        replica.follow()


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milvus is away until the test undoes it."""

    def refused(*_: Any, **__: Any) -> None:
        raise import_module("pymilvus").MilvusException(code=2, message="Fail connecting to server")

    for call in ("search", "upsert", "delete", "drop_collection", "list_collections"):
        monkeypatch.setattr(f"pymilvus.MilvusClient.{call}", refused)
    monkeypatch.setattr(milvus_index, "_REST_S", 0.05)


def test_without_milvus_a_search_is_refused_and_heals_by_itself(
    replica: Replica, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(replica.store, "anna", 1)
    replica.write()
    request.getfixturevalue("away")
    for _ in range(3):
        with pytest.raises(Unavailable) as refused:
            replica.finds(1)
        assert refused.value.problem_slug == "index-unavailable"
        assert refused.value.retry_after
    enrol(replica.store, "bert", 2)
    with pytest.raises(Unavailable):
        replica.write()
    monkeypatch.undo()
    replica.milvus._rest_until = 0.0
    assert replica.finds(2)[0] == "bert"
    replica.write()
    assert replica.milvus.count(replica.name) == 2


def test_an_erasure_says_what_milvus_still_has(
    replica: Replica, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = replica.store.engine
    (first,), (second,) = enrol(replica.store, "anna", 1), enrol(replica.store, "bert", 2)
    enrol(replica.store, "carl", 3)
    replica.write()
    erase_sequence(engine, first)
    assert replica.collections.erase(replica.gallery_id, within_s=1) == "deleted"
    assert first not in replica.in_milvus(1)
    assert replica.milvus.count(replica.name) == 2
    erase_sequence(engine, second)
    request.getfixturevalue("away")
    assert replica.collections.erase(replica.gallery_id, within_s=0) == "pending"
    monkeypatch.undo()
    replica.milvus._rest_until = 0.0
    replica.collections.tidy()
    replica.write()
    assert second not in replica.in_milvus(2)
    assert replica.milvus.count(replica.name) == 1


def test_an_erasure_waits_for_a_writer_who_may_be_adding_the_walk(replica: Replica) -> None:
    enrol(replica.store, "anna", 1)
    replica.write()
    (walk,) = enrol(replica.store, "bert", 2)
    assert replica.collections.claim(replica.serves, "another process")
    erase_sequence(replica.store.engine, walk)
    assert replica.collections.erase(replica.gallery_id, within_s=0.3) == "pending"
    replica.collections.release(replica.name, "another process")
    assert replica.collections.erase(replica.gallery_id, within_s=0.3) == "deleted"


def test_the_folder_of_milvus_lite_has_nothing_of_who_was_erased(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEST_MILVUS", raising=False)
    milvus = open_milvus(tmp_path)
    try:
        replica = Replica(engine, milvus)
        (walk,) = enrol(replica.store, "anna", 1)
        (stays,) = enrol(replica.store, "bert", 2)
        replica.write()
        assert {one for one in (walk, stays) if traces(tmp_path / "milvus.db", one)} == {
            walk,
            stays,
        }
        erase_sequence(engine, walk)
        assert replica.collections.erase(replica.gallery_id, within_s=1) == "deleted"
        replica.write()
        replica.collections.tidy()
        replica.collections.sweep()
        assert replica.finds(2) == ["bert"]
        replica.write()
    finally:
        milvus.close()
    assert traces(tmp_path / "milvus.db", stays)
    assert not traces(tmp_path / "milvus.db", walk)


def traces(folder: Path, sequence_id: str) -> bool:
    """Whether any file has the id in plain; Parquet keeps short columns so."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return any(sequence_id.encode() in path.read_bytes() for path in found)


def test_a_collection_is_dropped_when_its_successor_is_complete(
    engine: Engine, milvus: Milvus, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Replica(engine, milvus)
    enrol(old.store, "anna", 1)
    old.write()
    with Session(writing(engine)) as session, session.begin():
        renew_indexes(session, old.gallery_id)
    new = Replica(engine, milvus, epoch=1)
    assert new.name != old.name
    monkeypatch.setattr(index_collections, "_GRACE", index_collections._GRACE * 0)
    for _ in range(2):
        old.collections.sweep()
    assert old.finds(1) == ["anna"], "the successor is still to be made"
    assert {row.name for row in rows(engine)} == {old.name, new.name}
    new.write()
    assert new.index.same_as(old.index)
    former = old.name
    for _ in range(2):
        old.collections.sweep()
    assert former not in milvus.names()
    assert [row.name for row in rows(engine)] == [new.name]
    assert new.finds(1) == ["anna"]


def test_a_gallery_that_was_erased_takes_its_collections_with_it(replica: Replica) -> None:
    enrol(replica.store, "anna", 1)
    replica.write()
    name = replica.name
    erase_gallery(replica.store.engine, "default", keep=True)
    assert replica.collections.erase(replica.gallery_id, within_s=0) == "deleted"
    assert name not in replica.milvus.names()
    assert not rows(replica.store.engine)


@pytest.mark.parametrize("wrong", ["more", "fewer"])
def test_a_collection_that_differs_from_the_database_is_made_anew(
    replica: Replica, wrong: str
) -> None:
    """As after one of the two was restored from a backup."""
    (walk,) = enrol(replica.store, "anna", 1)
    enrol(replica.store, "bert", 2)
    replica.write()
    name = replica.name
    replica.collections.tidy()
    assert replica.name == name
    if wrong == "more":
        stranger = index_vectors(embedding(3)[None])
        replica.milvus.write(name, ["of another history"], [{}], stranger)
        assert set(replica.finds(3)) == {"anna", "bert"}
    else:
        replica.milvus.delete(name, [walk])
    replica.collections.tidy()
    assert replica.name != name
    replica.write()
    assert replica.milvus.count(replica.name) == 2
    assert replica.finds(1)[0] == "anna"


def test_a_model_of_its_own_makes_other_collections_stale(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = replica.store.engine
    enrol(replica.store, "anna", 1)
    replica.write()
    with Session(writing(engine)) as session, session.begin():
        row = session.get_one(GalleryRow, replica.gallery_id)
        row.active_model, row.active_digest = "new", "e"
        row.previous_model, row.previous_digest = "old", "d"
    replica.collections.sweep()
    assert rows(engine)[0].stale_at is None, "a rollback may need it"
