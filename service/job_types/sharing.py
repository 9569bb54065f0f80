"""Sharing: models and packs of a data folder go into the store, where all hosts find them."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from service.foundation.errors import Conflict
from service.foundation.settings import Settings
from service.job_types.datasets import IN_STORE, local_packs
from service.serving.lineage import TrainingRecord
from service.serving.model_files import (
    LocalModels,
    ModelRow,
    StoredModels,
    UnreadableCard,
    read_card,
)
from service.storage.database import new_id, now, writing
from service.storage.file_store import FileStore


def share(settings: Settings, engine: Engine, store: FileStore) -> Iterator[str]:
    """Put what is not there yet; yields a sentence of each model and pack.

    May be called again, and beside a running service. Raises `BrokenKey` for a key that is not the
    store's, `StoreUnavailable`, and `ValueError` for a folder with files that are not stored.
    """
    TrainingRecord.of(settings.data_dir, store)
    shared = StoredModels(engine, store, settings.cache_dir / "models")
    for name in sorted(LocalModels(settings.models_dir).names()):
        try:
            done = _share_model(settings, engine, shared, name)
        except (Conflict, UnreadableCard) as error:
            done = f"not shared: {error}"
        yield f"model {name}: {done}"
    for pack in local_packs(settings):
        key = f"{IN_STORE}/{pack.name}"
        if store.holds(key, pack):
            yield f"dataset {pack.name}: shared already"
        else:
            store.put(key, pack)
            yield f"dataset {pack.name}: shared"


def _share_model(settings: Settings, engine: Engine, shared: StoredModels, name: str) -> str:
    """Raises `Conflict` for another model of that name, and `UnreadableCard`."""
    folder = settings.models_dir / name
    digest = read_card(folder).digest
    there = shared.digest(name)
    if there not in (None, digest):
        raise Conflict("another model has that name")
    if there is not None and shared.is_whole(name):
        return "shared already"
    shared.stage(name, digest, folder, by=new_id())
    with Session(writing(engine)) as session, session.begin():
        row = session.get(ModelRow, name)
        if row is None:
            session.add(ModelRow(name=name, digest=digest, metrics={}, created_at=now()))
        elif row.digest != digest:
            raise Conflict("another model has that name")
    return "shared"
