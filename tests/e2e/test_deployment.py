"""The service as it is deployed: processes, signals, a database on disk."""

import os
import signal
import time

import pytest

from service.client import Client, Job, Refused
from tests.e2e.deployment import Deployment, gone, until
from tests.service.walkers import walk


def distill(client: Client, **overrides: float) -> Job:
    return client.distill(
        recipe="demo",
        name="mine",
        dataset={"gallery": "default"},
        teachers=["default"],
        overrides=overrides,
    )


def enrol(client: Client, *people: int) -> None:
    for person in people:
        walks = [(f"{phase}.npz", walk(person, phase=phase)) for phase in (0.0, 0.7)]
        client.enroll(f"p{person}", walks)


def training_pid(deployment: Deployment, job: Job) -> int:
    file = deployment.data / "jobs" / job.id / "run" / "pid"
    return int(until(lambda: file.exists() and file.read_text(), "the training runs"))


@pytest.mark.slow
def test_a_job_outlives_its_worker_and_ends_with_a_registered_model(
    deployment: Deployment,
) -> None:
    client = deployment.start()
    enrol(client, 1, 2)
    job = distill(client, steps=40, seconds=0.05)
    until(lambda: client.job(job.id).progress.step >= 5, "progress")
    training = training_pid(deployment, job)

    os.kill(deployment.worker(), signal.SIGKILL)
    until(lambda: gone(training), "the training ended with its worker")

    events = list(client.follow(job.id))  # across the gap, to the end
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    starts = [event.data["step"] for event in events if event.kind == "start"]
    assert len(starts) == 2
    assert starts[1] >= 5
    ended = client.job(job.id)
    assert (ended.status, ended.error) == ("succeeded", None)
    model = client.model("mine")
    assert ended.result == {"model": "mine", "digest": model.digest}
    assert model.source == "trained"
    assert not (deployment.data / "jobs" / job.id / "scratch").exists()  # the packed walks
    with pytest.raises(Refused, match="exists already"):
        distill(client)


@pytest.mark.slow
def test_after_a_kill_of_everything_the_enrolled_are_found_and_the_job_resumes(
    deployment: Deployment,
) -> None:
    client = deployment.start()
    enrol(client, 1, 2, 3)
    job = distill(client, steps=40, seconds=0.05)
    until(lambda: client.job(job.id).progress.step >= 5, "progress")
    training, worker = training_pid(deployment, job), deployment.worker()

    deployment.stop(signal.SIGKILL)
    until(lambda: gone(worker) and gone(training), "nothing is left running")

    client = deployment.start()
    best = client.identify(("probe.npz", walk(2, phase=0.7))).candidates[0]
    assert best.subject_id == "p2"
    assert [subject.subject_id for subject in client.subjects()] == ["p1", "p2", "p3"]
    until(lambda: client.job(job.id).ended, "the job ended")
    assert client.job(job.id).status == "succeeded"


@pytest.mark.slow
def test_a_stopped_service_leaves_no_process_and_its_job_in_the_queue(
    deployment: Deployment,
) -> None:
    client = deployment.start()
    enrol(client, 1)
    job = distill(client, steps=1000, seconds=0.05)
    until(lambda: client.job(job.id).progress.step > 0, "progress")
    training, worker = training_pid(deployment, job), deployment.worker()
    assert deployment.stop() == 0
    assert gone(training)
    assert gone(worker)

    client = deployment.start()
    assert client.job(job.id).status in ("queued", "running")
    begin = time.monotonic()
    client.cancel(job.id)
    until(lambda: client.job(job.id).status == "cancelled", "cancelled")
    assert time.monotonic() - begin < 5


