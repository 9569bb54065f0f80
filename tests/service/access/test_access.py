from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from select import select

import httpx
import pytest
from sqlalchemy import Engine

from service.access.exposure import Exposed, check_exposure
from service.access.keys import Scope, create_key, find_key, list_keys, read_expiry, revoke_key
from service.foundation.errors import NotFound, Unauthenticated
from service.foundation.settings import Settings
from service.http.app import create_app
from service.http.middleware.scopes import requirements
from service.http.resources import open_engine
from service.storage.database import now
from tests.service.requests import enrol, identify, problem
from tests.service.server import Serve
from tests.service.walkers import walk


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_from_the_first_key_on_every_call_needs_one(serve: Serve, engine: Engine) -> None:
    client = serve()
    assert client.get("/galleries").status_code == 200
    key, token = create_key(engine, [Scope.IDENTIFY], "reader")

    refused = client.get("/galleries")
    assert problem(refused, 401)["type"] == "/problems/key-required"
    assert refused.headers["www-authenticate"] == "Bearer"
    problem(client.get("/galleries", headers=bearer("gid_wrong")), 401)
    problem(client.get("/galleries", headers={"Authorization": f"Basic {token}"}), 401)
    problem(client.get("/galleries", params={"key": token}), 401)
    assert client.get("/galleries", headers=bearer(token)).status_code == 200
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/"):
        assert client.get(path).status_code == 200

    revoke_key(engine, key.key_id)
    problem(client.get("/galleries", headers=bearer(token)), 401)
    problem(client.get("/galleries"), 401)  # the last key being gone opens nothing


def test_a_key_that_has_expired_or_was_revoked_is_refused_from_that_moment_on(
    serve: Serve, engine: Engine
) -> None:
    client = serve(wrong_key_rate="3/hour")
    expires_at = now() + timedelta(seconds=2)
    key, token = create_key(engine, [Scope.ADMIN], expires_at=expires_at)
    _, other = create_key(engine, [Scope.ADMIN])
    assert find_key(engine, token, expires_at - timedelta(microseconds=1)) == key
    with pytest.raises(Unauthenticated):
        find_key(engine, token, expires_at)
    assert client.get("/galleries", headers=bearer(token)).status_code == 200
    time.sleep(max(0.0, (expires_at - now()).total_seconds()))
    for _ in range(5):  # it was right before, and is no guess
        refused = problem(client.get("/galleries", headers=bearer(token)), 401)
        assert refused["errors"] == [{"where": "Authorization", "reason": "expired_key"}]
    problem(client.post("/galleries", headers=bearer(token), json={"name": "lab"}), 401)
    assert client.get("/galleries", headers=bearer(other)).status_code == 200
    revoke_key(engine, key.key_id)
    refused = problem(client.get("/galleries", headers=bearer(token)), 401)
    assert refused["errors"][0]["reason"] == "unknown_key"


def test_the_last_key_expiring_opens_nothing(serve: Serve, engine: Engine) -> None:
    client = serve()
    create_key(engine, [Scope.ADMIN], expires_at=now() - timedelta(days=1))
    problem(client.get("/galleries"), 401)


NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)


def test_when_a_key_expires_is_a_number_of_days_or_the_beginning_of_one() -> None:
    assert read_expiry("90d", NOON) == NOON + timedelta(days=90)
    assert read_expiry("2026-12-02", NOON) == datetime(2026, 12, 2, tzinfo=UTC)
    assert read_expiry("99999d", NOON) > NOON


@pytest.mark.parametrize(
    "expiry",
    ["", "90", "0d", "-1d", "100000d", "90 d", "9h", "2026-12-01", "2027-02-30", "20270131", "٩d"],
)
def test_an_expiry_that_is_none_is_refused(expiry: str) -> None:
    with pytest.raises(ValueError, match=r"neither|begun|day"):
        read_expiry(expiry, NOON)


def test_a_key_does_what_its_scopes_say(serve: Serve, engine: Engine) -> None:
    client = serve()
    tokens = {scope: create_key(engine, [scope])[1] for scope in Scope}

    def statuses(scope: Scope) -> list[int]:
        client.headers.update(bearer(tokens[scope]))
        return [
            enrol(client, f"by-{scope}", walk(1)).status_code,
            identify(client, walk(1)).status_code,
            client.get("/jobs").status_code,
            client.post("/galleries", json={"name": f"by-{scope}"}).status_code,
            client.delete("/subjects/nobody").status_code,
            client.get("/subjects").status_code,
        ]

    assert statuses(Scope.ENROLL) == [201, 403, 403, 403, 403, 200]
    assert statuses(Scope.IDENTIFY) == [403, 200, 403, 403, 403, 200]
    assert statuses(Scope.JOBS) == [403, 403, 200, 403, 403, 403]
    assert statuses(Scope.ADMIN) == [201, 200, 200, 201, 404, 200]
    client.headers.update(bearer(tokens[Scope.ENROLL]))
    body = problem(identify(client, walk(1)), 403)
    assert "`identify`" in body["detail"]


