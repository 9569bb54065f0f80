"""What a disk has changed in a gallery without keys is noticed, never searched, and made anew."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from service.foundation.settings import Settings
from service.gallery.reencryption import reencrypt
from service.gallery.sealing import DamagedEmbedding, DamagedSilhouettes
from service.gallery.store import GalleryStore
from service.gallery.tables import EmbeddingRow, SequenceRow
from service.http.resources import open_engine
from service.job_types.reindexing import Reindexed, reindex
from service.storage.database import writing
from service.storage.encryption import new_secret
from service.transfer.export import stream_gallery
from tests.service.jobs.galleries import enrol as enrol_in_store
from tests.service.requests import enrol, identify, problem
from tests.service.server import Serve
from tests.service.walkers import walk


@pytest.fixture
def galleries(settings: Settings, engine: Engine, store: GalleryStore) -> Engine:
    """Four walks of two people, embedded with the active model."""
    for subject in ("anna", "bert"):
        enrol_in_store(store, "default", subject, 2)
    reindexed(settings, engine)
    return engine


def reindexed(settings: Settings, engine: Engine) -> Reindexed:
    return reindex(settings, engine, "default", lambda *_: None)


def counts(done: Reindexed) -> tuple[int, int, int, int]:
    return done.repaired, done.embedded, done.checked, done.damaged_walks


def flip_signs(engine: Engine, number: int = 0) -> str:
    """Of an embedding: every value is a number still."""
    with Session(writing(engine)) as session, session.begin():
        query = select(EmbeddingRow).order_by(EmbeddingRow.sequence_id)
        row = session.scalars(query).all()[number]
        row.vector = (-np.frombuffer(row.vector, "<f4")).tobytes()
        return row.sequence_id


def swap(engine: Engine, column: str) -> None:
    """Exchange what two sequences have."""
    table = SequenceRow if column == "silhouettes" else EmbeddingRow
    with Session(writing(engine)) as session, session.begin():
        one, other, *_ = session.scalars(select(table)).all()
        first, second = getattr(one, column), getattr(other, column)
        setattr(one, column, second)
        setattr(other, column, first)


def embeddings(engine: Engine) -> dict[str, bytes]:
    with Session(engine) as session:
        return dict(session.execute(select(EmbeddingRow.sequence_id, EmbeddingRow.vector)).all())


def digest_of(engine: Engine) -> str:
    with Session(engine) as session:
        return session.scalars(select(EmbeddingRow.digest)).first() or ""


def read_all(engine: Engine) -> None:
    store = GalleryStore(engine)
    gallery_id, _, _ = store.head("default")
    store.changes(gallery_id, 0, digest_of(engine))


def test_flipped_signs_are_503_are_counted_and_a_reindex_mends_them(
    serve: Serve, settings: Settings, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve()
    enrol(client, "a-private-name", walk(1))
    enrol(client, "bert", walk(2))
    first = identify(client, walk(1)).json()
    damaged = flip_signs(engine)
    restarted = serve()
    assert problem(identify(restarted, walk(1)), 503)["type"] == "/problems/embedding-damaged"
    told = [record for record in caplog.records if "stored data is damaged" in record.getMessage()]
    assert {record.sequence_id for record in told} == {damaged}  # type: ignore[attr-defined]
    assert "a-private-name" not in " ".join(record.getMessage() for record in caplog.records)
    metrics = restarted.get("/metrics").text
    assert f'gaitid_damaged_rows_read_total{{what="embedding"}} {float(len(told))}' in metrics
    assert counts(reindexed(settings, engine)) == (1, 1, 0, 0)
    again = identify(restarted, walk(1)).json()
    assert again["decision"] == first["decision"] == "match"
    assert again["candidates"][0]["subject_id"] == "a-private-name"


def test_an_embedding_that_is_anothers_is_damaged(settings: Settings, galleries: Engine) -> None:
    before = embeddings(galleries)
    swap(galleries, "vector")
    with pytest.raises(DamagedEmbedding):
        read_all(galleries)
    assert counts(reindexed(settings, galleries)) == (2, 2, 0, 0)
    for sequence_id, vector in embeddings(galleries).items():
        made = np.frombuffer(vector, "<f4")
        np.testing.assert_allclose(made, np.frombuffer(before[sequence_id], "<f4"), atol=1e-4)


def test_rows_from_before_there_were_checksums_are_read_and_a_reindex_gives_them_theirs(
    settings: Settings, galleries: Engine
) -> None:
    with writing(galleries).begin() as connection:
        connection.execute(update(EmbeddingRow).values(checksum=None))
    read_all(galleries)
    flip_signs(galleries, 1)  # nobody can see it
    read_all(galleries)
    assert counts(reindexed(settings, galleries)) == (1, 1, 3, 0)
    assert counts(reindexed(settings, galleries)) == (0, 0, 0, 0)
    with Session(galleries) as session:
        assert None not in session.scalars(select(EmbeddingRow.checksum)).all()


@pytest.mark.parametrize("how", ["swapped", "smashed"])
def test_damaged_silhouettes_are_told_of_and_keep_a_reindex_from_nothing_else(
    settings: Settings, galleries: Engine, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    if how == "swapped":
        swap(galleries, "silhouettes")
    else:
        with Session(writing(galleries)) as session, session.begin():
            for row in session.scalars(select(SequenceRow).limit(2)):
                row.silhouettes = row.silhouettes[:-20] + bytes(20)
    flip_signs(galleries, 0)
    flip_signs(galleries, 3)
    assert counts(reindexed(settings, galleries)) == (1, 1, 0, 2)
    assert caplog.text.count("were damaged or changed. Restore a backup") == 2
    # One of the two has no embedding any more, so whoever searches hears what is the matter.
    assert len(embeddings(galleries)) == 3
    store = GalleryStore(galleries)
    with pytest.raises(DamagedSilhouettes):
        store.some_without(digest_of(galleries), 10)
    with pytest.raises(DamagedSilhouettes):
        list(stream_gallery(galleries, "default", embeddings=False))


@pytest.mark.parametrize("what", ["vector", "silhouettes"])
def test_what_is_damaged_is_not_encrypted_as_if_it_were_whole(
    settings: Settings, galleries: Engine, what: str
) -> None:
    swap(galleries, what)
    keyed = open_engine(settings.model_copy(update={"encryption_keys": SecretStr(new_secret())}))
    with pytest.raises((DamagedEmbedding, DamagedSilhouettes)):
        reencrypt(keyed)
    keyed.dispose()
