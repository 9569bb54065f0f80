"""Behind a proxy: under a path, called by pages of other origins."""

from __future__ import annotations

import re

import httpx
import pytest
from pydantic import ValidationError
from sqlalchemy import Engine

from service.access.keys import Scope, create_key
from service.client import Client
from service.foundation.settings import Settings
from tests.service.requests import enrol, identify, problem
from tests.service.server import Serve
from tests.service.walkers import walk

PROXIED = {"trusted_proxies": ("127.0.0.1",)}
ORIGIN = "https://desk.example"


@pytest.fixture
def behind(serve: Serve) -> httpx.Client:
    return serve(root_path="/gait/desk")


@pytest.mark.parametrize("passed_on", ["/gait/desk", ""], ids=["passed on", "cut off"])
def test_under_a_path_every_call_works_and_every_location_begins_with_it(
    behind: httpx.Client, passed_on: str
) -> None:
    made = behind.post(f"{passed_on}/galleries", json={"name": "lab"})
    assert made.headers["location"] == "/gait/desk/galleries/lab"
    once = {"Idempotency-Key": "once"}
    for _ in range(2):  # what was kept knows no path
        job = behind.post(f"{passed_on}/jobs/reindex", json={"gallery": "lab"}, headers=once)
        assert job.headers["location"] == f"/gait/desk/jobs/{job.json()['id']}"
    assert behind.get(f"{passed_on}/jobs/{job.json()['id']}").status_code == 200
    assert behind.get(f"{passed_on}/readyz").status_code == 200
    problem(behind.get(f"{passed_on}/nowhere"), 404)


def test_the_limits_of_paths_hold_under_a_path(behind: httpx.Client, engine: Engine) -> None:
    create_key(engine, [Scope.ENROLL])
    problem(behind.get("/gait/desk/galleries"), 401)
    assert behind.get("/gait/desk/metrics").status_code == 200
    assert behind.get("/gait/desk/").status_code == 200
    problem(behind.post("/gait/deskgalleries"), 401)  # no part of the path


def test_the_page_and_the_document_are_right_under_a_path(behind: httpx.Client) -> None:
    bare = behind.get("/gait/desk")
    assert (bare.status_code, bare.headers["location"]) == (308, "/gait/desk/")
    page = behind.get("/gait/desk/")
    links = re.findall(r'(?:href|src)="([^"#]+)"', page.text)
    assert "page/app.js" in links
    for link in links:
        assert not link.startswith("/")
        assert behind.get(httpx.URL(str(page.url)).join(link)).status_code == 200
    assert behind.get("/gait/desk/openapi.json").json()["servers"] == [{"url": "/gait/desk"}]
    with Client(f"{str(behind.base_url).rstrip('/')}/gait/desk") as client:
        assert client.ready()
        assert [gallery.name for gallery in client.galleries()] == ["default"]


def test_without_a_path_nothing_is_added(shared: httpx.Client) -> None:
    assert "servers" not in shared.get("/openapi.json").json()
    job = shared.post(
        "/jobs/evaluate", json={"model": "default", "dataset": {"gallery": "default"}}
    )
    assert job.headers["location"].startswith("/jobs/")


def test_a_trusted_proxy_says_the_path(serve: Serve) -> None:
    client = serve(allow_unauthenticated=True, **PROXIED)
    sent = {"X-Forwarded-Prefix": "/shown/", "X-Forwarded-For": "203.0.113.9"}
    assert client.get("/openapi.json", headers=sent).json()["servers"] == [{"url": "/shown"}]


@pytest.mark.parametrize(
    "said", ["gait", "//evil.example", "/a b", "/a/../b", "https://evil.example", "/é", "/" * 9]
)
def test_what_a_trusted_proxy_says_and_is_no_path_is_refused(serve: Serve, said: str) -> None:
    client = serve(**PROXIED)
    sent = [(b"X-Forwarded-Prefix", said.encode())]
    body = problem(client.get("/healthz", headers=sent), 400)
    assert body["errors"] == [{"where": "X-Forwarded-Prefix", "reason": "invalid"}]
    twice = [(b"X-Forwarded-Prefix", b"/a"), (b"X-Forwarded-Prefix", b"/b")]
    problem(client.get("/healthz", headers=twice), 400)


def test_nobody_else_says_the_path(shared: httpx.Client, serve: Serve) -> None:
    sent = {"X-Forwarded-Prefix": "/evil"}
    assert "servers" not in shared.get("/openapi.json", headers=sent).json()
    elsewhere = serve(trusted_proxies=("192.0.2.0/24",))
    assert "servers" not in elsewhere.get("/openapi.json", headers=sent).json()


@pytest.mark.parametrize("wrong", ["gait", "/", "/gait/", "//gait", "/a b", "/.."])
def test_a_root_path_that_is_none_stops_the_start(wrong: str) -> None:
    with pytest.raises(ValidationError, match="root_path"):
        Settings(root_path=wrong)


def preflight(client: httpx.Client, origin: str, method: str = "POST") -> httpx.Response:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,idempotency-key",
    }
    return client.options("/identify", headers=asked)


def test_a_page_of_an_allowed_origin_may_call_with_a_key_in_a_header(
    serve: Serve, engine: Engine
) -> None:
    client = serve(cors_origins=(ORIGIN,))
    _, key = create_key(engine, [Scope.ENROLL, Scope.IDENTIFY])
    before = preflight(client, ORIGIN)
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in before.headers["access-control-allow-methods"]
    assert "authorization" in before.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in before.headers

    refused = client.get("/galleries", headers={"Origin": ORIGIN})  # and the page can read why
    problem(refused, 401)
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    client.headers.update({"Origin": ORIGIN, "Authorization": f"Bearer {key}"})
    assert enrol(client, "anna", walk(1)).status_code == 201
    found = identify(client, walk(1))
    assert found.json()["candidates"][0]["subject_id"] == "anna"
    assert found.headers["access-control-allow-origin"] == ORIGIN
    assert "Location" in found.headers["access-control-expose-headers"]
    assert "origin" in found.headers["vary"].lower()


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{ORIGIN}.evil.example"])
def test_other_origins_are_told_nothing(serve: Serve, origin: str) -> None:
    client = serve(cors_origins=(ORIGIN,))
    for answer in (preflight(client, origin), client.get("/galleries", headers={"Origin": origin})):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    posted = client.post("/galleries", json={"name": "x"}, headers={"Origin": origin})
    assert problem(posted, 403)["type"] == "/problems/foreign-origin"


def test_by_default_no_origin_is_allowed(shared: httpx.Client) -> None:
    answer = preflight(shared, ORIGIN)
    assert answer.status_code >= 400
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_without_keys_an_allowed_origin_may_change_things(serve: Serve) -> None:
    client = serve(cors_origins=(ORIGIN,))
    sent = {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}
    assert client.post("/galleries", json={"name": "x"}, headers=sent).status_code == 201


@pytest.mark.parametrize(
    "wrong", ["*", "desk.example", "https://desk.example/", "HTTPS://x", "null"]
)
def test_what_is_no_origin_stops_the_start(wrong: str) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        Settings(cors_origins=wrong)
