"""The demo's own judgement; `tests/e2e` runs the whole of it."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.cli.demo import Answers, DemoFailed, choose, judge
from service.cli.demo_walks import WALKS
from service.client import Identification, Job, JobProgress, ModelReference, Probe, Quality

STRANGER = Identification(
    search_id="1",
    gallery="default",
    decision="no_match",
    threshold=0.9,
    threshold_source="model",
    operating_point=None,
    candidates=[],
    probe=Probe(
        frames=40,
        quality=Quality(score=1.0, issues=[]),
        input="silhouettes",
        segmenter=None,
        track=None,
        from_s=None,
        to_s=None,
    ),
    model=ModelReference(name="default", digest="d" * 64),
    took_ms=1.0,
)
GOOD = Answers(rank1=1.0, matched=1.0, strangers=[STRANGER], latencies_ms=[1.0, 2.0])
DONE = Job(
    id="1",
    type="distill",
    status="succeeded",
    progress=JobProgress(fraction=1.0, step=4, total_steps=4, eta_s=None),
    metrics={},
    result={"model": "m"},
    error=None,
    created_at=datetime(2026, 11, 22, tzinfo=UTC),
    started_at=None,
    finished_at=None,
)


def test_the_shipped_walkers_are_cast_without_overlap() -> None:
    people = choose(WALKS)
    enrolled = {walk for walks in people.enrolled.values() for walk in walks}
    probes = {walk for _, walk in people.probes}
    assert len(people.enrolled) >= 5
    assert all(len(walks) >= 2 for walks in people.enrolled.values())
    assert {person for person, _ in people.probes} == set(people.enrolled)
    assert people.strangers
    assert not enrolled & probes
    assert not (enrolled | probes) & set(people.strangers)


def test_files_beside_the_people_are_no_walkers(tmp_path: Path) -> None:
    for person in ("a", "b", "stranger", "__pycache__"):
        (tmp_path / person).mkdir()
        for number in (1, 2, 3):
            (tmp_path / person / f"walk-{number}.zip").touch()
    (tmp_path / "LICENCE.md").touch()
    assert list(choose(tmp_path).enrolled) == ["a", "b"]


def test_a_good_demo_passes() -> None:
    judge(GOOD, DONE)


@pytest.mark.parametrize(
    ("answers", "job", "why"),
    [
        (replace(GOOD, rank1=0.5), DONE, "50%"),
        (
            replace(GOOD, strangers=[STRANGER.model_copy(update={"decision": "match"})]),
            DONE,
            "stranger",
        ),
        (GOOD, DONE.model_copy(update={"status": "failed", "error": "no space"}), "no space"),
    ],
)
def test_a_demo_in_which_something_went_wrong_fails(answers: Answers, job: Job, why: str) -> None:
    with pytest.raises(DemoFailed, match=why):
        judge(answers, job)
