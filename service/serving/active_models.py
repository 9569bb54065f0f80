"""Which model answers for which gallery in this process, and how it is exchanged without a pause.

A gallery's row says which model is active. A process that finds another one there goes on with the
old model *and* the old index, loads the new model and brings the new index up to date beside it,
and then exchanges both in one assignment. A request takes its model once, at its beginning, and
uses that model and its index to the end, whatever is exchanged meanwhile. A scene transform is part
of the index and exchanged with it: whoever puts another one in use raises the row's `index_epoch`.

An exchange that fails leaves the old model in service and is tried again later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from service.foundation.errors import NotFound, Unavailable
from service.foundation.metrics import Metrics
from service.gallery.active_model import GalleryModels, models_by_id, models_of
from service.gallery.cache import GalleryCache
from service.gallery.ranking import GallerySearch
from service.gallery.scenes import versions
from service.gallery.store import GalleryStore
from service.serving.model_pool import LoadedModel, ModelPool, ModelUnavailable
from service.serving.thresholds import ModelInUse
from service.storage.failures import is_away

_log = logging.getLogger(__name__)

_LOOK_S = 1.0  # between two looks at the rows of the galleries in memory
_KEEP_UP_S = 2.0  # between two rounds of keeping indexes current
_RETRY_S = 15.0  # after an exchange that failed
_AT_ONCE_S = 5.0  # that a rollback's answer waits for this process to follow it


@dataclass(slots=True)
class _Serving:
    """What answers for one gallery."""

    loaded: LoadedModel
    index_epoch: int


class ActiveModels:
    """The model of each gallery in this process; a context manager, owned by an event loop."""

    def __init__(
        self,
        store: GalleryStore,
        pool: ModelPool,
        galleries: GalleryCache,
        follow: Callable[[str, LoadedModel], GallerySearch],
        metrics: Metrics,
    ) -> None:
        """`follow` makes a new and empty index of a gallery, by id, under a model."""
        self._store = store
        self._pool = pool
        self.galleries = galleries
        self._follow = follow
        self._metrics = metrics
        self._serving: dict[str, _Serving] = {}
        self._exchanges: dict[str, asyncio.Task[None]] = {}
        self._failed_at: dict[str, float] = {}
        self._out_of_reach: set[str] = set()  # digests of previous models that cannot be loaded
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._repeat(self.look_for_swaps, _LOOK_S), name="look-for-swaps"),
            asyncio.create_task(self._repeat(self.keep_up, _KEEP_UP_S), name="keep-up"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._exchanges.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def own(self) -> ModelInUse:
        """The deployment's own model, with which galleries start."""
        return self._pool.own.model

    @asynccontextmanager
    async def using(self, gallery: str) -> AsyncIterator[LoadedModel]:
        """The model that answers for a gallery, usable until the block ends.

        Raises `NotFound` for a missing gallery, `ModelUnavailable` when nothing answers for it yet
        and its model cannot be loaded.
        """
        row = await asyncio.to_thread(models_of, self._store.engine, gallery)
        with self._pool.lease(await self.model_of(row)) as loaded:
            yield loaded

    async def model_of(self, row: GalleryModels) -> LoadedModel:
        """The model that answers for a gallery whose row was just read.

        Begins to exchange it when the row says another one. Raises `ModelUnavailable`.
        """
        serving = self._serving.get(row.gallery_id)
        if serving is None:
            loaded = await self._pool.get(row.active)
            # Another request may have been faster.
            serving = self._serving.setdefault(row.gallery_id, _Serving(loaded, row.index_epoch))
        elif self._differs(row, serving):
            self._exchange(row.gallery_id)
        return serving.loaded

    def index(self, gallery_id: str, loaded: LoadedModel) -> GallerySearch:
        """The index of what this model made of a gallery. From any thread."""
        return self.galleries.get(
            gallery_id, loaded.digest, lambda: self._follow(gallery_id, loaded)
        )

    async def follow_now(self, gallery: str) -> None:
        """Exchange a gallery's model at once; after 5 s it goes on in the background.

        The swap is committed, so nothing is raised for a model that cannot be loaded, which is
        logged, or a gallery that was erased since.
        """
        deadline = time.monotonic() + _AT_ONCE_S
        try:
            row = await asyncio.to_thread(models_of, self._store.engine, gallery)
            self._failed_at.pop(row.gallery_id, None)
            await self.model_of(row)
            # More than once: an exchange under way may have read the row before the swap.
            while exchange := self._exchanges.get(row.gallery_id):
                await asyncio.wait({exchange}, timeout=max(0.0, deadline - time.monotonic()))
                if not exchange.done():
                    return
                await self.model_of(row)
        except (NotFound, ModelUnavailable):
            return

    def forget(self, loaded: LoadedModel) -> None:
        """Forget a model that the pool dropped; the next request for it loads it again."""
        for gallery_id, serving in list(self._serving.items()):
            if serving.loaded is loaded:
                del self._serving[gallery_id]
        self.galleries.drop_model(loaded.digest)

    def _wanted(self, row: GalleryModels) -> str:
        return self.own.digest if row.active is None else row.active.digest

    def _differs(self, row: GalleryModels, serving: _Serving) -> bool:
        wanted = (self._wanted(row), row.index_epoch)
        return wanted != (serving.loaded.digest, serving.index_epoch)

    def _exchange(self, gallery_id: str) -> None:
        """Begin to exchange a gallery's model in the background, unless that is under way."""
        failed_at = self._failed_at.get(gallery_id)
        if gallery_id in self._exchanges or (
            failed_at is not None and time.monotonic() < failed_at + _RETRY_S
        ):
            return
        task = asyncio.create_task(self._do_exchange(gallery_id), name="exchange-model")
        self._exchanges[gallery_id] = task
        task.add_done_callback(lambda _: self._exchanges.pop(gallery_id, None))

    async def _do_exchange(self, gallery_id: str) -> None:
        try:
            # The request that asked for it may have read the row before the last exchange.
            row = await asyncio.to_thread(self._row, gallery_id)
            serving = self._serving.get(gallery_id)
            if serving is not None and not self._differs(row, serving):
                return
            rebuild = serving is None or serving.index_epoch != row.index_epoch
            loaded = await self._pool.get(row.active)
            if loaded.digest != self._wanted(row):
                raise RuntimeError(
                    f"the model {loaded.model.name!r} on disk is not the one that was activated"
                )
            with self._pool.lease(loaded):
                await asyncio.to_thread(self._bring_up_to_date, row, loaded, rebuild=rebuild)
                self._serving[gallery_id] = _Serving(loaded, row.index_epoch)
        except NotFound:  # the gallery was erased meanwhile
            self._forget_gallery(gallery_id)
        except Exception:
            self._failed_at[gallery_id] = time.monotonic()
            self._metrics.model_exchanges.labels("failed").inc()
            _log.exception("a gallery's new model cannot be put into service; the old one goes on")
        else:
            self._failed_at.pop(gallery_id, None)
            self._metrics.model_exchanges.labels("done").inc()
            _log.info("a gallery is answered by the model %r now", loaded.model.name)

    def _bring_up_to_date(self, row: GalleryModels, loaded: LoadedModel, *, rebuild: bool) -> None:
        """Build the index that the row asks for beside the one that is searched."""
        held = self.galleries.held(row.gallery_id).get(loaded.digest)
        index = held
        if index is None or rebuild or index.scene_version != self._scene(row, loaded.digest):
            index = self._follow(row.gallery_id, loaded)
        index.follow(row.revision)
        index.follow(self._row(row.gallery_id).revision)  # enrolled during the first call
        if held is not None and held is not index and not held.same_as(index):
            _log.warning("a gallery's index differed from the database and was replaced")
        self.galleries.replace(row.gallery_id, loaded.digest, index)

    def _scene(self, row: GalleryModels, digest: str) -> str | None:
        return versions(self._store.engine, row.gallery_id).get(digest)

    def _row(self, gallery_id: str) -> GalleryModels:
        found = models_by_id(self._store.engine, [gallery_id])
        if not found:
            raise NotFound("The gallery was erased.")
        return found[0]

    async def _repeat(self, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while True:
            await asyncio.sleep(pause_s)
            try:
                await work()
            except Exception as error:
                if not is_away(error):
                    _log.exception("the galleries' models could not be looked after")

    async def look_for_swaps(self) -> None:
        """Begin the exchanges that rows ask for and drop unused models; run every second."""
        needed = {self.own.digest}
        for row in await self._rows():
            serving = self._serving.get(row.gallery_id)
            if serving is None:
                continue
            if self._differs(row, serving):
                self._exchange(row.gallery_id)
            needed |= self._known(row)
        # Also of galleries that were first asked for while the rows were read.
        needed |= {serving.loaded.digest for serving in self._serving.values()}
        if not self._exchanges:
            for digest in self._pool.digests() - needed:
                self._pool.drop(digest)

    async def keep_up(self) -> None:
        """Bring the indexes in memory up to date, the previous models' too; run every 2 seconds."""
        for row in await self._rows():
            try:
                await self._keep_up_one(row)
            except NotFound:  # erased meanwhile: the next round drops it
                continue
            except Unavailable as error:
                _log.error("an index in memory cannot be kept current: %s", error)
            except Exception as error:  # the other galleries must be kept current
                if not is_away(error):
                    _log.exception("an index in memory cannot be kept current")

    async def _keep_up_one(self, row: GalleryModels) -> None:
        await self._open_previous(row)
        serving = self._serving.get(row.gallery_id)
        answers = {serving.loaded.digest} if serving else set()
        known = self._known(row) | answers
        held = self.galleries.held(row.gallery_id)
        # Only what answers is exchanged: another model's index by an old transform is made anew.
        scenes = await asyncio.to_thread(versions, self._store.engine, row.gallery_id)
        for digest, index in held.items():
            if digest in answers or (digest in known and index.scene_version == scenes.get(digest)):
                await asyncio.to_thread(index.follow, row.revision)
                await asyncio.to_thread(index.keep)
            else:
                self.galleries.drop(row.gallery_id, digest)

    async def _open_previous(self, row: GalleryModels) -> None:
        """Keep the previous model's index as well, after a restart, say, where there is room."""
        held = self.galleries.held(row.gallery_id)
        previous = row.previous
        if previous is None or previous.digest in held or previous.digest in self._out_of_reach:
            return
        loaded = self._pool.held(previous.digest)
        if not self.galleries.has_room_for(held.values()) or (
            loaded is None and not self._pool.has_room
        ):
            return
        try:
            loaded = await self._pool.get(previous)
        except ModelUnavailable:
            loaded = None
        if loaded is not None and loaded.digest == previous.digest:
            self.index(row.gallery_id, loaded)
        else:  # missing, broken or replaced on disk: a rollback reports it
            self._out_of_reach.add(previous.digest)

    async def _rows(self) -> list[GalleryModels]:
        """The rows of the galleries that this process answers for; forgets erased ones."""
        known = set(self._serving)
        rows = await asyncio.to_thread(models_by_id, self._store.engine, known)
        for gallery_id in known - {row.gallery_id for row in rows}:
            self._forget_gallery(gallery_id)
        return rows

    def _known(self, row: GalleryModels) -> set[str]:
        return {self._wanted(row)} | ({row.previous.digest} if row.previous else set())

    def _forget_gallery(self, gallery_id: str) -> None:
        self._serving.pop(gallery_id, None)
        self._failed_at.pop(gallery_id, None)
        self.galleries.drop(gallery_id)
