"""The models of a deployment, by name: shipped with it, trained or uploaded.

A model is a checkpoint folder (`weights.safetensors`, `card.json`) of its name. The folders are the
truth; a row in the database adds which job made one. No torch is imported here: a card is JSON.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from sqlalchemy import JSON, Engine, ForeignKey, String, delete, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

import models.card
from models.card import CARD, Card, CheckpointError, ModelReference
from models.files.disk import sync
from service.foundation.errors import Conflict, NotFound, Reason
from service.foundation.settings import Settings
from service.gallery.active_model import MODELS_IN_USE, GalleryModels, models_of
from service.gallery.tables import GalleryRow
from service.jobs.job import UNFINISHED, JsonObject
from service.jobs.tables import JobRow
from service.storage.database import Table, new_id, now, take_turns, writing

_log = logging.getLogger(__name__)

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

RecordDigest = Callable[[str], None]
"""Told a model's digest before the model is added; what it raises prevents that."""


class Source(StrEnum):
    """Where a model comes from."""

    SHIPPED = "shipped"
    TRAINED = "trained"
    IMPORTED = "imported"


class ModelRow(Table):
    """What is known of a model besides its card."""

    __tablename__ = "model"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id"))
    metrics: Mapped[JsonObject] = mapped_column(JSON)
    created_at: Mapped[datetime]


@dataclass(frozen=True, slots=True)
class RegisteredModel(ModelReference):
    """A model and what is known of it; `path` is for this process only, never for a client."""

    source: Source
    card: Card
    metrics: JsonObject
    job_id: str | None
    created_at: datetime | None
    path: Path


@dataclass(frozen=True, slots=True)
class StagedModel:
    """A trained model in a folder beside the models, and the row that is to be added for it."""

    row: ModelRow
    _incoming: Path
    _target: Path

    def move_in(self) -> None:
        """Move it among the models, if it is not there; in the transaction that adds its row."""
        if not self._target.exists():
            _move_in(self._incoming, self._target)

    def withdraw(self) -> None:
        """Remove it, also where an attempt that was killed moved it in."""
        for folder in (self._incoming, self._target):
            if folder.exists():
                shutil.rmtree(folder)


class UnreadableCard(NotFound):
    """A folder among the models whose card is not one, so there is no such model."""

    slug = "model-unreadable"


def resolve(settings: Settings, name: str) -> Path:
    """The folder of the model called `name`; raises `NotFound`."""
    if re.fullmatch(NAME, name):
        for folder in (settings.shipped_models_dir, settings.models_dir):
            if (folder / name / CARD).is_file():
                return folder / name
    raise missing_model(name, "name")


def find_model(settings: Settings, name: str) -> ModelReference:
    """The model called `name`, with the digest on its card; raises `NotFound`."""
    return ModelReference(name, read_card(resolve(settings, name)).digest)


def active_model(settings: Settings, row: GalleryModels) -> ModelReference:
    """A gallery's active model; raises `NotFound` when the deployment's own does not exist."""
    return row.active or find_model(settings, settings.model)


def active_checkpoint(settings: Settings, engine: Engine, gallery: str) -> Path:
    """The absolute folder of a gallery's active model; raises `NotFound` for either."""
    active = models_of(engine, gallery).active
    return resolve(settings, settings.model if active is None else active.name).absolute()


def missing_model(name: str, where: str) -> NotFound:
    """The error for a model that is not registered; `where` is the field that names it."""
    return NotFound(
        f"There is no model {name!r}. GET /models lists those there are; "
        "`gaitid import-opengait` makes one from an OpenGait checkpoint.",
        Reason(where, "not_found"),
        slug="model-not-found",
    )


def read_card(folder: Path) -> Card:
    """Read the card of a model's folder; raises `UnreadableCard`."""
    try:
        card = models.card.read_card(folder)
    except CheckpointError as error:
        raise UnreadableCard(f"The card of the model {folder.name!r} cannot be read.") from error
    if not card.digest:
        raise UnreadableCard(f"The model {folder.name!r} has a card without a digest.")
    return card


def remove_unfinished(models: Path, before: datetime) -> None:
    """Remove folders that a process that died before a moment left half written or removed."""
    for pattern in (".incoming-*", ".removed-*"):
        for folder in models.glob(pattern):
            if folder.stat().st_ctime < before.timestamp():
                shutil.rmtree(folder)


