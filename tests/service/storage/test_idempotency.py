from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import InstrumentedAttribute, Session

import service.storage.database
from service.access.keys import Scope, create_key, list_keys
from service.foundation.errors import Conflict, Invalid
from service.foundation.settings import Settings
from service.gallery.listing import all_enrolled
from service.http.app import create_app
from service.http.middleware.idempotency import BodyHash
from service.storage.database import migrate, new_id, now, open_database, writing
from service.storage.kept_answers import (
    ANSWER_LIFETIME,
    LOCK_TIME,
    SEARCH_LIFETIME,
    Answer,
    AnswerNameRow,
    IdempotencyRow,
    IdempotencyStore,
    KeyLock,
    delete_answers_about,
    delete_expired_answers,
    keep,
)
from tests.service.requests import identify, problem
from tests.service.server import Serve
from tests.service.statements import instructions_of_writes, plans
from tests.service.walkers import walk


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

    def late(self: IdempotencyStore, lock: KeyLock) -> None:
        time.sleep(0.3)
        release(self, lock)

    monkeypatch.setattr(IdempotencyStore, "release", late)
    client = serve()
    problem(enrol(client, "k1", "anna", b"not a walk"), 415)
    assert enrol(client, "k1", "anna", walk(1)).status_code == 201


def test_a_key_that_cannot_be_freed_is_no_error_of_the_answer_that_was_sent(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release, tried = IdempotencyStore.release, []

    def away(_: IdempotencyStore, lock: KeyLock) -> None:
        tried.append(lock)
        raise OperationalError("DELETE", {}, Exception("the database is away"))

    client = serve()
    monkeypatch.setattr(IdempotencyStore, "release", away)
    problem(enrol(client, "k1", "anna", b"not a walk"), 415)
    wait_until_true(lambda: len(tried) == 2)  # before the end of the answer, and after it
    monkeypatch.setattr(IdempotencyStore, "release", release)
    problem(enrol(client, "k1", "anna", b"not a walk"), 409)  # until the lock runs out
    assert enrol(client, "k2", "anna", walk(1)).status_code == 201
    assert "Exception in ASGI application" not in caplog.text
    assert "stays locked" in caplog.text


def wait_until_true(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda _: enrol(client, "k1", "anna", walk(1)), range(6)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({answer.text for answer in answers if answer.status_code == 201}) == 1
    assert client.get("/galleries/default").json()["sequences"] == 1
    for answer in answers:
        if answer.status_code == 409:
            assert "retry-after" in answer.headers


@pytest.fixture
def store(engine: Engine) -> IdempotencyStore:
    return IdempotencyStore(engine, all_enrolled)


@contextmanager
def writes(engine: Engine) -> Iterator[Session]:
    with Session(writing(engine)) as session, session.begin():
        yield session


def locked(outcome: KeyLock | Answer) -> KeyLock:
    assert isinstance(outcome, KeyLock)
    return outcome


def run_out(engine: Engine, after: timedelta = timedelta(seconds=-1)) -> None:
    with writes(engine) as session:
        session.execute(update(IdempotencyRow).values(expires_at=now() + after))


def test_a_lock_made_before_the_clock_was_set_back_is_none(
    store: IdempotencyStore, engine: Engine
) -> None:
    locked(store.acquire("", "key", "f"))
    run_out(engine, timedelta(minutes=3))
    with pytest.raises(Conflict):
        store.acquire("", "key", "f")
    run_out(engine, timedelta(days=1))
    locked(store.acquire("", "key", "f"))


def test_a_key_is_locked_by_one_request_at_a_time(store: IdempotencyStore) -> None:
    lock = locked(store.acquire("", "key", "f"))
    with pytest.raises(Conflict):
        store.acquire("", "key", "f")
    with pytest.raises(Invalid):
        store.acquire("", "key", "other")
    locked(store.acquire("somebody else", "key", "f"))
    store.release(lock)
    locked(store.acquire("", "key", "f"))


def test_work_whose_lock_was_taken_over_does_not_commit(
    store: IdempotencyStore, engine: Engine
) -> None:
    slow = locked(store.acquire("", "key", "f"))
    run_out(engine)
    retry = locked(store.acquire("", "key", "f"))
    with pytest.raises(Conflict), writes(engine) as session:
        keep(session, slow, Answer(201, {}, '"slow"'))
    store.keep(slow, Answer(201, {}, '"slow"'))
    store.release(slow)
    with writes(engine) as session:
        keep(session, retry, Answer(201, {}, '"retry"'))
    assert store.acquire("", "key", "f") == Answer(201, {}, '"retry"')


def test_a_lock_whose_process_died_is_taken_over_unless_the_work_was_done(
    store: IdempotencyStore, engine: Engine
) -> None:
    lock = locked(store.acquire("", "done", "f"))
    with writes(engine) as session:
        keep(session, lock, Answer(201, {}, '"the answer"'))
    locked(store.acquire("", "undone", "f"))
    with writes(engine) as session:
        undone = update(IdempotencyRow).where(IdempotencyRow.status.is_(None))
        session.execute(undone.values(expires_at=now() - timedelta(seconds=1)))
    assert store.acquire("", "done", "f") == Answer(201, {}, '"the answer"')
    locked(store.acquire("", "undone", "f"))


def test_an_answer_that_is_too_old_is_not_replayed_though_no_sweep_has_removed_it(
    store: IdempotencyStore, engine: Engine
) -> None:
    for fingerprint in ("f", "another body"):
        keep_answer(engine, store, "key", subject_id="anna")
        assert isinstance(store.acquire("", "key", "f"), Answer)
        run_out(engine)
        store.release(locked(store.acquire("", "key", fingerprint)))
    assert rows(engine) == (0, 0)


def test_a_search_s_answer_is_kept_for_minutes_and_another_for_a_day(
    serve: Serve, engine: Engine
) -> None:
    client = serve()
    enrol(client, "enrolment", "anna", walk(1))
    began = now()
    for path in ("/identify", "/verify"):
        client.headers["Idempotency-Key"] = path
        fields = {} if path == "/identify" else {"subject_id": "anna"}
        first, again = (
            client.post(path, data=fields, files={"sequence": ("a.npz", walk(1))}) for _ in range(2)
        )
        assert first.json()["search_id"] == again.json()["search_id"]
        assert again.headers["idempotency-replayed"] == "true"
        other = client.post(path, data=fields, files={"sequence": ("a.npz", walk(2))})
        assert problem(other, 422)["type"] == "/problems/idempotency-key-reused"
    until = sorted(kept(engine, IdempotencyRow.expires_at))
    took = now() - began
    assert all(began + SEARCH_LIFETIME <= at <= began + SEARCH_LIFETIME + took for at in until[:2])
    assert until[2] >= began + ANSWER_LIFETIME - timedelta(minutes=1)


def kept(engine: Engine, what: InstrumentedAttribute[Any]) -> Sequence[Any]:
    """A column of what a service has kept."""
    with engine.connect() as connection:
        return connection.execute(select(what)).scalars().all()


def rows(engine: Engine) -> tuple[int, int]:
    """How many answers and locks there are, and how many names they have."""
    with Session(engine) as session:
        tables = (IdempotencyRow, AnswerNameRow)
        answers, names = (session.scalar(select(func.count()).select_from(one)) for one in tables)
    return answers or 0, names or 0


def keep_answer(engine: Engine, store: IdempotencyStore, key: str, **body: Any) -> None:
    lock = locked(store.acquire("", key, "f"))
    with writes(engine) as session:
        keep(session, lock, Answer(201, {}, json.dumps(body)))


@pytest.mark.sqlite
def test_no_statement_reads_answers_but_by_an_index(
    store: IdempotencyStore, engine: Engine
) -> None:
    with plans(engine) as found:
        keep_answer(engine, store, "kept", subject_id="anna", sequence_id="1")
        store.acquire("", "kept", "f")
        store.release(locked(store.acquire("", "refused", "f")))
        store.keep(locked(store.acquire("", "late", "f")), Answer(200, {}, '{"sequence_id": "1"}'))
        run_out_and_take = update(IdempotencyRow).where(IdempotencyRow.number == 1)
        with writes(engine) as session:
            session.execute(run_out_and_take.values(expires_at=now()))
        store.acquire("", "kept", "f")
        with writes(engine) as session:
            delete_answers_about(session, ["anna", "1", "/galleries/lab"])
        delete_expired_answers(engine, now(), 10)
    steps = [step for plan in found.values() for step in plan]
    assert not [step for step in steps if step.startswith("SCAN")], found
    searches = "\n".join(steps)
    for index in ("ix_idempotency_expires (expires_at<?)", "PRIMARY KEY (name_hash=?)"):
        assert index in searches
    with engine.connect() as connection:  # what the database does when an answer goes
        asked = "EXPLAIN QUERY PLAN DELETE FROM idempotency_name WHERE answer = 1"
        ((*_, step),) = connection.exec_driver_sql(asked).all()
    assert step.startswith("SEARCH")


@pytest.mark.sqlite
def test_what_an_erasure_costs_does_not_grow_with_the_answers_about_others(
    store: IdempotencyStore, engine: Engine
) -> None:
    steps = []
    for others in (5, 500):
        with writes(engine) as session:
            for number in range(others):
                lock = KeyLock(f"{others}-{number}", "h")
                session.add(
                    IdempotencyRow(
                        **asdict(lock),
                        fingerprint="f",
                        expires_at=now() + LOCK_TIME,
                        headers={},
                        body="",
                    )
                )
                session.flush()
                name = {"subject_id": f"other-{lock.key_hash}"}
                keep(session, lock, Answer(201, {}, json.dumps(name)))
        keep_answer(engine, store, f"hers-{others}", subject_id="anna", sequences=[])
        before = rows(engine)
        with instructions_of_writes(engine) as counted, writes(engine) as session:
            delete_answers_about(session, ["anna"])
        steps += counted
        assert rows(engine) == (before[0] - 1, before[1] - 1)
    assert steps[1] <= 1.1 * steps[0]


NAMING = {
    "alone": {"subject_id": "anna"},
    "deep": {"candidates": [{"rank": 1, "best": {"subject_id": "anna", "sequence_id": "w"}}]},
    "in a list": {"walks": {"subject_ids": ["bert", "anna"]}},
}


@pytest.mark.parametrize("body", NAMING.values(), ids=NAMING)
def test_an_answer_is_forgotten_wherever_it_names_somebody(
    store: IdempotencyStore, engine: Engine, body: dict[str, Any]
) -> None:
    keep_answer(engine, store, "hers", **body)
    keep_answer(engine, store, "another's", subject_id="bob", text="anna", anna=1, n=[None, 2])
    with writes(engine) as session:
        delete_answers_about(session, ["nobody", "ann", "anna2"])
    assert rows(engine)[0] == 2
    with writes(engine) as session:
        delete_answers_about(session, [*(f"nobody-{n}" for n in range(1200)), "anna"])
    assert rows(engine) == (1, 1)


def test_texts_of_answers_name_nobody_outside_the_fields_that_are_looked_at(
    tmp_path: Path,
) -> None:
    """A new field here: does it name a subject or a sequence? Then it is to be called so."""
    document = create_app(Settings(data_dir=tmp_path)).openapi()

    def texts(schema: Any, name: str, seen: frozenset[str]) -> Iterator[str]:
        if isinstance(schema, list):
            for one in schema:
                yield from texts(one, name, seen)
        elif "$ref" in schema:
            kind = schema["$ref"].rpartition("/")[2]
            if kind not in seen:
                yield from texts(document["components"]["schemas"][kind], name, seen | {kind})
        else:
            if schema.get("type") == "string" and not {"enum", "const", "format"} & set(schema):
                yield name
            for field, inner in schema.get("properties", {}).items():
                yield from texts(inner, field, seen)
            yield from texts(schema.get("anyOf", []), name, seen)
            yield from texts(schema.get("items", []), name, seen)

    found = {
        name
        for path in document["paths"].values()
        for status, answer in path.get("post", {"responses": {}})["responses"].items()
        if status.startswith("2")
        for name in texts(answer["content"]["application/json"]["schema"], "", frozenset())
    }
    assert {name for name in found if not name.endswith("_at")} == {
        *("subject_id", "sequence_id", "search_id", "id", "job_id", "gallery", "name", "digest"),
        *(
            "type",
            "error",
            "waiting_for",
            "where",
            "issues",
            "active_in",
            "previous_in",
            "architecture",
        ),
        *("views", "conditions", "missing_views", "missing_conditions"),
        "display_name",  # stands beside the subject_id by which an erasure finds the answer
    }


def test_a_search_that_was_under_way_while_somebody_was_erased_keeps_no_answer_about_them(
    serve: Serve, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve()
    for subject in ("anna", "bert"):
        enrol(client, subject, subject, walk(len(subject)))
    late = IdempotencyStore.keep

    def keep_after_an_erasure(self: IdempotencyStore, *args: Any) -> None:
        erased = httpx.delete(f"{client.base_url}/subjects/anna")
        assert erased.status_code == 200
        late(self, *args)

    client.headers["Idempotency-Key"] = "search"
    monkeypatch.setattr(IdempotencyStore, "keep", keep_after_an_erasure)
    first = identify(client, walk(4))
    assert "anna" in first.text
    monkeypatch.setattr(IdempotencyStore, "keep", late)
    bodies = kept(engine, IdempotencyRow.body)
    assert not [body for body in bodies if "anna" in body]
    again = identify(client, walk(4))  # the key is free: it is carried out again
    assert again.status_code == 200
    assert "idempotency-replayed" not in again.headers
    assert "anna" not in again.text
    assert identify(client, walk(4)).headers["idempotency-replayed"] == "true"


def test_a_lock_that_ran_out_is_left_to_a_slow_request_until_it_is_surely_dead(
    store: IdempotencyStore, engine: Engine
) -> None:
    lock = locked(store.acquire("", "slow", "f"))
    locked(store.acquire("", "dead", "f"))
    assert delete_expired_answers(engine, now() + timedelta(minutes=30), 10) == 0
    store.keep(lock, Answer(201, {}, '"kept"'))
    assert isinstance(store.acquire("", "slow", "f"), Answer)
    assert delete_expired_answers(engine, now() + timedelta(minutes=70), 10) == 1
    assert delete_expired_answers(engine, now() + timedelta(hours=25), 10) == 1
    assert rows(engine) == (0, 0)


def test_a_request_removes_nobody_else_s_answers_and_the_sweep_does_so_some_at_once(
    store: IdempotencyStore, engine: Engine
) -> None:
    for number in range(7):
        keep_answer(engine, store, f"old-{number}", subject_id=f"s{number}", sequence_id=new_id())
    run_out(engine)
    keep_answer(engine, store, "fresh", subject_id="anna")
    assert rows(engine) == (8, 15)
    assert [delete_expired_answers(engine, now(), 3) for _ in range(4)] == [3, 3, 1, 0]
    assert rows(engine) == (1, 1)


def test_an_upgrade_drops_kept_answers_and_a_way_back_revokes_keys_that_expire(
    tmp_path: Path,
) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'old.sqlite'}")
    config = Config()
    folder = Path(service.storage.database.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder))

    def go(where: Callable[[Config, str], None], revision: str) -> None:
        with writing(engine).begin() as connection:
            config.attributes["connection"] = connection
            where(config, revision)

    go(command.upgrade, "0006_access")
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO idempotency VALUES ('k', 'f', 'h', '2026-11-30 00:00:00', 201, '{}', "
                "'{\"subject_id\": \"somebody-of-before\"}', '2026-11-30 00:00:00')"
            )
        )
    migrate(engine)
    assert rows(engine) == (0, 0)
    lasting, _ = create_key(engine, [Scope.ADMIN])
    create_key(engine, [Scope.ADMIN], expires_at=now() + timedelta(days=1))
    go(command.downgrade, "0006_access")
    go(command.upgrade, "head")
    first, second = list_keys(engine)
    assert first == lasting
    assert second.revoked_at is not None
    engine.dispose()
    assert b"somebody-of-before" not in (tmp_path / "old.sqlite").read_bytes()


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
