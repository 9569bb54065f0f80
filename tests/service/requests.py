"""The calls most tests make."""

from __future__ import annotations

from typing import Any

import httpx


def enrol(client: httpx.Client, subject: str, *walks: bytes, **fields: str) -> httpx.Response:
    files = [("sequence", (f"{position}.npz", data)) for position, data in enumerate(walks)]
    return client.post("/enroll", data={"subject_id": subject, **fields}, files=files)


def identify(client: httpx.Client, probe: bytes, **fields: str) -> httpx.Response:
    return client.post("/identify", data=fields, files={"sequence": ("probe.npz", probe)})


def verify(client: httpx.Client, subject: str, probe: bytes, **fields: str) -> httpx.Response:
    return client.post(
        "/verify",
        data={"subject_id": subject, **fields},
        files={"sequence": ("probe.npz", probe)},
    )


def contents(client: httpx.Client, gallery: str = "default") -> dict[str, Any]:
    """Every subject of a gallery with its sequences, and the gallery's counts."""
    found: dict[str, Any] = {"": client.get(f"/galleries/{gallery}").json()}
    for item in client.get("/subjects", params={"gallery": gallery, "limit": 500}).json()["items"]:
        subject = item["subject_id"]
        found[subject] = client.get(f"/subjects/{subject}", params={"gallery": gallery}).json()
    return found


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document of a refusal; fails for anything else."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "errors"}
    assert body["status"] == status
    assert body["detail"]
    assert body["type"].startswith("/problems/")
    assert all(set(error) == {"where", "reason"} for error in body["errors"])
    return body
