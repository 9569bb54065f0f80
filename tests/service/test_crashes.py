"""kill -9 at any moment: what was acknowledged is found after a restart, and nothing else."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine

from service.foundation.errors import NotFound
from service.foundation.settings import Settings
from service.gallery.store import GalleryStore
from service.storage.encryption import new_secret
from service.transfer.export import export_gallery
from tests.service.jobs.galleries import enrol as enrol_some
from tests.service.requests import contents, enrol, identify, problem
from tests.service.server import wait_until
from tests.service.walkers import walk

ROOT = Path(__file__).parents[2]
KILLED_IMPORT = Path(__file__).parent / "killed_import.py"


@contextmanager
def process(data_dir: Path, models: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The service as a process of its own, ready; killed at the end if it still runs."""
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = chosen.getsockname()[1]
    environment = {
        **os.environ,
        "GAITID_DATA_DIR": str(data_dir),
        "GAITID_SHIPPED_MODELS_DIR": str(models),
        "GAITID_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "service.http.app:create_app"]
    running = subprocess.Popen(
        [*command, "--port", str(port), "--no-access-log"],
        env=environment,
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=address) as client:
            wait_until(client, "/readyz", 60)
        yield running, address
    finally:
        running.kill()
        running.wait(10)


def enrol_until_it_dies(address: str, who: str, acknowledged: set[str], tried: set[str]) -> None:
    """Enrol one new subject of two walks after another, keeping count of the answers."""
    with httpx.Client(base_url=address, timeout=10) as client:
        for number in range(10_000):
            subject = f"{who}-{number}"
            tried.add(subject)
            try:
                answer = enrol(client, subject, walk(number % 5, frames=24), walk(7, frames=24))
            except httpx.TransportError:
                return
            assert answer.status_code == 201, answer.text
            acknowledged.add(subject)


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "with keys of the walks' own"])
@pytest.mark.timeout(120)
def test_after_kill_9_every_acknowledged_enrolment_is_found_and_nothing_half_done(
    tmp_path: Path,
    models: Path,
    database: str | None,
    monkeypatch: pytest.MonkeyPatch,
    sealed: bool,
) -> None:
    if sealed:
        monkeypatch.setenv("GAITID_ENCRYPTION_KEYS", new_secret())
        monkeypatch.setenv("GAITID_WALK_KEYS_URL", f"sqlite:///{tmp_path / 'walk-keys.sqlite'}")
    acknowledged: set[str] = set()
    in_flight: set[str] = set()
    moments = random.Random(5)  # noqa: S311
    for life in range(2):
        tried: set[str] = set()
        with process(tmp_path, models) as (running, address):
            threads = [
                threading.Thread(
                    target=enrol_until_it_dies,
                    args=(address, f"life{life}-client{number}", acknowledged, tried),
                )
                for number in range(3)
            ]
            for thread in threads:
                thread.start()
            before, deadline = len(acknowledged), time.monotonic() + 30
            while len(acknowledged) == before and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(moments.uniform(0.0, 0.7))
            running.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join(20)
        in_flight |= tried - acknowledged
    assert acknowledged
    assert len(in_flight) <= 6  # one a client and life

    with (
        process(tmp_path, models) as (_, address),
        httpx.Client(base_url=address) as client,
    ):
        found = contents(client)
        subjects = set(found) - {""}
        # An enrolment that was committed but not answered before the kill may be there, whole.
        assert acknowledged <= subjects <= acknowledged | in_flight
        assert {len(found[subject]["sequences"]) for subject in subjects} == {2}
        assert found[""]["sequences"] == 2 * len(subjects)
        answer = identify(client, walk(7, frames=24), top_k="100").json()
        listed = {item["subject_id"] for item in answer["candidates"]}
        assert listed <= subjects
        assert len(listed) == min(100, len(subjects))


def correct_until_it_dies(address: str, sequence: str, answered: list[str]) -> None:
    """Rename a subject of two walks, give one of them away and back, again and again."""
    with httpx.Client(base_url=address, timeout=10) as client:
        for number in range(10_000):
            new = f"name-{number + 1}"
            calls = (
                (f"/sequences/{sequence}", {"subject_id": "other"}),
                (f"/sequences/{sequence}", {"subject_id": answered[-1]}),
                (f"/subjects/{answered[-1]}", {"subject_id": new, "display_name": new}),
            )
            for path, content in calls:
                try:
                    answer = client.patch(path, json=content)
                except httpx.TransportError:
                    return
                assert answer.status_code == 200, answer.text
            answered.append(new)


