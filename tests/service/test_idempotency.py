from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from service.database import migrate, now, open_database, writing
from service.errors import Conflict, Invalid
from service.idempotency import Answer, Hold, IdempotencyRow, IdempotencyStore, keep
from service.middleware.idempotency import BodyHash
from tests.service.requests import problem
from tests.service.walkers import walk

Serve = Callable[..., httpx.Client]


def enrol(client: httpx.Client, key: str, subject: str, data: bytes) -> httpx.Response:
    return client.post(
        "/enroll",
        data={"subject_id": subject},
        files={"sequence": ("walk.npz", data)},
        headers={"Idempotency-Key": key},
    )


def test_the_same_request_is_carried_out_once_and_its_answer_replayed(serve: Serve) -> None:
    client = serve()
    first = enrol(client, "k1", "anna", walk(1))
    again = enrol(client, "k1", "anna", walk(1))  # with another multipart boundary
    assert first.status_code == again.status_code == 201
    assert again.json() == first.json()
    assert again.headers["content-type"] == "application/json"
    assert again.headers["idempotency-replayed"] == "true"
    assert client.get("/galleries/default").json()["sequences"] == 1
    assert enrol(client, "k2", "anna", walk(2)).json() != first.json()
    assert client.get("/galleries/default").json()["sequences"] == 2


def test_another_body_under_the_same_key_is_422(serve: Serve) -> None:
    client = serve()
    enrol(client, "k1", "anna", walk(1))
    for answer in (
        enrol(client, "k1", "bert", walk(1)),
        enrol(client, "k1", "anna", walk(2)),
        client.post("/galleries", json={"name": "x"}, headers={"Idempotency-Key": "k1"}),
    ):
        assert problem(answer, 422)["type"] == "/problems/idempotency-key-reused"
    assert client.get("/galleries/default").json()["sequences"] == 1


def test_a_refused_request_keeps_nothing_and_may_be_corrected(serve: Serve) -> None:
    client = serve()
    problem(enrol(client, "k1", "anna", b"not a walk"), 415)
    assert enrol(client, "k1", "anna", walk(1)).status_code == 201


def test_whoever_has_read_a_refusal_finds_the_key_free_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = IdempotencyStore.release

    def late(self: IdempotencyStore, hold: Hold) -> None:
        time.sleep(0.3)
        release(self, hold)

    monkeypatch.setattr(IdempotencyStore, "release", late)
    client = serve()
    problem(enrol(client, "k1", "anna", b"not a walk"), 415)
    assert enrol(client, "k1", "anna", walk(1)).status_code == 201


def test_galleries_and_identifications_replay_too(serve: Serve) -> None:
    client = serve()
    key = {"Idempotency-Key": "k1"}
    first = client.post("/galleries", json={"name": "lab"}, headers=key)
    again = client.post("/galleries", json={"name": "lab"}, headers=key)
    assert again.status_code == 201
    assert again.json() == first.json()
    assert again.headers["location"] == "/galleries/lab"
    searches = [
        client.post(
            "/identify", files={"sequence": ("a", walk(1))}, headers={"Idempotency-Key": "k2"}
        ).json()["search_id"]
        for _ in range(2)
    ]
    assert searches[0] == searches[1]


@pytest.mark.parametrize("key", ["", "x" * 256, "a b"])
def test_a_strange_key_is_refused(shared: httpx.Client, key: str) -> None:
    problem(shared.post("/galleries", json={}, headers={"Idempotency-Key": key}), 422)


def test_many_at_once_enrol_once(serve: Serve) -> None:
    client = serve()
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(enrol(client, "k1", "anna", walk(1))))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({answer.text for answer in answers if answer.status_code == 201}) == 1
    assert client.get("/galleries/default").json()["sequences"] == 1
    for answer in answers:
        if answer.status_code == 409:
            assert "retry-after" in answer.headers


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = open_database(f"sqlite:///{tmp_path / 'db.sqlite'}")
    migrate(engine)
    return engine


def held(outcome: Hold | Answer) -> Hold:
    assert isinstance(outcome, Hold)
    return outcome


def run_out(engine: Engine, after: timedelta = timedelta(seconds=-1)) -> None:
    with Session(writing(engine)) as session, session.begin():
        session.execute(update(IdempotencyRow).values(held_until=now() + after))


def test_a_hold_given_before_the_clock_was_set_back_is_none(engine: Engine) -> None:
    store = IdempotencyStore(engine)
    held(store.take("", "key", "f"))
    run_out(engine, timedelta(minutes=3))
    with pytest.raises(Conflict):
        store.take("", "key", "f")
    run_out(engine, timedelta(days=1))
    held(store.take("", "key", "f"))


def test_a_key_is_held_by_one_request_at_a_time(engine: Engine) -> None:
    store = IdempotencyStore(engine)
    hold = held(store.take("", "key", "f"))
    with pytest.raises(Conflict):
        store.take("", "key", "f")
    with pytest.raises(Invalid):
        store.take("", "key", "other")
    held(store.take("somebody else", "key", "f"))
    store.release(hold)
    held(store.take("", "key", "f"))


def test_work_whose_hold_was_taken_over_does_not_commit(engine: Engine) -> None:
    store = IdempotencyStore(engine)
    slow = held(store.take("", "key", "f"))
    run_out(engine)
    retry = held(store.take("", "key", "f"))
    with (
        pytest.raises(Conflict),
        Session(writing(engine)) as session,
        session.begin(),
    ):
        keep(session, slow, Answer(201, {}, "slow"))
    store.keep(slow, Answer(201, {}, "slow"))
    store.release(slow)
    with Session(writing(engine)) as session, session.begin():
        keep(session, retry, Answer(201, {}, "retry"))
    assert store.take("", "key", "f") == Answer(201, {}, "retry")


def test_a_hold_whose_process_died_is_taken_over_unless_the_work_was_done(engine: Engine) -> None:
    store = IdempotencyStore(engine)
    hold = held(store.take("", "done", "f"))
    with Session(writing(engine)) as session, session.begin():
        keep(session, hold, Answer(201, {}, "the answer"))
    held(store.take("", "undone", "f"))
    run_out(engine)
    assert store.take("", "done", "f") == Answer(201, {}, "the answer")
    held(store.take("", "undone", "f"))


def test_an_answer_is_forgotten_after_a_day(engine: Engine) -> None:
    store = IdempotencyStore(engine)
    store.keep(held(store.take("", "key", "f")), Answer(201, {}, "old"))
    with Session(writing(engine)) as session, session.begin():
        session.execute(update(IdempotencyRow).values(created_at=now() - timedelta(hours=25)))
    held(store.take("", "key", "f"))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_a_body_s_hash_is_blind_to_boundary_and_chunks(step: int) -> None:
    def digest(boundary: bytes, content: bytes) -> str:
        body = b"--" + boundary + b"\r\nabc" + content + b"\r\n--" + boundary + b"--\r\n"
        hashed = BodyHash(boundary)
        for start in range(0, len(body), step):
            hashed.update(body[start : start + step])
        return hashed.hexdigest()

    whole = BodyHash(b"abab")
    whole.update(b"--abab\r\nabcxaba\r\n--abab--\r\n")
    assert digest(b"abab", b"xaba") == whole.hexdigest()
    assert digest(b"abab", b"xaba") == digest(b"0123456789", b"xaba")
    assert digest(b"abab", b"xaba") != digest(b"abab", b"xabb")
