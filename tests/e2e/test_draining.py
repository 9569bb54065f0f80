"""A service that is told to stop under load cuts nobody off."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass, field

import httpx
import pytest

from tests.e2e.deployment import Deployment, until
from tests.service.requests import enrol, identify
from tests.service.walkers import walk

DRAIN_S = 3.0


@dataclass
class Traffic:
    """Clients as a proxy has them: they send while the service was ready a moment ago."""

    url: str
    keeps_connections: bool
    statuses: list[int] = field(default_factory=list)
    kept_open: list[bool] = field(default_factory=list)
    after_the_signal: int = 0
    broken: list[str] = field(default_factory=list)
    signalled: threading.Event = field(default_factory=threading.Event)
    enough: threading.Event = field(default_factory=threading.Event)

    def send(self) -> None:
        client = httpx.Client(base_url=self.url, timeout=30)
        while not self.enough.is_set():
            late = self.signalled.is_set()
            try:
                answer = identify(client, walk(1))
            except httpx.TransportError as error:
                self.broken.append(repr(error))
                break
            self.statuses.append(answer.status_code)
            if late:
                self.after_the_signal += 1
                self.kept_open.append(answer.headers.get("connection") != "close")
            if not self.keeps_connections:
                client.close()
                client = httpx.Client(base_url=self.url, timeout=30)
        client.close()


@pytest.mark.slow
def test_under_load_it_is_unready_at_once_answers_for_a_while_and_ends(
    deployment: Deployment,
) -> None:
    deployment.set(GAITID_DRAIN_SECONDS=str(DRAIN_S), GAITID_MAX_WAIT_SECONDS="30")
    deployment.start().close()
    with httpx.Client(base_url=deployment.url, timeout=30) as client:
        enrol(client, "anna", walk(1))
    traffic = [Traffic(deployment.url, keeps) for keeps in (True, True, False, False)]
    threads = [threading.Thread(target=one.send) for one in traffic]
    for thread in threads:
        thread.start()
    until(lambda: all(len(one.statuses) >= 2 for one in traffic), "everybody is answered")

    assert deployment.process is not None
    begin = time.monotonic()
    deployment.process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{deployment.url}/readyz").status_code == 503, "it is not ready")
    assert time.monotonic() - begin < DRAIN_S
    for one in traffic:
        one.signalled.set()
    ready = httpx.get(f"{deployment.url}/readyz")
    assert ready.json()["type"] == "/problems/stopping"
    assert int(ready.headers["retry-after"]) >= 1
    assert httpx.get(f"{deployment.url}/healthz").status_code == 200
    assert "gaitid_ready 0.0" in httpx.get(f"{deployment.url}/metrics").text
    until(lambda: all(one.after_the_signal for one in traffic), "everybody is answered still")
    for one in traffic:  # the proxy sends its requests elsewhere
        one.enough.set()
    for thread in threads:
        thread.join(30)
    assert all(one.broken == [] for one in traffic), [one.broken for one in traffic]
    assert {status for one in traffic for status in one.statuses} == {200}
    assert not any(any(one.kept_open) for one in traffic)
    assert deployment.process.wait(30) == 0
    assert time.monotonic() - begin >= DRAIN_S
    deployment.process.stdout.close()  # type: ignore[union-attr]
    deployment.process = None
