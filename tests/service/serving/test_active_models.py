"""One process and the models it has loaded: which answers, who makes room, and who never waits."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from models import checkpoint
from models.card import ModelReference
from models.encoder.encoder import Encoder
from service.foundation.errors import Unavailable
from service.foundation.metrics import Metrics
from service.foundation.settings import Settings
from service.gallery.active_model import GalleryModels, every_gallery, models_by_id, models_of, swap
from service.gallery.live_index import LiveIndex
from service.http import resources, warm_up
from service.serving import active_models
from service.serving.batching import FrameBatcher
from service.serving.model_pool import LoadedModel, ModelPool, ModelUnavailable
from service.serving.registry import find_model
from service.serving.thresholds import ModelInUse
from service.storage.database import writing
from service.storage.writers import Writers
from tests.e2e.deployment import until
from tests.service.conftest import save_tiny_model
from tests.service.requests import enrol, identify
from tests.service.server import Serve
from tests.service.walkers import walk

NAMES = ("default", "one", "two", "three")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        save_tiny_model(folder / name, seed=seed, threshold=0.9 + seed / 100)
    return folder


def swap_row(engine: Engine, settings: Settings, gallery: str, new: ModelReference) -> None:
    """What an activation's last transaction does; nothing is embedded before."""
    with Session(writing(engine)) as session, session.begin():
        row = models_of(engine, gallery)
        swap(
            session,
            row.gallery_id,
            new,
            row.active or find_model(settings, engine, "default"),
            None,
        )


def until_answered_by(client: httpx.Client, name: str, gallery: str = "default") -> None:
    until(
        lambda: identify(client, walk(1), gallery=gallery).json()["model"]["name"] == name,
        f"{name} answers",
    )


