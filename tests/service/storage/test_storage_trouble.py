"""A full disk, a locked or read-only database: a clear answer, no half of a write, reads go on."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from service.client import Client, StorageFull
from service.foundation.settings import Settings
from service.http.problems import render_http
from service.http.routes import audited
from service.http.serve import CannotServe
from service.http.serve import serve as serve_forever
from service.storage.reserve import Reserve
from tests.e2e.deployment import until
from tests.service.conftest import save_tiny_model
from tests.service.requests import contents, enrol, identify, problem
from tests.service.server import Serve
from tests.service.statements import pragma_of_every_connection
from tests.service.walkers import walk

UNLIMITED = "max_page_count=1000000"


@contextmanager
def write_lock(data_dir: Path) -> Iterator[None]:
    """Another process in the middle of writing."""
    with closing(sqlite3.connect(data_dir / "gaitid.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_a_full_disk_is_507_and_nothing_is_half_written(serve: Serve, tmp_path: Path) -> None:
    with pragma_of_every_connection(UNLIMITED) as change:
        client = serve()
        enrol(client, "anna", walk(1))
        before = contents(client)
        change("max_page_count=1")  # as many as there are: not one more
        body = problem(enrol(client, "bert", walk(2), walk(3)), 507)
        assert body["type"] == "/problems/storage-full"
        assert "Free space" in body["detail"]
        assert contents(client) == before
        change(UNLIMITED)
        assert enrol(client, "bert", walk(2)).status_code == 201
        assert identify(client, walk(2)).json()["candidates"][0]["subject_id"] == "bert"
    with closing(sqlite3.connect(tmp_path / "data" / "gaitid.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []


def test_a_search_that_finds_no_space_to_be_recorded_is_507(serve: Serve) -> None:
    with pragma_of_every_connection(UNLIMITED) as change:
        client = serve()
        enrol(client, "anna", walk(1))
        change("max_page_count=1")
        answered = 0
        while (answer := identify(client, walk(1))).status_code == 200:
            answered += 1  # the last page of the record has some room
            assert answered < 100
        assert problem(answer, 507)["type"] == "/problems/storage-full"
        assert client.get("/subjects/anna").status_code == 200
        change(UNLIMITED)
        assert identify(client, walk(1)).status_code == 200
        lines = client.get("/audit").text
        assert lines.count('"identify"') == answered + 1


def test_without_the_record_searches_go_on_with_a_full_disk(serve: Serve) -> None:
    with pragma_of_every_connection(UNLIMITED) as change:
        client = serve(audit=False)
        enrol(client, "anna", walk(1))
        change("max_page_count=1")
        for _ in range(100):
            assert identify(client, walk(1)).status_code == 200
        change(UNLIMITED)


@contextmanager
def refusing(writes: str, code: int, when: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """A database that answers a statement that begins so with an error of SQLite's, at times."""

    def refuse(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(writes) and when():
            error = sqlite3.OperationalError("busy or full")
            error.sqlite_errorcode = code
            raise OperationalError(statement, None, error)

    event.listen(Engine, "before_cursor_execute", refuse)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", refuse)


@contextmanager
def full_while(path: Path, writes: str = "DELETE FROM sequence") -> Iterator[None]:
    """A disk on which no row can be deleted, or so, while the file is there."""

    with refusing(writes, sqlite3.SQLITE_FULL, path.exists):
        yield


def wait_for_reserve(path: Path, size: int) -> None:
    """The first sweep takes it."""
    deadline = time.monotonic() + 20
    while not path.exists() or path.stat().st_size < size:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_disk_can_be_erased_from_with_the_space_reserved_for_that(
    serve: Serve, tmp_path: Path
) -> None:
    client = serve(reserve_bytes=50_000)
    reserve = tmp_path / "data" / "reserve"
    enrol(client, "anna", walk(1))
    enrol(client, "bert", walk(2))
    wait_for_reserve(reserve, 50_000)
    assert reserve.stat().st_blocks * 512 >= 50_000
    with full_while(reserve):
        assert client.delete("/subjects/anna").status_code == 200
    assert client.get("/subjects").json()["items"][0]["subject_id"] == "bert"
    assert reserve.stat().st_size == 50_000  # taken again
    with full_while(tmp_path):  # and that was not enough
        problem(client.delete("/subjects/bert"), 507)
    assert client.get("/subjects/bert").status_code == 200


@pytest.mark.parametrize("writes", ["UPDATE audit", "INSERT INTO audit"])
def test_the_space_reserved_for_erasures_is_also_for_what_the_record_has_of_them(
    serve: Serve, tmp_path: Path, writes: str
) -> None:
    client = serve()
    reserve = tmp_path / "data" / "reserve"
    enrol(client, "anna", walk(1))
    wait_for_reserve(reserve, 4096)
    with full_while(reserve, writes):
        assert client.delete("/subjects/anna").status_code == 200
    lines = [json.loads(line) for line in client.get("/audit").text.splitlines()][:3]
    assert [line["action"] for line in lines] == ["enroll", "forget_subjects", "erase_subject"]
    assert [line["subject_id"] for line in lines] == [None, None, None]
    assert reserve.exists()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL])
