from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain, repeat

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from models.encoder.encoder import Encoder
from service.foundation.settings import Settings
from service.http.upload_slots import Upload, UploadSlots
from tests.service.requests import contents, enrol, identify, problem, verify
from tests.service.server import Serve, serving
from tests.service.walkers import walk


@pytest.mark.parametrize("index", ["faiss", "memory"])
def test_who_was_enrolled_is_identified(serve: Serve, index: str) -> None:
    client = serve(index=index)
    for person in range(4):
        answer = enrol(client, f"s{person}", walk(person), walk(person, phase=1.0))
        assert answer.status_code == 201, answer.text
        body = answer.json()
        assert set(body) == {
            "gallery", "subject_id", "sequences", "conflicts", "coverage", "model",
        }  # fmt: skip
        assert [item["frames"] for item in body["sequences"]] == [40, 40]
        assert set(body["sequences"][0]) == {
            "sequence_id", "frames", "quality", "already_enrolled",
        }  # fmt: skip

    answer = identify(client, walk(2))

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {
        "search_id", "gallery", "decision", "threshold", "threshold_source", "operating_point",
        "candidates", "probe", "model", "took_ms",
    }  # fmt: skip
    assert body["decision"] == "match"
    assert (body["threshold"], body["threshold_source"]) == (0.99, "model")
    assert body["operating_point"] is None
    best, second, *_ = body["candidates"]
    assert best["subject_id"] == "s2"
    assert best["similarity"] == pytest.approx(1, abs=1e-4)
    assert best["margin"] == pytest.approx(best["similarity"] - second["similarity"])
    assert second["margin"] == pytest.approx(second["similarity"] - best["similarity"])
    assert [item["rank"] for item in body["candidates"]] == [1, 2, 3, 4]
    assert "parts" not in best
    assert body["probe"]["frames"] == 40
    assert set(body["probe"]["quality"]) == {"score", "issues"}


def test_an_empty_gallery_answers_no_match_without_candidates(shared: httpx.Client) -> None:
    body = identify(shared, walk(1)).json()
    assert (body["decision"], body["candidates"]) == ("no_match", [])


def test_a_request_s_threshold_decides(serve: Serve) -> None:
    client = serve()
    enrol(client, "anna", walk(1))
    similarity = identify(client, walk(1, phase=0.4)).json()["candidates"][0]["similarity"]
    for threshold, decision in ((similarity - 1e-3, "match"), (similarity + 1e-5, "no_match")):
        body = identify(client, walk(1, phase=0.4), threshold=str(threshold)).json()
        assert body["decision"] == decision
        assert (body["threshold"], body["threshold_source"]) == (threshold, "request")


def test_one_row_a_subject_even_when_one_subject_fills_the_shortlist(serve: Serve) -> None:
    client = serve(shortlist=4)
    for start in range(0, 12, 4):
        enrol(client, "many", *(walk(1, phase=0.1 * step) for step in range(start, start + 4)))
    enrol(client, "other", walk(2))
    enrol(client, "third", walk(3))
    candidates = identify(client, walk(1), top_k="3").json()["candidates"]
    assert candidates[0]["subject_id"] == "many"
    assert {item["subject_id"] for item in candidates} == {"many", "other", "third"}
    (only,) = identify(client, walk(1), top_k="1").json()["candidates"]
    assert only["margin"] == pytest.approx(
        candidates[0]["similarity"] - candidates[1]["similarity"]
    )


def test_the_only_subject_has_no_margin(serve: Serve) -> None:
    client = serve()
    enrol(client, "anna", walk(1))
    assert identify(client, walk(1)).json()["candidates"][0]["margin"] is None


def test_parts_are_explained_on_request_and_average_to_the_similarity(serve: Serve) -> None:
    client = serve()
    enrol(client, "anna", walk(1))
    (candidate,) = identify(client, walk(2), explain="true").json()["candidates"]
    assert len(candidate["parts"]) == 4
    assert sum(candidate["parts"]) / 4 == pytest.approx(candidate["similarity"], abs=1e-5)


