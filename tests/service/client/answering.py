"""A service that answers as a test tells it to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

from service.client import Client, Retries

Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]
AT_ONCE = Retries(attempts=5, first_wait_s=0.0)


class Script(httpx.MockTransport):
    """Gives its answers one after another, the last one for ever; keeps the requests."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__(self._answer)
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def _answer(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    def handle(self, request: httpx.Request) -> httpx.Response:
        """In the place of a real transport's method."""
        return self._answer(request)

    @property
    def keys(self) -> list[str | None]:
        """The Idempotency-Key of every request."""
        return [request.headers.get("Idempotency-Key") for request in self.requests]


def client(script: Script, retries: Retries = AT_ONCE) -> Client:
    return Client("http://gait.test", api_key="", transport=script, retries=retries)


def problem(status: int, slug: str = "internal", **headers: str) -> httpx.Response:
    content = {
        "type": f"/problems/{slug}",
        "title": "Title",
        "status": status,
        "detail": f"Detail of {slug}.",
        "errors": [{"where": "here", "reason": "wrong"}],
    }
    return httpx.Response(
        status,
        json=content,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


def job(**changes: Any) -> dict[str, Any]:
    return {
        "id": "j1",
        "type": "calibrate",
        "status": "queued",
        "progress": {"fraction": 0.0, "step": 0, "total_steps": None, "eta_s": None},
        "metrics": {},
        "result": None,
        "error": None,
        "created_at": "2026-11-22T10:55:57.393Z",
        "started_at": None,
        "finished_at": None,
        **changes,
    }


def a_job(**changes: Any) -> httpx.Response:
    return httpx.Response(200, json=job(**changes))


def stream(*events: tuple[int, str, dict[str, Any]]) -> httpx.Response:
    lines = "".join(
        f"id: {number}\r\nevent: {kind}\r\ndata: {json.dumps(data)}\r\n\r\n: ping\r\n\r\n"
        for number, kind, data in events
    )
    return httpx.Response(200, text=lines, headers={"Content-Type": "text/event-stream"})
