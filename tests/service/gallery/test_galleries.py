from __future__ import annotations

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageSequence

from models.silhouettes.normalise import gait_energy_image
from tests.service.requests import contents, enrol, identify, problem
from tests.service.server import Serve
from tests.service.walkers import walk


def test_the_default_gallery_is_there_from_the_start(shared: httpx.Client) -> None:
    (gallery,) = shared.get("/galleries").json()["items"]
    assert gallery["name"] == "default"
    assert (gallery["subjects"], gallery["sequences"]) == (0, 0)
    assert set(gallery["model"]) == {"name", "digest"}
    assert gallery["operating_point"] is None
    assert gallery["created_at"].endswith("Z")


def test_galleries_are_created_once_and_kept_apart(serve: Serve) -> None:
    client = serve()
    answer = client.post("/galleries", json={"name": "lab", "metadata": {"floor": 3}})
    assert answer.status_code == 201
    assert answer.headers["location"] == "/galleries/lab"
    assert client.get("/galleries/lab").json() == answer.json()
    assert answer.json()["metadata"] == {"floor": 3}
    problem(client.post("/galleries", json={"name": "lab"}), 409)
    problem(client.post("/galleries", json={"name": "x", "metadata": {"a": {"b": 1}}}), 422)

    enrol(client, "anna", walk(1), gallery="lab")
    enrol(client, "anna", walk(2))
    assert identify(client, walk(1)).json()["candidates"][0]["similarity"] < 0.99999
    found = identify(client, walk(1), gallery="lab").json()
    assert found["gallery"] == "lab"
    assert found["candidates"][0]["similarity"] > 0.9999
    assert [item["name"] for item in client.get("/galleries").json()["items"]] == ["default", "lab"]


