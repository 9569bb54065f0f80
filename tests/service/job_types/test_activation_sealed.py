"""What changes, checks and compares models reads and writes a gallery that is encrypted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from models.encoder.encoder import Encoder
from service.access.audit.entries import Entry
from service.foundation.errors import Unavailable
from service.foundation.settings import Settings
from service.gallery.active_model import models_of
from service.gallery.sealing import sealing_of
from service.gallery.store import GalleryStore
from service.gallery.tables import EmbeddingRow
from service.job_types.activation import Activation
from service.job_types.gate import compare_with_active
from service.job_types.held_out_split import is_held_out
from service.job_types.reindexing import reindex
from service.jobs.job import Job
from service.jobs.queue import JobQueue, Lease
from service.serving.registry import find_model, resolve
from service.storage.database import migrate, open_database
from service.storage.encryption import new_secret
from tests.service.jobs.galleries import enrol
from tests.service.jobs.workers import leased

HELD_OUT = [f"h{number}" for number in range(200) if is_held_out(f"h{number}")][:3]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"encryption_keys": SecretStr(new_secret())})


@pytest.fixture(autouse=True)
def filled(store: GalleryStore) -> None:
    for subject in HELD_OUT:
        enrol(store, "default", subject, 2)


def begin(engine: Engine, settings: Settings) -> tuple[JobQueue, Lease]:
    queue = JobQueue.of(engine, settings)
    queue.enqueue("activate", {"name": "other", "gallery": "default", "instead_of": None})
    return queue, leased(queue)


def run(settings: Settings, engine: Engine, queue: JobQueue, lease: Lease) -> list[Entry]:
    recorded: list[Entry] = []
    Activation(settings, engine, queue, lambda _done, _total: None, recorded.append).run(
        lease.job.id, lease.number
    )
    return recorded


def require_sealed_and_right(engine: Engine, settings: Settings, name: str) -> int:
    """How many embeddings of a model there are, each sealed and what the model makes."""
    encoder = Encoder.open(resolve(settings, engine, name), "cpu")
    sealing, store = sealing_of(engine), GalleryStore(engine)
    assert sealing.key_id is not None
    with Session(engine) as session:
        rows = session.scalars(select(EmbeddingRow).where(EmbeddingRow.digest == encoder.digest))
        found = list(rows)
    for row in found:
        assert row.key_id == sealing.key_id
        made = encoder.encode([store.silhouettes(row.sequence_id)])[0]
        np.testing.assert_allclose(sealing.embedding(row), made, atol=1e-4)
        assert made.tobytes()[:16] not in row.vector
    return len(found)


def test_an_encrypted_gallery_is_given_another_model_and_what_comes_late_is_sealed_too(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed = JobQueue.succeed

    def enrol_and_succeed(self: JobQueue, *args: object, **kwargs: object) -> Job:
        enrol(GalleryStore(engine), "default", "late", 2)
        return succeed(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(JobQueue, "succeed", enrol_and_succeed)
    (recorded,) = run(settings, engine, *begin(engine, settings))
    assert (recorded.action, recorded.details["to"]["name"]) == ("activate_model", "other")
    assert require_sealed_and_right(engine, settings, "other") == 2 * len(HELD_OUT) + 2


def test_without_the_key_a_gallery_is_not_given_another_model(
    settings: Settings, engine: Engine
) -> None:
    keyless = open_database(settings.resolved_database_url)
    migrate(keyless)
    with pytest.raises(Unavailable, match="encrypt"):
        run(settings, keyless, *begin(keyless, settings))
    assert models_of(engine, "default").active is None
    keyless.dispose()


def test_both_models_are_compared_on_what_is_sealed(settings: Settings, engine: Engine) -> None:
    queue, lease = begin(engine, settings)
    own = find_model(settings, engine, "default").digest
    encoder = Encoder.open(resolve(settings, engine, "default"), "cpu")
    store = GalleryStore(engine)
    missing = store.some_without(own, 100)
    made = encoder.encode([silhouettes for _, silhouettes in missing])
    store.add_embeddings(own, zip((key for key, _ in missing), made, strict=True))
    run(settings, engine, queue, lease)
    result = queue.get(lease.job.id).result
    assert result is not None
    assert result["comparison"]["searches"] == 2 * len(HELD_OUT)


def test_a_new_model_is_judged_on_walks_that_are_sealed(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"sequences": [{"subject": "stranger"}]}))
    checkpoint = resolve(settings, engine, "other")
    verdict = compare_with_active(
        settings, engine, "default", checkpoint, tmp_path, lambda *_: None
    )
    assert verdict.comparison is not None
    assert verdict.comparison["searches"] == 2 * len(HELD_OUT)


def test_a_reindex_makes_an_embedding_anew_that_was_sealed_as_another_ones(
    settings: Settings, engine: Engine
) -> None:
    first = reindex(settings, engine, "default", lambda *_: None)
    assert (first.repaired, first.embedded) == (0, 2 * len(HELD_OUT))
    with Session(engine) as session, session.begin():
        one, another, *_ = session.scalars(
            select(EmbeddingRow).where(EmbeddingRow.digest == first.digest)
        )
        one.vector = another.vector
    again = reindex(settings, engine, "default", lambda *_: None)
    assert (again.repaired, again.embedded) == (1, 1)
    assert require_sealed_and_right(engine, settings, "default") == 2 * len(HELD_OUT)


def test_a_reindex_without_the_key_of_a_walk_drops_nothing(
    settings: Settings, engine: Engine
) -> None:
    reindex(settings, engine, "default", lambda *_: None)
    keyless = open_database(settings.resolved_database_url)
    with pytest.raises(Unavailable, match="encrypted with the key"):
        reindex(settings, keyless, "default", lambda *_: None)
    keyless.dispose()
    assert require_sealed_and_right(engine, settings, "default") == 2 * len(HELD_OUT)
