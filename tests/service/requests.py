"""The calls most tests make."""

from __future__ import annotations

from typing import Any

import httpx


def enrol(client: httpx.Client, subject: str, *walks: bytes, **fields: str) -> httpx.Response:
    """Enrol walks; to the untrained network of these tests all people are one, so they may be."""
    files = [("sequence", (f"{position}.npz", data)) for position, data in enumerate(walks)]
    data = {"subject_id": subject, "accept_conflict": "true", **fields}
    return client.post("/enroll", data=data, files=files)


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


def problem(
    answer: httpx.Response, status: int, members: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The problem document of a refusal, with these members of its own; fails for anything else."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "errors"} | members
    assert body["status"] == status
    assert body["detail"]
    assert body["type"].startswith("/problems/")
    assert all(set(error) == {"where", "reason"} for error in body["errors"])
    return body
