from __future__ import annotations

import hashlib
import hmac
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from service.__main__ import main
from service.cli import webhook
from service.cli.webhook import Attempts, UnusableWebhook, Webhook
from tests.models.footage.clips import COLUMNS, crossing, encode
from tests.service.server import Serve

SECRET = "a secret of some length"  # noqa: S105 - of these tests
AT_ONCE = Attempts(most=4, first_wait_s=0.01, closing_s=5)


@dataclass
class Receiver:
    """Answers with its statuses one after another, the last for ever; keeps what it was sent."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [204])
    posts: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.posts.append((dict(self.headers), body))
            statuses = found.statuses
            self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}/hidden-path"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def test_a_post_is_signed_over_its_time_and_body(receiver: Receiver) -> None:
    with Webhook(receiver.url, SECRET, pytest.fail, attempts=AT_ONCE) as hook:
        hook.post(b'{"track": 1}')
    ((headers, body),) = receiver.posts
    assert body == b'{"track": 1}'
    assert abs(int(headers["X-GaitID-Timestamp"]) - time.time()) < 60
    signed = f"{headers['X-GaitID-Timestamp']}.".encode() + body
    expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["X-GaitID-Signature"] == f"sha256={expected}"
    assert SECRET not in str(headers)


def test_a_post_that_fails_is_repeated_as_the_same_delivery_and_others_wait(
    receiver: Receiver,
) -> None:
    receiver.statuses = [503, 500, 204]
    said: list[str] = []
    with Webhook(receiver.url, SECRET, said.append, attempts=AT_ONCE) as hook:
        hook.post(b"1")
        hook.post(b"2")
    assert [body for _, body in receiver.posts] == [b"1", b"1", b"1", b"2"]
    deliveries = [headers["X-GaitID-Delivery"] for headers, _ in receiver.posts]
    assert len(set(deliveries[:3])) == 1
    assert deliveries[3] != deliveries[0]
    assert len(said) == 1
    assert "it answers 503; trying again" in said[0]
    assert "hidden-path" not in said[0]


@pytest.mark.parametrize(("status", "tries"), [(400, 1), (307, 1), (429, 4), (502, 4)])
def test_a_post_is_given_up_at_once_or_after_a_few_tries(
    receiver: Receiver, status: int, tries: int
) -> None:
    receiver.statuses = [status]
    said: list[str] = []
    with Webhook(receiver.url, SECRET, said.append, attempts=AT_ONCE) as hook:
        hook.post(b"1")
    assert len(receiver.posts) == tries
    assert hook.lost == 1
    assert said[-2].endswith(f"is given up: it answers {status}")
    assert said[-1] == "1 posts to the webhook were given up"


def test_a_receiver_that_is_away_holds_nothing_up_and_what_waits_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhook, "_MOST_WAITING", 3)
    said: list[str] = []
    never = Attempts(first_wait_s=30, closing_s=0.2)
    began = time.monotonic()
    with Webhook("http://127.0.0.1:9/", SECRET, said.append, attempts=never) as hook:
        for number in range(10):
            hook.post(b"%d" % number)
        assert time.monotonic() - began < 1
        assert len(hook._waiting) <= 3
    assert time.monotonic() - began < 5
    assert hook.lost == 10
    assert "10 posts to the webhook were given up" in said[-1]


@pytest.mark.parametrize(
    ("url", "secret", "said"),
    [
        ("ftp://host/", SECRET, "begin with http"),
        ("http://", SECRET, "begin with http"),
        ("http://me:pass@host/", SECRET, "leave the password out"),
        ("http://host/", "short", "16 characters"),
    ],
)
def test_an_address_or_a_secret_that_will_not_do_is_refused(
    url: str, secret: str, said: str
) -> None:
    with pytest.raises(UnusableWebhook, match=said) as refused:
        Webhook(url, secret, pytest.fail)
    assert "pass@" not in str(refused.value)
    assert "short" not in str(refused.value).replace("shorter", "")


def test_watch_posts_what_it_prints(
    receiver: Receiver, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("GAITID_URL", str(serve().base_url))
    film, secret = tmp_path / "hall.mp4", tmp_path / "secret"
    film.write_bytes(encode(crossing((1, -60.0, COLUMNS + 60.0), frames=75)))
    secret.write_text(f"{SECRET}\n")
    command = ["gaitid", "watch", str(film), "--segmenter", "background", "--json"]
    hook = ["--webhook", receiver.url, "--webhook-secret-file", str(secret)]
    monkeypatch.setattr(sys, "argv", [*command, *hook])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert not leaving.value.code
    ((headers, body),) = receiver.posts
    assert json.loads(body) == json.loads(capfd.readouterr().out)
    expected = webhook.signature(SECRET, headers["X-GaitID-Timestamp"], body)
    assert headers["X-GaitID-Signature"] == expected
