"""The application's resources while it runs; the only place that names concrete backends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

import torch
from sqlalchemy import Engine

from models.encoder.encoder import Encoder
from models.footage.pictures import FootageLimits
from models.networks.allocator import keep_freed_memory
from models.silhouettes.budget import DecodeLimits
from service.access.audit.record import AuditRecord
from service.access.exposure import check_exposure
from service.foundation.metrics import Metrics
from service.foundation.settings import Settings
from service.gallery.cache import GalleryCache
from service.gallery.listing import is_enrolled
from service.gallery.scenes import switch_off
from service.gallery.sealing import sealing_of, unlock
from service.gallery.snapshots import Snapshots
from service.gallery.store import GalleryStore
from service.http.model_wiring import ModelWiring
from service.http.warm_up import Readiness, WarmUp
from service.jobs.event_streams import EventStreams
from service.jobs.queue import JobQueue
from service.privacy.corrections import Corrections
from service.privacy.erasure import DEFAULT_GALLERY, Erasure
from service.privacy.erasure_transactions import erase_restored
from service.privacy.retention import Retention
from service.recognition.cohort import Cohort
from service.recognition.decoder_pool import DecoderPool
from service.recognition.enrolment import Enrolment
from service.recognition.identification import Identification
from service.recognition.intake import Intake
from service.recognition.load import Load
from service.serving.active_models import ActiveModels
from service.serving.lineage import TrainingRecord
from service.serving.model_pool import ModelPool
from service.serving.registry import ModelRegistry, resolve
from service.serving.thresholds import ModelInUse
from service.storage.data_folder import open_data_folder
from service.storage.database import migrate, open_configured
from service.storage.encryption import read_keys
from service.storage.file_store import open_store
from service.storage.reserve import Reserve
from service.storage.writers import Writers
from service.transfer.portability import Portability

if TYPE_CHECKING:  # what comes with an extra
    from service.gallery.index_collections import IndexCollections

_log = logging.getLogger(__name__)


class MilvusTrouble(Exception):
    """Galleries cannot be searched in Milvus as the settings are; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What routes use, through `request.app.state.resources`."""

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
    cohort: Cohort
    identification: Identification
    erasure: Erasure
    corrections: Corrections
    reserve: Reserve
    portability: Portability
    decoders: DecoderPool
    followers: EventStreams


def open_engine(settings: Settings) -> Engine:
    """Open the deployment's database, bring its schema up to date, and give it its keys.

    Raises `KeyTrouble` for encryption keys that are no good, or not the database's, and
    `NotPrivate` for a data folder that cannot be kept from others.
    """
    keys = read_keys(settings)
    open_data_folder(settings)
    engine = open_configured(settings)
    try:
        migrate(engine)
        unlock(engine, keys, settings.walk_keys_url)
    except BaseException:
        engine.dispose()
        raise
    return engine


def open_encoder(settings: Settings, engine: Engine, name: str) -> Encoder:
    """Load the model called `name`; raises what `resolve` and loading a checkpoint raise."""
    torch.set_num_threads(settings.embed_threads)
    keep_freed_memory()
    return Encoder.for_uploads(resolve(settings, engine, name), settings.device)


def open_collections(settings: Settings, engine: Engine) -> IndexCollections | None:
    """The collections of the vector database, if galleries are searched there; not connected yet.

    Raises `MilvusTrouble` if it may not have what is encrypted here, or has no client here.
    """
    address = settings.milvus
    if address is None:
        return None
    if sealing_of(engine).key_id is not None and not settings.milvus_unencrypted:
        raise MilvusTrouble(
            "this database is encrypted, and Milvus would have the galleries' vectors in plain: "
            "set GAITID_INDEX=faiss, or GAITID_MILVUS_UNENCRYPTED=true if that may be"
        )
    try:
        from service.gallery.index_collections import IndexCollections
        from service.gallery.milvus_index import Milvus
    except ImportError as error:
        raise MilvusTrouble(
            "GAITID_INDEX names Milvus, whose client is not installed: pip install 'gaitid[milvus]'"
        ) from error
    token = settings.milvus_token
    return IndexCollections(engine, Milvus(address, token.get_secret_value() if token else ""))


@asynccontextmanager
async def open_models(
    settings: Settings,
    store: GalleryStore,
    metrics: Metrics,
    load: Load,
    stopping: Event,
    encoder: Encoder,
) -> AsyncIterator[tuple[ModelWiring, ActiveModels]]:
    """Put together what answers for galleries, with the encoder of the deployment's own model.

    The thread that embeds is waited for at the end; until `stopping` is set it may re-embed.
    """
    # Under the name that GET /models lists, whatever its card is called.
    own = ModelInUse(settings.model, encoder.digest, encoder.card.threshold, encoder.card.metric)
    galleries = GalleryCache(max_bytes=settings.index_memory_bytes)
    async with AsyncExitStack() as stack:
        embedding = stack.enter_context(ThreadPoolExecutor(1, "encoder"))
        collections = open_collections(settings, store.engine)
        if collections is not None:
            stack.callback(collections.milvus.close)
        wiring = ModelWiring(settings, store, metrics, load, embedding, stopping, collections)
        pool = await stack.enter_async_context(
            ModelPool(
                lambda name: open_encoder(settings, store.engine, name),
                wiring.batcher,
                own,
                encoder,
                metrics,
                most=settings.max_models,
                dropped=lambda loaded: models.forget(loaded),
            )
        )
        models = await stack.enter_async_context(
            ActiveModels(store, pool, galleries, wiring.index, metrics)
        )
        yield wiring, models


@asynccontextmanager
async def open_resources(
    settings: Settings,
    engine: Engine,
    writers: Writers,
    metrics: Metrics,
    encoder: Encoder | None = None,
    *,
    retry_seconds: float = 2.0,
) -> AsyncIterator[Resources]:
    """Load the model and put everything together; indexes load behind `readiness`.

    `encoder` is of the deployment's own model, for who has loaded it already. After a database that
    was busy, loading goes on `retry_seconds` later. Raises `Exposed` for a service that would be
    open to strangers, and what loading a checkpoint raises when that model cannot be loaded.
    """
    check_exposure(settings, engine)
    encoder = encoder or open_encoder(settings, engine, settings.model)
    store = GalleryStore(engine, lambda what: metrics.damaged.labels(what).inc())
    store.ensure(DEFAULT_GALLERY)
    if erased := erase_restored(engine):
        _log.warning("sequences of a restored database were erased again: %d", erased)
    if not settings.adapt:
        switch_off(engine)
    readiness = Readiness(metrics)
    load = Load(settings.decode_workers)
    reserve = Reserve(settings.reserve_file, settings.reserve_bytes)
    registry = ModelRegistry(settings, engine)
    record = TrainingRecord.of(settings.data_dir, open_store(settings))
    stopping = Event()
    async with AsyncExitStack() as stack:
        audit = AuditRecord(settings, partial(is_enrolled, engine))
        stack.callback(audit.close)
        wiring, models = await stack.enter_async_context(
            open_models(settings, store, metrics, load, stopping, encoder)
        )
        decoders = await stack.enter_async_context(_decoders(settings))
        intake = Intake(
            decoders,
            load,
            metrics,
            max_pending=settings.max_pending,
            max_wait=settings.max_wait_seconds,
        )
        warm_up = WarmUp(store, models, wiring.reembedding, readiness, stopping, retry_seconds)
        collections = wiring.collections
        retention = Retention(settings, store, writers, models.galleries, reserve, collections)
        await stack.enter_async_context(
            _beside(
                warm_up.run(),
                retention.run(),
                retention.run_listings(),
                _tidy(audit, settings.sweep_seconds),
            )
        )
        stack.callback(stopping.set)
        yield Resources(
            settings=settings,
            engine=engine,
            registry=registry,
            metrics=metrics,
            audit=audit,
            readiness=readiness,
            model=models.own,
            store=store,
            models=models,
            writers=writers,
            enrolment=Enrolment(store, writers, intake, models),
            cohort=Cohort(store, writers, intake, models),
            identification=Identification(store, models, intake, metrics),
            erasure=Erasure(
                store, writers, models.galleries, models, record, reserve, settings, collections
            ),
            corrections=Corrections(
                engine, writers, record, models.own, Snapshots(engine, settings.indexes_dir)
            ),
            reserve=reserve,
            portability=Portability(settings, store, writers, registry),
            decoders=decoders,
            followers=EventStreams(
                JobQueue.of(engine, settings),
                most=settings.max_streams,
                most_per_caller=settings.max_streams_per_caller,
            ),
        )


@asynccontextmanager
async def _beside(
    ending: Coroutine[None, None, None], *endless: Coroutine[None, None, None]
) -> AsyncIterator[None]:
    """Run work beside the block; then wait for what ends by itself, and cancel the rest."""
    tasks = [asyncio.create_task(one) for one in (ending, *endless)]
    try:
        yield
    finally:
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
        footage=FootageLimits(
            max_seconds_long=settings.max_footage_seconds,
            max_side=settings.max_side,
            max_seconds=settings.max_footage_decode_seconds,
        ),
        segmenter=settings.segmenter,
    )


async def _tidy(audit: AuditRecord, every_s: float) -> None:
    """Tidy the audit record at intervals; one failure does not end it."""
    while True:
        try:
            await asyncio.to_thread(audit.tidy)
        except Exception:
            _log.exception("the audit record could not be tidied")
        await asyncio.sleep(every_s)
