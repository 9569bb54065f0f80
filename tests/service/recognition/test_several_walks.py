"""Several walks of one person decide together; a candidate says from where it was seen."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import Engine

from service.client import Client
from service.gallery.ranking import GallerySearch
from service.gallery.records import Embedding
from service.gallery.store import GalleryStore
from tests.service.jobs.galleries import add, made_walk
from tests.service.requests import enrol, problem
from tests.service.searched import both, searched_gallery
from tests.service.server import Serve
from tests.service.walkers import walk

MANY = 130  # subjects: more than a shortlist


def embedding(seed: int) -> Embedding:
    return np.random.default_rng(seed).normal(size=(2, 8)).astype(np.float32)


def filled(store: GalleryStore, *, views: bool = False) -> GallerySearch:
    """Two walks each of many subjects, as `embedding` has them."""
    for number in range(MANY):
        for part in range(2):
            said = {"view": ("000", "090")[part]} if views else {}
            one = [made_walk(embedding(2 * number + part))]
            add(store, "default", f"p{number}", one, "d", dict(said))
    gallery_id = store.head("default").gallery_id
    return searched_gallery(gallery_id, "d", (2, 8), "cosine", store)


def by_hand(probes: Embedding) -> dict[str, float]:
    """The mean over probes of the similarity to each subject's nearest walk."""
    every = np.stack([embedding(seed) for seed in range(2 * MANY)])
    units = every / np.linalg.norm(every, axis=2, keepdims=True)
    asked = probes / np.linalg.norm(probes, axis=2, keepdims=True)
    alike = np.einsum("mpc,npc->mn", asked, units) / 2
    fused = alike.reshape(len(probes), MANY, 2).max(axis=2).mean(axis=0)
    return {f"p{number}": float(value) for number, value in enumerate(fused)}


@both
def test_several_probes_are_ranked_by_the_mean_over_them(store: GalleryStore) -> None:
    index = filled(store)
    probes = np.stack([embedding(1000 + number) for number in range(4)])
    found = index.search(store.head("default").revision, probes, 5, explain=True)
    expected = by_hand(probes)
    best = sorted(expected, key=lambda name: -expected[name])[:5]
    assert [one.subject_id for one in found] == best
    for one in found:
        assert one.similarity == pytest.approx(expected[one.subject_id], abs=1e-5)
        assert one.parts is not None
        assert np.mean(one.parts) == pytest.approx(one.similarity, abs=1e-5)
    compared = index.compare(0, probes, "p7")
    assert compared is not None
    assert compared.similarity == pytest.approx(expected["p7"], abs=1e-5)


@both
def test_the_sequence_named_is_the_one_that_any_probe_is_nearest_to(store: GalleryStore) -> None:
    index = filled(store)
    probes = np.stack([embedding(1000), embedding(6)])  # the second is p3's first walk
    revision = store.head("default").revision
    (first,) = index.search(revision, embedding(6), 1)
    compared = index.compare(revision, probes, "p3")
    assert compared is not None
    assert compared.sequence_id == first.sequence_id


@both
def test_a_filter_restricts_several_probes_too(store: GalleryStore) -> None:
    index = filled(store, views=True)
    probes = np.stack([embedding(6), embedding(7)])
    revision = store.head("default").revision
    (best,) = index.search(revision, probes, 1, where={"view": "090"})
    assert best.subject_id == "p3"
    assert best.similarity < 0.99  # only its second walk counts, which the first is unlike
    assert index.search(revision, probes, 5, where={"view": "180"}) == []


@both
def test_two_walks_of_a_person_find_who_one_of_them_misses(store: GalleryStore) -> None:
    index = filled(store)
    revision = store.head("default").revision
    near, far = embedding(20) + 0.2 * embedding(2001), embedding(2002)
    alone = [one.subject_id for one in index.search(revision, far, 3)]
    assert "p10" not in alone
    together = index.search(revision, np.stack([near, near, far]), 3)
    assert together[0].subject_id == "p10"


