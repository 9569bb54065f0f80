"""The checkpoints of a deployment's own models: folders on this machine, or in the store.

On one machine a model is its folder (`weights.safetensors`, `card.json`) of its name; rows in the
database add what else is known. Hosts that share a store have the rows in common: a model is its
row, whose digest says which checkpoint in the store is meant, and each host fetches that when it
first needs it. A name that is used again is another digest, so no host takes an old copy for it.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from sqlalchemy import JSON, Engine, ForeignKey, String, select
from sqlalchemy.orm import Mapped, Session, mapped_column

import models.card
from models.card import CARD, MAX_CARD_BYTES, WEIGHTS, Card, CheckpointError
from models.files.disk import sync
from service.foundation.errors import NotFound
from service.foundation.settings import Settings
from service.jobs.job import JsonObject
from service.storage.database import Table, new_id
from service.storage.file_store import FileStore, Manifest, StoreDamaged, open_store
from service.storage.objects import NotStored, StoreUnavailable

_log = logging.getLogger(__name__)

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_IN_STORE = "models"


class ModelRow(Table):
    """What is known of a model besides its card."""

    __tablename__ = "model"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id"))
    metrics: Mapped[JsonObject] = mapped_column(JSON)
    created_at: Mapped[datetime]


class UnreadableCard(NotFound):
    """A model whose checkpoint is not one, so there is no such model."""

    slug = "model-unreadable"


class StagedFiles(Protocol):
    """A checkpoint that is to be a model's, once the row that is added for it says so."""

    def move_in(self) -> None:
        """Make it the model's, if it is not; in the transaction that adds the row."""

    def discard(self) -> None:
        """Remove what `move_in` has not made the model's; may be called after it too."""

    def withdraw(self) -> None:
        """Remove it, also where an attempt that was killed moved it in."""


class ModelFiles(Protocol):
    """Checkpoints by the names of their models."""

    def names(self) -> Iterator[str]:
        """The names of all models, in no order."""

    def digest(self, name: str) -> str | None:
        """The digest of a model's checkpoint, or None; raises `UnreadableCard`."""

    def card(self, name: str) -> Card | None:
        """A model's card, or None; nothing else of it is fetched.

        Raises `UnreadableCard`, `StoreUnavailable`, `StoreDamaged`.
        """

    def folder(self, name: str) -> Path | None:
        """The folder of a model's checkpoint on this host, or None.

        Raises `UnreadableCard`, `StoreUnavailable`, `StoreDamaged`.
        """

    def holds_other(self, name: str, digest: str | None) -> bool:
        """Whether files take a name for another checkpoint, with or without a row."""

    def stage(self, name: str, digest: str, checkpoint: Path, by: str) -> StagedFiles:
        """Copy a checkpoint to where its model's is to be.

        `by` names who does it; what it left when it was killed before is removed.
        """

    def removing(self, name: str) -> Callable[[], None]:
        """What removes a model's files, to be called when its row is gone.

        It raises `FileNotFoundError` for none. Raises `StoreUnavailable` now where it would then.
        """

    def tidy_cache(self) -> None:
        """Remove this host's copies of what is no model's any more."""

    def tidy(self, before: datetime) -> None:
        """Do that, and remove what processes that died before a moment left."""


def open_model_files(settings: Settings, engine: Engine) -> ModelFiles:
    """The deployment's."""
    store = open_store(settings)
    if store is None:
        return LocalModels(settings.models_dir)
    return StoredModels(engine, store, settings.cache_dir / "models")


def read_card(folder: Path) -> Card:
    """Read the card of a model's folder; raises `UnreadableCard`."""
    try:
        card = models.card.read_card(folder)
    except CheckpointError as error:
        raise UnreadableCard(f"The card of the model {folder.name!r} cannot be read.") from error
    if not card.digest:
        raise UnreadableCard(f"The model {folder.name!r} has a card without a digest.")
    return card


