"""A walk's own key ends with it: no copy of the database has what was erased, all have the rest."""

from __future__ import annotations

import base64
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from models.footage.upload import Origin
from service.foundation.errors import NotFound, Unavailable
from service.foundation.settings import Settings
from service.gallery import found_walks
from service.gallery.editing import edit_sequence, edit_subject
from service.gallery.found_walks import FoundWalk
from service.gallery.reencryption import Kept, holdings, reencrypt
from service.gallery.sealing import ErasedWalk, LostWalkKey, sealing_of
from service.gallery.shredding import shred, sweep
from service.gallery.store import GalleryStore, NewSequence
from service.gallery.tables import EmbeddingRow, EndedWalkRow, SequenceRow, SubjectRow
from service.http.resources import open_engine
from service.http.serve import CannotServe, _preflight
from service.privacy.erasure_transactions import (
    erase_gallery,
    erase_restored,
    erase_sequence,
    erase_subject,
    reconcile,
)
from service.storage.database import new_id, now, writing
from service.storage.encryption import KeyTrouble
from service.storage.walk_keys import KeyEnded, WalkKeyRow, WalkKeys, open_walk_keys
from service.transfer.export import export_gallery
from service.transfer.export_file import ExportFile
from service.transfer.importing import GalleryImport, Spool
from tests.service.jobs.galleries import add, made_walk
from tests.service.postgresql import PostgreSQL
from tests.service.requests import enrol, identify
from tests.service.server import Serve
from tests.service.walkers import GOOD, walk

OLD, NEW = (base64.urlsafe_b64encode(bytes([number]) * 32).decode() for number in (1, 2))
ROOT = Path(__file__).parents[3]

Sealed = Callable[..., Settings]


