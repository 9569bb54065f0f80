"""Everything a real process logs, read after calls that go well and calls that do not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from service.access.keys import Scope, create_key
from service.foundation.settings import Settings
from service.http.resources import open_engine
from service.storage.encryption import new_secret
from tests.service.access.test_access import bearer
from tests.service.server import wait_until
from tests.service.walkers import npz, walk, walker


def everything(client: httpx.Client) -> list[httpx.Response]:
    """Calls of every kind, each with something of a person's in it."""

    def post(path: str, fields: dict[str, str], *files: tuple[str, bytes]) -> httpx.Response:
        return client.post(path, data=fields, files=[("sequence", file) for file in files])

    mark = {"metadata": '{"camera": "zebra-camera"}'}
    subject = {"subject_id": "zebra-subject"}
    other = ("zebra-other.npz", walk(2))
    good, poor = ("zebra-file.npz", walk(1)), ("zebra-poor.npz", npz(walker(1)[:1]))
    return [
        post("/enroll", {**subject, **mark}, good),
        post("/enroll", {**subject, "metadata": '{"zebra'}, good),
        post("/enroll", subject, good, poor),
        post("/enroll", {"subject_id": "zebra/subject"}, good),
        post("/enroll", {**subject, "zebra-field": "1"}, good),
        post("/identify", {"filter": '{"camera": "zebra-camera"}', "explain": "true"}, other),
        post("/identify", {"gallery": "zebra-gallery"}, good),
        post("/identify", {}, ("zebra.txt", b"zebra")),
        post("/verify", subject, good),
        post("/verify", {"subject_id": "zebra-nobody"}, good),
        client.get("/subjects/zebra-subject"),
        client.get("/subjects/zebra-nobody", params={"zebra": "zebra"}),
        client.get("/zebra/zebra-subject"),
        client.get("/sequences/zebra/gei.png"),
        client.get("/audit"),
        client.post("/galleries", content=b'{"name": "zebra"', headers={"Content-Type": "zebra"}),
        client.get("/subjects", headers=bearer("gid_zebra")),
        client.delete("/subjects/zebra-subject"),
    ]


def test_logs_name_requests_and_nobody(settings: Settings, models: Path, tmp_path: Path) -> None:
    secret = new_secret()
    engine = open_engine(settings)
    token = create_key(engine, [Scope.ADMIN], "zebra-key")[1]
    engine.dispose()
    environment = {
        **os.environ,
        "GAITID_DATA_DIR": str(settings.data_dir),
        "GAITID_SHIPPED_MODELS_DIR": str(models),
        "GAITID_DEVICE": "cpu",
        "GAITID_ENCRYPTION_KEYS": secret,
    }
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        running = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--no-worker", "--port", "0"],
            env=environment,
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        assert running.stdout is not None
        address = running.stdout.readline().rsplit(" ", 1)[-1].strip()
        with httpx.Client(base_url=address, headers=bearer(token), timeout=30) as client:
            wait_until(client, "/readyz")
            answers = everything(client)
        running.send_signal(signal.SIGTERM)
        running.wait(20)
        running.stdout.close()
    statuses = [answer.status_code for answer in answers]
    assert statuses == [
        201, 422, 422, 422, 422, 200, 404, 415, 200, 404, 200, 422, 404, 404, 200, 422, 401, 200,
    ]  # fmt: skip
    text = log.read_text(encoding="utf-8")
    logged: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    requests = {line["request_id"] for line in logged if line["message"] == "request"}
    assert {answer.headers["x-request-id"] for answer in answers} <= requests
    for mark in ("zebra", token, secret, *similarities(answers)):
        assert mark not in text


def similarities(answers: list[httpx.Response]) -> set[str]:
    """What was said of how alike two walks are, to 4 places."""
    (found,) = (answer.json() for answer in answers if '"parts"' in answer.text)
    (first,) = found["candidates"]
    return {str(value)[:6] for value in (first["similarity"], *first["parts"])}