def held_up(monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[threading.Event, threading.Event]:
    """Models of this name load only once the second event is set; the first says that one tries."""
    loading, go_on = threading.Event(), threading.Event()
    load = resources.open_encoder

    def slowly(settings: Settings, engine: Engine, wanted: str) -> Encoder:
        if wanted == name:
            loading.set()
            assert go_on.wait(20)
        return load(settings, engine, wanted)

    monkeypatch.setattr(resources, "open_encoder", slowly)
    return loading, go_on


def test_the_old_model_answers_while_the_new_one_loads_and_nobody_waits(
    serve: Serve, settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, go_on = held_up(monkeypatch, "one")
    client = serve()
    enrol(client, "anna", walk(1))
    swap_row(engine, settings, "default", find_model(settings, engine, "one"))
    try:
        assert loading.wait(10)  # noticed without a search
        for _ in range(3):
            answer = identify(client, walk(1)).json()
            assert (answer["model"]["name"], answer["threshold"]) == ("default", 0.9)
        assert enrol(client, "bert", walk(2)).json()["model"]["name"] == "default"
        assert identify(client, walk(2)).json()["candidates"][0]["subject_id"] == "bert"
        assert client.get("/galleries/default").json()["model"]["name"] == "one"
    finally:
        go_on.set()
    until_answered_by(client, "one")
    assert identify(client, walk(2)).json()["candidates"][0]["subject_id"] == "bert"


def test_a_new_model_that_cannot_be_loaded_leaves_the_old_one_answering(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    client = serve()
    enrol(client, "anna", walk(1))
    swap_row(engine, settings, "default", ModelReference("nowhere", "0" * 64))
    failed = 'gaitid_model_exchanges_total{outcome="failed"} 1.0'
    until(lambda: failed in client.get("/metrics").text, "the exchange fails")
    answer = identify(client, walk(1)).json()
    assert answer["model"]["name"] == "default"
    assert answer["candidates"][0]["subject_id"] == "anna"
    assert client.get("/readyz").status_code == 200


def test_more_models_than_are_held_at_once_answer_all_the_same(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    client = serve(max_models=3)
    for name in NAMES[1:]:
        client.post("/galleries", json={"name": name})
        enrol(client, f"in-{name}", walk(1), gallery=name)
        swap_row(engine, settings, name, find_model(settings, engine, name))
    for name in NAMES[1:]:
        until_answered_by(client, name, name)
    for _ in range(2):
        for name in NAMES[1:]:
            answer = identify(client, walk(1), gallery=name).json()
            assert answer["model"]["name"] == name
            assert answer["candidates"][0]["subject_id"] == f"in-{name}"
            assert answer["candidates"][0]["similarity"] == pytest.approx(1, abs=1e-4)
    loaded = client.get("/metrics").text.split("\ngaitid_models_loaded ")[1].split()[0]
    assert float(loaded) <= 3


def test_a_model_that_was_loaded_before_the_start_is_not_loaded_again(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = resources.open_encoder(settings, engine, settings.model)

    def load(*_: object) -> None:
        raise AssertionError("loaded twice")

    monkeypatch.setattr(checkpoint, "load", load)

    async def start() -> str:
        engine = resources.open_engine(settings)
        writers = Writers()
        async with resources.open_resources(
            settings, engine, writers, Metrics(), encoder
        ) as opened:
            digest = opened.model.digest
        writers.close()
        engine.dispose()
        return digest

    assert asyncio.run(start()) == encoder.digest


async def use_pool(settings: Settings, engine: Engine, check: Callable[..., object]) -> None:
    """A pool of at most 3 models, its own included."""
    dropped: list[str] = []
    with ThreadPoolExecutor(1) as executor:

        def batcher(encoder: Encoder) -> FrameBatcher:
            return FrameBatcher(
                encoder.encode, executor, max_frames=100, max_wait=0.0, max_pending=9
            )

        encoder = resources.open_encoder(settings, engine, "default")
        async with ModelPool(
            lambda name: resources.open_encoder(settings, engine, name),
            batcher,
            ModelInUse("default", encoder.digest, None, encoder.card.metric),
            encoder,
            Metrics(),
            most=3,
            dropped=lambda loaded: dropped.append(loaded.model.name),
        ) as pool:
            await check(pool, dropped)  # type: ignore[misc]


def test_the_least_recently_used_model_makes_room_and_its_last_user_may_finish(
    settings: Settings,
    engine: Engine,
) -> None:
    walk = np.full((8, 64, 64), 255, np.uint8)

    async def check(pool: ModelPool, dropped: list[str]) -> None:
        one = await pool.get(find_model(settings, engine, "one"))
        assert one is await pool.get(find_model(settings, engine, "one"))
        await pool.get(find_model(settings, engine, "two"))
        with pool.lease(one):
            await pool.get(find_model(settings, engine, "three"))
            assert dropped == ["two"]  # one is in use, the own one stays
            pool.drop(one.digest)
            assert dropped == ["two", "one"]
            assert (await one.batcher.submit(walk)).shape == (4, 16)
        await asyncio.sleep(0)
        again: LoadedModel = await pool.get(find_model(settings, engine, "one"))
        assert again is not one
        assert (await again.batcher.submit(walk)).shape == (4, 16)
        pool.drop(pool.own.digest)
        assert pool.held(pool.own.digest) is pool.own
        with pytest.raises(ModelUnavailable):
            await pool.get(ModelReference("nowhere", "0" * 64))

    asyncio.run(use_pool(settings, engine, check))


def test_a_model_that_the_device_has_no_room_for_is_unavailable(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(pool: ModelPool, _dropped: list[str]) -> None:
        def no_room(*_: object) -> Encoder:
            raise RuntimeError("CUDA out of memory")  # as torch does

        monkeypatch.setattr(resources, "open_encoder", no_room)
        with pytest.raises(ModelUnavailable):
            await pool.get(find_model(settings, engine, "one"))

    asyncio.run(use_pool(settings, engine, check))


def use_resources(
    settings: Settings, check: Callable[[resources.Resources], Awaitable[None]]
) -> None:
    """What an application holds, once it is ready."""

    async def use() -> None:
        engine = resources.open_engine(settings)
        writers = Writers()
        async with resources.open_resources(
            settings, engine, writers, Metrics(), retry_seconds=0.02
        ) as opened:
            deadline = time.monotonic() + 20
            while True:
                try:
                    opened.readiness.require()
                    break
                except Unavailable:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.02)
            await check(opened)
        writers.close()
        engine.dispose()

    asyncio.run(use())


def test_a_database_that_is_busy_at_the_start_only_delays_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = every_gallery
    asked: list[Engine] = []

    def busy_at_first(engine: Engine) -> list[GalleryModels]:
        asked.append(engine)
        if len(asked) == 1:
            busy = sqlite3.OperationalError("database is locked")
            busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise OperationalError("BEGIN IMMEDIATE", {}, busy)
        return found(engine)

    monkeypatch.setattr(warm_up, "every_gallery", busy_at_first)

    async def check(opened: resources.Resources) -> None:
        row = models_of(opened.engine, "default")
        assert (await opened.models.model_of(row)).model.name == "default"

    use_resources(settings, check)
    assert len(asked) == 2


def test_a_request_that_read_the_row_before_a_swap_does_not_bring_the_old_model_back(
    settings: Settings,
) -> None:
    async def check(opened: resources.Resources) -> None:
        late = models_of(opened.engine, "default")
        swap_row(opened.engine, settings, "default", find_model(settings, opened.engine, "one"))
        await opened.models.follow_now("default")
        row = models_of(opened.engine, "default")
        assert (await opened.models.model_of(row)).model.name == "one"
        await opened.models.model_of(late)
        exchanges = [task for task in asyncio.all_tasks() if task.get_name() == "exchange-model"]
        await asyncio.gather(*exchanges)
        assert (await opened.models.model_of(row)).model.name == "one"

    use_resources(settings, check)


def test_following_a_rollback_does_not_end_with_the_exchange_that_was_under_way(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, default = find_model(settings, engine, "one"), find_model(settings, engine, "default")
    loading, go_on = held_up(monkeypatch, "one")

    async def check(opened: resources.Resources) -> None:
        models = opened.models
        await models.model_of(models_of(opened.engine, "default"))
        swap_row(opened.engine, settings, "default", one)
        await models.model_of(models_of(opened.engine, "default"))
        assert await asyncio.to_thread(loading.wait, 10)  # its row was read: "one" is wanted
        swap_row(opened.engine, settings, "default", default)
        following = asyncio.create_task(models.follow_now("default"))
        await asyncio.sleep(0.1)
        go_on.set()
        await following
        row = models_of(opened.engine, "default")
        assert (await models.model_of(row)).model.name == "default"

    use_resources(settings, check)


def test_a_previous_model_that_was_replaced_on_disk_is_not_loaded_again_and_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = resources.open_encoder

    def counted(settings: Settings, engine: Engine, name: str) -> Encoder:
        loaded.append(name)
        return load(settings, engine, name)

    monkeypatch.setattr(resources, "open_encoder", counted)

    async def check(opened: resources.Resources) -> None:
        gallery_id = models_of(opened.engine, "default").gallery_id
        with Session(writing(opened.engine)) as session, session.begin():
            swap(
                session,
                gallery_id,
                find_model(settings, opened.engine, "one"),
                ModelReference("two", "0" * 64),
                None,
            )
        for _ in range(3):
            await opened.models.look_for_swaps()
            await opened.models.keep_up()
        assert loaded.count("two") == 1

    use_resources(settings, check)


def test_a_model_that_is_loaded_while_others_are_looked_after_is_kept(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slowly(engine: Engine, gallery_ids: Iterable[str]) -> list[GalleryModels]:
        rows = models_by_id(engine, gallery_ids)
        reading.set()
        assert go_on.wait(20)
        return rows

    async def check(opened: resources.Resources) -> None:
        opened.store.ensure("new")
        swap_row(opened.engine, settings, "new", find_model(settings, opened.engine, "one"))
        with monkeypatch.context() as patch:
            patch.setattr(active_models, "models_by_id", slowly)
            looking = asyncio.create_task(opened.models.look_for_swaps())
            assert await asyncio.to_thread(reading.wait, 10)
            row = models_of(opened.engine, "new")
            loaded = await opened.models.model_of(row)
            go_on.set()
            await looking
        assert await opened.models.model_of(row) is loaded

    use_resources(settings, check)


def test_a_gallery_that_cannot_be_kept_current_keeps_no_other_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(opened: resources.Resources) -> None:
        opened.store.ensure("another")
        rows = [models_of(opened.engine, name) for name in ("default", "another")]
        for row in rows:
            opened.models.index(row.gallery_id, await opened.models.model_of(row))
        tried: set[str] = set()

        def broken(gallery: LiveIndex, _newest: int) -> None:
            tried.add(gallery._gallery_id)
            raise RuntimeError("an embedding of another shape")

        monkeypatch.setattr(LiveIndex, "follow", broken)
        await opened.models.keep_up()
        assert tried == {row.gallery_id for row in rows}

    use_resources(settings, check)