def test_an_erasure_that_cannot_be_recorded_is_said_to_be_made_and_is_not_sent_again(
    serve: Serve, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audited, "_RECORDED_WITHIN_S", 0.5)
    client = serve()
    enrol(client, "anna", walk(1))

    with (
        refusing("INSERT INTO audit", code),
        Client(str(client.base_url)) as calling,
        pytest.raises(StorageFull) as refusal,
    ):
        calling.erase_subject("anna")
    assert refusal.value.slug == "erasure-unrecorded"
    assert "1 sequences" in refusal.value.detail
    assert client.get("/subjects/anna").status_code == 404


def test_an_erasure_waits_for_a_record_that_is_away_for_a_moment(serve: Serve) -> None:
    client = serve()
    enrol(client, "anna", walk(1))
    tries = itertools.count()
    with refusing("INSERT INTO audit", sqlite3.SQLITE_BUSY, lambda: next(tries) < 2):
        assert client.delete("/subjects/anna").status_code == 200
    assert next(tries) > 2
    lines = [json.loads(line) for line in client.get("/audit").text.splitlines()]
    assert [line["action"] for line in lines].count("erase_subject") == 1


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL])
def test_an_erasure_answers_as_made_whatever_the_index_in_memory_would_have_to_write(
    serve: Serve, tmp_path: Path, code: int
) -> None:
    client = serve()
    enrol(client, "anna", walk(1))
    assert identify(client, walk(1)).status_code == 200  # the index is in memory
    enrol(client, "bert", walk(2))
    with closing(sqlite3.connect(tmp_path / "data" / "gaitid.sqlite")) as other:
        # As when another process enrols with another model: embedded when the index follows.
        other.execute(
            "DELETE FROM embedding WHERE sequence_id ="
            " (SELECT id FROM sequence WHERE subject_id = 'bert')"
        )
        other.commit()
    with refusing("INSERT INTO embedding", code):
        receipt = client.delete("/subjects/anna")
    assert receipt.status_code == 200
    assert receipt.json()["erased"]["sequences"] == 1
    assert '"erase_subject"' in client.get("/audit").text
    found = identify(client, walk(1)).json()["candidates"]
    assert [candidate["subject_id"] for candidate in found] == ["bert"]


def test_an_erasure_that_leaves_files_of_jobs_behind_is_recorded_all_the_same(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve()
    enrol(client, "anna", walk(1))

    def busy(*_: object) -> None:
        raise OSError(errno.ENOTEMPTY, "files appear as fast as they are removed")

    monkeypatch.setattr("service.privacy.erasure.remove_scratch", busy)
    assert client.delete("/subjects/anna").status_code == 200
    assert '"erase_subject"' in client.get("/audit").text
    assert "something is left" in caplog.text


def test_a_service_without_a_reserve_keeps_none(serve: Serve, tmp_path: Path) -> None:
    client = serve(reserve_bytes=0)
    enrol(client, "anna", walk(1))
    with full_while(tmp_path):
        problem(client.delete("/subjects/anna"), 507)
    assert not (tmp_path / "data" / "reserve").exists()


def test_a_disk_with_no_room_for_a_reserve_is_said_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    Reserve(tmp_path / "reserve", 4096).fill()
    assert "no space to reserve" in caplog.text
    assert not (tmp_path / "reserve").exists()


def test_a_reserve_takes_what_there_is_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = 80
    take = os.posix_fallocate

    def nearly_full(file: int, begin: int, size: int) -> None:
        if size > os.fstat(file).st_size + blocks * 4096:
            raise OSError(errno.ENOSPC, "No space left on device")
        take(file, begin, size)

    def left(_file: int) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=blocks, f_frsize=4096)

    monkeypatch.setattr("os.posix_fallocate", nearly_full)
    monkeypatch.setattr("os.fstatvfs", left)
    reserve = Reserve(tmp_path / "reserve", 10**6)
    reserve.fill()
    held = (tmp_path / "reserve").stat().st_size
    assert 80 * 4096 * 3 // 4 < held < 80 * 4096
    assert f"only {held} bytes" in caplog.text
    blocks = 1
    reserve.fill()
    assert (tmp_path / "reserve").stat().st_size == held
    blocks = 1000
    reserve.fill()
    assert (tmp_path / "reserve").stat().st_size == 10**6