def test_a_filter_acts_inside_the_search(serve: Serve) -> None:
    client = serve(shortlist=1)
    enrol(client, "anna", walk(1), metadata='{"view": "000", "n": 1}')
    enrol(client, "bert", walk(2), metadata='{"view": "090", "n": true}')
    enrol(client, "carl", walk(3), metadata='{"view": "180", "n": 1.0}')

    def found(text: str) -> set[str]:
        candidates = identify(client, walk(1), filter=text).json()["candidates"]
        return {item["subject_id"] for item in candidates}

    assert found('{"view": "090"}') == {"bert"}
    assert found('{"view": ["090", "180"]}') == {"bert", "carl"}
    assert found('{"view": ["000", "090"], "n": 1}') == {"anna"}
    assert found('{"n": 1}') == {"anna", "carl"}
    assert found('{"n": true}') == {"bert"}
    assert found('{"view": "270"}') == set()
    assert found('{"camera": "front"}') == set()
    assert found("{}") == {"anna", "bert", "carl"}


def test_a_subject_is_verified_by_its_own_best_sequence(serve: Serve) -> None:
    client = serve()
    enrol(client, "anna", walk(1), walk(4))
    enrol(client, "bert", walk(2))
    body = verify(client, "anna", walk(4)).json()
    assert body["verified"] is True
    assert body["similarity"] == pytest.approx(1, abs=1e-4)
    assert (body["threshold"], body["threshold_source"]) == (0.99, "model")
    assert verify(client, "bert", walk(4), threshold="0.99999").json()["verified"] is False
    problem(verify(client, "nobody", walk(4)), 404)
    problem(verify(client, "anna", walk(4), gallery="missing"), 404)


def test_enrolling_again_adds_to_the_subject(serve: Serve) -> None:
    client = serve()
    enrol(client, "anna", walk(1), metadata='{"view": "090"}')
    enrol(client, "anna", walk(1, phase=1), metadata='{"view": "000"}')
    subject = client.get("/subjects/anna").json()
    assert [item["metadata"]["view"] for item in subject["sequences"]] == ["090", "000"]
    assert client.get("/galleries/default").json()["subjects"] == 1


def test_concurrent_requests_are_all_answered_right(serve: Serve) -> None:
    client = serve()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: enrol(client, f"s{n}", walk(n)), range(12)))
        assert [answer.status_code for answer in answers] == [201] * 12
        answers = list(threads.map(lambda n: identify(client, walk(n)), range(12)))
    best = [answer.json()["candidates"][0]["subject_id"] for answer in answers]
    assert best == [f"s{n}" for n in range(12)]


def test_too_much_at_once_is_503_with_retry_after_and_the_service_lives(serve: Serve) -> None:
    client = serve(max_pending=2)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda n: enrol(client, f"s{n}", walk(n)), range(32)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    assert {answer.status_code for answer in answers} == {201, 503}
    assert int(refused[0].headers["retry-after"]) >= 1
    problem(refused[0], 503)
    enrolled = {answer.json()["subject_id"] for answer in answers if answer.status_code == 201}
    assert set(contents(client)) - {""} == enrolled


def begin_upload(client: httpx.Client, address: str = "127.0.0.1") -> socket.socket:
    """A connection from an address, on which an upload was begun and is not going on."""
    connection = socket.create_connection(
        (client.base_url.host, client.base_url.port or 0), source_address=(address, 0)
    )
    connection.sendall(
        b"POST /identify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
        b"Content-Type: multipart/form-data; boundary=X\r\n\r\n--X"
    )
    return connection


def test_too_many_uploads_at_once_are_turned_away_before_they_are_read(serve: Serve) -> None:
    client = serve(max_uploads=1)
    with ExitStack() as stack:
        deadline = time.monotonic() + 10
        while True:
            stack.enter_context(begin_upload(client))
            answer = identify(client, walk(1))
            if answer.status_code != 200:
                break
            assert time.monotonic() < deadline
        problem(answer, 503)
        assert "retry-after" in answer.headers
    while identify(client, walk(1)).status_code != 200:
        assert time.monotonic() < deadline


