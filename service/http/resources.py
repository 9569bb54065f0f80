"""Everything the application holds while it runs: the only place that names concrete backends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from threading import Event

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from models.allocator import keep_freed_memory
from models.encoder import Encoder
from models.silhouettes.budget import DecodeLimits
from service.access.audit.record import AuditRecord
from service.access.exposure import check_exposure
from service.foundation.errors import NotFound, Unavailable
from service.foundation.metrics import Metrics
from service.foundation.settings import Settings
from service.gallery.active_model import PinnedGallery, adopt, every_gallery
from service.gallery.cache import GalleryCache
from service.gallery.faiss_index import FaissIndex
from service.gallery.index import GalleryIndex
from service.gallery.listing import is_enrolled
from service.gallery.live_index import FollowedGallery
from service.gallery.memory_index import MemoryIndex
from service.gallery.records import Silhouettes
from service.gallery.sealing import Damaged, unlock
from service.gallery.store import GalleryStore
from service.http.readiness import Readiness
from service.jobs.following import Followers
from service.jobs.queue import JobQueue
from service.privacy.corrections import Corrections
from service.privacy.erasure import DEFAULT_GALLERY, Erasure
from service.privacy.retention import Retention
from service.recognition.decoder_pool import DecoderPool
from service.recognition.enrolment import Enrolment
from service.recognition.identification import Identification
from service.recognition.intake import Intake
from service.recognition.load import Load
from service.recognition.verification import Verification
from service.serving.active_models import ActiveModels
from service.serving.batching import FrameBatcher
from service.serving.lineage import TrainingRecord
from service.serving.model_in_use import ModelInUse
from service.serving.model_pool import LoadedModel, ModelPool, ModelUnavailable
from service.serving.reembedding import Reembedding
from service.serving.registry import ModelRegistry, resolve
from service.serving.thresholds import queue_stale
from service.storage.data_folder import open_data_folder
from service.storage.database import migrate, open_database, storage_trouble
from service.storage.encryption import read_keys
from service.storage.reserve import Reserve
from service.storage.writers import Writers
from service.transfer.portability import Portability

_log = logging.getLogger(__name__)

_TIDY_SECONDS = 3600.0
_AGAIN_SECONDS = 2.0  # after the database was busy or out of reach at the start


class ShuttingDown(Unavailable):
    """The service stops: nothing more is embedded."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What routes reach through `request.app.state.resources`."""

    settings: Settings
    engine: Engine
    registry: ModelRegistry
    metrics: Metrics
    audit: AuditRecord
    readiness: Readiness
    model: ModelInUse  # the deployment's own, with which galleries start
    store: GalleryStore
    models: ActiveModels
    writers: Writers
    enrolment: Enrolment
    identification: Identification
    verification: Verification
    erasure: Erasure
    corrections: Corrections
    reserve: Reserve
    portability: Portability
    decoders: DecoderPool
    followers: Followers


def open_engine(settings: Settings) -> Engine:
    """Open the deployment's database, bring its schema up to date, and give it its keys.

    Raises `KeyTrouble` for encryption keys that are no good, or not the database's, and
    `NotPrivate` for a data folder that cannot be kept from others.
    """
    keys = read_keys(settings)
    open_data_folder(settings)
    engine = open_database(settings.resolved_database_url)
    migrate(engine)
    unlock(engine, keys)
    return engine


def open_encoder(settings: Settings, name: str) -> Encoder:
    """Load the model called `name`; raises `NotFound` and what loading a checkpoint raises."""
    torch.set_num_threads(settings.embed_threads)
    keep_freed_memory()
    return Encoder.open(resolve(settings, name), settings.device)