class ModelRegistry:
    """Models by name, over the checkpoint folders and the database."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine

    def all(self) -> list[RegisteredModel]:
        """Every model, by name; a folder whose card cannot be read is left out, and logged."""
        models = []
        for name in sorted(set(self._names())):
            try:
                models.append(self.show(name))
            except UnreadableCard as error:
                _log.warning("a model is not listed: %s", error)
        return models

    def show(self, name: str) -> RegisteredModel:
        """One model; raises `NotFound`, or `UnreadableCard` when its folder is broken."""
        path = resolve(self._settings, name)
        card = read_card(path)
        with Session(self._engine) as session:
            row = session.get(ModelRow, name)
        if path.parent == self._settings.shipped_models_dir:
            source, row = Source.SHIPPED, None
        else:
            source = Source.TRAINED if row and row.job_id else Source.IMPORTED
        return RegisteredModel(
            name=name,
            source=source,
            digest=card.digest,
            card=card,
            metrics={**card.metrics, **(row.metrics if row else {})},
            job_id=row.job_id if row else None,
            created_at=row.created_at if row else None,
            path=path,
        )

    def stage_trained(
        self, name: str, checkpoint: Path, *, job_id: str, metrics: JsonObject
    ) -> StagedModel:
        """Copy a checkpoint beside the models, to be moved among them in one rename.

        Idempotent for the same checkpoint; another model of that name raises `Conflict`.
        """
        target = self._settings.models_dir / name
        digest = read_card(checkpoint).digest
        with Session(self._engine) as session:
            taken = session.scalar(select(ModelRow.name).where(ModelRow.name == name)) is not None
        if taken or (self._settings.shipped_models_dir / name).exists():
            raise _taken(name)
        if target.exists() and read_card(target).digest != digest:
            raise _taken(name)
        # Of attempts that were killed; one that was only paused finds its copy gone and fails.
        for left in self._settings.models_dir.glob(f".incoming-{job_id}-*"):
            shutil.rmtree(left, ignore_errors=True)
        incoming = self._settings.models_dir / f".incoming-{job_id}-{new_id()}"
        if not target.exists():
            incoming.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(checkpoint, incoming)
            _sync_whole(incoming)
        return StagedModel(
            ModelRow(name=name, digest=digest, job_id=job_id, metrics=metrics, created_at=now()),
            incoming,
            target,
        )

    def add_uploaded(self, name: str, checkpoint: Path, record: RecordDigest) -> RegisteredModel:
        """Move a checkpoint folder on the same file system among the models; raises `Conflict`.

        The folder appears in one rename, complete. `record` is called within the transaction.
        """
        target = self._settings.models_dir / name
        with Session(writing(self._engine)) as session, session.begin():
            take_turns(session, MODELS_IN_USE)
            if (
                session.get(ModelRow, name) is not None
                or target.exists()
                or (self._settings.shipped_models_dir / name).exists()
                or session.scalar(select(JobRow.id).where(JobRow.claim == f"model:{name}"))
            ):
                raise _taken(name)
            digest = read_card(checkpoint).digest
            session.add(ModelRow(name=name, digest=digest, metrics={}, created_at=now()))
            try:
                session.flush()
            except IntegrityError as error:  # PostgreSQL: a job's model of that name ends now
                raise _taken(name) from error
            record(digest)
            _sync_whole(checkpoint)
            _move_in(checkpoint, target)
        return self.show(name)

    def remove(self, name: str, record: Callable[[], None]) -> None:
        """Remove a model that is not in use; `record` is called within the transaction.

        Raises `NotFound`, and `Conflict` for one that ships with the program, with which galleries
        start, that is active or previous in a gallery, or that an unfinished job names.
        """
        path = resolve(self._settings, name)
        if path.parent == self._settings.shipped_models_dir:
            raise _in_use(name, "it ships with the program")
        if name == self._settings.model:
            raise _in_use(name, "galleries start with it (GAITID_MODEL)")
        with Session(writing(self._engine)) as session, session.begin():
            take_turns(session, MODELS_IN_USE)
            gallery = session.scalar(
                select(GalleryRow.name).where(
                    or_(GalleryRow.active_model == name, GalleryRow.previous_model == name)
                )
            )
            if gallery is not None:
                raise _in_use(name, f"the gallery {gallery!r} uses it, or may go back to it")
            if name in self._named_by_jobs(session):
                raise _in_use(name, "a job that has not ended uses it")
            session.execute(delete(ModelRow).where(ModelRow.name == name))
            record()
        # Not before: a row without a folder could neither be removed nor replaced. A folder without
        # a row is an imported model, which can be removed again.
        gone = path.with_name(f".removed-{new_id()}")
        try:
            path.rename(gone)
        except FileNotFoundError as error:
            raise missing_model(name, "name") from error  # another request was faster
        shutil.rmtree(gone)

    @staticmethod
    def _named_by_jobs(session: Session) -> set[str]:
        named: set[str] = set()
        for request in session.scalars(select(JobRow.request).where(JobRow.status.in_(UNFINISHED))):
            named |= {
                *request.get("teachers", ()),
                *filter(None, (request.get(key) for key in ("name", "model", "student"))),
            }
        return named

    def _names(self) -> Iterator[str]:
        for folder in (self._settings.shipped_models_dir, self._settings.models_dir):
            if folder.is_dir():
                for entry in folder.iterdir():
                    if re.fullmatch(NAME, entry.name) and (entry / CARD).is_file():
                        yield entry.name


def _sync_whole(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        sync(path)


def _move_in(folder: Path, target: Path) -> None:
    folder.rename(target)
    sync(target.parent)


def _taken(name: str) -> Conflict:
    return Conflict(
        f"a model called {name!r} exists already", Reason("name", "taken"), slug="model-exists"
    )


def _in_use(name: str, why: str) -> Conflict:
    return Conflict(
        f"The model {name!r} cannot be removed: {why}.",
        Reason("name", "in_use"),
        slug="model-in-use",
    )
