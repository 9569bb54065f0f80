"""Who did what is in the record, cannot be changed unnoticed, and names nobody who was erased."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import IntegrityError, OperationalError

from service.access.audit import chain
from service.access.audit.entries import COMMAND, SERVICE, Actor, Entry
from service.access.audit.record import AuditRecord
from service.access.keys import Scope, create_key
from service.foundation.logs import request_id
from service.foundation.settings import Settings
from service.gallery.listing import is_enrolled
from service.http.resources import open_engine
from service.recognition.identification import Identification
from service.storage.database import now
from tests.service.access.test_access import bearer
from tests.service.requests import enrol, identify, problem, verify
from tests.service.server import Serve, wait_until
from tests.service.statements import plans
from tests.service.test_crashes import process
from tests.service.walkers import walk


def lines(client: httpx.Client, **wanted: Any) -> list[dict[str, Any]]:
    answer = client.get("/audit", params=wanted)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def actions(client: httpx.Client) -> list[tuple[str, str | None]]:
    return [(line["action"], line["subject_id"]) for line in lines(client)]


@contextmanager
def opened(settings: Settings, **options: Any) -> Iterator[AuditRecord]:
    """A record without a service; nobody is enrolled."""
    galleries = open_engine(settings)
    with closing(AuditRecord(settings, partial(is_enrolled, galleries), **options)) as audit:
        yield audit
    galleries.dispose()


@pytest.fixture
def record(settings: Settings) -> Iterator[AuditRecord]:
    with opened(settings) as audit:
        yield audit


class Clock:
    """Says a number of days ago."""

    days = 0

    def __call__(self) -> datetime:
        return datetime.now(UTC) - timedelta(days=self.days)


def file_of(settings: Settings) -> Path:
    return settings.data_dir / "audit.sqlite"


def test_a_search_is_recorded_with_who_and_what_and_how_it_was_decided(
    serve: Serve, engine: Engine
) -> None:
    client = serve()
    key, token = create_key(engine, [Scope.ADMIN], "the gate")
    client.headers.update(bearer(token))
    enrol(client, "anna", walk(1))
    answer = identify(client, walk(1), top_k="3", filter="{}").json()
    request = identify(client, walk(2), threshold="1").headers["x-request-id"]
    verify(client, "anna", walk(1))
    enrolled, found, not_found, verified, reading = lines(client)

    assert enrolled["action"] == "enroll"
    assert enrolled["details"]["sequences"] == 1
    for line in (enrolled, found, verified, reading):
        assert (line["actor"], line["key_id"], line["key_name"]) == ("key", key.key_id, "the gate")
    assert (found["action"], found["gallery"], found["subject_id"]) == (
        "identify", "default", "anna",
    )  # fmt: skip
    assert found["details"] == {
        "search_id": answer["search_id"],
        "decision": answer["decision"],
        "similarity": pytest.approx(answer["candidates"][0]["similarity"]),
        "candidates": 1,
        "sequences": 1,
        "top_k": 3,
        "filtered": True,
        "threshold": answer["threshold"],
        "threshold_source": "model",
        "model": answer["model"],
        "took_ms": answer["took_ms"],
    }
    # A threshold that nothing reaches does not hide who was found.
    assert not_found["details"]["decision"] == "no_match"
    assert not_found["details"]["threshold_source"] == "request"
    assert not_found["subject_id"] == "anna"
    assert not_found["request_id"] == request
    assert verified["details"]["decision"] == "verified"
    assert reading["action"] == "read_audit"
    assert chain.check(lines(client)).lines == 6


def test_only_an_admin_reads_the_record(serve: Serve, engine: Engine) -> None:
    client = serve()
    for scope in (Scope.ENROLL, Scope.IDENTIFY, Scope.JOBS):
        token = create_key(engine, [scope])[1]
        problem(client.get("/audit", headers=bearer(token)), 403)


def test_every_kind_of_change_is_recorded(serve: Serve) -> None:
    client = serve()
    client.post("/galleries", json={"name": "lab"})
    enrol(client, "anna", walk(1), walk(2), gallery="lab")
    sequences = client.get("/subjects/anna", params={"gallery": "lab"}).json()["sequences"]
    for form in ("silhouettes.npz", "silhouettes.gif", "gei.png"):
        client.get(f"/sequences/{sequences[0]['sequence_id']}/{form}")
    job = client.post("/jobs/calibrate", json={"gallery": "lab"}).json()["id"]
    client.post(f"/jobs/{job}/cancel")
    client.delete(f"/sequences/{sequences[0]['sequence_id']}")
    receipt = client.delete("/subjects/anna", params={"gallery": "lab"}).json()
    client.delete("/galleries/lab")
    recorded = lines(client)
    assert [line["action"] for line in recorded] == [
        "create_gallery", "enroll", "read_silhouettes", "read_silhouettes", "read_silhouettes",
        "job_calibrate", "call", "erase_sequence", "forget_subjects", "erase_subject",
        "erase_gallery", "read_audit",
    ]  # fmt: skip
    by_action = {line["action"]: line for line in recorded}
    assert by_action["job_calibrate"]["details"] == {"job_id": job}
    assert by_action["job_calibrate"]["gallery"] == "lab"
    assert by_action["call"]["details"] == {"method": "POST", "route": "/jobs/{job_id}/cancel"}
    assert by_action["erase_subject"]["details"]["receipt_id"] == receipt["receipt_id"]
    chain.check(recorded)


def test_what_was_refused_or_only_listed_is_not_recorded(serve: Serve) -> None:
    client = serve()
    problem(identify(client, b"no walk"), 415)
    problem(enrol(client, "a/b", walk(1)), 422)
    problem(client.delete("/subjects/nobody"), 404)
    client.get("/subjects")
    assert [line["action"] for line in lines(client)] == ["read_audit"]


def test_the_record_is_read_by_time_by_gallery_and_from_where_one_was(serve: Serve) -> None:
    client = serve()
    client.post("/galleries", json={"name": "lab"})
    enrol(client, "anna", walk(1), gallery="lab")
    identify(client, walk(1))
    everything = lines(client)
    assert [line["action"] for line in lines(client, gallery="lab")] == [
        "create_gallery", "enroll", "read_audit",
    ]  # fmt: skip
    assert [line["number"] for line in lines(client, cursor=2)][:2] == [3, 4]
    third = everything[2]["at"]
    assert lines(client, since=third)[0]["number"] == 3
    assert [line["number"] for line in lines(client, until=third)] == [1, 2]
    problem(client.get("/audit", params={"since": "2026-01-01T00:00:00"}), 422)  # which zone?
    problem(client.get("/audit", params={"until": "0.5"}), 422)  # seconds since when?
    for at in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):  # none in UTC
        problem(client.get("/audit", params={"since": at}), 422)
    problem(client.get("/audit", params={"cursor": "x"}), 422)


def test_a_long_record_is_read_in_pieces_and_is_one_chain(
    settings: Settings,
) -> None:
    with opened(settings, page=7) as record:
        for number in range(50):
            record.read(Entry("identify", "default", None, {"number": number}), Actor("anyone"))
        found = list(record.lines())
    assert [line["details"]["number"] for line in found] == list(range(50))
    assert chain.check(found) == chain.Checked(50, 1, 50, found[-1]["hash"])


@pytest.mark.sqlite
def test_who_is_erased_is_not_named_any_more_and_the_chain_still_holds(
    serve: Serve, tmp_path: Path
) -> None:
    client = serve()
    for subject, person in (("anna-the-first", 1), ("bert-the-second", 2)):
        enrol(client, subject, walk(person))
        identify(client, walk(person))
    client.delete("/subjects/anna-the-first")
    recorded = lines(client)
    assert [line["subject_id"] for line in recorded] == [
        None, None, "bert-the-second", "bert-the-second", None, None, None,
    ]  # fmt: skip
    assert (recorded[4]["action"], recorded[4]["details"]) == ("forget_subjects", {"lines": 2})
    assert [line["salt"] is None for line in recorded[:4]] == [True, True, False, False]
    assert chain.check(recorded).lines == 7
    files = b"".join(path.read_bytes() for path in (tmp_path / "data").glob("*.sqlite*"))
    assert b"anna-the-first" not in files
    assert b"bert-the-second" in files

    client.delete("/galleries/default")
    recorded = lines(client)
    assert not any(line["subject_id"] for line in recorded)
    chain.check(recorded)


def test_who_is_erased_during_a_search_is_not_named_by_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve()
    enrol(client, "anna", walk(1))
    search = Identification.identify

    async def search_then_erase(*arguments: Any, **named: Any) -> Any:
        found = await search(*arguments, **named)
        with httpx.Client(base_url=client.base_url) as other:
            assert (await asyncio.to_thread(other.delete, "/subjects/anna")).status_code == 200
        return found

    monkeypatch.setattr(Identification, "identify", search_then_erase)
    answer = identify(client, walk(1)).json()
    assert answer["candidates"][0]["subject_id"] == "anna"  # as the search had found
    assert actions(client) == [
        ("enroll", None), ("forget_subjects", None), ("erase_subject", None), ("identify", None),
        ("forget_subjects", None), ("read_audit", None),
    ]  # fmt: skip


def test_what_an_erasure_had_no_time_to_forget_is_forgotten_later(
    settings: Settings, record: AuditRecord
) -> None:
    record.changed(Entry("enroll", "default", "anna"), COMMAND)
    record.tidy()  # the enrolment may not be committed yet
    assert [line["subject_id"] for line in record.lines()] == ["anna"]
    with opened(settings, settled=timedelta(0)) as later:
        later.tidy()
        found = [(line["action"], line["subject_id"]) for line in later.lines()]
        assert found == [("enroll", None), ("forget_subjects", None)]
        chain.check(later.lines())
        later.tidy()
        assert len(list(later.lines())) == 2  # nobody forgotten is nothing told


@pytest.mark.sqlite
def test_the_database_refuses_to_change_the_record(settings: Settings, record: AuditRecord) -> None:
    for number in range(3):
        record.changed(Entry("enroll", "default", f"s{number}"), COMMAND)
    with closing(sqlite3.connect(file_of(settings))) as connection:
        for statement in (
            "UPDATE audit SET subject_id = 'other'",
            "UPDATE audit SET details = 'x', subject_id = NULL, salt = NULL",
            "UPDATE audit SET key_id = 'x', subject_id = NULL, salt = NULL",
            "DELETE FROM audit",
            "DELETE FROM audit WHERE number = 1",
            "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE number = 2",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
        connection.execute("UPDATE audit SET subject_id = NULL, salt = NULL WHERE number = 2")
        connection.commit()
    assert [line["subject_id"] for line in record.lines()] == ["s0", None, "s2"]
    with pytest.raises(chain.Broken, match="1 more of the lines name nobody any more than eras"):
        chain.check(record.lines())
    # An erasure, of whom it may be, accounts for its own lines only.
    for subject in ("s1", "s2"):
        record.forget("default", subject)
    with pytest.raises(chain.Broken, match="1 more of the lines"):
        chain.check(record.lines())


def test_a_line_is_not_blanked_by_halves(record: AuditRecord) -> None:
    record.changed(Entry("enroll", "default", "anna"), COMMAND)
    forgotten = [{**line, "subject_id": None} for line in record.lines()]
    with pytest.raises(chain.Broken, match="line 1 names nobody any more"):
        chain.check(forgotten)


def test_who_is_forgotten_while_the_record_is_read_is_accounted_for(
    settings: Settings,
) -> None:
    with opened(settings, page=2) as record:
        for number in range(6):
            record.changed(Entry("enroll", "default", f"s{number}"), COMMAND)
        reading = record.lines()
        read = [next(reading)]
        record.forget("default", "s5")
        record.changed(Entry("enroll", "default", "later"), COMMAND)
        read += reading
    assert [line["number"] for line in read] == list(range(1, 8))
    assert read[5]["subject_id"] is None
    assert chain.check(read).lines == 7


@pytest.mark.sqlite
def test_a_gallery_s_lines_are_read_in_order_by_an_index(record: AuditRecord) -> None:
    for number in range(6):
        record.changed(Entry("enroll", f"g{number % 2}", f"s{number}"), COMMAND)
    day = timedelta(days=1)
    for since, until in ((None, None), (now() - day, now() + day)):
        with plans(record._engine) as found:
            read = record.lines(gallery="g1", since=since, until=until)
            assert [line["number"] for line in read] == [2, 4, 6]
        pages = [plan for statement, plan in found.items() if "audit.gallery = ?" in statement]
        assert pages
        for plan in pages:
            assert plan == [
                "SEARCH audit USING INDEX ix_audit_gallery (gallery=? AND number>? AND number<?)"
            ]


@pytest.mark.sqlite
def test_who_was_forgotten_before_there_were_lines_of_it_is_accounted_for_by_the_migration(
    settings: Settings,
) -> None:
    path = file_of(settings)
    with opened(settings) as audit:
        for number in range(3):
            audit.changed(Entry("enroll", "default", f"s{number}"), COMMAND)
    with closing(sqlite3.connect(path)) as connection:  # as the version before left it
        connection.execute("UPDATE audit SET subject_id = NULL, salt = NULL WHERE number < 3")
        connection.execute("DROP INDEX ix_audit_gallery")
        connection.execute("UPDATE audit_version SET version_num = '0001_audit'")
        connection.commit()
    with opened(settings) as audit:
        told = list(audit.lines())[-1]
        assert (told["action"], told["actor"]) == ("forget_subjects", "service")
        assert told["details"] == {"lines": 2, "before": "0002_forgetting"}
        assert chain.check(audit.lines()).lines == 4
        audit.changed(Entry("enroll", "default", "s9"), COMMAND)
    with opened(settings) as audit:
        assert chain.check(audit.lines()).lines == 5


@pytest.mark.parametrize(
    ("tampering", "complaint"),
    [
        ("UPDATE audit SET details = '{\"n\":7}' WHERE number = 2", "line 2 was changed"),
        ("UPDATE audit SET at = '2020-01-01 00:00:00.000000' WHERE number = 2", "line 2 was"),
        ("UPDATE audit SET subject_id = 'other' WHERE number = 2", "line 2 names another subject"),
        ("UPDATE audit SET subject_id = 'x', salt = NULL WHERE number = 2", "names another"),
        ("DELETE FROM audit WHERE number = 2", "line 3 does not follow line 1"),
        ("UPDATE audit SET number = 4 WHERE number = 3", "line 4 does not follow line 2"),
    ],
)
@pytest.mark.sqlite
def test_whoever_changes_the_record_past_its_triggers_breaks_the_chain(
    settings: Settings, record: AuditRecord, tampering: str, complaint: str
) -> None:
    for number in range(3):
        record.changed(Entry("enroll", "default", f"s{number}", {"n": number}), COMMAND)
    with closing(sqlite3.connect(file_of(settings))) as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type='trigger'"):
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute(tampering)
        connection.commit()
    with pytest.raises(chain.Broken, match=complaint):
        chain.check(record.lines())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limited(settings: Settings, clock: Clock) -> Iterator[AuditRecord]:
    """A record whose lines are dropped after 30 days."""
    with opened(settings.model_copy(update={"audit_max_age_days": 30}), clock=clock) as audit:
        yield audit


def write(audit: AuditRecord, clock: Clock, *entries: tuple[str, int]) -> None:
    """Record actions, each as so many days ago."""
    for action, clock.days in entries:
        audit.changed(Entry(action), SERVICE)
    clock.days = 0


def test_lines_over_the_age_limit_are_dropped_and_the_rest_is_a_chain(
    limited: AuditRecord, clock: Clock
) -> None:
    write(limited, clock, ("old", 40), ("old", 40), ("old", 40), ("new", 0))
    limited.tidy()
    kept = list(limited.lines())
    assert [(line["number"], line["action"]) for line in kept] == [
        (4, "new"), (5, "drop_old_lines"),
    ]  # fmt: skip
    assert kept[-1]["details"] == {"lines": 3}
    assert chain.check(kept).first == 4
    limited.tidy()
    assert len(list(limited.lines())) == 2  # nothing dropped is nothing told


def test_a_clock_that_was_wrong_for_a_while_leaves_no_gap_in_the_chain(
    limited: AuditRecord, clock: Clock
) -> None:
    write(limited, clock, ("old", 40), ("new", 0), ("after a restart", 20_000), ("newer", 0))
    limited.tidy()
    kept = list(limited.lines())
    assert [line["action"] for line in kept] == [
        "new", "after a restart", "newer", "drop_old_lines",
    ]  # fmt: skip
    assert chain.check(kept).first == 2


def test_the_last_line_stays_however_old_so_that_the_chain_goes_on(
    limited: AuditRecord, clock: Clock
) -> None:
    write(limited, clock, ("old", 40))
    limited.tidy()
    limited.changed(Entry("new"), SERVICE)
    assert chain.check(limited.lines()).lines == 2


def test_two_processes_write_one_chain(settings: Settings, record: AuditRecord) -> None:
    def search(audit: AuditRecord) -> None:
        for _ in range(40):
            audit.read(Entry("identify", "default"), Actor("anyone"))

    with opened(settings) as other:
        threads = [threading.Thread(target=search, args=(audit,)) for audit in (record, other) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert chain.check(record.lines()).lines == 160


def test_a_command_records_before_the_change_and_undoes_it_when_it_cannot(
    settings: Settings, record: AuditRecord
) -> None:
    engine = open_engine(settings)

    def refuse(_key: object) -> None:
        raise IntegrityError("no", None, Exception())

    with pytest.raises(IntegrityError):
        create_key(engine, [Scope.ADMIN], in_transaction=refuse)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM api_key").scalar_one() == 0
    engine.dispose()


def test_turned_off_it_records_nothing_and_still_forgets(serve: Serve) -> None:
    on = serve()
    enrol(on, "anna", walk(1))
    off = serve(audit=False)
    identify(off, walk(1))
    enrol(off, "bert", walk(2))
    assert actions(off) == [("enroll", "anna")]
    off.delete("/subjects/anna")
    assert actions(off) == [("enroll", None), ("forget_subjects", None)]


async def _read_together(record: AuditRecord, many: int) -> list[BaseException | None]:
    """Readings that are all there before the first of them is recorded."""
    begin = threading.Event()
    held = record._thread.submit(begin.wait)

    async def read(number: int) -> None:
        request_id.set(f"r{number}")
        await record.answered(Entry("identify", "default"), COMMAND)

    tasks = [asyncio.create_task(read(number)) for number in range(many)]
    await asyncio.sleep(0)
    begin.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert held.result()
    return results


def test_what_was_read_at_one_moment_is_recorded_in_one_transaction(record: AuditRecord) -> None:
    commits: list[object] = []
    event.listen(record._engine, "commit", commits.append)
    assert asyncio.run(_read_together(record, 20)) == [None] * 20
    assert len(commits) == 1
    recorded = list(record.lines())
    assert [line["request_id"] for line in recorded] == [f"r{number}" for number in range(20)]
    assert chain.check(recorded).lines == 20


def test_what_cannot_be_recorded_is_not_answered_and_the_next_reading_is(
    record: AuditRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OperationalError("INSERT", None, Exception("full"))

    with monkeypatch.context() as broken:
        broken.setattr(record, "_add", full)
        failed = asyncio.run(_read_together(record, 3))
    assert [type(error) for error in failed] == [OperationalError] * 3
    assert list(record.lines()) == []
    assert asyncio.run(_read_together(record, 2)) == [None, None]
    assert chain.check(record.lines()).lines == 2


@pytest.mark.timeout(120)
def test_after_kill_9_every_search_that_was_answered_is_in_the_record(
    tmp_path: Path, models: Path
) -> None:
    answered: set[str] = set()

    def search(address: str) -> None:
        with httpx.Client(base_url=address, timeout=10) as client:
            while True:
                try:
                    answer = identify(client, walk(1, frames=24))
                except httpx.TransportError:
                    return
                answered.add(answer.json()["search_id"])

    with process(tmp_path, models) as (running, address):
        threads = [threading.Thread(target=search, args=(address,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(answered) < 20:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(20)
    with process(tmp_path, models) as (_, address), httpx.Client(base_url=address) as client:
        wait_until(client, "/readyz")
        recorded = lines(client)
    chain.check(recorded)
    searches = {line["details"].get("search_id") for line in recorded}
    assert len(answered) >= 20
    assert answered <= searches
    assert len(searches - {None}) <= len(answered) + 3