@asynccontextmanager
async def open_resources(
    settings: Settings,
    engine: Engine,
    writers: Writers,
    metrics: Metrics,
    encoder: Encoder | None = None,
) -> AsyncIterator[Resources]:
    """Load the model and put everything together; indexes load behind `readiness`.

    `encoder` is of the deployment's own model, for who has loaded it already. Raises `Exposed` for
    a service that would be open to strangers, and what loading a checkpoint raises when that model
    cannot be loaded.
    """
    check_exposure(settings, engine)
    encoder = encoder or open_encoder(settings, settings.model)
    # Under the name that GET /models lists, whatever its card is called.
    own = ModelInUse(settings.model, encoder.digest, encoder.card.threshold, encoder.card.metric)
    store = GalleryStore(engine, lambda what: metrics.damaged.labels(what).inc())
    store.ensure(DEFAULT_GALLERY)
    galleries = GalleryCache(max_bytes=settings.index_memory_bytes)
    readiness = Readiness(metrics)
    stopping = Event()
    load = Load(settings.decode_workers)
    with (
        closing(AuditRecord.open(settings, partial(is_enrolled, engine))) as audit,
        ThreadPoolExecutor(1, "encoder") as encoders,
    ):

        def observe_run(seconds: float, walks: int) -> None:
            metrics.embed_seconds.observe(seconds)
            load.embedded(seconds, walks)

        def new_batcher(encoder: Encoder) -> FrameBatcher:
            return FrameBatcher(
                encoder.encode,
                encoders,  # one for all models: they share the device
                max_frames=settings.batch_frames,
                max_wait=settings.batch_wait_ms / 1000,
                max_pending=max(settings.max_pending, settings.max_sequences_per_request),
                observe_queue=metrics.queue_seconds.observe,
                observe_run=observe_run,
            )

        def reembedding(loaded: LoadedModel) -> Reembedding:
            def encode(walks: Sequence[Silhouettes]) -> NDArray[np.float32]:
                if stopping.is_set():
                    raise ShuttingDown("The service is shutting down.", retry_after=5.0)
                return loaded.encoder.encode(walks)

            return Reembedding(store, encode, loaded.digest)

        def follow(gallery_id: str, loaded: LoadedModel) -> FollowedGallery:
            index = _new_index(settings, loaded.encoder)
            missing = reembedding(loaded).some
            return FollowedGallery(gallery_id, loaded.digest, index, store, missing)

        async with (
            ModelPool(
                lambda name: open_encoder(settings, name),
                new_batcher,
                own,
                encoder,
                metrics,
                most=settings.max_models,
                dropped=lambda loaded: models.forget(loaded),
            ) as pool,
            ActiveModels(store, pool, galleries, follow, metrics) as models,
            _decoders(settings) as decoders,
        ):
            intake = Intake(
                decoders,
                load,
                metrics,
                max_pending=settings.max_pending,
                max_wait=settings.max_wait_seconds,
            )
            registry = ModelRegistry(settings, engine)
            record = TrainingRecord.of(settings.data_dir)
            reserve = Reserve(settings.reserve_file, settings.reserve_bytes)
            sweeping = asyncio.create_task(
                Retention(settings, store, writers, galleries, reserve).run(), name="retention"
            )
            warm_up = asyncio.create_task(
                _WarmUp(store, models, reembedding, readiness, stopping).run(), name="warm-up"
            )
            tidying = asyncio.create_task(_tidy(audit), name="tidy the audit record")
            try:
                yield Resources(
                    settings=settings,
                    engine=engine,
                    registry=registry,
                    metrics=metrics,
                    audit=audit,
                    readiness=readiness,
                    model=own,
                    store=store,
                    models=models,
                    writers=writers,
                    enrolment=Enrolment(store, writers, intake, models),
                    identification=Identification(store, models, intake, metrics),
                    verification=Verification(store, models, intake, metrics),
                    erasure=Erasure(store, writers, galleries, record, reserve, settings),
                    corrections=Corrections(engine, writers, record, own),
                    reserve=reserve,
                    portability=Portability(settings, store, writers, registry),
                    decoders=decoders,
                    followers=Followers(
                        JobQueue.of(engine, settings),
                        most=settings.max_streams,
                        most_per_caller=settings.max_streams_per_caller,
                    ),
                )
            finally:
                stopping.set()
                tidying.cancel()
                sweeping.cancel()
                await asyncio.gather(warm_up, tidying, sweeping, return_exceptions=True)


