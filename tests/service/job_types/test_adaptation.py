"""Adaptation from the call to the decision: real children, a real database, few dimensions."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from models.comparison.nearest import nearest_by_all
from models.encoder.encoder import Encoder
from models.silhouettes.budget import DecodeLimits
from models.silhouettes.prepare import prepare_upload
from models.thresholds.calibration import calibrate
from service.foundation.settings import Settings
from service.gallery.operating_point import OperatingPoint
from service.gallery.reading import read_gallery
from service.gallery.scenes import Scene, drop, scene_in, switch_off
from service.gallery.store import GalleryStore
from service.gallery.tables import GalleryRow, SceneRow
from service.job_types.adaptation import Adaptation, CannotAdapt
from service.job_types.calibration import fit_part
from service.job_types.scene_strangers import strangers_left_out
from service.jobs.job import Job, Status
from service.jobs.queue import JobQueue
from service.jobs.tables import JobRow
from service.privacy.erasure_transactions import (
    erase_gallery,
    erase_older,
    erase_sequence,
    erase_subject,
)
from service.serving.adaptation import queue_if_due
from service.serving.registry import find_model
from service.storage.database import now, writing
from tests.e2e.deployment import until
from tests.service.jobs.workers import Workers, leased, run_job, worker_of
from tests.service.requests import enrol, identify, problem, verify
from tests.service.scenes import fill, people_in_views
from tests.service.server import Serve
from tests.service.walkers import walk

PEOPLE = 24


@pytest.fixture
def people(engine: Engine, settings: Settings) -> NDArray[np.float32]:
    """Enrolled in the gallery `default`, each in three views."""
    made = people_in_views(PEOPLE)
    fill(engine, settings, made)
    return made


def adapt(settings: Settings, engine: Engine) -> Job:
    """Adapt the gallery `default`."""
    queue = JobQueue.of(engine, settings)
    job = queue.enqueue("adapt", {"gallery": "default"})
    assert worker_of(settings, engine).run_one()
    return queue.get(job.id)


def scene(engine: Engine, settings: Settings, model: str = "default") -> Scene | None:
    """The transform that the gallery `default` uses under a model."""
    with Session(engine) as session:
        gallery_id = session.scalars(select(GalleryRow.id)).one()
        return scene_in(session, gallery_id, find_model(settings, engine, model).digest)


def point(engine: Engine) -> OperatingPoint | None:
    return OperatingPoint.of(GalleryStore(engine).head("default").operating_point)


def queued(engine: Engine, kind: str = "adapt") -> int:
    with Session(engine) as session:
        rows = session.scalars(select(JobRow.status).where(JobRow.type == kind)).all()
    return sum(status == Status.QUEUED for status in rows)


def embedded(models: Path, upload: bytes) -> NDArray[np.float32]:
    """What the deployment's model makes of a walk: [1, p, c]."""
    silhouettes = prepare_upload(upload, DecodeLimits(), clean=True).silhouettes
    return Encoder.open(models / "default", device="cpu").encode([silhouettes])