class ToldSlots(UploadSlots):
    """Slots that say when the first one is taken."""

    def __init__(self, most: int, *, grace_s: float) -> None:
        super().__init__(most, grace_s=grace_s)
        self.began = threading.Event()

    def take(self, caller: str) -> Upload:
        upload = super().take(caller)
        self.began.set()
        return upload


def test_a_slow_upload_makes_room_for_somebody_else(settings: Settings) -> None:
    slots = ToldSlots(1, grace_s=0.3)
    with (
        serving(settings, upload_slots=slots) as client,
        begin_upload(client, address="127.0.0.2") as connection,
    ):
        assert slots.began.wait(10)
        connection.settimeout(0.1)
        deadline = time.monotonic() + 10
        answer = b""
        while not answer:
            assert time.monotonic() < deadline
            assert identify(client, walk(1)).status_code in (200, 503)  # 503 while it is not slow
            with suppress(TimeoutError):
                answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert identify(client, walk(1)).status_code == 200


def test_an_upload_that_stops_arriving_is_given_up(serve: Serve) -> None:
    client = serve(max_upload_idle_seconds=0.2)
    with begin_upload(client) as connection:
        connection.settimeout(10)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer
    # Waiting for an answer is not the client's fault.
    assert identify(client, walk(1)).status_code == 200


def test_an_upload_that_trickles_is_given_up_too(serve: Serve) -> None:
    client = serve(max_upload_idle_seconds=0.5)
    with begin_upload(client) as connection:
        connection.settimeout(0.1)
        deadline = time.monotonic() + 10
        answer = b""
        part = chain([b"\r\n"], repeat(b"X"))
        while not answer:
            assert time.monotonic() < deadline
            connection.sendall(next(part))
            with suppress(TimeoutError):
                answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_request_whose_client_left_drops_out(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, go_on = Encoder.encode, threading.Event()

    def held_up(encoder: Encoder, walks: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        assert go_on.wait(30)
        return encode(encoder, walks)

    monkeypatch.setattr(Encoder, "encode", held_up)
    client = serve(batch_wait_ms=0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(identify, client, walk(1))
        _await(client, "gaitid_decode_duration_seconds_count 1.0")
        with pytest.raises(httpx.ReadTimeout):
            client.post("/identify", files={"sequence": ("a", walk(2))}, timeout=3)
        metrics = _await(client, "gaitid_pending_sequences 1.0")
        go_on.set()
        assert first.result(30).status_code == 200
    assert "gaitid_decode_duration_seconds_count 2.0" in metrics
    metrics = _await(client, "gaitid_pending_sequences 0.0")
    assert "gaitid_embed_duration_seconds_count 1.0" in metrics


def _await(client: httpx.Client, line: str) -> str:
    """The metrics once they have this line."""
    deadline = time.monotonic() + 10
    while line not in (metrics := client.get("/metrics").text):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return metrics


def test_a_request_larger_than_the_queue_is_served_when_it_is_alone(serve: Serve) -> None:
    client = serve(max_pending=1, max_sequences_per_request=3)
    assert enrol(client, "anna", *(walk(n, frames=24) for n in range(3))).status_code == 201
    problem(enrol(client, "anna", *(walk(n, frames=24) for n in range(4))), 413)
    assert client.get("/galleries/default").json()["sequences"] == 3


def test_a_model_without_threshold_needs_one_in_the_request(serve: Serve) -> None:
    client = serve(model="uncalibrated")
    body = problem(identify(client, walk(1)), 422)
    assert body["errors"] == [{"where": "threshold", "reason": "required"}]
    assert identify(client, walk(1), threshold="0.5").json()["threshold_source"] == "request"