def begin_upload(client: httpx.Client, token: str, path: str = "/identify") -> socket.socket:
    """A connection on which an upload was begun and is not going on."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 0), 20)
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: multipart/form-data; boundary=X\r\nContent-Length: 9999\r\n\r\n--X".encode()
    )
    return connection


def test_a_key_without_the_scope_is_refused_before_its_body_is_there(
    serve: Serve, engine: Engine
) -> None:
    client = serve()
    jobs, enroll = (create_key(engine, [scope])[1] for scope in (Scope.JOBS, Scope.ENROLL))
    for token, path in (
        (jobs, "/identify"),
        (jobs, "/enroll"),
        (jobs, "/models"),
        (enroll, "/verify"),
        (enroll, "/jobs/distill"),
    ):
        with begin_upload(client, token, path) as connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 403 "), path


def test_every_scope_that_a_route_asks_for_is_known_before_the_body(settings: Settings) -> None:
    app = create_app(settings)
    asked = {
        f"{method} {route.path}": {requirement.scopes for requirement in found}
        for route, found in requirements(app)
        for method in route.methods or ()
    }
    unasked = {call for call, found in asked.items() if not found}
    open_to_all = {"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/", "/page/{name}"}
    assert {call.partition(" ")[2] for call in unasked} == open_to_all
    assert asked["POST /models"] == {(Scope.JOBS,), (Scope.ADMIN,)}
    assert asked["GET /galleries/{gallery}"] == {(Scope.IDENTIFY, Scope.ENROLL)}


def test_one_key_never_holds_every_place_for_an_upload(serve: Serve, engine: Engine) -> None:
    client = serve(max_uploads=4)
    greedy, other = (create_key(engine, [Scope.IDENTIFY])[1] for _ in range(2))
    with ExitStack() as stack:
        uploads = [stack.enter_context(begin_upload(client, greedy)) for _ in range(8)]
        answered, _, _ = select(uploads, [], [], 20)
        deadline = time.monotonic() + 20
        while len(answered) < 6 and time.monotonic() < deadline:
            answered, _, _ = select(uploads, [], [], 0.1)
        answers = [upload.recv(4096) for upload in answered]
        assert len(answers) == 6
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in answers)
        client.headers.update(bearer(other))
        assert identify(client, walk(1)).status_code == 200


def test_a_key_is_shown_once_and_kept_as_a_hash(settings: Settings) -> None:
    engine = open_engine(settings)
    key, token = create_key(engine, [Scope.ADMIN, Scope.JOBS], "the boss")
    assert token.startswith("gid_")
    assert len(token) > 40
    assert list_keys(engine) == [key]
    assert key.scopes == {Scope.ADMIN, Scope.JOBS}
    engine.dispose()
    for file in settings.data_dir.glob("gaitid.sqlite*"):
        assert token.encode() not in file.read_bytes()
    with pytest.raises(ValueError, match="scope"):
        create_key(engine, [])
    with pytest.raises(NotFound):
        revoke_key(engine, "nothing")


def test_without_a_key_it_does_not_start_on_another_address(settings: Settings) -> None:
    engine = open_engine(settings)
    for host in ("0.0.0.0", "192.168.1.4", "::", "example.org"):  # noqa: S104
        exposed = settings.model_copy(update={"host": host})
        with pytest.raises(Exposed, match="gaitid keys add"):
            check_exposure(exposed, engine)
        check_exposure(exposed.model_copy(update={"allow_unauthenticated": True}), engine)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        check_exposure(settings.model_copy(update={"host": host}), engine)
    create_key(engine, [Scope.ADMIN])
    check_exposure(settings.model_copy(update={"host": "0.0.0.0"}), engine)  # noqa: S104


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "10.0.0.1", "[::2]:1", ""])
def test_without_a_key_a_foreign_host_name_is_refused(shared: httpx.Client, host: str) -> None:
    answer = shared.get("/galleries", headers={"Host": host})
    if host == "":  # httptools may refuse an empty Host by itself
        assert answer.status_code in (400, 403)
    else:
        assert problem(answer, 403)["type"] == "/problems/unknown-host"


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1", "[::1]:8000"])
def test_without_a_key_loopback_names_are_served(shared: httpx.Client, host: str) -> None:
    assert shared.get("/galleries", headers={"Host": host}).status_code == 200


def test_without_a_key_a_page_of_another_site_cannot_change_anything(shared: httpx.Client) -> None:
    own = f"{shared.base_url.scheme}://{shared.base_url.netloc.decode()}"
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        problem(shared.post("/galleries", json={"name": "evil"}, headers=headers), 403)
        assert shared.get("/galleries", headers=headers).status_code == 200
    answer = shared.post("/galleries", json={"name": "."}, headers={"Origin": own})
    problem(answer, 422)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
def test_without_a_key_a_proxy_on_this_machine_does_not_open_the_service(
    shared: httpx.Client, header: str
) -> None:
    refused = shared.get("/galleries", headers={header: "192.0.2.7"})
    assert problem(refused, 403)["type"] == "/problems/loopback-only"


def call(settings: Settings, client: tuple[str, int], host: str) -> int:
    """The status for a caller at an address, asking for a host."""
    import asyncio

    async def ask() -> int:
        app = create_app(settings)
        transport = httpx.ASGITransport(app, client=client)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as http,
        ):
            return (await http.get("/galleries")).status_code

    return asyncio.run(ask())


@pytest.mark.slow
def test_without_a_key_only_this_machine_is_served_whatever_the_server_binds(
    settings: Settings,
) -> None:
    assert call(settings, ("127.0.0.1", 1), "localhost") == 200
    assert call(settings, ("192.168.1.9", 1), "localhost") == 403
    vouched = settings.model_copy(update={"allow_unauthenticated": True})
    assert call(vouched, ("192.168.1.9", 1), "api") == 200
    assert call(vouched, ("192.168.1.9", 1), "192.168.1.2:80") == 200
    assert call(vouched, ("192.168.1.9", 1), "evil.example") == 403
    named = vouched.model_copy(update={"allowed_hosts": ("gait.example",)})
    assert call(named, ("192.168.1.9", 1), "gait.example") == 200
