"""Calibration from the call to the decision: real children, a real database, few dimensions."""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from models.card import CardThreshold
from models.thresholds.calibration import calibrate, stranger_similarities
from service.__main__ import main
from service.foundation.errors import NotFound
from service.foundation.settings import Settings
from service.gallery.operating_point import OperatingPoint
from service.job_types.calibration import measure
from service.jobs.job import Job, Status
from service.privacy.erasure_transactions import erase_gallery, erase_subject
from service.serving import thresholds
from service.serving.model_files import UnreadableCard, read_card
from service.serving.registry import resolve
from service.storage.database import writing
from tests.service.jobs.galleries import enrol_embeddings
from tests.service.jobs.workers import Workers, run_job, worker_of
from tests.service.requests import enrol, identify, problem, verify
from tests.service.server import Serve
from tests.service.walkers import walk

WALKS = 3


def make_people(count: int, *, seed: int = 0) -> NDArray[np.float32]:
    """[count, WALKS, 4 parts, 16 channels], as the tiny model embeds."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((count, 1, 4, 16))
    return (centres + 0.3 * rng.standard_normal((count, WALKS, 4, 16))).astype(np.float32)


def fill(
    engine: Engine, settings: Settings, people: NDArray[np.float32], *, first: int = 0
) -> None:
    """Enrol people by their embeddings."""
    for number, walks in enumerate(people, first):
        enrol_embeddings(engine, settings, f"p{number}", walks)


def run(settings: Settings, engine: Engine, **request: Any) -> Job:
    """Calibrate the gallery `default`."""
    return run_job(settings, engine, "calibrate", {"gallery": "default", **request})


def operating_point(client: httpx.Client) -> Any:
    return client.get("/galleries/default").json()["operating_point"]


def test_identify_and_verify_decide_by_the_calibrated_threshold_also_after_a_restart(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    client = serve()
    assert enrol(client, "anna", walk(1)).status_code == 201
    people = make_people(24)
    fill(engine, settings, people)
    answer = client.post("/jobs/calibrate", json={"target_fpir": 0.1})
    assert answer.status_code == 202
    assert answer.json()["type"] == "calibrate"
    assert worker_of(settings, engine).run_one()
    job = client.get(answer.headers["location"]).json()
    assert (job["status"], job["error"]) == ("succeeded", None)
    found = job["result"]
    assert (found["gallery"], found["method"]) == ("default", "extrapolated")
    assert found["interval"][0] < found["threshold"] < found["interval"][1]
    assert job["metrics"] == {"threshold": found["threshold"]}
    curve = {point["target_fpir"]: point for point in found["curve"]}
    assert list(curve) == [0.3, 0.1, 0.03, 0.01]  # 25 people show no rate below 0.8 %
    assert (curve[0.1]["low"], curve[0.1]["high"]) == tuple(found["interval"])
    assert (curve[0.1]["threshold"], curve[0.1]["method"]) == (found["threshold"], "extrapolated")

    def check(client: httpx.Client) -> None:
        for body in (identify(client, walk(1)).json(), verify(client, "anna", walk(1)).json()):
            assert body["threshold"] == found["threshold"]
            assert body["threshold_source"] == "gallery"
            point = body["operating_point"]
            assert (point["target_fpir"], point["stale"]) == (0.1, False)
            assert (point["gallery_subjects"], point["gallery_sequences"]) == (25, 24 * WALKS + 1)
            assert point["interval"] == found["interval"]
            assert point["calibrated_at"].endswith("Z")
            assert "curve" not in point
        shown = operating_point(client)
        assert (shown["threshold"], shown["stale"]) == (found["threshold"], False)
        assert shown["digest"] == body["model"]["digest"]
        assert shown["curve"] == found["curve"]

    check(client)
    assert identify(client, walk(1), threshold="0.2").json()["threshold_source"] == "request"
    check(serve())


def test_the_command_follows_the_job_and_says_the_threshold_or_why_there_is_none(
    serve: Serve,
    settings: Settings,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: Workers,
) -> None:
    client = serve()
    fill(engine, settings, make_people(20))
    monkeypatch.setenv("GAITID_URL", str(client.base_url))
    with workers():
        for rate, status in (("0.1", 0), ("0.0001", 1)):
            monkeypatch.setattr(sys, "argv", ["gaitid", "calibrate", "--target-fpir", rate])
            with pytest.raises(SystemExit) as leaving:
                main()
            assert (leaving.value.code or 0) == status
    told = capsys.readouterr()
    threshold = operating_point(client)["threshold"]
    assert f"threshold {threshold:.4f} (extrapolated, " in told.out
    assert "0.1 false matches a search with 20 enrolled" in told.out
    assert "enrol 2000 subjects" in told.err


def test_the_job_finds_what_the_estimator_finds(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    serve()
    people = make_people(30)
    fill(engine, settings, people)
    job = run(settings, engine, target_fpir=0.05)
    subjects = np.repeat(np.arange(30), WALKS)
    values = stranger_similarities(people.reshape(-1, 4, 16), subjects, "cosine")
    expected = calibrate(values, subjects, 0.05)
    assert job.result is not None
    assert job.result["threshold"] == pytest.approx(expected.threshold, rel=1e-5)
    assert job.result["interval"] == pytest.approx(expected.interval, rel=0.02)
    assert not (settings.jobs_dir / job.id / "scratch").exists()


def test_a_gallery_that_outgrows_its_calibration_is_calibrated_again_once(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    client = serve()
    fill(engine, settings, make_people(20))
    assert run(settings, engine, target_fpir=0.1).status is Status.SUCCEEDED
    fill(engine, settings, make_people(3, seed=1), first=100)
    assert not operating_point(client)["stale"]
    assert client.get("/jobs", params={"status": "queued"}).json()["items"] == []
    for number in (1, 2):  # the first of these is the 24th subject
        assert enrol(client, f"new-{number}", walk(number)).status_code == 201
    assert operating_point(client)["stale"]
    body = identify(client, walk(1)).json()
    assert (body["threshold_source"], body["operating_point"]["stale"]) == ("gallery", True)
    (queued,) = client.get("/jobs", params={"status": "queued"}).json()["items"]
    assert queued["type"] == "calibrate"
    refused = problem(client.post("/jobs/calibrate", json={}), 409)
    assert refused["errors"] == [{"where": "gallery", "reason": "claimed"}]
    assert worker_of(settings, engine).run_one()
    again = operating_point(client)
    assert (again["stale"], again["gallery_subjects"], again["target_fpir"]) == (False, 25, 0.1)


def test_a_rerun_that_failed_is_not_queued_by_every_enrolment(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    client = serve()
    fill(engine, settings, make_people(20))
    run(settings, engine, target_fpir=0.1)
    fill(engine, settings, make_people(4, seed=1), first=100)
    enrol(client, "new-1", walk(1))
    (queued,) = client.get("/jobs", params={"status": "queued"}).json()["items"]
    client.post(f"/jobs/{queued['id']}/cancel")
    enrol(client, "new-2", walk(2))
    assert client.get("/jobs", params={"status": "queued"}).json()["items"] == []
    assert operating_point(client)["stale"]


def test_a_new_model_decides_by_its_own_threshold_until_the_gallery_is_calibrated_with_it(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    client = serve()
    fill(engine, settings, make_people(20))
    run(settings, engine, target_fpir=0.1)
    assert enrol(client, "anna", walk(1)).status_code == 201
    other = serve(model="uncalibrated")
    assert operating_point(other)["stale"]
    problem(identify(other, walk(1)), 422)  # a threshold of the old model's is not used
    body = identify(other, walk(1), threshold="0.5").json()
    assert body["operating_point"] is None
    (queued,) = other.get("/jobs", params={"status": "queued"}).json()["items"]
    assert queued["type"] == "calibrate"
    changed = settings.model_copy(update={"model": "uncalibrated"})
    assert worker_of(changed, engine).run_one()
    assert identify(other, walk(1)).json()["threshold_source"] == "gallery"


def test_a_model_that_has_not_embedded_every_walk_fails_the_job(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    serve()
    fill(engine, settings, make_people(20))
    job = run(settings.model_copy(update={"model": "uncalibrated"}), engine)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert "60 of 60 sequences are not embedded with the active model yet" in job.error


@pytest.mark.parametrize(
    ("subjects", "reason"),
    [
        (0, "nobody is enrolled"),
        (1, "1 enrolled subjects cannot show a rate of 0.01"),
        (2, "enrol 20 subjects or ask for a higher rate"),
    ],
)
def test_a_tiny_gallery_fails_the_job_with_what_to_do_and_changes_nothing(
    serve: Serve, settings: Settings, engine: Engine, subjects: int, reason: str
) -> None:
    client = serve()
    fill(engine, settings, make_people(subjects))
    job = run(settings, engine)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert reason in job.error
    assert operating_point(client) is None


def test_a_tiny_gallery_takes_the_threshold_of_a_card_that_has_one(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    serve()
    fill(engine, settings, make_people(1))
    known = CardThreshold(target_fpir=0.01, gallery_subjects=1, threshold=0.8)
    own = read_card(resolve(settings, engine, settings.model))
    card = own.model_copy(update={"thresholds": (known,)})
    found = measure(engine, "default", card, 0.01).operating_point
    assert (found.threshold, found.interval, found.method) == (0.8, None, "background")
    assert [(point.target_fpir, point.low) for point in found.curve] == [
        (0.3, None), (0.1, None), (0.03, None), (0.01, None),
    ]  # fmt: skip


def test_a_gallery_erased_while_it_is_calibrated_fails_the_job_and_its_successor_gets_nothing(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    client = serve()
    fill(engine, settings, make_people(20))
    ended = run_job(
        settings,
        engine,
        "calibrate",
        {"gallery": "default", "target_fpir": 0.1},
        lambda: erase_gallery(engine, "default", keep=True),
    )
    assert ended.status is Status.FAILED
    assert ended.error is not None
    assert ended.error.startswith("the gallery was erased, or given another model")
    assert operating_point(client) is None


def test_a_gallery_erased_before_its_turn_fails_the_job(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    client = serve()
    client.post("/galleries", json={"name": "gone"})
    location = client.post("/jobs/calibrate", json={"gallery": "gone"}).headers["location"]
    client.delete("/galleries/gone")
    assert worker_of(settings, engine).run_one()
    job = client.get(location).json()
    assert job["status"] == "failed"
    assert "There is no gallery 'gone'" in job["error"]


def test_subjects_erased_while_a_gallery_is_measured_do_no_harm(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    serve()
    people = make_people(40)
    fill(engine, settings, people)
    model = read_card(resolve(settings, engine, settings.model))

    def erase() -> None:
        for number in range(15):
            erase_subject(engine, "default", f"p{number}")

    thread = threading.Thread(target=erase)
    thread.start()
    sizes: list[OperatingPoint] = []
    while thread.is_alive() or not sizes:
        sizes.append(measure(engine, "default", model, 0.1).operating_point)
        time.sleep(0.01)
    thread.join()
    last = measure(engine, "default", model, 0.1).operating_point
    assert last.gallery_subjects == 25
    for point in sizes:  # never half a subject
        assert point.gallery_sequences == WALKS * point.gallery_subjects


@pytest.mark.parametrize(
    ("body", "status", "where"),
    [
        ({"gallery": "none"}, 404, "gallery"),
        ({"gallery": "a/b"}, 422, "gallery"),
        ({"target_fpir": 0}, 422, "target_fpir"),
        ({"target_fpir": 0.5}, 422, "target_fpir"),
        ({"target_fpir": "0.1"}, 422, "target_fpir"),
        ({"target_fpir": True}, 422, "target_fpir"),
        ({"colour": "red"}, 422, "colour"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    shared: httpx.Client, body: dict[str, Any], status: int, where: str
) -> None:
    refused = problem(shared.post("/jobs/calibrate", json=body), status)
    assert [error["where"] for error in refused["errors"]] == [where]


def test_a_missing_gallery_and_a_folder_without_a_card_are_said(
    serve: Serve, settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    serve()
    model = read_card(resolve(settings, engine, settings.model))
    with pytest.raises(NotFound, match="no gallery 'none'"):
        measure(engine, "none", model, 0.1)
    (tmp_path / "card.json").write_text('{"digest": "d", "metric": "guess"}')
    with pytest.raises(UnreadableCard, match="card"):
        read_card(tmp_path)


def test_a_stale_gallery_is_not_queued_while_a_calibration_of_it_waits(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    client = serve()
    fill(engine, settings, make_people(20))
    run(settings, engine, target_fpir=0.1)
    client.post("/jobs/calibrate", json={"target_fpir": 0.2})
    fill(engine, settings, make_people(10, seed=1), first=100)
    with Session(writing(engine)) as session, session.begin():
        thresholds.queue_if_stale(session, "default", "any")
    (queued,) = client.get("/jobs", params={"status": "queued"}).json()["items"]
    assert worker_of(settings, engine).run_one()
    assert client.get(f"/jobs/{queued['id']}").json()["result"]["target_fpir"] == 0.2
