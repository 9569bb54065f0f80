"""With encryption on, the files hold no walk; keys can be replaced while others write, or die."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from models.encoder.encoder import Encoder
from service.foundation.errors import Unavailable
from service.foundation.metrics import Metrics
from service.foundation.settings import Settings
from service.gallery.growing_index import GrowingIndex
from service.gallery.reencryption import Kept, holdings, reencrypt
from service.gallery.roster import Roster
from service.gallery.sealing import DamagedEmbedding, DamagedSilhouettes, Sealing, sealing_of
from service.gallery.store import GalleryStore, NewSequence
from service.gallery.tables import EmbeddingRow, SequenceRow
from service.http.model_wiring import ModelWiring
from service.http.resources import open_engine
from service.http.serve import CannotServe, _preflight
from service.recognition.load import Load
from service.storage.database import writing
from service.storage.encryption import EncryptionKey, KeyTrouble, Tampered, new_secret, read_keys
from service.transfer.export import export_gallery
from tests.service.jobs.galleries import enrol as enrol_in_store
from tests.service.requests import enrol, identify
from tests.service.server import Serve
from tests.service.walkers import walk
from training.data.gallery_export import GalleryExport

OLD, NEW = (base64.urlsafe_b64encode(bytes([number]) * 32).decode() for number in (1, 2))


def with_keys(settings: Settings, *secrets: str) -> Settings:
    return settings.model_copy(update={"encryption_keys": SecretStr(",".join(secrets))})


def names(settings: Settings) -> list[str]:
    return [key.key_id for key in read_keys(settings)]


def filled(settings: Settings, count: int = 5) -> tuple[Engine, list[NewSequence]]:
    """A gallery with walks, under the settings' keys."""
    engine = open_engine(settings)
    store = GalleryStore(engine)
    store.ensure("default")
    return engine, enrol_in_store(store, "default", "anna", count)


def files(settings: Settings) -> bytes:
    """Every byte of the database's files, the write-ahead log included."""
    return b"".join(path.read_bytes() for path in settings.data_dir.rglob("*") if path.is_file())


def traces(sequences: list[NewSequence], within: bytes) -> int:
    """How many silhouettes (compressed), embeddings and plain hashes are to be seen."""
    plain = Sealing()
    return sum(
        trace in within
        for item in sequences
        for trace in (
            plain.seal_silhouettes(item.sequence_id, item.walk.silhouettes)[16:48],
            plain.seal_embedding(item.sequence_id, "digest", item.walk.embedding).vector[:24],
            plain.content_hash(item.walk.silhouettes).encode(),
        )
    )


def test_the_files_hold_no_walk_and_everything_can_still_be_read(
    settings: Settings, tmp_path: Path
) -> None:
    sealed = with_keys(settings, OLD)
    engine, sequences = filled(sealed)
    assert traces(sequences, files(sealed)) == 0
    store = GalleryStore(engine)
    gallery_id, newest, _ = store.head("default")
    changes = store.changes(gallery_id, 0, "digest")
    assert changes.revision == newest
    for item, added in zip(sequences, changes.added, strict=True):
        assert np.array_equal(store.silhouettes(item.sequence_id), item.walk.silhouettes)
        assert added.embedding is not None
        assert np.array_equal(added.embedding, item.walk.embedding)
    export_gallery(engine, "default", tmp_path / "out.zip")
    with GalleryExport(tmp_path / "out.zip") as export:
        walked = export.silhouettes(sequences[0].sequence_id)
    assert np.array_equal(walked, sequences[0].walk.silhouettes)
    engine.dispose()


@pytest.mark.sqlite
def test_without_encryption_the_same_search_of_the_files_finds_every_walk(
    settings: Settings,
) -> None:
    engine, sequences = filled(settings)
    assert traces(sequences, files(settings)) == 3 * len(sequences)
    engine.dispose()


@pytest.mark.parametrize("secrets", [(), (OLD,)])
def test_a_large_gallery_has_no_file_of_embeddings_if_the_database_is_encrypted(
    settings: Settings, models: Path, secrets: tuple[str, ...]
) -> None:
    settings = with_keys(settings, *secrets) if secrets else settings
    engine = open_engine(settings)
    with ThreadPoolExecutor(1) as thread:
        wiring = ModelWiring(
            settings, GalleryStore(engine), Metrics(), Load(1), thread, threading.Event()
        )
        encoder = Encoder.open(models / "default", device="cpu")
        index = wiring._index(encoder, (4, 16), "cosine", None, Roster())
    assert isinstance(index, GrowingIndex)
    assert index._folder == (None if secrets else settings.data_dir)
    engine.dispose()


