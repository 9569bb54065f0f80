"""A call that fails is made again where that helps, and never twice where that hurts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from service.client import (
    Client,
    ClientError,
    NotFound,
    RateLimited,
    Refused,
    Retries,
    ServiceUnreachable,
    Unavailable,
)
from tests.service.client.answering import Script, a_job, client, problem

REFUSED = httpx.ConnectError("Connection refused")
BROKEN = httpx.RemoteProtocolError("Server disconnected without sending a response.")
RECEIPT: dict[str, object] = {
    "receipt_id": "r",
    "gallery": "default",
    "subject_id": None,
    "erased": {},
    "sequence_ids": [],
    "erased_at": "2026-11-22T10:55:57.393Z",
}


@pytest.mark.parametrize(
    "failure",
    [
        REFUSED,
        BROKEN,
        httpx.ReadTimeout("timed out"),
        problem(429, "rate-limited"),
        problem(503, "overloaded"),
        problem(409, "idempotency-key-in-flight"),
    ],
    ids=str,
)
def test_a_post_is_sent_again_with_the_same_key_and_body(failure: Exception) -> None:
    script = Script(failure, failure, a_job())
    assert client(script).calibrate(target_fpir=0.1).id == "j1"
    assert len(script.requests) == 3
    (key,) = set(script.keys)
    assert key
    (body,) = {request.content for request in script.requests}
    assert b'"target_fpir":0.1' in body


def test_every_call_has_a_key_of_its_own() -> None:
    script = Script(lambda request: a_job())
    calling = client(script)
    for _ in range(3):
        calling.calibrate()
    assert len(set(script.keys)) == 3


def test_a_given_key_is_the_one_that_is_sent() -> None:
    answer = {
        "gallery": "g",
        "subject_id": "s",
        "sequences": [],
        "model": {"name": "m", "digest": "d"},
    }
    script = Script(httpx.Response(201, json=answer, headers={"Idempotency-Replayed": "true"}))
    enrolment = client(script).enroll("s", [("w.npz", b"walk")], idempotency_key="mine")
    assert script.keys == ["mine"]
    assert enrolment.replayed


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 422, 500, 507])
def test_what_will_not_change_is_not_tried_again(status: int) -> None:
    script = Script(problem(status))
    with pytest.raises(Refused) as refusal:
        client(script).calibrate()
    assert refusal.value.status == status
    assert len(script.requests) == 1


def test_a_call_is_given_up_after_as_many_attempts_as_agreed() -> None:
    script = Script(REFUSED)
    with pytest.raises(ServiceUnreachable, match="Connection refused"):
        client(script, Retries(attempts=3, first_wait_s=0.0)).job("j1")
    assert len(script.requests) == 3


def test_an_erasure_that_may_have_happened_is_not_sent_again() -> None:
    script = Script(BROKEN)
    with pytest.raises(ServiceUnreachable) as failure:
        client(script).erase_gallery("lab")
    assert failure.value.sent
    assert len(script.requests) == 1


@pytest.mark.parametrize("failure", [REFUSED, problem(503, "database-busy")], ids=str)
def test_an_erasure_that_did_not_happen_is_sent_again(
    failure: Exception | httpx.Response,
) -> None:
    script = Script(failure, httpx.Response(200, json=RECEIPT))
    assert client(script).erase_gallery("lab").receipt_id == "r"
    assert script.keys == [None, None]


def test_waits_double_and_are_spread() -> None:
    retries = Retries(attempts=100, first_wait_s=1.0, longest_wait_s=30.0)
    gone = ServiceUnreachable("gone", sent=False)
    for failures, longest in [(1, 1.0), (2, 2.0), (4, 8.0), (9, 30.0), (99, 30.0)]:
        pauses = {retries.pause(gone, failures, repeatable=False) for _ in range(20)}
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest
        assert len(pauses) > 1


def in_ten_seconds() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)


@pytest.mark.parametrize("asked", ["10", in_ten_seconds])
def test_a_service_that_asks_for_time_gets_it(asked: object) -> None:
    slept: list[float] = []
    value = asked() if callable(asked) else str(asked)
    script = Script(problem(503, "not-ready", Retry_After=value), a_job())
    client(script, Retries(first_wait_s=0.0, sleep=slept.append)).calibrate()
    assert len(slept) == 1
    assert 8 < slept[0] <= 10


@pytest.mark.parametrize(
    ("asked", "kept"), [("3600", 3600.0), ("soon", None), ("", None), ("-1", None)]
)
def test_a_service_that_asks_for_too_much_time_is_told_to_the_caller(
    asked: str, kept: float | None
) -> None:
    script = Script(problem(429, "rate-limited", Retry_After=asked))
    with pytest.raises(RateLimited) as refusal:
        client(script).calibrate()
    assert refusal.value.retry_after == kept
    assert len(script.requests) == (1 if kept else 5)


def test_a_problem_is_raised_as_what_it_is() -> None:
    script = Script(problem(404, "job-not-found", X_Request_ID="r-1"))
    with pytest.raises(NotFound) as refusal:
        client(script).job("j1")
    error = refusal.value
    assert isinstance(error, ClientError)
    assert (error.status, error.slug, error.detail) == (
        404,
        "job-not-found",
        "Detail of job-not-found.",
    )
    assert [(fault.where, fault.reason) for fault in error.errors] == [("here", "wrong")]
    assert error.request_id == "r-1"
    assert str(error) == "Detail of job-not-found.\n  here: wrong"


def test_an_error_of_a_proxy_is_a_refusal_too() -> None:
    script = Script(httpx.Response(503, text="<html>no upstream</html>"))
    with pytest.raises(Unavailable, match="503 Service Unavailable"):
        client(script).job("j1")


def test_a_key_that_would_break_the_header_is_never_shown() -> None:
    with pytest.raises(ValueError, match="API key") as failure:
        Client("http://gait.test", api_key="gid_secret\n")
    assert "secret" not in str(failure.value)
