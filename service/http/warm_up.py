"""What the service does between its start and being ready."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

from sqlalchemy.exc import SQLAlchemyError

from service.foundation.errors import NotFound, Unavailable
from service.foundation.metrics import Metrics
from service.gallery.active_model import GalleryModels, adopt, every_gallery
from service.gallery.sealing import Damaged
from service.gallery.store import GalleryStore
from service.http.model_wiring import ShuttingDown
from service.serving.active_models import ActiveModels
from service.serving.model_pool import LoadedModel, ModelUnavailable
from service.serving.reembedding import Reembedding
from service.serving.thresholds import queue_stale
from service.storage.failures import is_away, storage_trouble

_log = logging.getLogger(__name__)


class Readiness:
    """Whether the service is ready, and what it waits for."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._waiting_for: str | None = "The service is starting."

    def says(self, text: str) -> None:
        """Say what is being waited for."""
        self._waiting_for = text

    def done(self) -> None:
        """Make the service ready, from now on."""
        self._waiting_for = None
        self._metrics.ready.set(1)

    def leave(self) -> None:
        """Count as not ready from now on, because the service stops."""
        self._metrics.ready.set(0)

    def require(self) -> None:
        """Raise `Unavailable`, saying what is being waited for, unless the service is ready."""
        if self._waiting_for is not None:
            raise Unavailable(self._waiting_for, slug="not-ready", retry_after=2.0)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Embeds what the galleries' models have not embedded, then loads the galleries' indexes."""

    store: GalleryStore
    models: ActiveModels
    reembedding: Callable[[LoadedModel], Reembedding]
    readiness: Readiness
    stopping: Event
    retry_seconds: float  # after the database was busy or out of reach

    async def run(self) -> None:
        """Load every gallery, telling `readiness` how far it is and when it is done."""
        try:
            while not await self._load_all():
                if await asyncio.to_thread(self.stopping.wait, self.retry_seconds):
                    return
        except ShuttingDown:
            _log.info("stopped before it was ready")
        except Exception:
            _log.exception("the service cannot become ready")
            self.readiness.says("The service could not load its galleries; its log says why.")
        else:
            self.readiness.done()

    async def _load_all(self) -> bool:
        """Return False if a database is at fault: another process may be writing for long."""
        try:
            for row in await asyncio.to_thread(every_gallery, self.store.engine):
                self._say("The galleries are being loaded.")
                await self._load(row)
        except (OSError, SQLAlchemyError) as error:
            trouble = storage_trouble(error)
            if trouble is None:
                raise
            if not is_away(error):
                _log.error("the galleries cannot be loaded now: %s", error)
            self._say(f"The galleries are being loaded. {trouble.detail}")
            return False
        except ShuttingDown:
            raise
        except Unavailable as error:  # the vector database, say
            _log.error("the galleries cannot be loaded now: %s", error)
            self._say(f"The galleries are being loaded. {error.detail}")
            return False
        return True

    async def _load(self, row: GalleryModels) -> None:
        try:
            loaded = await self.models.model_of(row)
            await asyncio.to_thread(self._embed_and_follow, row, loaded)
        except NotFound:  # the gallery was erased meanwhile
            return
        except (ModelUnavailable, Damaged) as error:  # the other galleries can be searched
            _log.error(
                "a gallery cannot be searched: %s", error, extra={"gallery_id": row.gallery_id}
            )

    def _embed_and_follow(self, row: GalleryModels, loaded: LoadedModel) -> None:
        made = self.reembedding(loaded).everything(
            lambda done, total: self._say(
                f"The active model is new here: {done} of {total} sequences are embedded with it."
            ),
            row.gallery_id,
        )
        if made:
            _log.info("embedded stored sequences with the active model", extra={"sequences": made})
        if row.active is not None and row.active.digest != loaded.digest:
            _log.warning("the model %r was replaced on disk", row.active.name)
            adopt(self.store.engine, row.gallery_id, row.active, loaded.digest)
        head = self.store.head(row.name)
        self.models.index(row.gallery_id, loaded).follow(head.revision)
        if head.operating_point is not None:  # maybe calibrated with another model
            queue_stale(self.store.engine, [row.name], loaded.digest)

    def _say(self, text: str) -> None:
        if self.stopping.is_set():
            raise ShuttingDown
        self.readiness.says(text)