@pytest.fixture
def keys_url(database: str | None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the keys of walks are: on a database server if the walks are."""
    if database is None:
        yield f"sqlite:///{tmp_path / 'walk-keys.sqlite'}"
        return
    server: PostgreSQL = request.getfixturevalue("postgres")
    name = server.create()
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def sealed(settings: Settings, keys_url: str) -> Sealed:
    """The settings with keys of the deployment's, and with a store of walk keys."""

    def made(*secrets: str, url: str | None = keys_url) -> Settings:
        keys = SecretStr(",".join(secrets)) if secrets else None
        return settings.model_copy(update={"encryption_keys": keys, "walk_keys_url": url})

    return made


@pytest.fixture
def opened(sealed: Sealed) -> Iterator[Engine]:
    engine = open_engine(sealed(OLD))
    GalleryStore(engine).ensure("default")
    yield engine
    engine.dispose()


def fill(engine: Engine, subject: str, count: int = 3, seed: int = 0) -> list[NewSequence]:
    drawn = np.random.default_rng(seed or sum(subject.encode()))
    walks = [
        made_walk(
            drawn.standard_normal((2, 4), np.float32),
            drawn.integers(0, 256, (3, 64, 64), np.uint8),
        )
        for _ in range(count)
    ]
    return add(GalleryStore(engine), "default", subject, walks, "digest")


def dump(engine: Engine) -> list[tuple[Any, Any]]:
    """What a copy of the database has: each walk's row and its embedding's."""
    query = select(
        SequenceRow.id, SequenceRow.subject_id, SequenceRow.silhouettes, SequenceRow.key_id
    )
    with Session(engine) as session:
        walks = session.execute(query.order_by(SequenceRow.id)).all()
        vectors = session.scalars(select(EmbeddingRow).order_by(EmbeddingRow.sequence_id)).all()
        session.expunge_all()
    return list(zip(walks, vectors, strict=True))


def readable(engine: Engine, copied: list[tuple[Any, Any]]) -> set[str]:
    """Whose walks in a copy can be read with the keys that this engine has now."""
    sealing = sealing_of(engine)
    found = set()
    for one, vector in copied:
        tried = 0
        with suppress(ErasedWalk):
            sealing.silhouettes(one.id, one.silhouettes, one.key_id)
            tried += 1
        with suppress(ErasedWalk):
            sealing.embedding(vector)
            tried += 1
        assert tried in (0, 2)
        if tried:
            found.add(one.subject_id)
    return found


def copy_of(file: Path, copy: Path) -> None:
    """A backup of a SQLite database, as operations.md makes it."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"VACUUM INTO '{copy}'")


def assert_whole(engine: Engine, sequences: list[NewSequence]) -> None:
    store = GalleryStore(engine)
    for item in sequences:
        assert np.array_equal(store.silhouettes(item.sequence_id), item.walk.silhouettes)
    ids = [item.sequence_id for item in sequences]
    vectors = dict(store.embeddings("digest", ids))
    for item in sequences:
        assert np.array_equal(vectors[item.sequence_id], item.walk.embedding)


def keys_of(engine: Engine) -> WalkKeys:
    found = sealing_of(engine).walk_keys
    assert found is not None
    return found


def states(engine: Engine, sequences: list[NewSequence]) -> list[bool | None]:
    """Of each walk: its key is there (True), has ended (False), or never was (None)."""
    ids = [item.sequence_id for item in sequences]
    known = keys_of(engine).known(ids)
    return [known.get(one) for one in ids]


def test_a_copy_from_before_an_erasure_and_the_keys_of_now_show_everybody_but_the_erased(
    opened: Engine, sealed: Sealed
) -> None:
    fill(opened, "anna")
    bert = fill(opened, "bert")
    copied = dump(opened)
    assert readable(opened, copied) == {"anna", "bert"}
    receipt = erase_subject(opened, "default", "anna")
    assert receipt.keys == "ended"
    fresh = open_engine(sealed(OLD))
    for engine in (opened, fresh):  # neither memory nor database has a key
        assert readable(engine, copied) == {"bert"}
        assert_whole(engine, bert)
    fresh.dispose()


@pytest.mark.sqlite
def test_an_ended_key_is_overwritten_in_the_stores_files(
    opened: Engine, sealed: Sealed, tmp_path: Path
) -> None:
    for number in range(30):
        fill(opened, f"person-{number}", 10)
    anna = fill(opened, "anna")
    bare = create_engine(str(sealed(OLD).walk_keys_url))
    with Session(bare) as session:
        wrapped = [session.get_one(WalkKeyRow, one.sequence_id).wrapped for one in anna]
    bare.dispose()

    def files() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.glob("walk-keys*"))

    assert all(one is not None and one in files() for one in wrapped)
    erase_subject(opened, "default", "anna")
    assert not any(one in files() for one in wrapped if one)
    assert (tmp_path / "walk-keys.sqlite").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("how", ["sequence", "gallery"])
def test_a_walk_alone_and_a_whole_gallery_end_their_keys(opened: Engine, how: str) -> None:
    anna, bert = fill(opened, "anna"), fill(opened, "bert")
    if how == "sequence":
        receipt = erase_sequence(opened, anna[0].sequence_id)
        assert states(opened, anna + bert) == [False, True, True, True, True, True]
    else:
        receipt = erase_gallery(opened, "default", keep=True)
        assert states(opened, anna + bert) == [False] * 6
    assert receipt.keys == "ended"


def test_without_keys_of_their_own_a_receipt_says_nothing_of_keys(
    settings: Settings, sealed: Sealed
) -> None:
    engine = open_engine(sealed(OLD, url=None))
    GalleryStore(engine).ensure("default")
    fill(engine, "anna")
    assert erase_subject(engine, "default", "anna").keys is None
    engine.dispose()


def test_a_service_ends_keys_and_a_search_finds_the_others(serve: Serve, sealed: Sealed) -> None:
    serve()  # which has no key yet, and nothing to be kept from
    changed = sealed(OLD)
    client, other = (
        serve(encryption_keys=changed.encryption_keys, walk_keys_url=changed.walk_keys_url)
        for _ in range(2)
    )
    for number, who in enumerate(("anna", "bert")):
        assert enrol(client, who, walk(number)).status_code == 201
    assert identify(other, walk(0)).json()["candidates"][0]["subject_id"] == "anna"
    assert client.delete("/subjects/anna").json()["keys"] == "ended"
    for one in (client, other):
        found = [who["subject_id"] for who in identify(one, walk(0)).json()["candidates"]]
        assert found == ["bert"]


def test_a_restored_database_is_served_without_whom_it_had_erased(
    opened: Engine, sealed: Sealed, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    fill(opened, "anna")
    bert = fill(opened, "bert")
    now_in = sealed(OLD)
    if now_in.database_url is None:
        copy = tmp_path / "copy.sqlite"
        copy_of(now_in.database_file, copy)
        url = f"sqlite:///{copy}"
    else:
        opened.dispose()
        server: PostgreSQL = request.getfixturevalue("postgres")
        url = server.url(server.create(opened.url.database or ""))
    erase_subject(opened, "default", "anna")
    restored = open_engine(now_in.model_copy(update={"database_url": url}))
    store = GalleryStore(restored)
    gallery_id = store.head("default").gallery_id
    assert [one.subject_id for one in store.changes(gallery_id, 0, "digest").added] == ["bert"] * 3
    assert erase_restored(restored) == 3
    assert erase_restored(restored) == 0
    with Session(restored) as session:
        assert session.scalars(select(SubjectRow.subject_id)).all() == ["bert"]
    assert_whole(restored, bert)
    restored.dispose()


DIES = """
import os, signal, sys
from service.foundation.settings import Settings
from service.gallery import shredding, store
from service.http.resources import open_engine
from service.privacy import erasure_transactions
from tests.service.gallery.test_walk_keys import fill

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

engine = open_engine(Settings())
if sys.argv[1] == "enrol":
    store.EnrolmentTransaction.add = die
    fill(engine, "cleo")
else:
    shredding.shred = die
    erasure_transactions.erase_subject(engine, "default", "anna")
"""


def dies(settings: Settings, what: str) -> None:
    environment = {
        **os.environ,
        "GAITID_DATA_DIR": str(settings.data_dir),
        "GAITID_ENCRYPTION_KEYS": OLD,
        "GAITID_WALK_KEYS_URL": str(settings.walk_keys_url),
    }
    died = subprocess.run([sys.executable, "-c", DIES, what], env=environment, cwd=ROOT, timeout=60)
    assert died.returncode == -signal.SIGKILL


def test_a_key_whose_enrolment_was_killed_is_swept_and_no_other(
    opened: Engine, sealed: Sealed
) -> None:
    anna = fill(opened, "anna")
    dies(sealed(OLD), "enrol")
    made = select(func.count()).select_from(WalkKeyRow)

    def count() -> int:
        bare = create_engine(str(sealed(OLD).walk_keys_url).replace("postgresql:", PSYCOPG))
        with bare.connect() as connection:
            found = connection.scalar(made) or 0
        bare.dispose()
        return found

    assert count() == 6
    sweep(opened, now())  # it may still be adding them
    assert count() == 6
    sweep(opened, now() + timedelta(days=2))
    assert count() == 3
    assert_whole(opened, anna)
    sweep(opened, now() + timedelta(days=20))
    assert states(opened, anna) == [True] * 3


PSYCOPG = "postgresql+psycopg:"


def test_an_erasure_that_was_killed_before_it_ended_the_keys_is_finished_by_the_sweep(
    opened: Engine, sealed: Sealed
) -> None:
    anna, bert = fill(opened, "anna"), fill(opened, "bert")
    dies(sealed(OLD), "erase")
    with pytest.raises(NotFound):
        erase_subject(opened, "default", "anna")
    assert states(opened, anna) == [True] * 3
    sweep(opened, now())
    assert states(opened, anna + bert) == [False] * 3 + [True] * 3
    with Session(opened) as session:
        assert session.scalar(select(func.count()).select_from(EndedWalkRow)) == 0


def test_while_the_store_is_away_an_erasure_says_pending_and_what_was_read_is_found(
    opened: Engine, sealed: Sealed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    anna, bert = fill(opened, "anna"), fill(opened, "bert")
    away = create_engine(f"sqlite:///{tmp_path / 'no folder' / 'file'}")
    with monkeypatch.context() as patch:
        patch.setattr(keys_of(opened), "_engine", away)
        with pytest.raises(OperationalError):
            fill(opened, "cleo")
        assert erase_subject(opened, "default", "anna").keys == "pending"
        assert_whole(opened, bert)
    assert states(opened, anna) == [True] * 3
    assert shred(opened) == "ended"
    assert states(opened, anna) == [False] * 3
    with Session(opened) as session:
        assert session.scalars(select(SubjectRow.subject_id)).all() == ["bert"]


def test_a_lost_or_other_store_stops_the_start_and_none_is_made_in_its_place(
    opened: Engine, sealed: Sealed, tmp_path: Path
) -> None:
    anna = fill(opened, "anna")
    empty = tmp_path / "empty.sqlite"
    name = keys_of(opened).name
    for url in (f"sqlite:///{empty}", f"sqlite:///{empty}"):
        with pytest.raises(CannotServe, match=f"of the store {name}.*no such file"):
            _preflight(sealed(OLD, url=url))
        assert not empty.exists()
    empty.touch()
    with pytest.raises(CannotServe, match="it is empty"):
        _preflight(sealed(OLD, url=f"sqlite:///{empty}"))
    other = tmp_path / "other.sqlite"
    keys = list(sealing_of(opened)._keys.values())
    open_walk_keys(f"sqlite:///{other}", keys, None).close()
    with pytest.raises(CannotServe, match="it is the store walks-"):
        _preflight(sealed(OLD, url=f"sqlite:///{other}"))
    with pytest.raises(CannotServe, match=f"{name}.*GAITID_WALK_KEYS_URL"):
        _preflight(sealed(OLD, url=None))
    with pytest.raises(CannotServe, match="no key here"):
        _preflight(sealed())
    fresh = open_engine(sealed(OLD))
    assert_whole(fresh, anna)
    fresh.dispose()


def test_a_store_that_has_walks_is_not_given_to_another_database(
    opened: Engine, sealed: Sealed, tmp_path: Path
) -> None:
    fill(opened, "anna")
    another = sealed(OLD).model_copy(update={"database_url": f"sqlite:///{tmp_path / 'another'}"})
    with pytest.raises(KeyTrouble, match="another database's walks"):
        open_engine(another)


def test_the_galleries_own_database_is_no_store(sealed: Sealed) -> None:
    with pytest.raises(KeyTrouble, match="the galleries' own database"):
        open_engine(sealed(OLD, url=sealed(OLD).resolved_database_url))


def test_an_encrypted_deployment_gets_keys_for_its_walks_and_an_old_process_writes_no_more(
    sealed: Sealed,
) -> None:
    old = open_engine(sealed(OLD, url=None))
    GalleryStore(old).ensure("default")
    anna = fill(old, "anna", 70)
    opened = open_engine(sealed(OLD))
    bert = fill(opened, "bert")
    assert_whole(opened, anna + bert)
    with pytest.raises(Unavailable, match="restart it"):
        fill(old, "cleo")
    with pytest.raises(Unavailable, match="GAITID_WALK_KEYS_URL"):
        GalleryStore(old).silhouettes(bert[0].sequence_id)
    assert reencrypt(opened) == 140
    name = keys_of(opened).name
    assert {kept.key_id: kept for kept in holdings(opened)}[name] == Kept(name, 73, 73)
    assert_whole(opened, anna + bert)
    same = sealing_of(opened).content_hash(anna[0].walk.silhouettes)
    with Session(opened) as session:
        found = session.scalar(select(SequenceRow.id).where(SequenceRow.content_hash == same))
    assert found == anna[0].sequence_id
    copied = dump(opened)
    erase_subject(opened, "default", "anna")
    assert readable(opened, copied) == {"bert"}
    opened.dispose()
    old.dispose()


def test_a_rotation_seals_the_keys_anew_and_touches_no_walk(
    opened: Engine, sealed: Sealed, tmp_path: Path
) -> None:
    anna = fill(opened, "anna", 20)
    before = [(row.silhouettes, vector.vector) for row, vector in dump(opened)]
    old_copy = tmp_path / "old-copy.sqlite"
    if opened.dialect.name == "sqlite":
        copy_of(tmp_path / "walk-keys.sqlite", old_copy)
    both = open_engine(sealed(NEW, OLD))
    bert = fill(both, "bert")
    assert reencrypt(both) == 0
    both.dispose()
    rotated = open_engine(sealed(NEW))
    assert_whole(rotated, anna + bert)
    after = [(row.silhouettes, vector.vector) for row, vector in dump(rotated)]
    assert after[: len(before)] == before
    assert {kept.key_id for kept in holdings(rotated)} == {
        keys_of(rotated).name,
        sealing_of(rotated).key_id,
    }
    with pytest.raises(Unavailable, match="restart it"):
        fill(opened, "cleo")
    rotated.dispose()
    if old_copy.exists():  # with the old key destroyed it opens nothing
        with pytest.raises(KeyTrouble, match="sealed with the key"):
            open_engine(sealed(NEW, url=f"sqlite:///{old_copy}"))


def test_walks_that_change_hands_keep_their_keys_and_a_twin_ends_its_own(opened: Engine) -> None:
    anna, bert = fill(opened, "anna", 3, seed=5), fill(opened, "bert", 2, seed=5)
    cleo = fill(opened, "cleo")
    edit_sequence(opened, lambda *_: None, sequence_id=cleo[0].sequence_id, subject_id="anna")
    edit_subject(opened, lambda *_: None, gallery="default", subject_id="bert", merge_into="anna")
    edit_subject(opened, lambda *_: None, gallery="default", subject_id="anna", new_id="anne")
    assert_whole(opened, anna + cleo)
    assert states(opened, anna + bert + cleo) == [True] * 3 + [False] * 2 + [True] * 3
    erase_subject(opened, "default", "anne")
    assert states(opened, anna + cleo) == [False] * 4 + [True] * 2


def imported(engine: Engine, data: bytes, name: str) -> list[str]:
    """Import an export; the ids of its sequences."""
    with TemporaryFile() as copies, ExportFile(BytesIO(data), max_frames=1000) as export:
        new = GalleryImport(engine, export, {}, Spool(copies))
        new.check()
        gallery_id = new.add(name).gallery.gallery_id
    query = select(SequenceRow.id).where(SequenceRow.gallery_id == gallery_id)
    with Session(engine) as session:
        return list(session.scalars(query.order_by(SequenceRow.id)))


def test_an_export_comes_in_again_and_what_was_erased_does_not_lend_its_name(
    opened: Engine, tmp_path: Path
) -> None:
    anna = fill(opened, "anna")
    copied = dump(opened)
    export_gallery(opened, "default", tmp_path / "out.zip")
    data = (tmp_path / "out.zip").read_bytes()
    erase_subject(opened, "default", "anna")
    ids = imported(opened, data, "again")
    assert not {one.sequence_id for one in anna} & set(ids)
    store = GalleryStore(opened)
    for item, sequence_id in zip(anna, ids, strict=True):
        assert np.array_equal(store.silhouettes(sequence_id), item.walk.silhouettes)
    assert readable(opened, copied) == set()


def test_a_found_walk_has_a_key_that_goes_with_it(opened: Engine) -> None:
    found = FoundWalk(new_id(), new_id(), walk_frames(), GOOD, Origin("network", 1, 0.0, 1.0))
    row = found_walks.sealed(opened, found)
    with Session(writing(opened)) as session, session.begin():
        session.add(row)
    assert np.array_equal(found_walks.read(opened, found.walk_id).silhouettes, found.silhouettes)
    with Session(writing(opened)) as session, session.begin():
        found_walks.take(session, found.walk_id)
    assert shred(opened) == "ended"
    with pytest.raises(KeyEnded):
        keys_of(opened).cipher(found.walk_id)


def walk_frames() -> Any:
    return np.random.default_rng(3).integers(0, 256, (4, 64, 64), np.uint8)


def test_an_embedding_of_a_walk_that_was_erased_meanwhile_is_skipped(opened: Engine) -> None:
    anna, bert = fill(opened, "anna", 1), fill(opened, "bert", 1)
    erase_subject(opened, "default", "anna")
    made = [(one.sequence_id, one.walk.embedding) for one in anna + bert]
    store = GalleryStore(opened)
    store.add_embeddings("another", made)
    ids = [one.sequence_id for one in anna + bert]
    assert [one for one, _ in store.embeddings("another", ids)] == [bert[0].sequence_id]


def test_what_a_search_reads_asks_the_store_nothing_once_its_index_is_loaded(
    opened: Engine, sealed: Sealed
) -> None:
    people = [fill(opened, f"person-{number}", 5) for number in range(10)]
    fresh = open_engine(sealed(OLD))
    asked: list[str] = []
    event.listen(
        keys_of(fresh)._engine, "before_cursor_execute", lambda *given: asked.append(given[2])
    )
    store = GalleryStore(fresh)
    gallery_id, newest, _ = store.head("default")
    assert len(store.changes(gallery_id, 0, "digest").added) == 50
    statements = [one for one in asked if one.startswith("SELECT")]
    assert len(statements) == 1  # all keys at once
    assert_whole(fresh, [walk for person in people for walk in person])
    assert store.changes(gallery_id, newest, "digest").added == ()
    assert [one for one in asked if one.startswith("SELECT")] == statements
    fresh.dispose()


def test_a_process_forgets_the_key_of_whom_another_has_erased(
    opened: Engine, sealed: Sealed
) -> None:
    anna, bert = fill(opened, "anna"), fill(opened, "bert")
    other = open_engine(sealed(OLD))
    store = GalleryStore(other)
    gallery_id, newest, _ = store.head("default")
    store.changes(gallery_id, 0, "digest")
    erase_subject(opened, "default", "anna")
    store.changes(gallery_id, newest, "digest")
    held = keys_of(other)._secrets
    assert [one.sequence_id in held for one in anna + bert] == [False] * 3 + [True] * 3
    other.dispose()


@pytest.mark.sqlite
def test_an_older_store_says_whose_key_it_lacks_and_is_reconciled(
    opened: Engine, sealed: Sealed, tmp_path: Path
) -> None:
    anna, bert = fill(opened, "anna"), fill(opened, "bert")
    older = tmp_path / "older.sqlite"
    copy_of(tmp_path / "walk-keys.sqlite", older)
    cleo = fill(opened, "cleo")
    erase_subject(opened, "default", "anna")
    opened.dispose()
    copyfile(older, tmp_path / "walk-keys.sqlite")
    with_older = open_engine(sealed(OLD))
    assert states(with_older, anna) == [True] * 3  # as it was
    with pytest.raises(LostWalkKey, match=cleo[0].sequence_id):
        GalleryStore(with_older).silhouettes(cleo[0].sequence_id)
    assert reconcile(with_older) == (3, 3)
    assert states(with_older, anna + bert) == [False] * 3 + [True] * 3
    assert_whole(with_older, bert)
    with pytest.raises(NotFound):
        GalleryStore(with_older).sequence(cleo[0].sequence_id)
    with_older.dispose()
