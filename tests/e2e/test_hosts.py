"""Hosts with nothing in common but a database and a store, as they are deployed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from models.card import CARD, WEIGHTS
from service.client import Client
from service.storage.file_store import FileStore
from tests.e2e.deployment import Deployment, until
from tests.service import postgresql
from tests.service.conftest import save_tiny_model
from tests.service.storage.stores import new_bucket, opened, s3_server, variables
from tests.service.walkers import walk

AddHost = Callable[[str], Deployment]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileStore]:
    """An S3 store, which the environment names."""
    with s3_server() as port:
        for name, value in variables(port).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GAITID_STORE", f"s3://{new_bucket(port)}/gaitid")
        yield opened(os.environ["GAITID_STORE"])


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of the hosts' database: a SQLite file that all reach, or a server."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield f"sqlite:///{tmp_path / 'common.sqlite'}"
        return
    programs = postgresql.binaries()
    if programs is None:
        pytest.skip("there is no PostgreSQL on this machine (Debian: apt-get install postgresql)")
    with postgresql.running(programs) as server:
        yield server.url(server.create())


@pytest.fixture
def add_host(store: FileStore, database: str, tmp_path: Path, shipped: Path) -> Iterator[AddHost]:
    """Makes a host; what runs on it ends with the test."""
    with ExitStack() as stack:

        def add(name: str) -> Deployment:
            (tmp_path / name).mkdir()
            host = Deployment(tmp_path / name, shipped)
            host.set(GAITID_DATABASE_URL=database)
            stack.callback(lambda: host.process is not None and host.stop())
            return host

        yield add


def answered_by(client: Client, person: int) -> tuple[str, str]:
    """The model that answered, and who was found first."""
    found = client.identify(("probe.npz", walk(person, phase=0.3)))
    return found.model.name, found.candidates[0].subject_id


def test_two_hosts_distil_on_one_and_serve_the_result_on_both(
    add_host: AddHost, store: FileStore, tmp_path: Path
) -> None:
    front, back = add_host("front"), add_host("back")
    one = front.start("--no-worker")  # so that every job is the other's
    two = back.start()
    assert (front.data / "receipts.key").read_bytes() == (back.data / "receipts.key").read_bytes()
    for person in (1, 2):
        one.enroll(f"p{person}", [("walk.npz", walk(person))])
    teacher = tmp_path / "teacher"
    save_tiny_model(teacher, seed=1)
    files = [(name, (teacher / name).read_bytes()) for name in (WEIGHTS, CARD)]
    one.upload_model("teacher", weights=files[0], card=files[1])
    job = one.distill(
        recipe="demo", name="mine", dataset={"gallery": "default"}, teachers=["teacher"]
    )
    until(lambda: one.job(job.id).ended, "the distillation ended")
    assert (one.job(job.id).status, one.job(job.id).error) == ("succeeded", None)
    assert not (front.data / "models" / "mine").exists()
    assert one.model("mine").digest == two.model("mine").digest
    assert list(store.keys("jobs")) == []

    activation = one.activate("mine")
    until(lambda: one.job(activation.id).ended, "the activation ended")
    for client in (one, two):
        until(lambda: answered_by(client, 2) == ("mine", "p2"), "the new model answers")  # noqa: B023

    assert one.erase_subject("p1").models == ["mine"]
    one.rollback()
    for client in (one, two):
        until(lambda: answered_by(client, 2) == ("default", "p2"), "the old model answers")  # noqa: B023


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_distillation_whose_host_dies_goes_on_at_another_from_its_last_state(
    add_host: AddHost, store: FileStore
) -> None:
    front, dying, spare = add_host("front"), add_host("dying"), add_host("spare")
    client = front.start("--no-worker")
    client.enroll("p1", [("walk.npz", walk(1))])
    dying.start()
    job = client.distill(
        recipe="demo",
        name="mine",
        dataset={"gallery": "default"},
        teachers=["default"],
        overrides={"steps": 60, "seconds": 0.1},
    )
    until(lambda: any("state.pt" in key for key in store.keys(f"jobs/{job.id}")), "a state is kept")
    until(lambda: client.job(job.id).progress.step >= 15, "progress")
    dying.stop(signal.SIGKILL)
    spare.start()
    until(lambda: client.job(job.id).ended, "the job ended")
    assert (client.job(job.id).status, client.job(job.id).error) == ("succeeded", None)
    begun = [event.data["step"] for event in client.follow(job.id) if event.kind == "start"]
    assert begun[0] == 0
    assert begun[1] >= 1
    assert client.model("mine").source == "trained"
    assert list(store.keys("jobs")) == []
