"""Audits from the call to the findings: real children, a real database, few dimensions."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from numpy.typing import NDArray
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

import service.storage.database
from models.card import Card
from service.__main__ import main
from service.foundation.errors import NotFound
from service.foundation.settings import Settings
from service.gallery.editing import edit_subject
from service.job_types.gallery_audit import (
    MOST_LISTED,
    CannotAudit,
    audit,
    unusual_count,
)
from service.jobs.job import Job, Status
from service.jobs.queue import JobQueue
from service.jobs.tables import JobRow
from service.privacy.erasure_transactions import erase_gallery, erase_sequence, erase_subject
from service.serving.model_files import read_card
from service.serving.registry import resolve
from service.storage.database import writing
from tests.service.jobs.galleries import enrol_embeddings
from tests.service.jobs.workers import Workers, run_job, worker_of
from tests.service.requests import problem
from tests.service.server import Serve
from tests.service.statements import plans
from tests.service.walkers import GOOD

DIMENSIONS = 64


def direction(axis: int, towards: int = 0, by: float = 0.0) -> NDArray[np.float32]:
    """An embedding [4, 16] along an axis of 64, leaning towards another."""
    flat = np.zeros(DIMENSIONS)
    flat[axis] = 1
    flat[towards] += by
    return np.tile(flat[:16] if axis < 16 else flat[16:32], (4, 1)).astype(np.float32)


def enter(
    engine: Engine,
    settings: Settings,
    subject: str,
    *embeddings: NDArray[np.float32],
    **fields: Any,
) -> Sequence[str]:
    return enrol_embeddings(engine, settings, subject, embeddings, **fields)


def model_of(settings: Settings, engine: Engine) -> Card:
    return read_card(resolve(settings, engine, settings.model))


def run(settings: Settings, engine: Engine, meanwhile: Callable[[], object] = lambda: None) -> Job:
    """Audit the gallery `default` by a job."""
    return run_job(settings, engine, "audit-gallery", {"gallery": "default"}, meanwhile)


def mixed_up(engine: Engine, settings: Settings) -> dict[str, Sequence[str]]:
    """Anna and bert as they are, one of anna's walks enrolled as bert's, and carl."""
    return {
        "anna": enter(engine, settings, "anna", direction(0), direction(0, 1, 0.05)),
        "bert": enter(engine, settings, "bert", direction(2), direction(0, 2, 0.04)),
        "carl": enter(engine, settings, "carl", direction(3), direction(3, 4, 0.3)),
    }


def test_an_audit_lists_the_walk_under_the_wrong_name_and_the_subjects_it_joins(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    ids = mixed_up(engine, settings)
    client = serve()
    answer = client.post("/jobs/audit-gallery", json={})
    assert answer.status_code == 202
    assert worker_of(settings, engine).run_one()
    job = client.get(answer.headers["location"]).json()
    assert (job["status"], job["error"]) == ("succeeded", None)
    found = job["result"]
    assert (found["gallery"], found["gallery_subjects"], found["gallery_sequences"]) == (
        "default", 3, 6,
    )  # fmt: skip
    assert (found["threshold"], found["threshold_source"]) == (0.99, "model")
    astray = {one["sequence_id"]: one for one in found["nearer_to_another"]}
    wrong = astray[ids["bert"][1]]
    assert (wrong["subject_id"], wrong["other"]["subject_id"]) == ("bert", "anna")
    assert wrong["own_similarity"] < 0.2
    assert wrong["similarity"] > 0.99
    assert not {ids["carl"][0], ids["carl"][1], ids["bert"][0]} & set(astray)
    (pair,) = found["pairs"]
    assert {member["subject_id"] for member in pair["members"]} == {"anna", "bert"}
    assert found["totals"] == job["metrics"]
    assert found["totals"]["pairs"] == 1
    assert not (settings.jobs_dir / job["id"] / "scratch").exists()


def test_a_hub_is_what_attracts_more_subjects_than_chance_would(
    engine: Engine, settings: Settings
) -> None:
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((4, 16)).astype(np.float32)
    (hub,) = enter(engine, settings, "hub", centre)
    for number in range(40):
        lean = 2 * rng.standard_normal((4, 16)).astype(np.float32)
        enter(engine, settings, f"p{number:02}", centre + lean)
    found = audit(engine, "default", model_of(settings, engine)).audit
    assert [one.sequence_id for one in found.hubs] == [hub]
    assert found.hubs[0].attracts > 20
    assert found.hubs[0].attracts_above_threshold == 0


def test_a_gallery_of_different_people_has_nothing_to_list(
    engine: Engine, settings: Settings
) -> None:
    for axis in range(8):
        enter(engine, settings, f"p{axis}", direction(axis), direction(axis))
    totals = audit(engine, "default", model_of(settings, engine)).audit.totals
    assert (totals.nearer_to_another, totals.pairs, totals.poor) == (0, 0, 0)


def test_poor_sequences_are_listed_worst_first(engine: Engine, settings: Settings) -> None:
    short = replace(GOOD, score=0.7, issues=("too_few_frames",))
    (first,) = enter(engine, settings, "anna", direction(0), quality=short)
    (second,) = enter(engine, settings, "bert", direction(1), quality=replace(GOOD, score=0.3))
    enter(engine, settings, "carl", direction(2))
    poor = audit(engine, "default", model_of(settings, engine)).audit.poor
    assert [one.sequence_id for one in poor] == [second, first]
    assert poor[1].issues == ("too_few_frames",)


def test_lists_are_bounded_and_in_the_same_order_every_time(
    engine: Engine, settings: Settings
) -> None:
    rng = np.random.default_rng(1)
    for number in range(60):
        one = rng.standard_normal((4, 16)).astype(np.float32)
        enter(engine, settings, f"a{number}", one)
        enter(engine, settings, f"b{number}", one)
    first = audit(engine, "default", model_of(settings, engine)).audit
    again = audit(engine, "default", model_of(settings, engine)).audit
    assert first.model_copy(update={"audited_at": again.audited_at}) == again
    assert (first.totals.nearer_to_another, first.totals.pairs) == (120, 60)
    assert len(first.nearer_to_another) == len(first.pairs) == MOST_LISTED


@pytest.mark.parametrize("erase", ["sequence", "subject", "gallery", "rename", "merge"])
def test_who_is_erased_goes_from_the_findings_and_from_the_job_s_events(
    serve: Serve, settings: Settings, engine: Engine, erase: str
) -> None:
    ids = mixed_up(engine, settings)
    job = run(settings, engine)
    assert ids["bert"][1] in str(job.result)
    if erase == "sequence":
        erase_sequence(engine, ids["bert"][1])
    elif erase == "subject":
        erase_subject(engine, "default", "bert")
    elif erase == "gallery":
        erase_gallery(engine, "default", keep=True)
    else:
        content = {"subject_id": "b"} if erase == "rename" else {"merge_into": "anna"}
        assert serve().patch("/subjects/bert", json=content).status_code == 200
    kept = JobQueue.of(engine, settings).get(job.id)
    events = JobQueue.of(engine, settings).events(job.id)
    for text in (str(kept.result), str([event.data for event in events])):
        assert ids["bert"][1] not in text
        assert "'bert'" not in text
    assert kept.status is Status.SUCCEEDED
    raw = b"".join(path.read_bytes() for path in settings.data_dir.glob("gaitid.sqlite*"))
    assert b'"subject_id": "bert", "own_similarity"' not in raw


def test_who_is_erased_while_the_audit_runs_is_not_in_it(
    settings: Settings, engine: Engine
) -> None:
    ids = mixed_up(engine, settings)
    job = run(settings, engine, lambda: erase_subject(engine, "default", "anna"))
    assert job.status is Status.SUCCEEDED
    assert "'anna'" not in str(job.result)
    events = JobQueue.of(engine, settings).events(job.id)
    assert ids["anna"][0] not in str([event.data for event in events])


def test_who_is_renamed_while_the_audit_runs_is_not_in_it_under_either_name(
    settings: Settings, engine: Engine
) -> None:
    mixed_up(engine, settings)
    rename = partial(edit_subject, gallery="default", subject_id="anna", new_id="former-anna")
    job = run(settings, engine, lambda: rename(engine, lambda *_: None))
    assert job.status is Status.SUCCEEDED
    assert job.result is not None
    assert job.result["pairs"] == []
    assert "anna'" not in str(job.result)


def test_a_gallery_erased_while_it_is_audited_fails_the_job(
    settings: Settings, engine: Engine
) -> None:
    mixed_up(engine, settings)
    job = run(settings, engine, lambda: erase_gallery(engine, "default", keep=True))
    assert (job.status, job.result) == (Status.FAILED, None)
    assert job.error == "the gallery was erased while it was audited"


def test_only_the_newest_audit_of_a_gallery_keeps_its_lists(
    settings: Settings, engine: Engine
) -> None:
    mixed_up(engine, settings)
    first, second = run(settings, engine), run(settings, engine)
    kept = JobQueue.of(engine, settings).get(first.id)
    assert kept.result is not None
    assert second.result is not None
    assert (kept.result["pairs"], kept.result["totals"]) == ([], second.result["totals"])
    assert second.result["pairs"]


def test_an_erasure_finds_the_audit_that_names_people_by_an_index_and_no_other_one(
    settings: Settings, engine: Engine
) -> None:
    ids = mixed_up(engine, settings)
    first, second = run(settings, engine), run(settings, engine)

    def marked() -> list[str]:
        with Session(engine) as session:
            return list(session.scalars(select(JobRow.id).where(JobRow.findings_of == "default")))

    assert marked() == [second.id] != [first.id]
    with plans(engine) as found:
        erase_sequence(engine, ids["bert"][1])
    (plan,) = (plan for statement, plan in found.items() if "job.findings_of = ?" in statement)
    assert plan == [
        "SEARCH job USING INDEX ix_job_findings (findings_of=?)",
        "USE TEMP B-TREE FOR ORDER BY",  # rows are locked in one order
    ]
    for statement, plan in found.items():
        assert not [step for step in plan if step.startswith("SCAN")], (statement, plan)
    erase_gallery(engine, "default", keep=True)
    assert marked() == []  # it names nobody any more


def test_audits_of_before_are_found_after_the_migration(settings: Settings, engine: Engine) -> None:
    ids = mixed_up(engine, settings)
    job = run(settings, engine)
    other = JobQueue.of(engine, settings).enqueue("calibrate", {"gallery": "default"})
    config = Config()
    folder = Path(service.storage.database.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder))
    with writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0009_leases")
        command.upgrade(config, "head")
    with Session(engine) as session:
        assert session.get_one(JobRow, job.id).findings_of == "default"
        assert session.get_one(JobRow, other.id).findings_of is None
    erase_subject(engine, "default", "bert")
    assert ids["bert"][1] not in str(JobQueue.of(engine, settings).get(job.id).result)


@pytest.mark.parametrize(
    ("body", "status", "where"),
    [
        ({"gallery": "none"}, 404, "gallery"),
        ({"gallery": "a/b"}, 422, "gallery"),
        ({"colour": "red"}, 422, "colour"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    shared: httpx.Client, body: dict[str, Any], status: int, where: str
) -> None:
    refused = problem(shared.post("/jobs/audit-gallery", json=body), status)
    assert [error["where"] for error in refused["errors"]] == [where]


def test_one_audit_of_a_gallery_at_a_time(serve: Serve) -> None:
    client = serve()
    assert client.post("/jobs/audit-gallery", json={}).status_code == 202
    refused = problem(client.post("/jobs/audit-gallery", json={}), 409)
    assert refused["errors"] == [{"where": "gallery", "reason": "claimed"}]


def test_an_audit_that_cannot_be_made_says_what_to_do(settings: Settings, engine: Engine) -> None:
    model = model_of(settings, engine)
    with pytest.raises(NotFound, match="no gallery 'none'"):
        audit(engine, "none", model)
    job = run(settings, engine)
    assert job.status is Status.FAILED
    assert "nobody is enrolled" in (job.error or "")
    mixed_up(engine, settings)
    with pytest.raises(CannotAudit, match="6 of 6 sequences are not embedded"):
        audit(engine, "default", model.model_copy(update={"digest": "another"}))
    with pytest.raises(CannotAudit, match="calibrate the gallery first"):
        audit(engine, "default", model.model_copy(update={"threshold": None}))


def test_unusual_counts_are_those_that_chance_does_not_make() -> None:
    counts = np.random.default_rng(0).poisson(1.0, (400, 1000))
    assert (counts >= unusual_count(1.0, 1000)).any(axis=1).mean() < 0.02
    assert unusual_count(1.0, 10) < unusual_count(1.0, 100_000) < 20
    assert unusual_count(0.0, 5) == 3
    assert unusual_count(0.01, 1) == 3


def test_the_command_follows_the_job_and_lists_the_findings(
    serve: Serve,
    settings: Settings,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: Workers,
) -> None:
    client = serve()
    mixed_up(engine, settings)
    enter(engine, settings, "dora", direction(5), quality=replace(GOOD, score=0.2))
    monkeypatch.setenv("GAITID_URL", str(client.base_url))
    with workers():
        client.post("/galleries", json={"name": "tidy"})
        enter(engine, settings, "eve", direction(5), gallery="tidy")
        for gallery, status in (("default", 0), ("none", 1), ("tidy", 0)):
            monkeypatch.setattr(sys, "argv", ["gaitid", "check-gallery", "--gallery", gallery])
            with pytest.raises(SystemExit) as leaving:
                main()
            assert (leaving.value.code or 0) == status
    told = capsys.readouterr()
    assert "7 sequences of 4 subjects, threshold 0.9900 (model)" in told.out
    assert "nearer to another" in told.out
    assert "perhaps one person" in told.out
    (poor,) = [line.split() for line in told.out.splitlines() if line.startswith("poor")]
    assert (poor[1], poor[3:]) == ("dora", ["score", "0.20,", "no", "issues"])
    assert told.out.splitlines()[-1] == "nothing was found"
    assert "no gallery 'none'" in told.err