def _decoders(settings: Settings) -> DecoderPool:
    limits = DecodeLimits(
        max_frames=settings.max_frames,
        max_side=settings.max_side,
        max_decoded_bytes=settings.max_decoded_bytes,
        max_seconds=settings.max_decode_seconds,
    )
    return DecoderPool(
        limits,
        clean=settings.clean_silhouettes,
        max_upload_bytes=settings.max_request_bytes,
        workers=settings.decode_workers,
    )


async def _tidy(audit: AuditRecord) -> None:
    """Keep the record as it should be, now and then; one failure does not end it."""
    while True:
        try:
            await asyncio.to_thread(audit.tidy)
        except Exception:
            _log.exception("the audit record could not be tidied")
        await asyncio.sleep(_TIDY_SECONDS)


def _new_index(settings: Settings, encoder: Encoder) -> GalleryIndex:
    card = encoder.card
    if settings.index == "memory":
        return MemoryIndex(card.parts, card.channels, card.metric)
    return FaissIndex(
        card.parts,
        card.channels,
        card.metric,
        shortlist=settings.shortlist,
        gpu=encoder.device.type == "cuda" and faiss.get_num_gpus() > 0,
    )


@dataclass(frozen=True, slots=True)
class _WarmUp:
    """Embeds what the galleries' models have not embedded, then loads the galleries' indexes."""

    store: GalleryStore
    models: ActiveModels
    reembedding: Callable[[LoadedModel], Reembedding]
    readiness: Readiness
    stopping: Event

    async def run(self) -> None:
        """Do it, and say how far it is; afterwards the service is ready."""
        try:
            while not await self._load_all():
                if await asyncio.to_thread(self.stopping.wait, _AGAIN_SECONDS):
                    return
        except ShuttingDown:
            _log.info("stopped before it was ready")
        except Exception:
            _log.exception("the service cannot become ready")
            self.readiness.says("The service could not load its galleries; its log says why.")
        else:
            self.readiness.done()

    async def _load_all(self) -> bool:
        """False when the database is at fault: another process may be writing for long."""
        try:
            for row in await asyncio.to_thread(every_gallery, self.store.engine):
                self._say("The galleries are being loaded.")
                await self._load(row)
        except (OSError, SQLAlchemyError) as error:
            trouble = storage_trouble(error)
            if trouble is None:
                raise
            _log.error("the galleries cannot be loaded now: %s", error)
            self._say(f"The galleries are being loaded. {trouble.detail}")
            return False
        return True

    async def _load(self, row: PinnedGallery) -> None:
        try:
            loaded = await self.models.model_of(row)
        except ModelUnavailable as error:  # the other galleries are none the worse for it
            _log.error("a gallery cannot be searched: %s", error)
            return
        try:
            await asyncio.to_thread(self._embed_and_follow, row, loaded)
        except NotFound:  # erased meanwhile
            return
        except Damaged as error:  # as above
            _log.error(
                "a gallery cannot be searched: %s", error, extra={"gallery_id": row.gallery_id}
            )

    def _embed_and_follow(self, row: PinnedGallery, loaded: LoadedModel) -> None:
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
        _, newest, point = self.store.head(row.name)
        self.models.index(row.gallery_id, loaded).follow(newest)
        if point is not None:  # the model may be another than the one it was calibrated with
            queue_stale(self.store.engine, [row.name], loaded.digest)

    def _say(self, text: str) -> None:
        if self.stopping.is_set():
            raise ShuttingDown("The service is shutting down.", retry_after=5.0)
        self.readiness.says(text)
