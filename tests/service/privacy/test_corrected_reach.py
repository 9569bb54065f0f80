"""An erasure after a correction: nothing under the former or the present name is left anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from models.files.gallery_file import exported_subjects
from service.gallery.editing import edit_subject
from service.serving.lineage import TrainingRecord, subjects_now
from service.storage.database import writing
from service.storage.vacuum import vacuum
from service.transfer.export import export_gallery
from tests.service.privacy.test_erasure_reach import found
from tests.service.requests import enrol, identify, verify
from tests.service.server import Serve
from tests.service.walkers import walk

FORMER, PRESENT = "a-peculiar-former-name", "a-peculiar-present-name"
SHOWN, PLACE, TEAM = "Pecül Iar", "a very peculiar place", "a very peculiar team"
SAID = {"display_name": SHOWN, "metadata": {"team": TEAM}}
MARKS = {
    "former": FORMER.encode(),
    "present": PRESENT.encode(),
    "shown": SHOWN.encode(),
    "shown in JSON": json.dumps(SHOWN).encode(),
    "place": PLACE.encode(),
    "team": TEAM.encode(),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def by_key(client: httpx.Client, key: str, call: Callable[[], httpx.Response]) -> httpx.Response:
    client.headers["Idempotency-Key"] = key
    answer = call()
    del client.headers["Idempotency-Key"]
    assert answer.is_success, answer.text
    return answer


def fill(client: httpx.Client) -> list[str]:
    """Two walks of one person in every kind of answer that is kept, and somebody else."""
    fields = {"metadata": f'{{"place": "{PLACE}"}}'}
    answer = by_key(client, "enrol", lambda: enrol(client, FORMER, walk(1), walk(2), **fields))
    client.patch(f"/subjects/{FORMER}", json=SAID)
    for key, probe in (("one", walk(1)), ("two", walk(2))):
        found = by_key(client, key, lambda: identify(client, probe, include="metadata"))  # noqa: B023
        assert SHOWN in found.text
        assert TEAM in found.text
    by_key(client, "verify", lambda: verify(client, FORMER, walk(1), include="metadata"))
    enrol(client, "bert", walk(3))
    client.get(f"/sequences/{answer.json()['sequences'][0]['sequence_id']}/gei.png")
    return [item["sequence_id"] for item in answer.json()["sequences"]]


def rename(client: httpx.Client, _walks: list[str]) -> None:
    client.patch(f"/subjects/{FORMER}", json={"subject_id": PRESENT})


def move_all(client: httpx.Client, walks: list[str]) -> None:
    enrol(client, PRESENT, walk(7))
    client.patch(f"/subjects/{PRESENT}", json=SAID)
    for one in walks:
        assert client.patch(f"/sequences/{one}", json={"subject_id": PRESENT}).is_success


def merge(client: httpx.Client, _walks: list[str]) -> None:
    enrol(client, PRESENT, walk(7), walk(1))
    assert client.patch(f"/subjects/{FORMER}", json={"merge_into": PRESENT}).is_success


@pytest.mark.parametrize("correct", [rename, move_all, merge])
@pytest.mark.sqlite
def test_nothing_is_left_under_either_name(
    serve: Serve,
    data: Path,
    engine: Engine,
    caplog: pytest.LogCaptureFixture,
    correct: Callable[[httpx.Client, list[str]], None],
) -> None:
    client = serve()
    walks = fill(client)
    before = found(data, MARKS)
    assert {what for what in MARKS if before[what]} >= {"former", "shown", "place", "team"}
    assert any(file.startswith("audit") for file in before["former"])
    correct(client, walks)
    vacuum(engine)  # as the next sweep does
    after = found(data, MARKS)
    assert after["former"] == set(), "the former name went with the correction"
    assert after["present"]
    assert after["shown"]
    assert after["team"]
    for key, probe in (("three", walk(1)), ("four", walk(2))):
        by_key(client, key, lambda: identify(client, probe, include="metadata"))  # noqa: B023
    receipt = client.delete(f"/subjects/{PRESENT}").json()
    assert set(walks[1:]) <= set(receipt["sequence_ids"])
    assert found(data, MARKS) == {what: set() for what in MARKS}
    assert not any(mark.decode() in caplog.text for mark in MARKS.values())
    assert [item["subject_id"] for item in client.get("/subjects").json()["items"]] == ["bert"]


def test_a_moved_walk_is_erased_with_whoever_it_is_now_and_the_other_stays(
    serve: Serve, data: Path
) -> None:
    client = serve()
    _, second = fill(client)
    enrol(client, PRESENT, walk(7))
    client.patch(f"/sequences/{second}", json={"subject_id": PRESENT})
    by_key(client, "three", lambda: identify(client, walk(2)))
    client.delete(f"/subjects/{PRESENT}")
    assert found(data, {"present": PRESENT.encode()}) == {"present": set()}
    assert [item["sequence_id"] for item in client.get(f"/subjects/{FORMER}").json()["sequences"]]
    client.delete(f"/subjects/{FORMER}")
    assert found(data, MARKS) == {what: set() for what in MARKS}
    lines = [json.loads(line) for line in client.get("/audit").text.splitlines()]
    moves = [line for line in lines if line["action"] == "move_sequence"]
    assert [(line["subject_id"], line["salt"]) for line in moves] == [(None, None)] * 2


@pytest.mark.parametrize(
    ("content", "gone"),
    [
        ({"metadata": {}}, {"place"}),
        ({"display_name": None}, {"shown", "shown in JSON"}),
        ({"metadata": {}}, {"team"}),
    ],
)
def test_what_a_correction_took_away_is_in_no_kept_answer_and_no_file(
    serve: Serve, data: Path, engine: Engine, content: dict[str, Any], gone: set[str]
) -> None:
    client = serve()
    walks = fill(client)
    subject = f"/subjects/{FORMER}"
    for path in [f"/sequences/{one}" for one in walks] if gone == {"place"} else [subject]:
        assert client.patch(path, json=content).is_success
    vacuum(engine)
    assert found(data, {what: MARKS[what] for what in gone}) == {what: set() for what in gone}
    again = by_key(client, "enrol", lambda: enrol(client, FORMER, walk(1), metadata="{}"))
    assert "idempotency-replayed" not in again.headers
    assert again.json()["sequences"][0]["already_enrolled"] is True


def test_receipts_name_models_that_learned_from_walks_under_a_former_name(
    serve: Serve, data: Path, engine: Engine
) -> None:
    client = serve()
    _, second = fill(client)
    enrol(client, PRESENT, walk(7))
    record = TrainingRecord.of(data)
    with Session(writing(engine)) as session, session.begin():
        record.add(session, "of both", "default", [FORMER, PRESENT], [])
        record.add(session, "of one", "default", [FORMER], [])
        record.add(session, "of bert", "default", ["bert"], [])

    def learned(subject: str) -> Any:
        with Session(engine) as session:
            return record.models(session, "default", [subject])

    client.patch(f"/sequences/{second}", json={"subject_id": "bert"})
    assert learned("bert") == ("of bert", "of both", "of one")
    client.patch(f"/subjects/{FORMER}", json={"merge_into": PRESENT})
    client.patch(f"/subjects/{PRESENT}", json={"subject_id": "now"})
    assert learned("now") == ("of both", "of one")
    assert client.delete("/subjects/now").json()["models"] == ["of both", "of one"]


def test_a_training_under_way_counts_whose_its_walks_are_when_it_ends(
    serve: Serve, data: Path, engine: Engine
) -> None:
    client = serve()
    fill(client)
    export_gallery(engine, "default", data / "gallery.zip")
    edit_subject(engine, lambda *_: None, gallery="default", subject_id=FORMER, new_id=PRESENT)
    exported = exported_subjects(data / "gallery.zip")
    assert set(exported.values()) == {FORMER, "bert"}
    with Session(engine) as session:
        assert subjects_now(session, [*exported, "none"]) == {PRESENT, "bert"}