@both
@pytest.mark.parametrize(
    ("view", "expected"), [("000", True), ("045", False), (None, None), ("0", False)]
)
def test_a_candidate_says_whether_it_was_seen_from_this_view(
    store: GalleryStore, view: str | None, expected: bool | None
) -> None:
    index = filled(store, views=True)
    revision = store.head("default").revision
    (found,) = index.search(revision, embedding(6), 1, view=view)
    assert found.seen_from_this_view is expected
    add(store, "default", "p3", [made_walk(embedding(3000))], "d")  # from wherever
    (again,) = index.search(revision + 1, embedding(6), 1, view=view)
    assert again.seen_from_this_view is (True if expected else None)


def post(client: httpx.Client, path: str, *walks: bytes, **data: str) -> httpx.Response:
    files = [("sequence", (f"{number}.npz", one)) for number, one in enumerate(walks)]
    return client.post(path, data=data, files=files)


@pytest.fixture(scope="module")
def asked(shared: httpx.Client) -> httpx.Client:
    for person in range(3):
        said = json.dumps({"view": "090"})
        assert enrol(shared, f"p{person}", walk(person), metadata=said).status_code == 201
    return shared


def test_identify_takes_several_walks_and_says_how_each_is(asked: httpx.Client) -> None:
    body = post(asked, "/identify", walk(1), walk(1, phase=1.0), walk(1, phase=2.0)).json()
    assert body["candidates"][0]["subject_id"] == "p1"
    assert body["candidates"][0]["seen_from_this_view"] is None
    probe = body["probe"]
    assert [one["frames"] for one in probe["sequences"]] == [40, 40, 40]
    assert probe["frames"] == 120
    scores = [one["quality"]["score"] for one in probe["sequences"]]
    assert probe["quality"]["score"] == min(scores)
    alone = [
        post(asked, "/identify", walk(1, phase=phase), top_k="3").json()["candidates"]
        for phase in (0.0, 1.0, 2.0)
    ]
    mean = np.mean(
        [
            one["similarity"]
            for found in alone
            for one in found
            if one["subject_id"] == body["candidates"][0]["subject_id"]
        ]
    )
    assert body["candidates"][0]["similarity"] == pytest.approx(mean, abs=1e-5)


def test_verify_takes_several_walks(asked: httpx.Client) -> None:
    body = post(asked, "/verify", walk(1), walk(1, phase=1.0), subject_id="p1", view="090").json()
    assert len(body["probe"]["sequences"]) == 2
    assert body["seen_from_this_view"] is True
    other = post(asked, "/verify", walk(1), subject_id="p1", view="000").json()
    assert other["seen_from_this_view"] is False


@pytest.mark.parametrize("path", ["/identify", "/verify"])
def test_what_is_wrong_with_one_of_them_refuses_all(asked: httpx.Client, path: str) -> None:
    data = {"subject_id": "p1"} if path == "/verify" else {}
    wrong = problem(post(asked, path, walk(1), b"no walk", **data), 415)
    assert wrong["errors"][0]["where"] == "sequence[1] 1.npz"
    many = problem(post(asked, path, *[walk(1)] * 11, **data), 422)
    assert [error["where"] for error in many["errors"]] == ["sequence"]
    assert problem(asked.post(path, data=data), 422)
    assert problem(post(asked, path, walk(1), view="", **data), 422)


def test_the_client_sends_several(asked: httpx.Client) -> None:
    with Client(str(asked.base_url)) as client:
        walks = [("1.npz", walk(1)), ("2.npz", walk(1, phase=1.0))]
        found = client.identify(*walks, view="090")
        assert len(found.probe.sequences) == 2
        assert found.candidates[0].seen_from_this_view is True
        assert client.verify("p1", *walks, view="000").seen_from_this_view is False


def test_the_audit_record_says_how_many_walks_decided(serve: Serve, engine: Engine) -> None:
    del engine
    client = serve()
    enrol(client, "anna", walk(1))
    post(client, "/identify", walk(1), walk(1, phase=1.0))
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in client.get("/audit").text.splitlines()
    ]
    (searched,) = (line for line in lines if line["action"] == "identify")
    assert searched["details"]["sequences"] == 2