def test_a_service_with_encryption_enrols_and_identifies_as_without(serve: Serve) -> None:
    plain = serve()
    enrol(plain, "anna", walk(1))
    before = identify(plain, walk(1)).json()["candidates"][0]["similarity"]
    sealed = serve(encryption_keys=SecretStr(OLD))
    enrol(sealed, "bert", walk(2))
    answer = identify(sealed, walk(1)).json()
    assert answer["candidates"][0]["subject_id"] == "anna"
    assert answer["candidates"][0]["similarity"] == pytest.approx(before)
    # The process that was there first has no key: it neither writes plainly nor reads wrongly.
    for refused in (enrol(plain, "cleo", walk(3)), identify(plain, walk(1))):
        assert refused.status_code == 503
        assert refused.json()["type"] == "/problems/encryption-key-missing"
        assert int(refused.headers["retry-after"]) > 30  # more than a client waits by itself


def test_what_is_moved_to_another_row_does_not_open_there(settings: Settings) -> None:
    engine, (first, second, *_) = filled(with_keys(settings, OLD))
    with Session(writing(engine)) as session, session.begin():
        for table, key, content in (
            (SequenceRow, SequenceRow.id, SequenceRow.silhouettes),
            (EmbeddingRow, EmbeddingRow.sequence_id, EmbeddingRow.vector),
        ):
            moved = session.scalar(select(content).where(key == first.sequence_id))
            session.execute(
                update(table).where(key == second.sequence_id).values({content.key: moved})
            )
    store = GalleryStore(engine)
    assert np.array_equal(store.silhouettes(first.sequence_id), first.walk.silhouettes)
    with pytest.raises(DamagedSilhouettes, match=second.sequence_id):
        store.silhouettes(second.sequence_id)
    with pytest.raises(DamagedEmbedding):
        store.changes(store.head("default")[0], 0, "digest")
    engine.dispose()


def test_an_existing_plain_gallery_is_encrypted_and_leaves_nothing_plain(
    settings: Settings,
) -> None:
    engine, sequences = filled(settings, 70)
    engine.dispose()
    sealed = with_keys(settings, OLD)
    engine = open_engine(sealed)
    assert holdings(engine)[0] == Kept(None, 70, 70)
    told: list[tuple[int, int]] = []
    assert reencrypt(engine, lambda done, total: told.append((done, total))) == 140
    assert told[-1] == (140, 140)
    assert holdings(engine) == [Kept(names(sealed)[0], 70, 70)]
    assert reencrypt(engine) == 0
    assert traces(sequences, files(sealed)) == 0
    stored = GalleryStore(engine).silhouettes(sequences[69].sequence_id)
    assert np.array_equal(stored, sequences[69].walk.silhouettes)
    engine.dispose()


def test_after_a_rotation_the_old_key_is_needed_no_more(settings: Settings) -> None:
    engine, sequences = filled(with_keys(settings, OLD))
    hashed = hashes(engine)
    engine.dispose()
    engine = open_engine(with_keys(settings, NEW, OLD))
    enrol_in_store(GalleryStore(engine), "default", "bert", 2)
    reencrypt(engine)
    engine.dispose()
    engine = open_engine(with_keys(settings, NEW))
    assert [kept.sequences for kept in holdings(engine)] == [7]
    for item in sequences:
        stored = GalleryStore(engine).silhouettes(item.sequence_id)
        assert np.array_equal(stored, item.walk.silhouettes)
    sealing = sealing_of(engine)
    assert sealing.content_hash(sequences[0].walk.silhouettes) in hashes(engine)
    assert not hashes(engine) & hashed
    engine.dispose()


def hashes(engine: Engine) -> set[str]:
    with Session(engine) as session:
        return set(session.scalars(select(SequenceRow.content_hash)))


def test_a_process_that_kept_the_old_key_cannot_write_once_it_is_retired(
    settings: Settings,
) -> None:
    stale, _ = filled(with_keys(settings, OLD))
    fresh = open_engine(with_keys(settings, NEW, OLD))
    enrol_in_store(GalleryStore(stale), "default", "bert", 1)  # not retired yet
    reencrypt(fresh)
    with pytest.raises(Unavailable, match="restart it"):
        enrol_in_store(GalleryStore(stale), "default", "cleo", 1)
    assert [kept.sequences for kept in holdings(fresh)] == [6]
    stale.dispose()
    fresh.dispose()


def test_a_walk_may_be_looked_up_by_the_hash_of_any_key(settings: Settings) -> None:
    _, (item, *_) = filled(settings, 1)
    old, both = (Sealing(read_keys(with_keys(settings, *keys))) for keys in ([OLD], [NEW, OLD]))
    found = both.content_hashes(item.walk.silhouettes)
    assert found[0] == both.content_hash(item.walk.silhouettes)
    assert old.content_hash(item.walk.silhouettes) in found
    assert Sealing().content_hash(item.walk.silhouettes) in found
    assert len(set(found)) == 3