class LocalModels:
    """Folders by name, of which each is the truth."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> Iterator[str]:
        """The folders with a card."""
        yield from folders_with_cards(self._folder)

    def digest(self, name: str) -> str | None:
        """As the card has it."""
        card = self.card(name)
        return None if card is None else card.digest

    def card(self, name: str) -> Card | None:
        """The one in the folder."""
        folder = self.folder(name)
        return None if folder is None else read_card(folder)

    def folder(self, name: str) -> Path | None:
        """The folder of that name, if it has a card."""
        folder = self._folder / name
        return folder if (folder / CARD).is_file() else None

    def holds_other(self, name: str, digest: str | None) -> bool:
        """Whether there is a folder of that name, with another digest."""
        folder = self._folder / name
        return folder.exists() and (digest is None or read_card(folder).digest != digest)

    def stage(self, name: str, digest: str, checkpoint: Path, by: str) -> StagedFiles:
        """Copy it beside the models, to be moved among them in one renaming."""
        del digest
        # Of attempts that were killed; one that was only paused finds its copy gone and fails.
        for left in self._folder.glob(f".incoming-{by}-*"):
            shutil.rmtree(left, ignore_errors=True)
        target, incoming = self._folder / name, self._folder / f".incoming-{by}-{new_id()}"
        if not target.exists():
            incoming.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copytree(checkpoint, incoming)
                for path in (*incoming.iterdir(), incoming):
                    sync(path)
            except BaseException:
                shutil.rmtree(incoming, ignore_errors=True)
                raise
        return _LocalCopy(incoming, target)

    def removing(self, name: str) -> Callable[[], None]:
        """A renaming, so that it is gone at one stroke, then its removal."""

        def remove() -> None:
            gone = self._folder / f".removed-{new_id()}"
            (self._folder / name).rename(gone)
            shutil.rmtree(gone)

        return remove

    def tidy_cache(self) -> None:
        """There are no copies."""

    def tidy(self, before: datetime) -> None:
        """Remove folders that were left half written or removed."""
        for pattern in (".incoming-*", ".removed-*"):
            for folder in self._folder.glob(pattern):
                if folder.stat().st_ctime < before.timestamp():
                    shutil.rmtree(folder)


class _LocalCopy:
    """A copy beside the models."""

    def __init__(self, incoming: Path, target: Path) -> None:
        self._incoming = incoming
        self._target = target

    def move_in(self) -> None:
        if not self._target.exists():
            self._incoming.rename(self._target)
            sync(self._target.parent)

    def discard(self) -> None:
        if self._incoming.exists():
            shutil.rmtree(self._incoming)

    def withdraw(self) -> None:
        self.discard()
        if self._target.exists():
            shutil.rmtree(self._target)


class StoredModels:
    """Rows, and what the store has under `models/NAME/DIGEST`; fetched into folders by digest."""

    def __init__(self, engine: Engine, store: FileStore, cache: Path) -> None:
        self._engine = engine
        self._store = store
        self._cache = cache

    def names(self) -> Iterator[str]:
        """Those of the rows."""
        with Session(self._engine) as session:
            yield from session.scalars(select(ModelRow.name)).all()

    def digest(self, name: str) -> str | None:
        """As the row has it."""
        with Session(self._engine) as session:
            return session.scalar(select(ModelRow.digest).where(ModelRow.name == name))

    def is_whole(self, name: str) -> bool:
        """Whether the store has the files of the model that the row says there is."""
        digest = self.digest(name)
        return digest is not None and self._store.find(_key(name, digest)) is not None

    def card(self, name: str) -> Card | None:
        """This host's copy, or what the store has, if it is of the row's digest."""
        digest = self.digest(name)
        if digest is None:
            return None
        if (self._cache / digest).is_dir():
            return read_card(self._cache / digest)
        with TemporaryDirectory() as folder:
            try:
                manifest, content = self._store.read(_key(name, digest), CARD, MAX_CARD_BYTES)
            except NotStored as error:
                raise _no_files(name) from error
            (Path(folder) / CARD).write_bytes(content)
            return self._require_rows(name, digest, manifest, Path(folder))

    def folder(self, name: str) -> Path | None:
        """The folder of the row's digest, fetched if this host has none."""
        digest = self.digest(name)
        if digest is None:
            return None
        folder = self._cache / digest
        if not folder.is_dir():
            self._fetch(name, digest, folder)
        return folder

    def holds_other(self, name: str, digest: str | None) -> bool:
        """Never: a name is taken by its row alone."""
        del name, digest
        return False

    def stage(self, name: str, digest: str, checkpoint: Path, by: str) -> StagedFiles:
        """Put it into the store."""
        del by
        self._store.put(_key(name, digest), checkpoint)
        return _StoredCopy(self, self._store, name, digest)

    def removing(self, name: str) -> Callable[[], None]:
        """Its removal from the store and from this host; others follow when they tidy."""
        key = _key(name, self.digest(name) or "")
        self._store.find(key)

        def remove() -> None:
            try:
                self._store.delete(key)
            except StoreUnavailable:  # the row is gone, and this goes when the store is tidied
                _log.exception("files of the model %r are left in the store", name)
            self.tidy_cache()

        return remove

    def tidy_cache(self) -> None:
        """Compare the folders with the rows."""
        held = list(self._cache.iterdir()) if self._cache.is_dir() else []
        with Session(self._engine) as session:  # after looking: what was fetched has a row
            digests = set(session.scalars(select(ModelRow.digest)))
        for folder in held:
            if folder.name not in digests:
                shutil.rmtree(folder, ignore_errors=True)  # another process may do it too

    def tidy(self, before: datetime) -> None:
        """Remove from the store, too, what was put before and has no row."""
        self.tidy_cache()
        self._store.sweep(_IN_STORE, before)
        for key in list(self._store.keys(_IN_STORE, before)):
            name, _, digest = key.removeprefix(f"{_IN_STORE}/").partition("/")
            if self.digest(name) != digest:
                self._store.delete(key)

    def _fetch(self, name: str, digest: str, folder: Path) -> None:
        """Fetch a checkpoint that is the row's, not only one that belongs together."""
        arriving = folder.with_name(f".arriving-{new_id()}")
        try:
            try:
                manifest = self._store.fetch(_key(name, digest), arriving)
            except NotStored as error:
                raise _no_files(name) from error
            self._require_rows(name, digest, manifest, arriving)
            arriving.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another was faster
                raise
        finally:
            shutil.rmtree(arriving, ignore_errors=True)

    @staticmethod
    def _require_rows(name: str, digest: str, manifest: Manifest, folder: Path) -> Card:
        """The card in a folder; raises unless it and the manifest's weights are of the digest."""
        weights = {one.name: one.sha256 for one in manifest.files}.get(WEIGHTS, "")
        try:
            fields, card = models.card.read_fields(folder)
        except CheckpointError as error:
            raise UnreadableCard(f"The card of the model {name!r} cannot be read.") from error
        if models.card.digest_of(bytes.fromhex(weights), fields) != digest:
            _log.error("the store has another checkpoint as the model %r", name)
            raise StoreDamaged(_key(name, digest))
        return card


class _StoredCopy:
    """A checkpoint in the store, whose row is to be added."""

    def __init__(self, files: StoredModels, store: FileStore, name: str, digest: str) -> None:
        self._files = files
        self._store = store
        self._name = name
        self._digest = digest

    def move_in(self) -> None:
        """Its row makes it the model's."""

    def discard(self) -> None:
        """What cannot be removed now is no model's, and goes when the store is tidied."""
        try:
            if self._files.digest(self._name) != self._digest:
                self._store.delete(_key(self._name, self._digest))
        except StoreUnavailable:
            _log.exception("files of the model %r are left in the store", self._name)

    withdraw = discard


def folders_with_cards(folder: Path) -> Iterator[str]:
    """The names of a folder's checkpoints."""
    if folder.is_dir():
        for entry in folder.iterdir():
            if re.fullmatch(NAME, entry.name) and (entry / CARD).is_file():
                yield entry.name


def _no_files(name: str) -> UnreadableCard:
    _log.error("the store has no files of the model %r", name)
    return UnreadableCard(
        f"The store has no files of the model {name!r}. Run `gaitid share` on the machine that has "
        "them, or remove the model."
    )


def _key(name: str, digest: str) -> str:
    return f"{_IN_STORE}/{name}/{digest}"