def test_an_import_that_fills_the_disk_is_507_and_leaves_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pragma_of_every_connection(UNLIMITED) as change:
        client = serve()
        enrol(client, "anna", *(walk(1, phase=phase) for phase in range(9)))
        file = client.get("/galleries/default/export").content
        # In the transaction.
        change("max_page_count=1")
        refused = client.put("/galleries/copy/import", content=file)
        assert problem(refused, 507)["type"] == "/problems/storage-full"
        change(UNLIMITED)
        # While the file arrives, and while it is looked through.
        for room in (1000, len(file) + 1000):
            monkeypatch.setattr("service.transfer.portability.TemporaryFile", small_disk(room))
            problem(client.put("/galleries/copy/import", content=file), 507)
        monkeypatch.undo()
        problem(client.get("/galleries/copy"), 404)
        assert client.put("/galleries/copy/import", content=file).status_code == 201
        assert client.get("/galleries/copy").json()["sequences"] == 9


def small_disk(room: int) -> Callable[..., Any]:
    """Temporary files of which all together take so many bytes."""

    class Small(io.BytesIO):
        def __init__(self, **_: object) -> None:
            super().__init__()

        def write(self, data: Any) -> int:
            nonlocal room
            room -= len(data)
            if room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

        def writelines(self, pieces: Any) -> None:
            for piece in pieces:
                self.write(piece)

    return Small


def test_an_upload_that_finds_no_space_to_be_spooled_is_507() -> None:
    error = HTTPException(400, "There was an error parsing the body")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert render_http(error).status_code == 507


@pytest.mark.parametrize("again", [{}, {"Idempotency-Key": "k"}])
def test_a_full_temporary_folder_is_not_said_to_be_the_data_folder(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, again: dict[str, str]
) -> None:
    client = serve()

    def full(**_: object) -> io.FileIO:
        return io.FileIO("/dev/full", "r+")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    upload = {"sequence": ("walk.npz", bytes(3 * 2**20))}
    refused = client.post("/identify", files=upload, headers=again)
    body = problem(refused, 507)
    assert body["type"] == "/problems/storage-full"
    assert "temporary folder" in body["detail"]
    assert "keeps its data" not in body["detail"]