@pytest.mark.parametrize("given", [[], [NEW]])
def test_a_missing_or_wrong_key_is_one_sentence_at_start(
    settings: Settings, given: list[str]
) -> None:
    engine, _ = filled(with_keys(settings, OLD))
    engine.dispose()
    wanted = names(with_keys(settings, OLD))[0]
    started = with_keys(settings, *given) if given else settings
    with pytest.raises(CannotServe, match=f"encrypted with the key {wanted}") as refused:
        _preflight(started)
    assert str(refused.value).count(". ") == 0
    # Nothing was noted: the right key still opens it alone.
    open_engine(with_keys(settings, OLD)).dispose()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "lists no key"),
        ("c2hvcnQ=", "key number 1 is not 32 bytes"),
        (f"{OLD},not base 64!", "key number 2 is not 32 bytes"),
        (f"{OLD},{OLD}", "lists a key twice"),
    ],
)
def test_keys_that_are_none_are_refused_without_being_shown(
    settings: Settings, text: str, complaint: str
) -> None:
    with pytest.raises(KeyTrouble, match=complaint) as refused:
        read_keys(settings.model_copy(update={"encryption_keys": SecretStr(text)}))
    assert OLD not in str(refused.value)
    assert OLD not in repr(with_keys(settings, OLD))


def test_a_new_key_is_a_key_and_never_the_same(settings: Settings) -> None:
    made = [new_secret() for _ in range(3)]
    assert len(set(names(with_keys(settings, *made)))) == 3


def test_keys_may_come_from_a_file(settings: Settings, tmp_path: Path) -> None:
    secret = tmp_path / "keys"
    secret.write_text(f"{NEW}\n{OLD}\n")
    from_file = settings.model_copy(update={"encryption_keys_file": secret})
    assert names(from_file) == names(with_keys(settings, NEW, OLD))
    both = with_keys(from_file, OLD)
    with pytest.raises(KeyTrouble, match="not both"):
        read_keys(both)
    secret.unlink()
    with pytest.raises(KeyTrouble, match="cannot be read: No such file"):
        read_keys(from_file)


def test_a_changed_ciphertext_does_not_open() -> None:
    key = EncryptionKey(bytes(range(32)))
    sealed = key.encrypt(b"a walk", b"here")
    assert key.decrypt(sealed, b"here") == b"a walk"
    assert sealed != key.encrypt(b"a walk", b"here")
    changed = bytes([*sealed[:-1], sealed[-1] ^ 1])
    for damaged, about in ((changed, b"here"), (sealed, b"there"), (b"", b"here")):
        with pytest.raises(Tampered):
            key.decrypt(damaged, about)
    with pytest.raises(ValueError, match="32 bytes"):
        EncryptionKey(b"short")


ROTATE_SLOWLY = """
import sys, time
from service.gallery import reencryption
from service.http.resources import open_engine
from service.foundation.settings import Settings

reencryption._PIECE = 4
def tell(done, total):
    print(done, flush=True)
    time.sleep(0.05)
reencryption.reencrypt(open_engine(Settings()), tell)
"""


def test_a_rotation_that_was_killed_is_continued_while_others_enrol(settings: Settings) -> None:
    engine, sequences = filled(settings, 40)
    engine.dispose()
    sealed = with_keys(settings, NEW)
    environment = {
        **os.environ,
        "GAITID_DATA_DIR": str(settings.data_dir),
        "GAITID_ENCRYPTION_KEYS": NEW,
    }
    rotation = subprocess.Popen(
        [sys.executable, "-c", ROTATE_SLOWLY],
        env=environment,
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
    )
    assert rotation.stdout is not None
    assert rotation.stdout.readline() == b"4\n"
    engine = open_engine(sealed)
    late = enrol_in_store(GalleryStore(engine), "default", "bert", 3)
    rotation.send_signal(signal.SIGKILL)
    rotation.wait(10)
    rotation.stdout.close()
    halfway = {kept.key_id: kept.sequences for kept in holdings(engine)}
    assert 0 < halfway[None] < 40
    store = GalleryStore(engine)
    for item in (*sequences, *late):  # plain or sealed, everything is readable
        assert np.array_equal(store.silhouettes(item.sequence_id), item.walk.silhouettes)
    reencrypt(engine)
    assert holdings(engine) == [Kept(names(sealed)[0], 43, 43)]
    assert traces([*sequences, *late], files(sealed)) == 0
    for item in (*sequences, *late):
        assert np.array_equal(store.silhouettes(item.sequence_id), item.walk.silhouettes)
    engine.dispose()
