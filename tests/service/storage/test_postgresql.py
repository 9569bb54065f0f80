"""PostgreSQL as the database: limits of connections, fail-over, deadlocks, several servers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest
from pydantic import ValidationError
from sqlalchemy import Connection, Engine, event, insert, make_url, select
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from service.access.audit import chain
from service.access.audit.entries import SERVICE, Entry
from service.access.audit.record import AuditRecord
from service.foundation.errors import Conflict, Unavailable
from service.foundation.settings import Settings
from service.gallery.listing import all_enrolled
from service.gallery.store import GalleryStore
from service.gallery.tables import GalleryRow, SequenceRow, SubjectRow
from service.http.resources import open_engine
from service.privacy.erasure_transactions import erase_subject
from service.storage.database import now, open_database, take_turns, writing
from service.storage.failures import storage_trouble
from service.storage.kept_answers import IdempotencyStore, KeyLock
from service.storage.postgresql import CommitUnknown, connect_args
from service.storage.vacuum import clear_traces
from service.storage.writers import Writers
from tests.service.jobs.galleries import enrol as enrol_some
from tests.service.jobs.workers import Workers
from tests.service.postgresql import PostgreSQL
from tests.service.requests import enrol, identify, problem
from tests.service.server import Serve, serving, settings_for
from tests.service.walkers import walk

pytestmark = pytest.mark.postgresql


def name_of(database: str | None) -> str:
    assert database is not None
    name = make_url(database).database
    assert name is not None
    return name


def cut_off(postgres: PostgreSQL, database: str | None) -> None:
    """End every connection to a database, as a restart or a fail-over does."""
    postgres.end_connections(name_of(database))


Step = str | Callable[[], object]
"""A statement, or what happens between two."""


def carry_out(engine: Engine, *steps: Step) -> None:
    """One transaction that writes."""
    with writing(engine).begin() as connection:
        for step in steps:
            if isinstance(step, str):
                connection.exec_driver_sql(step)
            else:
                step()


def take_a_turn(engine: Engine) -> None:
    with writing(engine).begin() as connection:
        take_turns(connection, "something")


def trouble_of(error: Exception) -> Unavailable:
    trouble = storage_trouble(error)
    assert isinstance(trouble, Unavailable)
    assert trouble.retry_after
    return trouble


def test_servers_that_start_at_once_on_an_empty_database_migrate_it_once(
    postgres: PostgreSQL, tmp_path: Path, models: Path
) -> None:
    name = postgres.create()
    start = Barrier(4)

    def begin(number: int) -> None:
        settings = settings_for(tmp_path / str(number), models, database_url=postgres.url(name))
        start.wait()
        engine = open_engine(settings)
        GalleryStore(engine).ensure("default")
        with closing(AuditRecord(settings, lambda *_: True)):
            pass
        engine.dispose()

    with ThreadPoolExecutor(4) as servers:
        list(servers.map(begin, range(4)))
    engine = open_database(postgres.url(name))
    assert GalleryStore(engine).gallery("default").revision == 0
    engine.dispose()
    postgres.drop(name)


def test_what_the_url_says_of_a_connection_goes_before_the_programs_own() -> None:
    url = make_url("postgresql://db/g?connect_timeout=30&options=-c%20lock_timeout%3D7")
    given = connect_args(url, 10_000, 60_000)
    assert "connect_timeout" not in given
    assert given["target_session_attrs"] == "read-write"
    assert given["options"].index("lock_timeout=10000") < given["options"].index("lock_timeout=7")


@pytest.mark.parametrize("url", ["mysql://root:secret@db/gaitid", "gaitid.sqlite", ""])
def test_another_kind_of_database_is_refused_without_repeating_a_password(url: str) -> None:
    with pytest.raises(ValidationError, match="postgresql://USER@HOST/DATABASE") as caught:
        Settings(database_url=url)
    assert "secret" not in str(caught.value)


def test_an_older_name_of_the_database_is_understood(database: str) -> None:
    engine = open_database(database.replace("postgresql:", "postgres:"))
    GalleryStore(engine).check()
    engine.dispose()


def test_every_connection_has_its_limits(engine: Engine) -> None:
    with engine.connect() as connection:
        shown = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in (
                "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout",
            )
        }  # fmt: skip
    assert shown == {
        "lock_timeout": "10s",
        "statement_timeout": "1min",
        "idle_in_transaction_session_timeout": "1min",
    }


def test_a_reader_sees_one_moment_and_a_writer_what_was_committed_before_it_had_its_turn(
    engine: Engine, store: GalleryStore
) -> None:
    revision = select(GalleryRow.revision).where(GalleryRow.name == "default")
    with Session(engine) as reading, Session(writing(engine)) as changing:
        assert reading.scalar(revision) == 0
        assert changing.scalar(revision) == 0
        enrol_some(store, "default", "anna", 1)
        assert reading.scalar(revision) == 0
        assert changing.scalar(revision) == 1


def test_who_waits_too_long_for_a_lock_or_an_answer_is_told_to_try_again(
    impatient: None, engine: Engine, database: str
) -> None:
    with writing(engine).begin() as first:
        take_turns(first, "something")
        with pytest.raises(OperationalError) as caught:
            take_a_turn(engine)
    assert trouble_of(caught.value).problem_slug == "database-busy"
    hurried = open_database(database, statement_seconds=0.05)
    with pytest.raises(OperationalError) as caught:
        carry_out(hurried, "SELECT pg_sleep(10)")
    assert trouble_of(caught.value).problem_slug == "database-busy"
    hurried.dispose()


def test_turns_that_are_shared_wait_for_those_that_are_not(impatient: None, engine: Engine) -> None:
    with writing(engine).begin() as first, writing(engine).begin() as second:
        take_turns(first, "something", shared=True)
        take_turns(second, "something", shared=True)
        with pytest.raises(OperationalError):
            take_a_turn(engine)


def test_an_error_names_nobody(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    gallery_id = GalleryStore(engine).head("default").gallery_id
    row = {"gallery_id": gallery_id, "subject_id": "a-name", "created_at": now()}
    with writing(engine).begin() as connection, pytest.raises(IntegrityError) as caught:
        connection.execute(insert(SubjectRow), [row, row])
    logging.getLogger(__name__).error("it failed", exc_info=caught.value)
    assert "UniqueViolation" in caplog.text
    assert "a-name" not in caplog.text


def test_a_connection_that_is_lost_is_503_once_and_replaced(
    engine: Engine, postgres: PostgreSQL, database: str | None
) -> None:
    with pytest.raises(DBAPIError) as caught:
        carry_out(engine, "SELECT 1", lambda: cut_off(postgres, database), "SELECT 1")
    assert trouble_of(caught.value).problem_slug == "database-unavailable"
    cut_off(postgres, database)  # idle ones, too
    GalleryStore(engine).check()


def test_a_commit_that_may_be_lost_is_said_to_be_unknown(
    engine: Engine, postgres: PostgreSQL, database: str | None
) -> None:
    with pytest.raises(CommitUnknown) as caught:
        carry_out(engine, "UPDATE gallery SET revision = 7", lambda: cut_off(postgres, database))
    assert "not known" in trouble_of(caught.value).detail
    GalleryStore(engine).check()


def test_a_database_that_became_read_only_is_out_of_reach_until_it_can_be_written(
    engine: Engine, store: GalleryStore, postgres: PostgreSQL, database: str | None
) -> None:
    name = name_of(database)
    store.check()
    with pytest.raises(DBAPIError) as caught:  # as a former primary answers
        carry_out(engine, "SET TRANSACTION READ ONLY", "UPDATE gallery SET revision = 7")
    assert caught.value.connection_invalidated
    trouble_of(caught.value)
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    cut_off(postgres, database)
    with pytest.raises(OperationalError) as refused:
        store.check()
    trouble_of(refused.value)
    postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    store.check()


def test_of_two_transactions_in_each_others_way_both_are_carried_out(
    engine: Engine, store: GalleryStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.ensure("other")
    met = Barrier(2)
    begun: set[str] = set()

    def change(first: str, second: str) -> None:
        with writing(engine).begin() as connection:
            for name in (first, second):
                if name == second and first not in begun:
                    begun.add(first)  # the second attempt does not wait for anybody
                    met.wait()
                connection.exec_driver_sql(
                    f"UPDATE gallery SET revision = revision + 1 WHERE name = '{name}'"  # noqa: S608
                )

    async def both() -> None:
        writers = Writers()
        await asyncio.gather(
            writers.run(change, "default", "other"), writers.run(change, "other", "default")
        )
        writers.close()

    asyncio.run(both())
    assert [store.head(name).revision for name in ("default", "other")] == [2, 2]
    assert "run again" in caplog.text


def test_what_an_erasure_leaves_in_tables_is_vacuumed_unless_somebody_still_reads_it(
    engine: Engine, store: GalleryStore, caplog: pytest.LogCaptureFixture
) -> None:
    for subject in ("anna", "bert"):
        enrol_some(store, "default", subject, 3)
    assert erase_subject(engine, "default", "anna").traces_cleared
    with engine.connect() as reader:
        reader.execute(select(SequenceRow.id)).all()
        assert not erase_subject(engine, "default", "bert").traces_cleared
    assert "older transaction" in caplog.text
    assert clear_traces(engine)


def test_lines_of_several_servers_are_one_chain(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    records = [AuditRecord(settings, lambda *_: True) for _ in range(2)]
    with ThreadPoolExecutor(8) as callers:
        list(
            callers.map(
                lambda n: records[n % 2].read(Entry("identify", "default", f"s{n}"), SERVICE),
                range(60),
            )
        )
    assert chain.check(records[0].lines()).lines == 60
    for record in records:
        record.close()


def test_the_database_refuses_to_change_the_record(settings: Settings, engine: Engine) -> None:
    with closing(AuditRecord(settings, lambda *_: True)) as record:
        for number in range(3):
            record.changed(Entry("enroll", "default", f"s{number}"), SERVICE)
        for statement in (
            "UPDATE audit SET subject_id = 'other'",
            "UPDATE audit SET details = 'x', subject_id = NULL, salt = NULL",
            "DELETE FROM audit",
            "TRUNCATE audit",
        ):
            with pytest.raises(DBAPIError, match="append-only"):
                carry_out(engine, statement)
        assert chain.check(record.lines()).lines == 3


def test_a_service_goes_on_when_its_database_comes_back(
    serve: Serve, postgres: PostgreSQL, database: str | None
) -> None:
    client = serve()
    enrol(client, "anna", walk(1))
    name = name_of(database)
    postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    cut_off(postgres, database)
    for answer in (identify(client, walk(1)), enrol(client, "bert", walk(2))):
        problem(answer, 503)
        assert int(answer.headers["retry-after"]) > 0
    problem(client.get("/readyz"), 503)
    postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert enrol(client, "bert", walk(2)).status_code == 201
    assert identify(client, walk(1)).json()["candidates"][0]["subject_id"] == "anna"
    assert client.get("/readyz").status_code == 200


def test_of_an_outage_the_log_says_when_it_began_and_when_it_is_over(
    serve: Serve,
    workers: Workers,
    postgres: PostgreSQL,
    database: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = serve()
    enrol(client, "anna", walk(1))
    name = name_of(database)
    with workers():
        caplog.clear()
        postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        cut_off(postgres, database)
        for _ in range(3):
            problem(identify(client, walk(1)), 503)
            time.sleep(1)  # each process looks for other models every second
        postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert identify(client, walk(1)).status_code == 200
        lines = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(lines) in {2, 4}  # another one, if a connection answered between the two statements
    assert all(line.startswith("the database is away: ") for line in lines[::2])
    assert all(line.startswith("the database is back after ") for line in lines[1::2])


def test_a_key_that_could_not_be_unlocked_is_free_once_the_database_is_back(
    engine: Engine, postgres: PostgreSQL, database: str | None
) -> None:
    name = name_of(database)
    here, there = (IdempotencyStore(engine, all_enrolled) for _ in range(2))
    lock = here.acquire("", "key", "f")
    assert isinstance(lock, KeyLock)
    postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    cut_off(postgres, database)
    with pytest.raises(OperationalError):
        here.release(lock)
    postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    with pytest.raises(Conflict):
        there.acquire("", "key", "f")
    here.acquire("", "another", "f")
    there.acquire("", "key", "f")


def test_a_key_whose_lock_was_committed_as_the_connection_broke_is_free_again(
    engine: Engine,
) -> None:
    here, there = (IdempotencyStore(engine, all_enrolled) for _ in range(2))

    def committed_and_lost(connection: Connection) -> None:
        connection.connection.commit()
        raise CommitUnknown("the connection was lost during a commit")

    event.listen(engine, "commit", committed_and_lost, once=True)
    with pytest.raises(CommitUnknown):
        here.acquire("", "key", "f")
    with pytest.raises(Conflict):
        there.acquire("", "key", "f")
    here.acquire("", "another", "f")
    there.acquire("", "key", "f")


@pytest.fixture
def two_folders(tmp_path: Path, models: Path, database: str | None) -> list[Settings]:
    return [
        settings_for(
            tmp_path / name,
            models,
            rate_limit="1000/day",
            max_wait_seconds=100,
        )
        for name in ("one", "two")
    ]


@pytest.mark.timeout(180)
def test_two_servers_with_own_folders_enrol_find_and_erase_in_step(
    two_folders: list[Settings],
) -> None:
    people = [f"s{number}" for number in range(6)]
    with serving(two_folders[0]) as one, serving(two_folders[1]) as two:
        for client in (one, two):  # FastAPI prepares routes when asked, and not in two threads
            problem(client.get("/nothing"), 404)

        def live(number: int) -> None:
            here, there = (one, two) if number % 2 else (two, one)
            subject = people[number]
            assert enrol(here, subject, walk(number)).status_code == 201
            answer = identify(there, walk(number))
            assert answer.status_code == 200, answer.text
            assert answer.json()["candidates"][0]["subject_id"] == subject
            if number % 3 == 0:
                receipt = there.delete(f"/subjects/{subject}")
                assert receipt.status_code == 200, receipt.text
                left = identify(here, walk(number), top_k="100").json()["candidates"]
                assert subject not in {one["subject_id"] for one in left}

        with ThreadPoolExecutor(6) as clients:
            list(clients.map(live, range(6)))
        kept = {subject for number, subject in enumerate(people) if number % 3}
        for client in (one, two):
            found = identify(client, walk(0), top_k="100").json()["candidates"]
            assert {item["subject_id"] for item in found} == kept
            assert client.get("/galleries/default").json()["sequences"] == len(kept)
        before, after = (
            int(client.get("/subjects").headers["ratelimit-remaining"]) for client in (one, two)
        )
        assert after == before - 1  # one limit for both
        lines = one.get("/audit").text
        assert lines.count('"enroll"') == 6


def test_a_key_is_carried_out_once_whichever_server_it_is_sent_to(
    two_folders: list[Settings],
) -> None:
    with serving(two_folders[0]) as one, serving(two_folders[1]) as two:
        for client in (one, two):
            problem(client.get("/nothing"), 404)
        with ThreadPoolExecutor(4) as clients:
            answers = list(
                clients.map(
                    lambda n: (one, two)[n % 2].post(
                        "/galleries", json={"name": "lab"}, headers={"Idempotency-Key": "k"}
                    ),
                    range(4),
                )
            )
        assert {answer.status_code for answer in answers} <= {201, 409}
        assert len({answer.text for answer in answers if answer.status_code == 201}) == 1
        names = [item["name"] for item in two.get("/galleries").json()["items"]]
        assert sorted(names) == ["default", "lab"]
