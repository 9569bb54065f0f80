"""What was seen, posted to an address of the operator's: signed, repeated, never in the way."""

from __future__ import annotations

import hashlib
import hmac
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

import httpx

TIMESTAMP: Final = "X-GaitID-Timestamp"
SIGNATURE: Final = "X-GaitID-Signature"
DELIVERY: Final = "X-GaitID-Delivery"

_LEAST_SECRET: Final = 16  # characters
_MOST_WAITING: Final = 256  # posts; then the oldest goes
_TIMEOUT_S: Final = 10.0
_PASSING: Final = frozenset({408, 425, 429})  # and all from 500 on: trying again may help


class UnusableWebhook(ValueError):
    """The address or the secret cannot be used; the text says why, and never shows the secret."""


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """The signature of a post: `sha256=` and the HMAC-SHA256 of `timestamp.body`, in hex.

    Args:
        secret: what sender and receiver share.
        timestamp: seconds since 1970, in decimal, as the header has it.
        body: the post's bytes.
    """
    signed = timestamp.encode("ascii") + b"." + body
    return "sha256=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often a post is tried: the wait doubles each time, and a random half of it is left out.

    Attributes:
        most: attempts in all.
        first_wait_s, longest_wait_s: seconds.
        closing_s: seconds that what still waits may take at the end.
    """

    most: int = 10
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    closing_s: float = 15.0


class Webhook:
    """Posts in a thread of its own, one at a time, in order. Use it in a `with`.

    Attributes:
        lost: posts that were given up.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        say: Callable[[str], None],
        *,
        attempts: Attempts | None = None,
    ) -> None:
        """Post to `url`, signed with `secret`; `say` is told what goes wrong.

        Raises:
            UnusableWebhook: it is no HTTP address, or holds a password; or the secret is short.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UnusableWebhook(f"the webhook's address is not a URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UnusableWebhook("the webhook's address must begin with http:// or https://")
        if parsed.userinfo:
            raise UnusableWebhook(
                "leave the password out of the webhook's address: posts are signed instead"
            )
        if len(secret) < _LEAST_SECRET:
            raise UnusableWebhook(f"the webhook's secret needs {_LEAST_SECRET} characters or more")
        self.lost = 0
        self._url = parsed
        self._where = f"{parsed.scheme}://{parsed.netloc.decode('ascii')}"  # a path may be secret
        self._secret = secret
        self._say = say
        self._attempts = attempts or Attempts()
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._http = httpx.Client(timeout=_TIMEOUT_S)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Post what still waits, for some seconds."""
        with self._changed:
            self._deadline = time.monotonic() + self._attempts.closing_s
            self._closing.set()
            self._changed.notify()
        self._thread.join(self._attempts.closing_s + 2 * _TIMEOUT_S)
        self._http.close()
        if self.lost:
            self._say(f"{self.lost} posts to the webhook were given up")

    def post(self, body: bytes) -> None:
        """Post a JSON document as soon as those before it are done with."""
        with self._changed:
            if len(self._waiting) >= _MOST_WAITING:
                self._waiting.popleft()
                self._lose("too many wait")
            self._waiting.append(body)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closing.is_set():
                        return
                    self._changed.wait()
                body = self._waiting.popleft()
            self._deliver(body)

    def _deliver(self, body: bytes) -> None:
        """Try until it is taken, refused for good, or there is no more time."""
        delivery = str(uuid.uuid4())
        wait = self._attempts.first_wait_s
        for attempt in range(1, self._attempts.most + 1):
            if time.monotonic() > self._deadline:
                self._lose("there is no more time")
                return
            failure, passes = self._try(body, delivery)
            if failure is None:
                return
            if not passes or attempt == self._attempts.most:
                self._lose(failure)
                return
            if attempt == 1:
                self._say(f"the webhook {self._where}: {failure}; trying again")
            until = time.monotonic() + wait * random.uniform(0.5, 1.0)  # noqa: S311 - spreads
            self._pause(until)
            wait = min(self._attempts.longest_wait_s, wait * 2)

    def _pause(self, until: float) -> None:
        """Wait; at the end no longer than there is time."""
        if not self._closing.wait(max(0.0, until - time.monotonic())):
            return
        time.sleep(max(0.0, min(until, self._deadline) - time.monotonic()))

    def _try(self, body: bytes, delivery: str) -> tuple[str | None, bool]:
        """Post once; returns what went wrong, and whether it may pass."""
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            DELIVERY: delivery,
            TIMESTAMP: timestamp,
            SIGNATURE: signature(self._secret, timestamp, body),
        }
        try:
            # Its answer is of no interest, and may be endless.
            with self._http.stream("POST", self._url, content=body, headers=headers) as answer:
                status = answer.status_code
        except httpx.HTTPError as error:
            return type(error).__name__, True
        if 200 <= status < 300:
            return None, False
        return f"it answers {status}", status in _PASSING or status >= 500

    def _lose(self, why: str) -> None:
        with self._changed:  # both threads lose some
            self.lost += 1
        self._say(f"a post to the webhook {self._where} is given up: {why}")
