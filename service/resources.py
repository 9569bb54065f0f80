"""Everything the application holds while it runs: the only place that names concrete backends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from threading import Event

import faiss
import torch
from sqlalchemy import Engine

from models.encoder import Encoder
from models.silhouettes.budget import DecodeLimits
from service.audit.record import AuditRecord
from service.batching import FrameBatcher
from service.calibration import queue_stale
from service.database import migrate, open_database
from service.encryption import read_keys
from service.enrolment import Enrolment
from service.erasure import DEFAULT_GALLERY, Erasure
from service.errors import NotFound
from service.exposure import check_exposure
from service.gallery.cache import GalleryCache
from service.gallery.faiss_index import FaissIndex
from service.gallery.followed import FollowedGallery
from service.gallery.index import GalleryIndex
from service.gallery.listing import galleries as list_galleries
from service.gallery.memory_index import MemoryIndex
from service.gallery.sealing import unlock
from service.gallery.store import GalleryStore
from service.identification import Identification
from service.intake import Intake
from service.metrics import Metrics
from service.model_in_use import ModelInUse
from service.model_registry import ModelRegistry, resolve
from service.portability import Portability
from service.protection import Protection
from service.readiness import Readiness
from service.reembedding import Reembedding
from service.reserve import Reserve
from service.retention import Retention
from service.settings import Settings
from service.training_record import TrainingRecord
from service.verification import Verification
from service.writers import Writers

_log = logging.getLogger(__name__)

_TIDY_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Resources:
    """What routes reach through `request.app.state.resources`."""

    settings: Settings
    engine: Engine
    encoder: Encoder
    registry: ModelRegistry
    metrics: Metrics
    audit: AuditRecord
    readiness: Readiness
    model: ModelInUse
    store: GalleryStore
    galleries: GalleryCache
    enrolment: Enrolment
    identification: Identification
    verification: Verification
    erasure: Erasure
    portability: Portability


def open_engine(settings: Settings) -> Engine:
    """Open the deployment's database, bring its schema up to date, and give it its keys.

    Raises `KeyTrouble` for encryption keys that are no good, or not the database's.
    """
    keys = read_keys(settings)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = open_database(settings.resolved_database_url)
    migrate(engine)
    unlock(engine, keys)
    return engine


@asynccontextmanager
async def open_resources(
    settings: Settings, engine: Engine, writers: Writers, metrics: Metrics
) -> AsyncIterator[Resources]:
    """Load the model and put everything together; indexes load behind `readiness`.

    Raises `Exposed` for a service that would be open to strangers, and what loading a checkpoint
    raises when the active model cannot be loaded.
    """
    check_exposure(settings, engine)
    torch.set_num_threads(settings.embed_threads)
    encoder = Encoder.open(resolve(settings, settings.model), settings.device)
    # Under the name that GET /models lists, whatever its card is called.
    model = ModelInUse(settings.model, encoder.digest, encoder.card.threshold, encoder.card.metric)
    store = GalleryStore(engine)
    store.ensure(DEFAULT_GALLERY)
    reembedding = Reembedding(store, encoder.encode, model.digest)
    galleries = GalleryCache(
        lambda gallery_id: FollowedGallery(
            gallery_id, model.digest, _new_index(settings, encoder), store, reembedding.some
        ),
        max_bytes=settings.index_memory_bytes,
    )
    readiness = Readiness(metrics)
    with (
        closing(AuditRecord.open(settings, engine)) as audit,
        ThreadPoolExecutor(1, "encoder") as encoders,
        ThreadPoolExecutor(settings.decode_workers, "decoder") as decoders,
    ):
        async with FrameBatcher(
            encoder.encode,
            encoders,
            max_frames=settings.batch_frames,
            max_wait=settings.batch_wait_ms / 1000,
            max_pending=max(settings.max_pending, settings.max_sequences_per_request),
            observe_queue=metrics.queue_seconds.observe,
            observe_run=metrics.embed_seconds.observe,
        ) as batcher:
            intake = Intake(
                batcher,
                decoders,
                DecodeLimits(
                    max_frames=settings.max_frames,
                    max_side=settings.max_side,
                    max_decoded_bytes=settings.max_decoded_bytes,
                    max_seconds=settings.max_decode_seconds,
                ),
                metrics,
                clean=settings.clean_silhouettes,
                max_pending=settings.max_pending,
            )
            registry = ModelRegistry(settings, engine)
            record = TrainingRecord.of(settings.data_dir)
            reserve = Reserve(settings.reserve_file, settings.reserve_bytes)
            sweeping = asyncio.create_task(
                Retention(settings, store, writers, galleries, reserve).run(), name="retention"
            )
            stopping = Event()
            warm_up = asyncio.create_task(
                _warm_up(store, galleries, reembedding, model.digest, readiness, stopping),
                name="warm-up",
            )
            tidying = asyncio.create_task(_tidy(audit), name="tidy the audit record")
            try:
                yield Resources(
                    settings=settings,
                    engine=engine,
                    encoder=encoder,
                    registry=registry,
                    metrics=metrics,
                    audit=audit,
                    readiness=readiness,
                    model=model,
                    store=store,
                    galleries=galleries,
                    enrolment=Enrolment(
                        store, writers, intake, model, Protection(store, galleries, model)
                    ),
                    identification=Identification(store, galleries, intake, model, metrics),
                    verification=Verification(store, galleries, intake, model, metrics),
                    erasure=Erasure(store, writers, galleries, record, reserve, settings),
                    portability=Portability(settings, store, writers, registry),
                )
            finally:
                stopping.set()
                tidying.cancel()
                sweeping.cancel()
                await asyncio.gather(warm_up, tidying, sweeping, return_exceptions=True)


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


class _Stopped(Exception):
    """The service stops before it was ready."""


async def _warm_up(
    store: GalleryStore,
    galleries: GalleryCache,
    reembedding: Reembedding,
    digest: str,
    readiness: Readiness,
    stopping: Event,
) -> None:
    """Embed what the active model has not embedded, then load the galleries' indexes."""

    def say(text: str) -> None:
        if stopping.is_set():
            raise _Stopped
        readiness.says(text)

    def load() -> None:
        made = reembedding.everything(
            lambda done, total: say(
                f"The active model is new here: {done} of {total} sequences are embedded with it."
            )
        )
        if made:
            _log.info("embedded stored sequences with the active model", extra={"sequences": made})
        after: str | None = None
        while True:
            page = list_galleries(store.engine, limit=100, after=after)
            for record in page.items:
                say("The galleries are being loaded.")
                try:
                    gallery_id, newest, _ = store.head(record.name)
                    galleries.get(gallery_id).follow(newest)
                except NotFound:  # erased meanwhile
                    continue
            # The model may be another than the one that galleries were calibrated with.
            calibrated = [item.name for item in page.items if item.operating_point is not None]
            queue_stale(store.engine, calibrated, digest)
            if (after := page.next_key) is None:
                return

    try:
        await asyncio.to_thread(load)
    except _Stopped:
        _log.info("stopped before it was ready")
    except Exception:
        _log.exception("the service cannot become ready")
        readiness.says("The service could not load its galleries; its log says why.")
    else:
        readiness.done()