@pytest.mark.timeout(120)
def test_after_kill_9_a_correction_was_made_whole_or_not_at_all(
    tmp_path: Path, models: Path, database: str | None
) -> None:
    with process(tmp_path, models) as (running, address):
        with httpx.Client(base_url=address) as client:
            walks = enrol(client, "name-0", walk(1, frames=24), walk(2, frames=24)).json()
            enrol(client, "other", walk(3, frames=24))
        moving, staying = (item["sequence_id"] for item in walks["sequences"])
        answered = ["name-0"]
        corrections = threading.Thread(
            target=correct_until_it_dies, args=(address, moving, answered)
        )
        corrections.start()
        while len(answered) < 3:
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
        corrections.join(20)

    with (
        process(tmp_path, models) as (_, address),
        httpx.Client(base_url=address) as client,
    ):
        found = contents(client)
        assert found.pop("")["sequences"] == 3
        (named,) = set(found) - {"other"}
        assert named in (answered[-1], f"name-{len(answered)}")  # answered last, or not any more
        assert found[named]["display_name"] == named
        whose = {
            item["sequence_id"]: subject
            for subject, shown in found.items()
            for item in shown["sequences"]
        }
        assert (whose[staying], len(whose)) == (named, 3)
        assert whose[moving] in (named, "other")
        best = identify(client, walk(1, frames=24)).json()["candidates"][0]
        assert (best["subject_id"], best["sequence_id"]) == (whose[moving], moving)


@pytest.mark.timeout(120)
def test_whose_log_was_removed_before_kill_9_everybody_acknowledged_is_found(
    tmp_path: Path, models: Path
) -> None:
    acknowledged: set[str] = set()
    with process(tmp_path, models) as (running, address), httpx.Client(base_url=address) as client:
        for number in range(8):
            if number == 4:
                (tmp_path / "gaitid.sqlite-wal").unlink()
            answer = enrol(client, f"s{number}", walk(number % 5, frames=24))
            if answer.status_code == 201:
                acknowledged.add(f"s{number}")
            else:
                assert problem(answer, 503)["type"] == "/problems/database-unavailable"
        problem(client.get("/readyz"), 503)
        assert client.get("/healthz").status_code == 200
        running.send_signal(signal.SIGKILL)
        running.wait(10)
    assert len(acknowledged) >= 4
    with process(tmp_path, models) as (_, address), httpx.Client(base_url=address) as client:
        assert set(contents(client)) - {""} == acknowledged
        assert enrol(client, "later", walk(1, frames=24)).status_code == 201


def test_an_import_killed_in_the_middle_of_its_transaction_leaves_nothing(
    settings: Settings, engine: Engine, store: GalleryStore, tmp_path: Path
) -> None:
    url = settings.resolved_database_url
    for subject in ("anna", "bert"):
        enrol_some(store, "default", subject, 200)
    export_gallery(engine, "default", tmp_path / "lab.zip")

    def import_it(after: int) -> int:
        lab = str(tmp_path / "lab.zip")
        command = [sys.executable, str(KILLED_IMPORT), url, lab, str(after)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, timeout=60, check=False).returncode

    assert import_it(after=600) == -signal.SIGKILL  # a first batch has been written by then
    with pytest.raises(NotFound):
        store.gallery("copy")
    assert store.gallery("default").sequences == 400
    with engine.connect() as connection:
        sequences = connection.exec_driver_sql("SELECT count(*) FROM sequence").scalar_one()
        assert sequences == 400
        if engine.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
    assert import_it(after=800) == 0
    assert store.gallery("copy").sequences == 400


@pytest.mark.timeout(120)
def test_a_service_killed_while_an_import_arrives_leaves_no_file(
    tmp_path: Path, models: Path
) -> None:
    def unexpected() -> list[str]:
        names = {path.name for path in tmp_path.iterdir()}
        return sorted(name for name in names - {"receipts.key", "reserve"} if ".sqlite" not in name)

    with process(tmp_path, models) as (running, address):
        with httpx.Client(base_url=address) as client:
            enrol(client, "anna", walk(1))
            file = client.get("/galleries/default/export").content

        def half() -> Iterator[bytes]:
            yield file[: len(file) // 2] + bytes(3 * 2**20)
            time.sleep(0.3)  # let it arrive
            running.send_signal(signal.SIGKILL)
            running.wait(10)
            yield file

        with pytest.raises(httpx.TransportError):
            httpx.put(f"{address}/galleries/copy/import", content=half(), timeout=20)
    assert unexpected() == []

    with process(tmp_path, models) as (_, address), httpx.Client(base_url=address) as client:
        assert [item["name"] for item in client.get("/galleries").json()["items"]] == ["default"]
        assert client.put("/galleries/copy/import", content=file).status_code == 201
        assert client.get("/galleries/copy").json()["sequences"] == 1
        assert unexpected() == []