def answers_by(client: httpx.Client, source: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """An identification, once the process answers as asked for."""

    def answer() -> dict[str, Any] | None:
        body: dict[str, Any] = identify(client, walk(1)).json()
        return body if source(body) else None

    return cast(dict[str, Any], until(answer, "the process follows", timeout_s=15))


def test_a_gallery_is_compared_and_decided_by_the_transform_that_helps_it(
    serve: Serve, settings: Settings, engine: Engine, models: Path, people: NDArray[np.float32]
) -> None:
    client, other = serve(), serve()
    before = identify(client, walk(1)).json()
    assert before["threshold_source"] == "model"
    assert client.get("/galleries/default").json()["scene"] is None
    assert identify(other, walk(1)).json()["candidates"] == before["candidates"]

    answer = client.post("/jobs/adapt", json={"gallery": "default"})
    assert (answer.status_code, answer.json()["type"]) == (202, "adapt")
    assert worker_of(settings, engine).run_one()
    job = client.get(answer.headers["location"]).json()
    assert job["error"] is None
    result = job["result"]
    assert (result["used"], result["reason"]) == (True, None)
    assert (result["subjects"], result["walks"]) == (PEOPLE, 3 * PEOPLE)
    assert result["gain"]["interval"][0] > 0
    assert 0 < result["strength"] <= 1
    assert result["operating_point"]["target_fpir"] == 0.01

    shown = client.get("/galleries/default").json()
    assert shown["scene"]["used"] is True
    assert shown["scene"]["gain"] == result["gain"]
    assert shown["scene"]["revision"] == 3 * PEOPLE
    assert shown["operating_point"]["threshold"] == result["operating_point"]["threshold"]
    used = scene(engine, settings)
    assert used is not None
    alike = people.reshape(-1, 4, 16)
    seen = used.embeddings(np.concatenate([embedded(models, walk(1)), alike])).reshape(
        len(alike) + 1, -1
    )
    near = (seen[1:] @ seen[0]).reshape(PEOPLE, 3)
    by_hand = (near.max(axis=1) + near.mean(axis=1)) / 2
    for process in (client, other):  # the other one notices by itself
        after = answers_by(process, lambda body: body["threshold_source"] == "gallery")
        assert after["threshold"] == result["operating_point"]["threshold"]
        candidates = after["candidates"]
        assert candidates[0]["subject_id"] == f"p{by_hand.argmax()}"
        found = [item["similarity"] for item in candidates]
        assert found == pytest.approx(np.sort(by_hand)[::-1][:5], abs=1e-5)
        checked = verify(process, "p7", walk(1)).json()
        assert checked["similarity"] == pytest.approx(by_hand[7], abs=1e-5)
        assert checked["threshold"] == after["threshold"]
    restarted = serve()
    assert identify(restarted, walk(1)).json()["candidates"] == candidates


def test_parts_are_still_head_to_feet_of_what_the_model_made(
    serve: Serve, settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    assert adapt(settings, engine).status is Status.SUCCEEDED
    client = serve()
    best = identify(client, walk(1), explain="true").json()["candidates"][0]
    assert len(best["parts"]) == 4


def test_the_threshold_is_what_people_left_out_of_the_fit_show(
    settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    job = run_in_process(settings, engine)
    assert job.status is Status.SUCCEEDED
    used, found = scene(engine, settings), point(engine)
    assert used is not None
    assert found is not None
    assert (found.scene, found.method) == (used.version, "extrapolated")
    whole = read_gallery(
        engine, "default", find_model(settings, engine, "default").digest
    ).sequences
    _, whose = whole.subjects()
    everybody = np.ones(len(whose), np.bool_)
    strangers = strangers_left_out(whole, everybody, None, fit_part(whole, everybody, None))
    assert found.threshold == pytest.approx(calibrate(strangers, whose, 0.01).threshold)
    # People who were fitted to are told from others too easily.
    alike = used.embeddings(people.reshape(-1, 4, 16)).reshape(-1, 64)
    _, fitted = nearest_by_all(alike, np.repeat(np.arange(PEOPLE), 3))
    assert strangers.mean() > fitted.similarity.mean() + 0.02


def run_in_process(
    settings: Settings,
    engine: Engine,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Job:
    """Run the command of an adaptation here, where a test can come between."""
    queue = JobQueue.of(engine, settings)
    job = queue.enqueue("adapt", {"gallery": "default"})
    lease = leased(queue)
    Adaptation(settings, engine, queue, progress, lambda _entry: None).run(job.id, lease.number)
    return queue.get(job.id)


@pytest.mark.parametrize("count", [3, 10])
def test_too_few_people_are_served_as_before(
    serve: Serve, settings: Settings, engine: Engine, count: int
) -> None:
    fill(engine, settings, people_in_views(count))
    client = serve()
    before = identify(client, walk(1)).json()
    job = adapt(settings, engine)
    assert (job.status, job.error) == (Status.SUCCEEDED, None)
    assert job.result is not None
    assert job.result["used"] is False
    # Ten show that it would help, but not how similar strangers are once in a hundred searches.
    assert ("no threshold" in job.result["reason"]) is (count == 10)
    assert client.get("/galleries/default").json()["scene"]["used"] is False
    after = identify(client, walk(1)).json()
    same = ("candidates", "threshold", "threshold_source", "operating_point")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_a_gallery_that_has_a_rate_keeps_it(
    settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    run_job(settings, engine, "calibrate", {"gallery": "default", "target_fpir": 0.1})
    plain = point(engine)
    assert plain is not None
    assert run_in_process(settings, engine).status is Status.SUCCEEDED
    found = point(engine)
    assert found is not None
    assert (found.target_fpir, found.threshold) != (0.1, plain.threshold)
    assert found.target_fpir == 0.1


def test_calibrating_and_auditing_an_adapted_gallery_take_its_transform(
    serve: Serve, settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    assert run_in_process(settings, engine).status is Status.SUCCEEDED
    job = run_job(settings, engine, "calibrate", {"gallery": "default", "target_fpir": 0.1})
    assert (job.status, job.error) == (Status.SUCCEEDED, None)
    used, found = scene(engine, settings), point(engine)
    assert used is not None
    assert found is not None
    assert found.scene == used.version
    assert identify(serve(), walk(1)).json()["threshold"] == found.threshold
    audit = run_job(settings, engine, "audit-gallery", {"gallery": "default"})
    assert audit.result is not None
    assert (audit.result["threshold"], audit.result["threshold_source"]) == (
        found.threshold, "gallery",
    )  # fmt: skip
    # Views no longer make strangers alike, as they do without the transform.
    assert audit.result["totals"]["nearer_to_another"] == 0


def test_a_threshold_that_was_found_by_another_transform_is_refused(
    settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    run_in_process(settings, engine)
    before = point(engine)
    assert before is not None

    def meanwhile() -> None:
        with Session(writing(engine)) as session, session.begin():
            drop(session, session.scalars(select(GalleryRow.id)).one())

    job = run_job(
        settings, engine, "calibrate", {"gallery": "default", "target_fpir": 0.1}, meanwhile
    )
    assert job.status is Status.FAILED
    assert "scene transform" in (job.error or "")
    after = point(engine)
    assert after is not None
    assert (after.scene, after.target_fpir) == (None, 0.01)


def test_an_erasure_drops_what_the_person_had_a_share_in_and_another_is_fitted(
    serve: Serve, settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    client = serve()
    adapt(settings, engine)
    adapted = answers_by(client, lambda body: body["threshold_source"] == "gallery")
    receipt = client.delete("/subjects/p3").json()
    assert (receipt["scene"], receipt["jobs"]) == ("dropped", [])
    with Session(engine) as session:
        row = session.scalars(select(SceneRow)).one()
        assert (row.version, row.transform) == (None, None)
    assert client.get("/galleries/default").json()["scene"] is None
    plain = identify(client, walk(1)).json()  # this process has followed before it answered
    assert plain["threshold_source"] == "gallery"
    assert plain["threshold"] != adapted["threshold"]
    assert queued(engine) == 1
    assert worker_of(settings, engine).run_one()
    shown = client.get("/galleries/default").json()["scene"]
    assert (shown["used"], shown["revision"]) == (True, 3 * PEOPLE + 1)
    again = answers_by(client, lambda body: body["threshold"] != plain["threshold"])
    assert "p3" not in {item["subject_id"] for item in again["candidates"]}
    assert client.delete("/subjects/p4").json()["scene"] == "dropped"


def test_erasing_where_there_is_no_transform_says_so(
    serve: Serve, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    client = serve()
    assert client.delete("/subjects/p3").json()["scene"] is None
    assert queued(engine) == 0


def test_a_fit_that_holds_somebody_who_was_erased_meanwhile_is_made_again(
    settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    erased: list[str] = []

    def progress(done: int, _total: int) -> None:
        if done == 2 and not erased:
            erased.append("p5")
            erase_subject(engine, "default", "p5")

    job = run_in_process(settings, engine, progress)
    assert job.status is Status.SUCCEEDED
    assert job.result is not None
    assert (job.result["used"], job.result["subjects"]) == (True, PEOPLE - 1)
    with Session(engine) as session:
        assert session.scalars(select(SceneRow.revision)).one() == 3 * PEOPLE + 1


def test_a_gallery_erased_meanwhile_is_not_adapted(
    settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people

    def progress(done: int, _total: int) -> None:
        if done == 2:
            erase_gallery(engine, "default", keep=True)

    with pytest.raises(CannotAdapt, match="erased"):
        run_in_process(settings, engine, progress)
    with Session(engine) as session:
        assert session.scalars(select(SceneRow)).all() == []


def test_the_receipt_of_a_gallery_says_that_its_transform_went(
    serve: Serve, settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    run_in_process(settings, engine)
    client = serve()
    assert client.delete("/galleries/default").json()["scene"] == "dropped"
    assert client.get("/galleries/default").json()["scene"] is None
    with Session(engine) as session:
        assert session.scalars(select(SceneRow)).all() == []


class Killed(BaseException):
    """Ends the command as kill -9 does: nothing is tidied up."""


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_killed_at_any_step_it_has_changed_nothing_and_begins_again(
    settings: Settings, engine: Engine, people: NDArray[np.float32], step: int
) -> None:
    del people

    def progress(done: int, _total: int) -> None:
        if done == step:
            raise Killed

    with pytest.raises(Killed):
        run_in_process(settings, engine, progress)
    assert scene(engine, settings) is None
    assert point(engine) is None
    queue = JobQueue.of(engine, settings)
    (job,) = queue.page(status=None, limit=1, cursor=None).items
    queue.release(queue.lease_of(job.id, 1))
    assert worker_of(settings, engine).run_one()
    assert queue.get(job.id).status is Status.SUCCEEDED
    assert scene(engine, settings) is not None


def test_a_job_that_was_cancelled_changes_nothing(
    settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    queue = JobQueue.of(engine, settings)

    def progress(done: int, _total: int) -> None:
        if done == 2:
            (job,) = queue.page(status=None, limit=1, cursor=None).items
            queue.cancel(job.id)

    with pytest.raises(CannotAdapt, match="cancelled"):
        run_in_process(settings, engine, progress)
    assert scene(engine, settings) is None


def test_a_gallery_that_grew_by_a_fifth_is_adapted_again_by_itself(
    serve: Serve, settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    client = serve()
    enrol(client, "anna", walk(1))
    assert queued(engine) == 0  # nobody has asked for a transform yet
    run_in_process(settings, engine)
    fill(engine, settings, people_in_views(4, seed=1), first=PEOPLE)
    enrol(client, "anna", walk(1, phase=1.0))  # 86 walks of 73
    assert queued(engine) == 0
    enrol(client, "bert", walk(2), walk(2, phase=1.0))
    assert queued(engine) == 1
    enrol(client, "bert", walk(2, phase=2.0))
    assert queued(engine) == 1  # once


def test_merged_people_are_a_reason_to_fit_again(
    serve: Serve, settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    run_in_process(settings, engine)
    client = serve()
    assert client.patch("/subjects/p3", json={"merge_into": "p4"}).status_code == 200
    assert queued(engine) == 1
    assert scene(engine, settings) is not None  # nobody is gone


def test_another_model_begins_without_a_transform_and_a_rollback_brings_it_back(
    serve: Serve, settings: Settings, engine: Engine, workers: Workers,
    people: NDArray[np.float32],
) -> None:  # fmt: skip
    del people
    client = serve()
    run_in_process(settings, engine)
    adapted = answers_by(client, lambda body: body["threshold_source"] == "gallery")
    job = client.post("/models/other/activate").json()["id"]
    with workers():
        until(lambda: client.get(f"/jobs/{job}").json()["finished_at"], "it is activated")
        until(lambda: queued(engine) == 0, "the other model's transform is tried")
    other = answers_by(client, lambda body: body["model"]["name"] == "other")
    assert other["threshold_source"] in ("gallery", "model")
    assert client.post("/models/rollback").status_code == 202
    back = answers_by(client, lambda body: body["model"]["name"] == "default")
    assert (back["threshold"], back["candidates"]) == (adapted["threshold"], adapted["candidates"])
    assert client.get("/galleries/default").json()["scene"]["used"] is True


def test_erasing_after_another_model_came_drops_the_old_models_transform_too(
    serve: Serve, settings: Settings, engine: Engine, workers: Workers,
    people: NDArray[np.float32],
) -> None:  # fmt: skip
    del people
    client = serve()
    run_in_process(settings, engine)
    job = client.post("/models/other/activate").json()["id"]
    with workers():
        until(lambda: client.get(f"/jobs/{job}").json()["finished_at"], "it is activated")
    assert client.delete("/subjects/p3").json()["scene"] == "dropped"
    assert scene(engine, settings) is None
    assert client.post("/models/rollback").status_code == 202
    back = answers_by(client, lambda body: body["model"]["name"] == "default")
    assert back["threshold_source"] == "gallery"  # of plain similarities
    assert point(engine) == OperatingPoint.of(GalleryStore(engine).head("default").points[0])


def test_a_deployment_can_do_without(
    serve: Serve, settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    run_in_process(settings, engine)
    client = serve(adapt=False)
    refused = problem(client.post("/jobs/adapt"), 403)
    assert refused["type"].endswith("adaptation-off")
    assert scene(engine, settings) is None
    found = point(engine)
    assert found is not None
    assert found.scene is None
    answer = identify(client, walk(1)).json()
    assert (answer["threshold"], answer["threshold_source"]) == (found.threshold, "gallery")


def test_there_is_no_gallery_to_adapt(shared: httpx.Client) -> None:
    assert problem(shared.post("/jobs/adapt", json={"gallery": "nowhere"}), 404)
    assert problem(shared.post("/jobs/adapt", json={"galery": "default"}), 422)


def test_only_one_adaptation_of_a_gallery_waits(serve: Serve, engine: Engine) -> None:
    client = serve()
    assert client.post("/jobs/adapt").status_code == 202
    assert problem(client.post("/jobs/adapt"), 409)
    assert queued(engine) == 1


def test_switching_off_leaves_galleries_without_a_transform_alone(
    engine: Engine, settings: Settings, people: NDArray[np.float32]
) -> None:
    del people
    before = GalleryStore(engine).gallery("default")
    switch_off(engine)
    assert GalleryStore(engine).gallery("default") == before
    del settings


def test_nothing_is_due_where_nobody_adapted(engine: Engine, people: NDArray[np.float32]) -> None:
    del people
    with Session(writing(engine)) as session, session.begin():
        queue_if_due(session, "default", "any")
        queue_if_due(session, "nowhere", "any")
    assert queued(engine) == 0


def test_erasing_one_walk_drops_the_transform(
    settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    run_in_process(settings, engine)
    with Session(engine) as session:
        sequence_id = session.execute(select(GalleryRow.id)).scalar_one()
    changes = GalleryStore(engine).changes(
        sequence_id, 0, find_model(settings, engine, "default").digest
    )
    receipt = erase_sequence(engine, changes.added[0].sequence_id)
    assert receipt.scene_dropped
    assert scene(engine, settings) is None


def test_the_command_says_how_it_went(
    settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    job = JobQueue.of(engine, settings).enqueue("adapt", {"gallery": "default"})
    answer = subprocess.run(
        [sys.executable, "-m", "service", "adapt-gallery", job.id, "--lease", "1"],
        env={
            "GAITID_DATA_DIR": str(settings.data_dir),
            "GAITID_SHIPPED_MODELS_DIR": str(settings.shipped_models_dir),
            "PYTHONPATH": str(Path(__file__).parents[3]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1  # nobody has leased it
    assert "another worker has it" in answer.stderr


def test_retention_drops_the_transform_of_those_it_erases(
    settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    run_in_process(settings, engine)
    with Session(engine) as session:
        gallery_id = session.scalars(select(GalleryRow.id)).one()
    GalleryStore(engine).keep_for("default", 7)
    assert erase_older(engine, gallery_id, now(), 10) == (0, 0)
    assert scene(engine, settings) is not None
    assert erase_older(engine, gallery_id, now() + timedelta(days=8), 10)[0] == 10
    assert scene(engine, settings) is None
    assert queued(engine) == 1


def test_an_export_has_no_transform_and_an_import_gets_its_own(
    serve: Serve, settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    client = serve()
    run_in_process(settings, engine)
    exported = client.get("/galleries/default/export").content
    used = scene(engine, settings)
    assert used is not None
    with zipfile.ZipFile(io.BytesIO(exported)) as file:
        about = json.loads(file.read("gallery.json"))
        assert used.transform.matrix.tobytes()[:32] not in b"".join(
            file.read(name) for name in file.namelist()
        )
    assert about["adapted"] is True
    assert "scene" not in (about["operating_point"] or {})
    answer = client.put("/galleries/copy/import", content=exported)
    assert answer.status_code == 201, answer.text
    assert answer.json()["gallery"]["scene"] is None
    assert queued(engine) == 1
    assert worker_of(settings, engine).run_one()
    copied = client.get("/galleries/copy").json()
    assert copied["scene"]["used"] is True
    changed = {**about, "operating_point": used.operating_point}
    forged = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(exported)) as file, zipfile.ZipFile(forged, "w") as other:
        for name in file.namelist():
            content = json.dumps(changed).encode() if name == "gallery.json" else file.read(name)
            other.writestr(name, content)
    refused = problem(client.put("/galleries/forged/import", content=forged.getvalue()), 400)
    assert refused["type"].endswith("malformed-export")


def test_a_damaged_transform_is_said_to_be_and_made_anew(
    serve: Serve, settings: Settings, engine: Engine, people: NDArray[np.float32]
) -> None:
    del people
    run_in_process(settings, engine)
    with Session(writing(engine)) as session, session.begin():
        session.execute(update(SceneRow).values(transform=b"no transform"))
    client = serve()
    damaged = problem(identify(client, walk(1)), 503)
    assert damaged["type"].endswith("scene-damaged")
    assert adapt(settings, engine).status is Status.SUCCEEDED
    answers_by(client, lambda body: body.get("threshold_source") == "gallery")