def test_no_temporary_folder_at_all_is_503(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = serve()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    upload = {"sequence": ("walk.npz", bytes(3 * 2**20))}
    body = problem(client.post("/identify", files=upload), 503)
    assert "temporary folder" in body["detail"]
    assert str(tmp_path) not in body["detail"]


def test_a_database_that_cannot_be_written_is_503_and_still_read_and_the_log_names_nobody(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    with pragma_of_every_connection("query_only=OFF") as change:
        client = serve()
        enrol(client, "anna", walk(1))
        change("query_only=ON")
        refused = enrol(client, "a-very-private-id", walk(2))
        assert problem(refused, 503)["type"] == "/problems/database-unavailable"
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/subjects/anna").status_code == 200
        problem(identify(client, walk(1)), 503)  # it could not be recorded
        change("query_only=OFF")
    logged = " ".join(record.getMessage() + str(record.exc_info) for record in caplog.records)
    assert "database-unavailable" in logged
    assert "a-very-private-id" not in logged


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EIO, errno.EMFILE])
def test_a_data_folder_that_cannot_be_written_is_503(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    client = serve()

    def refuse(**_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("service.serving.uploading.TemporaryDirectory", refuse)
    files = {"weights": b"x", "card": b"x"}
    answer = client.post("/models", data={"name": "mine"}, files=files)
    assert problem(answer, 503)["type"] == "/problems/database-unavailable"
    assert str(tmp_path) not in answer.text


@pytest.mark.parametrize("file", ["gaitid.sqlite", "audit.sqlite"])
def test_a_database_that_is_gone_or_replaced_is_503_until_it_is_back(
    serve: Serve, tmp_path: Path, file: str
) -> None:
    """SQLite would write on into the removed file, and what is acknowledged would be lost."""
    client = serve()
    enrol(client, "anna", walk(1))
    folder = next(tmp_path.rglob(file)).parent
    aside = folder.rename(folder.with_name("aside"))
    for _ in range(2):
        assert problem(enrol(client, "bert", walk(2)), 503)["type"] == (
            "/problems/database-unavailable"
        )
        problem(identify(client, walk(1)), 503)
        problem(client.delete("/subjects/anna"), 503)
        assert "database" in problem(client.get("/readyz"), 503)["detail"]
        assert client.get("/healthz").status_code == 200
        assert not (folder / file).exists()
        folder.mkdir(exist_ok=True)
    shutil.copy(aside / file, folder / file)
    problem(enrol(client, "bert", walk(2)), 503)
    shutil.rmtree(folder)
    aside.rename(folder)
    assert client.get("/readyz").status_code == 200
    assert enrol(client, "bert", walk(2)).status_code == 201
    assert identify(client, walk(1)).status_code == 200
    assert client.get("/galleries/default").json()["subjects"] == 2


@pytest.mark.usefixtures("impatient")
def test_a_database_locked_for_long_is_503_with_retry_after(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    with write_lock(tmp_path / "data"):
        refused = enrol(client, "anna", walk(1))
        assert problem(refused, 503)["type"] == "/problems/database-busy"
        assert int(refused.headers["retry-after"]) >= 1
    assert enrol(client, "anna", walk(1)).status_code == 201


def test_enrolments_that_wait_for_the_database_hold_up_no_search(
    serve: Serve, tmp_path: Path
) -> None:
    client = serve(decode_workers=4, max_uploads=64)
    enrol(client, "anna", walk(1))
    patient = pragma_of_every_connection("busy_timeout=60000")  # however busy this machine is
    decoded = "gaitid_decode_duration_seconds_count 17.0"
    with patient, ThreadPoolExecutor(16) as clients:
        with write_lock(tmp_path / "data"):
            waiting = [clients.submit(enrol, client, f"s{i}", walk(1)) for i in range(16)]
            until(
                lambda: decoded in client.get("/metrics").text or any(w.done() for w in waiting),
                "they wait for the database",
            )
            for _ in range(5):
                assert identify(client, walk(1)).status_code == 200
            assert not [one.result().text for one in waiting if one.done()]
        assert [enrolment.result().status_code for enrolment in waiting] == [201] * 16


@pytest.mark.usefixtures("impatient")
def test_an_erasure_is_answered_though_a_reader_keeps_the_log_from_being_emptied(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve()
    enrol(client, "anna", walk(1))
    with closing(sqlite3.connect(tmp_path / "data" / "gaitid.sqlite")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM subject").fetchall()
        assert client.delete("/subjects/anna").status_code == 200
        assert "write-ahead log keeps what was erased" in caplog.text
    assert client.get("/subjects").json()["items"] == []


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[..., None]]:
    """Serves with changed settings; the handlers that serving sets are this test's only."""
    saved: dict[int, Any] = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }
    settings.data_dir.mkdir(parents=True)

    def run(**changes: Any) -> None:
        changed = settings.model_copy(update=changes)
        serve_forever(changed, socket.create_server(("127.0.0.1", 0)), with_worker=False)

    yield run
    for number, handler in saved.items():
        signal.signal(number, handler)


def test_what_keeps_the_service_from_starting_is_one_sentence(
    start: Callable[..., None], settings: Settings, tmp_path: Path
) -> None:
    (settings.data_dir / "receipts.key").write_bytes(b"not a key")
    with pytest.raises(CannotServe, match=r"receipts\.key in the data folder does not hold a key"):
        start()
    (settings.data_dir / "receipts.key").unlink()
    save_tiny_model(tmp_path / "models" / "default")
    with (tmp_path / "models" / "default" / "weights.safetensors").open("r+b") as weights:
        weights.truncate(1000)
    with pytest.raises(CannotServe, match="changed or damaged"):
        start(shipped_models_dir=tmp_path / "models")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "gaitid.sqlite").mkdir(parents=True)
    with pytest.raises(CannotServe, match="the database cannot be opened: unable to open"):
        start(data_dir=elsewhere)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that is asked for")
def test_a_gpu_that_is_not_there_is_one_sentence_at_start(start: Callable[..., None]) -> None:
    with pytest.raises(CannotServe, match="GAITID_DEVICE: device 'cuda' is not available"):
        start(device="cuda")