def test_pages_show_everything_once_while_others_enrol(serve: Serve) -> None:
    client = serve()
    names = ["a", "B", "c.d", "e:f", "g@h", "i_j", "-k"]
    for number, name in enumerate(names):
        enrol(client, name, walk(number, frames=24))
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/subjects", params={"limit": 2, **cursor}).json()
        seen += [item["subject_id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
        enrol(client, "A-late-comer", walk(9, frames=24))
    assert seen == sorted(seen)
    assert set(names) <= set(seen)
    assert len(seen) == len(set(seen))
    for name in names:
        assert client.get(f"/subjects/{name}").json()["subject_id"] == name


def test_silhouettes_are_given_back(serve: Serve) -> None:
    client = serve()
    (sequence,) = enrol(client, "anna", walk(1), metadata='{"view": "090"}').json()["sequences"]
    address = f"/sequences/{sequence['sequence_id']}"

    record = client.get(address).json()
    assert (record["subject_id"], record["gallery"], record["frames"]) == ("anna", "default", 40)
    assert record["metadata"] == {"view": "090"}

    answer = client.get(f"{address}/silhouettes.npz")
    with np.load(io.BytesIO(answer.content)) as arrays:
        silhouettes = arrays["silhouettes"]
    assert (silhouettes.shape, silhouettes.dtype) == ((40, 64, 64), np.uint8)

    film = client.get(f"{address}/silhouettes.gif")
    assert film.headers["content-type"] == "image/gif"
    with Image.open(io.BytesIO(film.content)) as image:
        assert image.size == (64, 64)
        shown = [picture.info["duration"] for picture in ImageSequence.Iterator(image)]
    assert sum(shown) == 40 * 40  # ms; a frame that equals the one before shares its place

    picture = client.get(f"{address}/gei.png")
    with Image.open(io.BytesIO(picture.content)) as image:
        energy = np.asarray(image)
    np.testing.assert_allclose(energy, gait_energy_image(silhouettes) * 255, atol=0.5)

    # What was given back is welcome again, and is the same walk.
    found = identify(client, answer.content).json()["candidates"][0]
    assert found["similarity"] > 0.9999


def test_an_erased_subject_is_gone_and_the_receipt_says_what_went(serve: Serve) -> None:
    client = serve()
    ids = [
        item["sequence_id"]
        for item in enrol(client, "anna", walk(1), walk(1, phase=1)).json()["sequences"]
    ]
    enrol(client, "bert", walk(2))
    assert identify(client, walk(1)).json()["candidates"][0]["subject_id"] == "anna"

    receipt = client.delete("/subjects/anna").json()

    assert receipt["erased"] == {"subjects": 1, "sequences": 2, "embeddings": 2}
    assert receipt["sequence_ids"] == ids
    assert (receipt["gallery"], receipt["subject_id"]) == ("default", "anna")
    assert set(contents(client)) == {"", "bert"}
    found = identify(client, walk(1)).json()["candidates"]
    assert [item["subject_id"] for item in found] == ["bert"]
    problem(client.get(f"/sequences/{ids[0]}"), 404)
    problem(client.delete("/subjects/anna"), 404)


def test_the_last_sequence_takes_its_subject_along(serve: Serve) -> None:
    client = serve()
    first, second = (
        item["sequence_id"]
        for item in enrol(client, "anna", walk(1), walk(1, phase=1)).json()["sequences"]
    )
    assert client.delete(f"/sequences/{first}").json()["erased"]["subjects"] == 0
    assert len(client.get("/subjects/anna").json()["sequences"]) == 1
    assert client.delete(f"/sequences/{second}").json()["erased"]["subjects"] == 1
    problem(client.get("/subjects/anna"), 404)
    assert identify(client, walk(1)).json()["candidates"] == []


def test_an_erased_gallery_is_gone_but_default_remains_empty(serve: Serve) -> None:
    client = serve()
    client.post("/galleries", json={"name": "lab"})
    for gallery in ("default", "lab"):
        enrol(client, "anna", walk(1), gallery=gallery)
        receipt = client.delete(f"/galleries/{gallery}").json()
        assert receipt["erased"] == {"subjects": 1, "sequences": 1, "embeddings": 1}
    problem(client.get("/galleries/lab"), 404)
    assert client.get("/galleries/default").json()["sequences"] == 0
    assert identify(client, walk(1)).json()["candidates"] == []

    # A new gallery of the old name is another one: nothing of the old one is found in it.
    client.post("/galleries", json={"name": "lab"})
    assert identify(client, walk(1), gallery="lab").json()["candidates"] == []
    enrol(client, "carl", walk(3), gallery="lab")
    found = identify(client, walk(1), gallery="lab").json()["candidates"]
    assert [item["subject_id"] for item in found] == ["carl"]


@pytest.mark.sqlite
def test_nothing_of_an_erased_subject_is_left_in_the_files(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    name = "a-very-peculiar-name"
    answer = client.post(
        "/enroll",
        data={"subject_id": name},
        files={"sequence": ("walk.npz", walk(1))},
        headers={"Idempotency-Key": "key-1"},
    )
    (sequence,) = answer.json()["sequences"]
    files = list((tmp_path / "data").glob("gaitid.sqlite*"))
    assert any(name.encode() in file.read_bytes() for file in files)
    client.delete(f"/sequences/{sequence['sequence_id']}")
    for file in files:
        assert name.encode() not in file.read_bytes()


def test_a_service_codes_a_gallery_and_finds_who_comes_and_not_who_goes(serve: Serve) -> None:
    client = serve(exact_below=3)
    people = [f"s{number}" for number in range(6)]
    for number, name in enumerate(people):
        enrol(client, name, walk(number))
        assert nearest(client, number) == name
    client.delete("/subjects/s4").raise_for_status()
    assert nearest(client, 4) != "s4"
    enrol(client, "s9", walk(4))
    assert nearest(client, 4) == "s9"


def nearest(client: httpx.Client, number: int) -> str:
    answer = identify(client, walk(number)).json()
    return str(answer["candidates"][0]["subject_id"])
