"""One search of several galleries, each with its own model and threshold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from service.client import Client
from service.gallery.ranking import Candidate
from service.http.resources import open_engine
from service.recognition.identification import RankedCandidate, Searched, merged, rank
from service.serving.thresholds import ModelInUse, Threshold
from tests.e2e.deployment import until
from tests.service.conftest import save_tiny_model
from tests.service.jobs.workers import working
from tests.service.requests import enrol, identify, problem
from tests.service.server import serving, settings_for
from tests.service.walkers import walk


class House(NamedTuple):
    """A service with people in the galleries `default`, `lab` (another model) and `empty`."""

    client: httpx.Client
    digests: dict[str, str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "default", threshold=0.99)
    save_tiny_model(folder / "other", seed=1, threshold=0.9, parts=8)
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[House]:
    settings = settings_for(tmp_path_factory.mktemp("house"), models)
    with serving(settings) as client:
        for name in ("lab", "empty"):
            client.post("/galleries", json={"name": name}).raise_for_status()
        for gallery, people in (("default", (1, 2, 3)), ("lab", (3, 4, 5))):
            for person in people:
                enrol(client, f"p{person}", walk(person), gallery=gallery).raise_for_status()
        engine = open_engine(settings)
        with working(settings, engine):
            begun = client.post("/models/other/activate", json={"gallery": "lab"})
            until(partial(_succeeded, client, begun.headers["location"]), "the lab has the other")
        until(partial(_answers_with, client, "other", "lab"), "the lab answers with it")
        engine.dispose()
        listed = client.get("/models").json()["items"]
        yield House(client, {model["name"]: model["digest"] for model in listed})


def _succeeded(client: httpx.Client, job: str) -> bool:
    status = client.get(job).json()["status"]
    assert status not in ("failed", "cancelled")
    return bool(status == "succeeded")


def _answers_with(client: httpx.Client, model: str, gallery: str) -> bool:
    return bool(identify(client, walk(1), gallery=gallery).json()["model"]["name"] == model)


def asked(house: House, probe: bytes, galleries: str, **fields: str) -> dict[str, Any]:
    answer = identify(house.client, probe, galleries=galleries, **fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_candidates_name_their_gallery_and_are_decided_by_its_threshold(house: House) -> None:
    body = asked(house, walk(4), "default,lab", top_k="10")
    assert {(one["gallery"], one["subject_id"]) for one in body["candidates"]} == {
        *(("default", f"p{n}") for n in (1, 2, 3)),
        *(("lab", f"p{n}") for n in (3, 4, 5)),
    }
    assert [one["rank"] for one in body["candidates"]] == [1, 2, 3, 4, 5, 6]
    leads = [one["similarity"] - one["threshold"] for one in body["candidates"]]
    assert leads == sorted(leads, reverse=True)
    thresholds = {one["gallery"]: one["threshold"] for one in body["candidates"]}
    assert thresholds == {"default": 0.99, "lab": 0.9}
    first = body["candidates"][0]
    assert (first["gallery"], first["subject_id"]) == ("lab", "p4")
    assert (body["gallery"], body["threshold"], body["decision"]) == ("lab", 0.9, "match")
    assert body["model"] == {"name": "other", "digest": house.digests["other"]}


def test_what_each_gallery_says_alone_it_says_among_others(house: House) -> None:
    together = asked(house, walk(3), "lab,default", top_k="10")
    for listed in together["galleries"]:
        name = listed["gallery"]
        alone = identify(house.client, walk(3), gallery=name, top_k="10").json()
        for field in ("threshold", "threshold_source", "operating_point", "model"):
            assert listed[field] == alone[field]
        mine = [one for one in together["candidates"] if one["gallery"] == name]
        for found, expected in zip(mine, alone["candidates"], strict=True):
            for field in ("subject_id", "sequence_id", "similarity", "margin"):
                assert found[field] == expected[field]
    assert [one["gallery"] for one in together["galleries"]] == ["lab", "default"]
    assert {one["gallery"] for one in together["candidates"] if one["subject_id"] == "p3"} == {
        "default",
        "lab",
    }


def test_the_answer_about_one_gallery_is_as_it_was(house: House) -> None:
    body = identify(house.client, walk(1)).json()
    assert "galleries" not in body
    assert not {"gallery", "threshold"} & set(body["candidates"][0])
    one = asked(house, walk(1), "default")
    assert [found["gallery"] for found in one["candidates"]] == ["default"] * 3
    assert one["candidates"][0]["similarity"] == body["candidates"][0]["similarity"]


def test_top_k_counts_candidates_of_all_galleries_and_a_threshold_holds_in_all(
    house: House,
) -> None:
    body = asked(house, walk(4), "default,lab", top_k="2", threshold="1")
    assert len(body["candidates"]) == 2
    assert {one["threshold_source"] for one in body["galleries"]} == {"request"}
    assert {one["threshold"] for one in body["candidates"]} == {1.0}


def test_galleries_without_anybody_decide_nothing(house: House) -> None:
    body = asked(house, walk(1), "empty")
    assert (body["gallery"], body["decision"], body["candidates"]) == ("empty", "no_match", [])
    assert asked(house, walk(1), "empty,default")["gallery"] == "default"


def test_several_walks_are_fused_in_each_gallery(house: House) -> None:
    files = [("sequence", (f"{n}.npz", walk(4, phase=float(n)))) for n in range(3)]
    answer = house.client.post("/identify", data={"galleries": "default,lab"}, files=files)
    assert len(answer.json()["probe"]["sequences"]) == 3
    assert answer.json()["candidates"][0]["subject_id"] == "p4"


@pytest.mark.parametrize(
    ("galleries", "status", "where"),
    [
        ("default,nobody", 404, "gallery"),
        ("default,default", 422, "galleries"),
        (",".join(f"g{n}" for n in range(11)), 422, "galleries"),
        ("default,", 422, "galleries"),
        ("default, lab", 422, "galleries"),
        ("default,../lab", 422, "galleries"),
    ],
)
def test_what_can_not_be_searched_is_refused_whole(
    house: House, galleries: str, status: int, where: str
) -> None:
    body = problem(identify(house.client, walk(1), galleries=galleries), status)
    assert [error["where"] for error in body["errors"]] == [where]


def test_one_gallery_and_several_are_not_both_asked(house: House) -> None:
    answer = identify(house.client, walk(1), gallery="default", galleries="lab")
    assert "either" in problem(answer, 422)["detail"]


def test_the_record_has_a_line_for_each_gallery_that_names_its_own_people_only(
    house: House,
) -> None:
    body = asked(house, walk(4), "default,lab,empty", top_k="10")
    lines = [json.loads(line) for line in house.client.get("/audit").text.splitlines()]
    told = [line for line in lines if line["details"].get("search_id") == body["search_id"]]
    assert {line["gallery"] for line in told} == {"default", "lab", "empty"}
    for line in told:
        mine = [one for one in body["candidates"] if one["gallery"] == line["gallery"]]
        assert line["subject_id"] == (mine[0]["subject_id"] if mine else None)
        assert line["details"]["galleries"] == 3
        assert line["details"]["candidates"] == len(mine)
        assert line["details"]["decision"] == ("match" if line["gallery"] == "lab" else "no_match")


def test_the_client_searches_several(house: House) -> None:
    with Client(str(house.client.base_url)) as client:
        found = client.identify(("4.npz", walk(4)), galleries=["default", "lab"])
    assert [one.gallery for one in found.galleries] == ["default", "lab"]
    assert (found.candidates[0].gallery, found.candidates[0].threshold) == ("lab", 0.9)


def searched(gallery: str, threshold: float) -> Searched:
    model = ModelInUse("m", "d", threshold, "cosine")
    return Searched(gallery, Threshold(threshold, "gallery", None), model)


def candidates(one: Searched, **similarities: float) -> list[RankedCandidate]:
    best = sorted(similarities.items(), key=lambda item: -item[1])
    return rank([Candidate(name, f"walk of {name}", value, None) for name, value in best], one)


def test_who_is_farthest_above_the_own_threshold_comes_first_not_who_is_most_similar() -> None:
    strict, lax = searched("strict", 0.9), searched("lax", 0.2)
    each = [candidates(strict, a=0.85, b=0.5), candidates(lax, a=0.4, c=0.25)]
    found, decided = merged(each, [strict, lax])
    assert [(one.rank, one.gallery, one.candidate.subject_id) for one in found] == [
        (1, "lax", "a"),
        (2, "lax", "c"),
        (3, "strict", "a"),
        (4, "strict", "b"),
    ]
    assert decided == lax
    margins = [one.margin for one in found]
    assert margins == pytest.approx([0.15, -0.15, 0.35, -0.35])


def test_equals_stay_in_the_order_of_the_galleries_and_nobody_at_all_leaves_the_first() -> None:
    one, two = searched("one", 0.5), searched("two", 0.5)
    found, decided = merged([candidates(one, a=0.6), candidates(two, b=0.6)], [one, two])
    assert [each.gallery for each in found] == ["one", "two"]
    assert decided == one
    assert merged([[], []], [two, one]) == ((), two)
