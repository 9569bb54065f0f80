"""How a service leaves, in this process: what was begun ends, what comes is refused."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from service.foundation.settings import Settings
from service.gallery.store import GalleryStore
from service.jobs.queue import JobQueue
from tests.e2e.deployment import until
from tests.service.requests import problem
from tests.service.server import serving

SLOW = "/galleries/default"


class Held:
    """A call that is under way until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        asked = GalleryStore.gallery

        def slowly(store: GalleryStore, *arguments: Any) -> Any:
            self.begun.set()
            self.go_on.wait(20)
            return asked(store, *arguments)

        monkeypatch.setattr(GalleryStore, "gallery", slowly)


def test_what_was_begun_is_finished_while_what_comes_is_refused_and_told_to_go_elsewhere(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    answers: dict[str, httpx.Response] = {}

    def ask_slowly(url: str) -> None:
        answers["begun"] = httpx.get(f"{url}{SLOW}", timeout=20)

    def come_late(url: str) -> None:
        held.begun.wait(20)
        until(lambda: httpx.get(f"{url}/readyz").status_code == 503, "it leaves")
        answers["late"] = httpx.get(f"{url}/galleries", timeout=20)
        answers["alive"] = httpx.get(f"{url}/healthz", timeout=20)
        held.go_on.set()

    with serving(settings) as client:
        url = str(client.base_url)
        asking = threading.Thread(target=ask_slowly, args=(url,))
        coming = threading.Thread(target=come_late, args=(url,))
        asking.start()
        assert held.begun.wait(20)
        coming.start()
    asking.join(20)
    coming.join(20)
    assert answers["begun"].status_code == 200
    assert answers["begun"].headers["connection"] == "close"
    body = problem(answers["late"], 503)
    assert body["type"] == "/problems/stopping"
    assert int(answers["late"].headers["retry-after"]) >= 1
    assert answers["late"].headers["connection"] == "close"
    assert answers["alive"].status_code == 200


def test_what_does_not_end_is_answered_503_when_the_time_is_over(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    answers: list[httpx.Response] = []
    hasty = settings.model_copy(update={"stop_seconds": 0.5})
    with serving(hasty) as client:
        url = str(client.base_url)
        asking = threading.Thread(
            target=lambda: answers.append(httpx.get(f"{url}{SLOW}", timeout=20))
        )
        asking.start()
        assert held.begun.wait(20)
        threading.Timer(3.0, held.go_on.set).start()  # no thread can be interrupted
        begin = time.monotonic()
    asking.join(20)
    assert time.monotonic() - begin < 15
    problem(answers[0], 503)


def test_streams_of_events_end_with_a_hint_to_connect_again(
    settings: Settings, engine: Engine
) -> None:
    job = JobQueue.of(engine, settings).enqueue("fake", {})
    received: list[str] = []
    listening = threading.Event()

    def follow(url: str) -> None:
        with httpx.stream("GET", f"{url}/jobs/{job.id}/events", timeout=20) as answer:
            for line in answer.iter_lines():
                received.append(line)
                listening.set()

    with serving(settings) as client:
        thread = threading.Thread(target=follow, args=(str(client.base_url),))
        thread.start()
        assert listening.wait(20)
    thread.join(20)
    assert not thread.is_alive()
    assert "event: status" in received
    assert "retry: 1000" in received  # a whole end of the answer, not a broken connection