def test_what_cannot_run_is_refused_and_leaves_no_trace(deployment: Deployment) -> None:
    client = deployment.start()
    enrol(client, 1)
    for change, status in (
        ({"recipe": "nope"}, 404),
        ({"teachers": ["nope"]}, 404),
        ({"dataset": "nope"}, 404),
        ({"dataset": {"gallery": "nope"}}, 404),
        ({"overrides": {"step": 3}}, 422),
    ):
        good = {"recipe": "demo", "name": "m", "dataset": {"gallery": "default"}}
        with pytest.raises(Refused) as refusal:
            client.distill(**{**good, "teachers": ["default"], **change})  # type: ignore[arg-type]
        assert refusal.value.problem.status == status
        assert refusal.value.problem.errors
    assert list(client.jobs()) == []
    assert [subject.sequences for subject in client.subjects()] == [2]


@pytest.mark.slow
def test_a_real_distillation_makes_a_model_that_can_be_evaluated(
    learning_deployment: Deployment,
) -> None:
    client = learning_deployment.start()
    for person in (1, 2, 3, 4):
        for view, condition, phase in (("000", "nm-01", 0.0), ("090", "nm-05", 0.7)):
            walks = [("walk.npz", walk(person, phase=phase))]
            client.enroll(
                f"p{person}",
                walks,
                metadata={"view": view, "condition": condition},
                accept_conflict=True,  # to a network that was not trained all people are one
            )
    job = client.distill(
        recipe="demo",
        name="mine",
        dataset={"gallery": "default"},
        teachers=["default"],
        overrides={"steps": 6, "batch.sequences": 2, "data.clip.frames": 6},
    )
    steps = [event.data["step"] for event in client.follow(job.id) if event.kind == "progress"]
    ended = client.job(job.id)
    assert (ended.status, ended.error) == ("succeeded", None)
    assert steps[-1] == 6
    assert ended.metrics["loss"] > 0
    card = client.model("mine").card
    assert (card["name"], card["identities"], card["threshold"]) == ("mine", 0, None)
    assert card["training"]["exported_from"]
    folder = learning_deployment.data / "jobs" / job.id
    assert [path.name for path in (folder / "run").iterdir()] == ["tensorboard"]

    job = client.evaluate(model="mine", dataset={"gallery": "default"}, protocol="casia-b")
    *_, last = client.follow(job.id)
    assert (last.data["status"], last.data["error"]) == ("succeeded", None)
    assert 0 <= client.job(job.id).metrics["rank1"] <= 1
    own = {"enrolled": ["nm-01"], "asked": {"later": ["nm-0[56]"]}}
    job = client.evaluate(model="mine", dataset={"gallery": "default"}, conditions=own)
    *_, last = client.follow(job.id)
    assert (last.data["status"], last.data["error"]) == ("succeeded", None)
    job = client.job(job.id)
    assert 0 <= job.metrics["later_rank1"] <= 1
    assert job.result is not None
    assert job.result["conditions"] == {**own, "apart": 0}
    job = client.evaluate(model="mine", dataset={"gallery": "default"}, protocol="gait3d")
    list(client.follow(job.id))
    assert "PROBE_SET" in str(client.job(job.id).error)  # says what the dataset lacks

    small = {"batch.subjects": 4, "batch.sequences": 2, "data.clip.frames": 6, "data.clip.skip": 0}
    job = client.distill(
        recipe="gdkd",
        name="method",
        dataset={"gallery": "default"},
        teachers=["default"],
        overrides={**small, "steps": 2, "schedule.warm_up": 1, "terms.2.top": 1},
    )
    *_, last = client.follow(job.id)
    assert (last.data["status"], last.data["error"]) == ("succeeded", None)
    assert client.job(job.id).metrics["generalised"] >= 0
    *_, last = client.follow(client.activate("method").id)
    assert (last.data["status"], last.data["error"]) == ("succeeded", None)
    probe = ("probe.npz", walk(2, phase=0.3))
    until(lambda: client.identify(probe).model.name == "method", "the new model answers")

    with pytest.raises(Refused) as refusal:
        client.distill(
            recipe="demo",
            name="other",
            dataset={"gallery": "default"},
            teachers=["default"],
            overrides={"batch.subject": 2},
        )
    assert [fault.where for fault in refusal.value.problem.errors] == ["overrides.batch.subject"]
