"""Walks of whoever passed: off by default, and then only sums of them are kept."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from models.comparison.scene import SceneSums
from service.client import Client
from service.foundation.settings import Settings
from service.gallery.scenes import cohort_in
from service.gallery.tables import GalleryRow, SceneCohortRow, SceneRow
from service.serving.registry import find_model
from tests.service.job_types.test_adaptation import adapt, embedded, queued
from tests.service.requests import problem
from tests.service.scenes import fill, people_in_views
from tests.service.server import Serve
from tests.service.walkers import walk

CALL = "/galleries/default/cohort"


def post(client: httpx.Client, *walks: bytes, **headers: str) -> httpx.Response:
    files = [("sequence", (f"{number}.npz", one)) for number, one in enumerate(walks)]
    return client.post(CALL, files=files, headers=headers)


def sums(engine: Engine, settings: Settings) -> SceneSums | None:
    with Session(engine) as session:
        gallery_id = session.scalars(select(GalleryRow.id)).one()
        return cohort_in(session, gallery_id, find_model(settings, engine, "default").digest)


def test_nothing_of_who_passes_is_taken_unless_the_operator_says_so(
    serve: Serve, engine: Engine
) -> None:
    refused = problem(post(serve(), walk(1)), 403)
    assert refused["type"].endswith("cohort-off")
    with Session(engine) as session:
        assert session.scalars(select(SceneCohortRow)).all() == []


def test_only_sums_are_kept(serve: Serve, engine: Engine, settings: Settings) -> None:
    client = serve(cohort=True)
    assert post(client, walk(1), walk(2)).json() == {"walks_seen": 2}
    assert post(client, walk(3)).json() == {"walks_seen": 3}
    kept = sums(engine, settings)
    walks = [embedded(settings.shipped_models_dir, walk(person)) for person in (1, 2, 3)]
    expected = SceneSums.of(np.concatenate(walks))
    assert kept is not None
    assert kept.count == 3
    assert np.allclose(kept.products, expected.products, atol=1e-5)
    shown = client.get("/galleries/default").json()
    assert (shown["subjects"], shown["sequences"]) == (0, 0)
    assert client.get("/subjects").json()["items"] == []


def test_a_call_that_is_sent_again_adds_nothing(
    serve: Serve, engine: Engine, settings: Settings
) -> None:
    client = serve(cohort=True)
    key = {"Idempotency-Key": "once"}
    for _ in range(2):
        assert post(client, walk(1), **key).json() == {"walks_seen": 1}
    kept = sums(engine, settings)
    assert kept is not None
    assert kept.count == 1


def test_one_bad_walk_refuses_the_call(serve: Serve, engine: Engine, settings: Settings) -> None:
    client = serve(cohort=True, max_sequences_per_request=3)
    wrong = problem(post(client, walk(1), b"no walk"), 415)
    assert wrong["errors"][0]["where"] == "sequence[1] 1.npz"
    assert problem(post(client, *[walk(1)] * 4), 413)
    assert problem(client.post(CALL), 422)
    nowhere = client.post("/galleries/nowhere/cohort", files={"sequence": walk(1)})
    assert problem(nowhere, 404)
    assert sums(engine, settings) is None


def test_deleting_the_sums_takes_the_transform_that_has_them_in_it(
    serve: Serve, engine: Engine, settings: Settings
) -> None:
    fill(engine, settings, people_in_views(24))
    client = serve(cohort=True)
    with Client(str(client.base_url)) as typed:
        assert typed.add_to_cohort("default", [("1", walk(1)), ("2", walk(2))]).walks_seen == 2
        job = adapt(settings, engine)
        assert job.result is not None
        assert (job.result["used"], job.result["walks"]) == (True, 24 * 3 + 2)
        typed.forget_cohort("default")
        typed.forget_cohort("default")  # there is nothing more to delete
    assert sums(engine, settings) is None
    with Session(engine) as session:
        assert session.scalars(select(SceneRow.transform)).one() is None
    assert queued(engine) == 1


@pytest.mark.parametrize("gallery", ["nowhere", "..."])
def test_there_are_no_sums_of_a_gallery_that_is_not_there(
    shared: httpx.Client, gallery: str
) -> None:
    assert problem(shared.delete(f"/galleries/{gallery}/cohort"), 404)
