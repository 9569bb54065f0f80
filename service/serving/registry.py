"""The models of a deployment, by name: shipped with it, trained or uploaded.

Those that ship are folders of the installation; where the others are, `service.serving.model_files`
knows. No torch is imported here: a card is JSON.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from sqlalchemy import Engine, delete, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models.card import CARD, Card, ModelReference
from service.foundation.errors import Conflict, NotFound, Reason
from service.foundation.settings import Settings
from service.gallery.active_model import MODELS_IN_USE, GalleryModels, models_of
from service.gallery.tables import GalleryRow
from service.jobs.job import UNFINISHED, JsonObject
from service.jobs.tables import JobRow
from service.serving.model_files import (
    NAME,
    ModelFiles,
    ModelRow,
    StagedFiles,
    UnreadableCard,
    folders_with_cards,
    open_model_files,
    read_card,
)
from service.storage.database import new_id, now, take_turns, writing

_log = logging.getLogger(__name__)

RecordDigest = Callable[[str], None]
"""Told a model's digest before the model is added; what it raises prevents that."""


class Source(StrEnum):
    """Where a model comes from."""

    SHIPPED = "shipped"
    TRAINED = "trained"
    IMPORTED = "imported"


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
    """A trained model whose files are where they are to be, and the row that is to be added."""

    row: ModelRow
    files: StagedFiles


def resolve(settings: Settings, engine: Engine, name: str) -> Path:
    """The folder, on this host, of the model called `name`; raises `NotFound`.

    Of a model in the store, which may have to be fetched, also `StoreUnavailable` and
    `StoreDamaged`.
    """
    folder = _shipped(settings, name) or _own(settings, engine, name).folder(name)
    if folder is None:
        raise missing_model(name, "name")
    return folder


def card_of(settings: Settings, engine: Engine, name: str) -> Card:
    """The card of the model called `name`, without the rest of it; raises as `resolve` does."""
    shipped = _shipped(settings, name)
    card = read_card(shipped) if shipped else _own(settings, engine, name).card(name)
    if card is None:
        raise missing_model(name, "name")
    return card


def find_model(settings: Settings, engine: Engine, name: str) -> ModelReference:
    """The model called `name`, with its digest; raises `NotFound`."""
    shipped = _shipped(settings, name)
    digest = read_card(shipped).digest if shipped else _own(settings, engine, name).digest(name)
    if digest is None:
        raise missing_model(name, "name")
    return ModelReference(name, digest)


def active_model(settings: Settings, engine: Engine, row: GalleryModels) -> ModelReference:
    """A gallery's active model; raises `NotFound` when the deployment's own does not exist."""
    return row.active or find_model(settings, engine, settings.model)


def active_checkpoint(settings: Settings, engine: Engine, gallery: str) -> Path:
    """The absolute folder of a gallery's active model; raises `NotFound` for either."""
    active = models_of(engine, gallery).active
    return resolve(settings, engine, settings.model if active is None else active.name).absolute()


def missing_model(name: str, where: str) -> NotFound:
    """The error for a model that is not registered; `where` is the field that names it."""
    return NotFound(
        f"There is no model {name!r}. GET /models lists those there are; "
        "`gaitid import-opengait` makes one from an OpenGait checkpoint.",
        Reason(where, "not_found"),
        slug="model-not-found",
    )


class ModelRegistry:
    """Models by name, over their checkpoints and the database."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._files = open_model_files(settings, engine)

    def all(self) -> list[RegisteredModel]:
        """Every model, by name; one whose card cannot be read is left out, and logged."""
        models = []
        for name in sorted(
            {*folders_with_cards(self._settings.shipped_models_dir), *self._files.names()}
        ):
            try:
                models.append(self.show(name))
            except UnreadableCard as error:
                _log.warning("a model is not listed: %s", error)
        return models

    def show(self, name: str) -> RegisteredModel:
        """One model; raises `NotFound`, or `UnreadableCard` when its folder is broken."""
        path = resolve(self._settings, self._engine, name)
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
        """Copy a checkpoint to where the models' are, to be one in the transaction of its row.

        Idempotent for the same checkpoint; another model of that name raises `Conflict`.
        """
        digest = read_card(checkpoint).digest
        with Session(self._engine) as session:
            taken = session.get(ModelRow, name) is not None
        if taken or self._shipped_or_other(name, digest):
            raise _taken(name)
        return StagedModel(
            ModelRow(name=name, digest=digest, job_id=job_id, metrics=metrics, created_at=now()),
            self._files.stage(name, digest, checkpoint, by=job_id),
        )

    def add_uploaded(self, name: str, checkpoint: Path, record: RecordDigest) -> RegisteredModel:
        """Add a checkpoint as a model; raises `Conflict`.

        Others see it whole or not at all. `record` is called within the transaction.
        """
        digest = read_card(checkpoint).digest
        with Session(self._engine) as session:
            self._require_free(session, name)  # before anything is copied
        staged = self._files.stage(name, digest, checkpoint, by=new_id())
        try:
            with Session(writing(self._engine)) as session, session.begin():
                take_turns(session, MODELS_IN_USE)
                self._require_free(session, name)
                session.add(ModelRow(name=name, digest=digest, metrics={}, created_at=now()))
                try:
                    session.flush()
                except IntegrityError as error:  # PostgreSQL: a job's model of that name ends now
                    raise _taken(name) from error
                record(digest)
                staged.move_in()
        except BaseException:
            staged.discard()
            raise
        return self.show(name)

    def remove(self, name: str, record: Callable[[], None]) -> None:
        """Remove a model that is not in use; `record` is called within the transaction.

        Raises `NotFound`, and `Conflict` for one that ships with the program, with which galleries
        start, that is active or previous in a gallery, or that an unfinished job names.
        """
        if _shipped(self._settings, name):
            raise _in_use(name, "it ships with the program")
        if name not in self._files.names():
            raise missing_model(name, "name")
        if name == self._settings.model:
            raise _in_use(name, "galleries start with it (GAITID_MODEL)")
        remove_files = self._files.removing(name)
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
        # Not before: a row without files could neither be removed nor replaced. A folder without
        # a row is an imported model, which can be removed again.
        try:
            remove_files()
        except FileNotFoundError as error:
            raise missing_model(name, "name") from error  # another request was faster

    def _require_free(self, session: Session, name: str) -> None:
        if (
            session.get(ModelRow, name) is not None
            or self._shipped_or_other(name, None)
            or session.scalar(select(JobRow.id).where(JobRow.claim == f"model:{name}"))
        ):
            raise _taken(name)

    def _shipped_or_other(self, name: str, digest: str | None) -> bool:
        shipped = (self._settings.shipped_models_dir / name).exists()
        return shipped or self._files.holds_other(name, digest)

    @staticmethod
    def _named_by_jobs(session: Session) -> set[str]:
        named: set[str] = set()
        for request in session.scalars(select(JobRow.request).where(JobRow.status.in_(UNFINISHED))):
            named |= {
                *request.get("teachers", ()),
                *filter(None, (request.get(key) for key in ("name", "model", "student"))),
            }
        return named


def _shipped(settings: Settings, name: str) -> Path | None:
    folder = settings.shipped_models_dir / name
    return folder if re.fullmatch(NAME, name) and (folder / CARD).is_file() else None


def _own(settings: Settings, engine: Engine, name: str) -> ModelFiles:
    """The files of the deployment's own models; raises `NotFound` for what is no name."""
    if not re.fullmatch(NAME, name):
        raise missing_model(name, "name")
    return open_model_files(settings, engine)


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
