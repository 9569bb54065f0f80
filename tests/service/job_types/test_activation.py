"""Activation and rollback over HTTP: a real server, a real worker, real children."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from service.foundation.settings import Settings
from service.gallery.tables import EmbeddingRow, GalleryRow, SequenceRow
from tests.e2e.deployment import until
from tests.service.conftest import save_tiny_model
from tests.service.jobs.workers import Workers
from tests.service.requests import enrol, identify, problem, verify
from tests.service.server import Serve
from tests.service.walkers import walk

PEOPLE = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one kind whose embeddings, thresholds and parts have nothing in common."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "default", threshold=0.991)
    save_tiny_model(folder / "other", seed=1, threshold=0.982, parts=8)
    save_tiny_model(folder / "third", seed=2, threshold=0.973)
    save_tiny_model(folder / "bare", seed=3, threshold=None)
    return folder


def ended(client: httpx.Client, started: httpx.Response) -> dict[str, Any]:
    """The job, once it has ended."""
    assert started.status_code == 202, started.text

    def job() -> dict[str, Any] | None:
        shown: dict[str, Any] = client.get(started.headers["location"]).json()
        return shown if shown["finished_at"] else None

    return cast(dict[str, Any], until(job, "the job has ended"))


def answers_with(client: httpx.Client, name: str, gallery: str = "default") -> dict[str, Any]:
    """An identification by this model, which the process may take a moment to load."""

    def answer() -> dict[str, Any] | None:
        body: dict[str, Any] = identify(client, walk(1), gallery=gallery).json()
        return body if body["model"]["name"] == name else None

    return cast(dict[str, Any], until(answer, f"{name} answers", timeout_s=15))


def fill(client: httpx.Client, gallery: str = "default") -> None:
    for person in range(PEOPLE):
        answer = enrol(client, f"p{person}", walk(person), walk(person, phase=1.0), gallery=gallery)
        assert answer.status_code == 201


def serve_two_galleries(serve: Serve) -> httpx.Client:
    """A service with the same people in the galleries `default` and `lab`."""
    client = serve()
    client.post("/galleries", json={"name": "lab"})
    fill(client)
    fill(client, "lab")
    return client


def test_a_gallery_is_given_another_model_and_back_and_others_keep_theirs(
    serve: Serve, workers: Workers
) -> None:
    client = serve_two_galleries(serve)
    digests = {model["name"]: model["digest"] for model in client.get("/models").json()["items"]}
    before = identify(client, walk(1)).json()
    assert before["model"] == {"name": "default", "digest": digests["default"]}
    with workers():
        job = ended(client, client.post("/models/other/activate", json={"gallery": "default"}))
    assert (job["status"], job["error"]) == ("succeeded", None)
    result = job["result"]
    assert (result["model"], result["digest"]) == ("other", digests["other"])
    assert result["previous"] == {"name": "default", "digest": digests["default"]}
    assert (result["sequences"], result["embedded"]) == (2 * PEOPLE, 2 * PEOPLE)
    compared = result["comparison"]
    assert (compared["subjects"], compared["searches"]) == (PEOPLE, 2 * PEOPLE)
    assert {"rank1_new", "rank1_old", "agreement", "interval", "difference"} <= set(compared)

    after = answers_with(client, "other")
    assert after["model"]["digest"] == digests["other"]
    assert after["threshold"] == 0.982
    assert after["candidates"][0]["subject_id"] == "p1"
    assert verify(client, "p1", walk(1)).json()["model"] == after["model"]
    assert enrol(client, "late", walk(9)).json()["model"] == after["model"]
    assert identify(client, walk(9)).json()["candidates"][0]["subject_id"] == "late"
    assert identify(client, walk(1), gallery="lab").json()["model"] == before["model"]
    shown = client.get("/galleries/default").json()
    assert (shown["model"]["name"], shown["previous_model"]["name"]) == ("other", "default")
    listed = {model["name"]: model for model in client.get("/models").json()["items"]}
    assert listed["other"]["active_in"] == ["default"]
    assert (listed["default"]["active_in"], listed["default"]["previous_in"]) == (
        ["lab"], ["default"],
    )  # fmt: skip

    job = ended(client, client.post("/models/rollback", json={"gallery": "default"}))
    assert (job["type"], job["status"], job["result"]["model"]) == (
        "rollback", "succeeded", "default",
    )  # fmt: skip
    back = identify(client, walk(9)).json()  # at once, and with what was enrolled meanwhile
    assert (back["model"], back["threshold"]) == (before["model"], 0.991)
    assert back["candidates"][0]["subject_id"] == "late"
    restarted = serve()
    assert identify(restarted, walk(1)).json()["model"] == before["model"]
    assert client.post("/models/rollback").status_code == 202
    assert answers_with(client, "other")["threshold"] == 0.982
    assert answers_with(restarted, "other")["threshold"] == 0.982  # another process notices too


def test_the_record_says_who_changed_a_gallerys_model_and_from_which_to_which(
    serve: Serve, workers: Workers
) -> None:
    client = serve()
    enrol(client, "p1", walk(1))
    digests = {model["name"]: model["digest"] for model in client.get("/models").json()["items"]}
    default, other = ({"name": name, "digest": digests[name]} for name in ("default", "other"))
    with workers():
        job = ended(client, client.post("/models/other/activate"))
        back = ended(client, client.post("/models/rollback"))
        again = ended(client, client.post("/jobs/reindex", json={"gallery": "default"}))
    lines = [json.loads(line) for line in client.get("/audit").text.splitlines()]
    said = [
        (line["action"], line["actor"], line["gallery"], line["details"]) for line in lines[1:-1]
    ]
    assert said == [
        ("job_activate", "anyone", "default", {"job_id": job["id"], "name": "other"}),
        (
            "activate_model", "service", "default",
            {"job_id": job["id"], "from": default, "to": other},
        ),
        (
            "rollback_model", "anyone", "default",
            {"job_id": back["id"], "from": other, "to": default},
        ),
        ("job_reindex", "anyone", "default", {"job_id": again["id"]}),
    ]  # fmt: skip


def test_enrolments_and_audits_compare_by_the_gallerys_own_model(
    serve: Serve, workers: Workers
) -> None:
    client = serve()
    fill(client)
    with workers():
        activated = ended(client, client.post("/models/other/activate"))
        before = answers_with(client, "other")
        found = identify(client, walk(1, phase=0.5)).json()
        best = found["candidates"][0]
        assert best["similarity"] >= found["threshold"] == 0.982
        answer = enrol(client, "somebody", walk(1, phase=0.5), accept_conflict="false")
        refused = problem(answer, 409, frozenset({"conflicts", "threshold"}))
        assert refused["threshold"] == 0.982
        (conflict,) = refused["conflicts"]
        assert conflict["other"]["subject_id"] == best["subject_id"] == "p1"
        assert conflict["other"]["similarity"] == pytest.approx(best["similarity"], abs=1e-5)
        audited = ended(client, client.post("/jobs/audit-gallery", json={}))
    assert audited["error"] is None
    assert audited["result"]["digest"] == activated["result"]["digest"] == before["model"]["digest"]
    assert audited["result"]["threshold"] == 0.982


def test_searches_during_an_activation_never_see_two_models_and_nobody_waits(
    serve: Serve, engine: Engine, workers: Workers
) -> None:
    one, two = serve(), serve()  # two processes' worth of state on one data folder
    fill(one)
    thresholds = {"default": 0.991, "other": 0.982, "third": 0.973}
    parts = {"default": 4, "other": 8, "third": 4}
    references = {model["name"]: model["digest"] for model in one.get("/models").json()["items"]}
    seen: list[tuple[str, float]] = []
    faults: list[object] = []
    stop = threading.Event()

    def ask(url: httpx.URL, number: int) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            turn = 0
            while not stop.is_set():
                turn += 1
                began = time.monotonic()
                if turn % 4 == 0:  # read your own write, whichever model embeds it
                    who = f"new-{number}-{turn}"
                    enrolled = enrol(client, who, walk(20 + turn % 7, phase=number / 3))
                    if enrolled.status_code != 201:
                        faults.append(enrolled.text)
                    subjects = client.get(f"/subjects/{who}").status_code
                    listed = identify(client, walk(20 + turn % 7, phase=number / 3), top_k="100")
                    names = {item["subject_id"] for item in listed.json()["candidates"]}
                    if subjects != 200 or who not in names:
                        faults.append((who, listed.text))
                answer = identify(client, walk(1), explain="true")
                body = answer.json()
                if answer.status_code != 200:
                    faults.append(body)
                    continue
                name = body["model"]["name"]
                best = body["candidates"][0]
                if (
                    body["model"]["digest"] != references[name]
                    or body["threshold"] != thresholds[name]
                    or {len(item["parts"]) for item in body["candidates"]} != {parts[name]}
                    or best["subject_id"] != "p1"
                    or abs(best["similarity"] - 1) > 1e-4  # its own walk, by the same model
                ):
                    faults.append(body)
                seen.append((name, time.monotonic() - began))

    threads = [
        threading.Thread(target=ask, args=(client.base_url, number))
        for number, client in enumerate((one, one, two, two))
    ]
    with workers():
        for thread in threads:
            thread.start()
        try:
            for name in ("other", "third"):
                job = ended(one, one.post(f"/models/{name}/activate"))
                assert (job["status"], job["error"]) == ("succeeded", None)
                for client in (one, two):
                    answers_with(client, name)
            ended(two, two.post("/models/rollback"))
            for client in (one, two):
                answers_with(client, "other")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert not faults, faults[:3]
    assert {name for name, _ in seen} == {"default", "other", "third"}
    with engine.connect() as connection:
        kept = {row[0] for row in connection.exec_driver_sql("SELECT digest FROM embedding")}
    assert kept <= {references["other"], references["third"], references["default"]}


def test_what_cannot_be_activated_or_rolled_back_is_refused(serve: Serve) -> None:
    client = serve()
    assert problem(client.post("/models/rollback"), 409)["type"] == "/problems/no-previous-model"
    assert problem(client.post("/models/rollback", json={"gallery": "none"}), 404)
    assert problem(client.post("/models/nope/activate"), 404)["errors"][0]["where"] == "name"
    assert problem(client.post("/models/other/activate", json={"gallery": "none"}), 404)
    assert problem(client.post("/models/other/activate", json={"colour": "red"}), 422)
    already = client.post("/models/default/activate", json={"gallery": "default"})
    assert problem(already, 409)["type"] == "/problems/model-active"
    first = client.post("/models/other/activate")
    assert first.status_code == 202
    again = client.post("/models/third/activate")
    assert problem(again, 409)["type"] == "/problems/job-conflict"
    assert problem(client.post("/jobs/reindex", json={"gallery": "default"}), 409)
    assert client.post(f"/jobs/{first.json()['id']}/cancel").json()["status"] == "cancelled"
    assert identify(client, walk(1)).json()["model"]["name"] == "default"


def test_a_retried_rollback_with_its_key_goes_back_once(serve: Serve, workers: Workers) -> None:
    client = serve()
    fill(client)
    with workers():
        ended(client, client.post("/models/other/activate"))
    headers = {"Idempotency-Key": "back"}
    first = client.post("/models/rollback", headers=headers)
    again = client.post("/models/rollback", headers=headers)
    assert (first.status_code, again.json()) == (202, first.json())
    assert client.get("/galleries/default").json()["model"]["name"] == "default"


def test_the_calibrated_threshold_changes_with_the_model_and_back(
    serve: Serve, workers: Workers
) -> None:
    client = serve()
    for person in range(20):
        enrol(client, f"p{person}", walk(person), walk(person, phase=1.0))
    with workers():
        ended(client, client.post("/jobs/calibrate", json={"target_fpir": 0.1}))
        old = identify(client, walk(1)).json()
        assert old["threshold_source"] == "gallery"
        activated = ended(client, client.post("/models/other/activate"))
        found = activated["result"]["operating_point"]
        new = answers_with(client, "other")
    assert (new["threshold_source"], new["threshold"]) == ("gallery", found["threshold"])
    assert new["operating_point"]["stale"] is False
    assert new["threshold"] != old["threshold"]
    ended(client, client.post("/models/rollback"))
    back = identify(client, walk(1)).json()
    for key in ("model", "threshold", "threshold_source", "operating_point"):
        assert back[key] == old[key]
    assert client.get("/jobs", params={"status": "queued"}).json()["items"] == []


def test_a_small_gallery_keeps_deciding_with_a_model_that_brings_no_threshold(
    serve: Serve, workers: Workers
) -> None:
    client = serve()
    for person in range(4):
        enrol(client, f"p{person}", walk(person), walk(person, phase=1.0))
    with workers():
        activated = ended(client, client.post("/models/bare/activate"))
        found = activated["result"]["operating_point"]
        answer = answers_with(client, "bare")
    assert (found["method"], found["interval"], found["curve"]) == ("carried", None, [])
    assert (answer["threshold_source"], answer["threshold"]) == ("gallery", found["threshold"])
    ended(client, client.post("/models/rollback"))
    assert identify(client, walk(1)).json()["threshold_source"] == "model"


def test_a_rollback_does_not_wait_for_jobs_and_ends_an_activation_under_way(
    serve: Serve, workers: Workers
) -> None:
    client = serve()
    fill(client)
    with workers():
        ended(client, client.post("/models/other/activate"))
    waiting = client.post("/models/third/activate")  # queued: nobody works
    assert client.post("/models/rollback").json()["status"] == "succeeded"
    assert identify(client, walk(1)).json()["model"]["name"] == "default"
    with workers():
        job = ended(client, waiting)
    # It compares with whatever is active when it runs; only a rollback under its feet stops it.
    assert job["status"] == "succeeded"
    assert job["result"]["previous"]["name"] == "default"


def test_a_reindex_makes_embeddings_whole_again_and_drops_those_nobody_needs(
    serve: Serve, engine: Engine, workers: Workers
) -> None:
    client = serve()
    fill(client)
    with Session(engine) as session, session.begin():
        rows = session.scalars(select(EmbeddingRow).order_by(EmbeddingRow.sequence_id)).all()
        for row in rows[1:]:  # of a model that nobody knows any more
            copy = EmbeddingRow(
                sequence_id=row.sequence_id, digest="old", parts=1, channels=1, vector=b"1234"
            )
            session.add(copy)
        rows[0].vector = bytes(8)
        session.delete(rows[1])
    with workers():
        job = ended(client, client.post("/jobs/reindex", json={"gallery": "default"}))
    assert job["error"] is None
    done = job["result"]
    assert (done["repaired"], done["embedded"], done["dropped"]) == (1, 2, 2 * PEOPLE - 1)
    exchanged = 'gaitid_model_exchanges_total{outcome="done"} 1.0'
    until(lambda: exchanged in client.get("/metrics").text, "the index is built anew")
    assert identify(client, walk(0)).json()["candidates"][0]["subject_id"] == "p0"
    assert identify(serve(), walk(0)).json()["candidates"][0]["subject_id"] == "p0"


def test_a_gallery_whose_model_is_gone_says_so_and_the_others_are_served(
    serve: Serve, settings: Settings, workers: Workers
) -> None:
    client = serve_two_galleries(serve)
    save_tiny_model(settings.models_dir / "mine", seed=7)
    with workers():
        ended(client, client.post("/models/mine/activate", json={"gallery": "lab"}))
    (settings.models_dir / "mine" / "card.json").unlink()
    restarted = serve()
    refused = problem(identify(restarted, walk(1), gallery="lab"), 503)
    assert refused["type"] == "/problems/model-unavailable"
    assert identify(restarted, walk(1)).status_code == 200
    with workers():
        started = restarted.post("/models/third/activate", json={"gallery": "lab"})
        assert ended(restarted, started)["status"] == "succeeded"
    assert answers_with(restarted, "third", "lab")
    back = problem(restarted.post("/models/rollback", json={"gallery": "lab"}), 409)
    assert back["type"] == "/problems/previous-model-missing"


@pytest.mark.parametrize("damage", [bytes(8), b"\xff" * 4 * 4 * 16])
def test_a_gallery_with_a_damaged_embedding_says_so_and_the_others_are_served(
    serve: Serve, engine: Engine, damage: bytes, workers: Workers
) -> None:
    serve_two_galleries(serve)
    with Session(engine) as session, session.begin():
        lab = select(GalleryRow.id).where(GalleryRow.name == "lab").scalar_subquery()
        walks = select(SequenceRow.id).where(SequenceRow.gallery_id == lab)
        row = session.scalars(
            select(EmbeddingRow).where(EmbeddingRow.sequence_id.in_(walks))
        ).first()
        assert row is not None
        row.vector = damage
    restarted = serve()
    refused = problem(identify(restarted, walk(1), gallery="lab"), 503)
    assert refused["type"] == "/problems/embedding-damaged"
    assert "/jobs/reindex" in refused["detail"]
    assert identify(restarted, walk(1)).status_code == 200
    with workers():
        job = ended(restarted, restarted.post("/jobs/reindex", json={"gallery": "lab"}))
    assert job["result"]["repaired"] == 1
    answer = until(
        lambda: (found := identify(restarted, walk(1), gallery="lab")).is_success and found,
        "the gallery answers",
    )
    assert answer.json()["candidates"][0]["subject_id"] == "p1"


def test_one_walk_whose_silhouettes_are_damaged_keeps_no_other_gallery_from_a_new_model(
    serve: Serve, engine: Engine
) -> None:
    serve_two_galleries(serve)
    with Session(engine) as session, session.begin():
        lab = select(GalleryRow.id).where(GalleryRow.name == "lab").scalar_subquery()
        row = session.scalars(select(SequenceRow).where(SequenceRow.gallery_id == lab)).first()
        assert row is not None
        row.silhouettes, damaged = bytes(8), row.id
        session.execute(delete(EmbeddingRow))  # as if the deployment's own model were another
    restarted = serve()
    assert identify(restarted, walk(1)).status_code == 200
    for answer in (
        identify(restarted, walk(1), gallery="lab"),
        restarted.get(f"/sequences/{damaged}/gei.png"),
    ):
        refused = problem(answer, 503)
        assert refused["type"] == "/problems/silhouettes-damaged"
        assert damaged in refused["detail"]
    assert restarted.delete(f"/sequences/{damaged}").status_code == 200
    assert identify(restarted, walk(1), gallery="lab").status_code == 200


def test_a_checkpoint_replaced_on_disk_is_followed_at_the_next_start(
    serve: Serve, settings: Settings, workers: Workers
) -> None:
    client = serve()
    fill(client)
    save_tiny_model(settings.models_dir / "mine", seed=7)
    with workers():
        ended(client, client.post("/models/mine/activate"))
    digest = save_tiny_model(settings.models_dir / "mine", seed=8).digest
    restarted = serve()
    answer = identify(restarted, walk(1)).json()
    assert (answer["model"]["digest"], answer["candidates"][0]["subject_id"]) == (digest, "p1")
    assert restarted.get("/galleries/default").json()["model"]["digest"] == digest
