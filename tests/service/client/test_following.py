"""A job's events, over connections that break."""

from __future__ import annotations

import httpx
import pytest

from service.client import JobEvent, NotFound, Retries, ServiceUnreachable, UnexpectedAnswer
from tests.service.client.answering import Script, client, problem, stream

STARTED = (1, "status", {"status": "running"})
HALF = (2, "progress", {"step": 1})
DONE = (3, "status", {"status": "succeeded"})
NOTHING_MORE = httpx.Response(204)
BROKEN = httpx.ReadError("Connection reset by peer")


def follow(script: Script, retries: Retries | None = None) -> list[int]:
    followed = client(script, retries) if retries else client(script)
    return [event.sequence for event in followed.follow("j1")]


def asked(script: Script) -> list[str | None]:
    return [request.headers.get("Last-Event-ID") for request in script.requests]


def test_events_are_followed_to_the_one_that_ends_the_job() -> None:
    script = Script(stream(STARTED, HALF, DONE))
    events = list(client(script).follow("j1"))
    assert events[1] == JobEvent(sequence=2, kind="progress", data={"step": 1})
    assert [event.last for event in events] == [False, False, True]
    assert asked(script) == [None]


@pytest.mark.parametrize("break_", [BROKEN, problem(503, "overloaded")], ids=str)
def test_a_broken_stream_goes_on_after_the_last_event(break_: Exception | httpx.Response) -> None:
    script = Script(stream(STARTED, HALF), break_, stream(DONE))
    assert follow(script) == [1, 2, 3]
    assert asked(script) == [None, "2", "2"]


def test_a_stream_that_a_stopping_service_ends_is_not_the_end_of_the_job() -> None:
    script = Script(stream(STARTED), stream(HALF), stream(DONE))
    assert follow(script) == [1, 2, 3]


def test_a_job_of_which_everything_was_seen_has_no_more_events() -> None:
    script = Script(NOTHING_MORE)
    assert list(client(script).follow("j1", after=3)) == []
    assert asked(script) == ["3"]


def test_a_stream_that_never_comes_back_is_given_up() -> None:
    script = Script(stream(STARTED), BROKEN)
    with pytest.raises(ServiceUnreachable, match="reset"):
        follow(script, Retries(attempts=3, first_wait_s=0.0))
    assert len(script.requests) == 3


def test_patience_is_new_after_every_event() -> None:
    script = Script(*(stream((number, "progress", {})) for number in range(1, 9)), stream(DONE))
    assert follow(script, Retries(attempts=3, first_wait_s=0.0)) == [*range(1, 9), 3]


def test_a_job_that_is_not_there_is_not_waited_for() -> None:
    script = Script(problem(404, "job-not-found"))
    with pytest.raises(NotFound):
        follow(script)
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(
            200, text="data: no json\n\n", headers={"Content-Type": "text/event-stream"}
        ),
    ],
)
def test_what_sends_no_events_is_said_to(answer: httpx.Response) -> None:
    with pytest.raises(UnexpectedAnswer):
        follow(Script(answer))


def test_a_stream_may_be_left_half_way() -> None:
    script = Script(stream(STARTED), stream(HALF, DONE))
    events = client(script).follow("j1")
    assert [next(events).sequence, next(events).sequence] == [1, 2]
    events.close()  # type: ignore[attr-defined]
    assert len(script.requests) == 2
