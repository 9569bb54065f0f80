"""Requests a key may send, and wrong keys an address may send."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from pydantic import ValidationError
from sqlalchemy import Engine

from service.access.keys import Scope, create_key
from service.access.rates import LocalRates, RateLimiter, SharedRates, Standing, network_of
from service.foundation.rate import Rate
from service.foundation.settings import Settings
from tests.service.access.test_access import bearer
from tests.service.clock import Clock
from tests.service.requests import problem
from tests.service.server import Serve


@pytest.mark.parametrize(
    ("text", "rate"),
    [("120/minute", Rate(120, 60)), ("1/second", Rate(1, 1)), ("5/day", Rate(5, 86400))],
)
def test_a_rate_is_a_number_a_period(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate
    assert Rate.parse("unlimited") is None


@pytest.mark.parametrize("text", ["", "0/minute", "-1/minute", "1.5/second", "1/week", "120", "x"])
def test_anything_else_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="such as 120/minute"):
        Rate.parse(text)
    with pytest.raises(ValidationError, match="such as 120/minute"):
        Settings(rate_limit=text)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(engine: Engine, clock: Clock) -> RateLimiter:
    if engine.dialect.name == "sqlite":
        return LocalRates(clock=clock)
    return SharedRates(engine, "requests", clock=clock)


def take(limiter: RateLimiter, who: str, rate: Rate) -> Standing:
    return asyncio.run(limiter.take(who, rate))


def peek(limiter: RateLimiter, who: str, rate: Rate) -> Standing:
    return asyncio.run(limiter.peek(who, rate))


def test_a_bucket_is_used_up_at_once_and_fills_evenly(limiter: RateLimiter, clock: Clock) -> None:
    rate = Rate(3, 60)
    assert [take(limiter, "a", rate).remaining for _ in range(3)] == [2, 1, 0]
    refused = take(limiter, "a", rate)
    assert refused.retry_in == pytest.approx(20)
    assert refused.full_in == pytest.approx(60)
    assert take(limiter, "b", rate).retry_in is None  # somebody else's is full
    clock.now += 19
    assert take(limiter, "a", rate).retry_in == pytest.approx(1)
    clock.now += 1
    assert take(limiter, "a", rate).retry_in is None
    clock.now += 1000
    assert take(limiter, "a", rate).remaining == 2  # it never holds more than it can


@pytest.mark.postgresql
def test_a_clock_that_is_set_back_neither_fills_nor_empties_a_bucket(
    limiter: RateLimiter, clock: Clock
) -> None:
    take(limiter, "a", Rate(2, 60))
    clock.now -= 1000
    assert take(limiter, "a", Rate(2, 60)).remaining == 0
    assert take(limiter, "a", Rate(2, 60)).retry_in == pytest.approx(30)


def test_peeking_uses_nothing_up(limiter: RateLimiter) -> None:
    for _ in range(5):
        assert peek(limiter, "a", Rate(1, 60)).remaining == 1
    take(limiter, "a", Rate(1, 60))
    assert peek(limiter, "a", Rate(1, 60)).retry_in == pytest.approx(60)


def test_however_many_callers_there_are_memory_is_bounded() -> None:
    limiter = LocalRates(clock=Clock(), most=100)
    for number in range(1000):
        take(limiter, str(number), Rate(2, 60))
    assert len(limiter._buckets) == 100
    assert peek(limiter, "999", Rate(2, 60)).remaining == 1
    assert peek(limiter, "0", Rate(2, 60)).remaining == 2


@pytest.mark.postgresql
def test_buckets_in_a_database_are_removed_once_they_are_full(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.access.rates._TIDIED_AFTER", 3)
    limiter = SharedRates(engine, "requests")
    for who in ("quick", "slow"):
        take(limiter, who, Rate(10_000, 1) if who == "quick" else Rate(1, 86400))
    time.sleep(0.01)
    take(limiter, "other", Rate(1, 86400))
    with engine.connect() as connection:
        kept = connection.exec_driver_sql("SELECT count(*) FROM rate_bucket").scalar_one()
    assert kept == 2


@pytest.mark.postgresql
def test_several_servers_on_one_database_have_one_limit_and_many_at_once_are_counted(
    engine: Engine,
) -> None:
    limits = [SharedRates(engine, "requests") for _ in range(2)]
    with ThreadPoolExecutor(8) as callers:
        standings = callers.map(lambda n: take(limits[n % 2], "a", Rate(20, 86400)), range(40))
    allowed = [one for one in standings if one.retry_in is None]
    assert sorted(one.remaining for one in allowed) == list(range(20))
    assert peek(SharedRates(engine, "wrong keys"), "a", Rate(20, 86400)).remaining == 20


def test_the_addresses_of_one_ipv6_host_count_as_one() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1:2:3")
    assert network_of("2001:db8::1") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("a socket") == "a socket"


def test_a_key_over_its_rate_is_429_and_says_when_to_come_back(
    serve: Serve, engine: Engine
) -> None:
    client = serve(rate_limit="2/hour")
    slow = bearer(create_key(engine, [Scope.IDENTIFY], rate="3/hour")[1])
    default = bearer(create_key(engine, [Scope.IDENTIFY])[1])
    free = bearer(create_key(engine, [Scope.IDENTIFY], rate="unlimited")[1])

    for remaining in (2, 1, 0):
        answer = client.get("/subjects", headers=slow)
        assert answer.status_code == 200
        assert answer.headers["ratelimit-limit"] == "3"
        assert answer.headers["ratelimit-remaining"] == str(remaining)
    refused = client.get("/subjects", headers=slow)
    assert problem(refused, 429)["type"] == "/problems/rate-limited"
    assert 1100 < int(refused.headers["retry-after"]) <= 1200
    assert refused.headers["ratelimit-remaining"] == "0"
    assert 3500 < int(refused.headers["ratelimit-reset"]) <= 3600

    statuses = [client.get("/subjects", headers=default).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    for _ in range(5):
        answer = client.get("/subjects", headers=free)
        assert answer.status_code == 200
        assert "ratelimit-limit" not in answer.headers
    for path in ("/healthz", "/readyz", "/metrics", "/", "/docs"):
        assert [client.get(path).status_code for _ in range(4)] == [200] * 4


def test_without_keys_the_rate_is_that_of_an_address(serve: Serve) -> None:
    client = serve(rate_limit="2/hour")
    assert [client.get("/subjects").status_code for _ in range(3)] == [200, 200, 429]
    assert client.get("/").status_code == 200


def test_wrong_keys_are_limited_by_address_and_lock_nobody_out(
    serve: Serve, engine: Engine
) -> None:
    client = serve(wrong_key_rate="3/hour")
    used = bearer(create_key(engine, [Scope.IDENTIFY])[1])
    unused = bearer(create_key(engine, [Scope.IDENTIFY])[1])
    assert client.get("/subjects", headers=used).status_code == 200
    for number in range(3):
        problem(client.get("/subjects", headers=bearer(f"gid_{number}")), 401)
    for token in (bearer("gid_again"), unused):  # not even looked at
        refused = client.get("/subjects", headers=token)
        assert problem(refused, 429)["errors"][0]["reason"] == "too_many_wrong_keys"
        assert int(refused.headers["retry-after"]) > 0
    assert client.get("/subjects", headers=used).status_code == 200
    problem(client.get("/subjects"), 401)  # nothing sent is nothing guessed


def test_a_request_without_a_key_is_no_guess(serve: Serve, engine: Engine) -> None:
    client = serve(wrong_key_rate="1/hour")
    create_key(engine, [Scope.IDENTIFY])
    for _ in range(5):
        problem(client.get("/subjects"), 401)


def test_who_calls_is_what_a_trusted_proxy_says_and_nobody_else(
    serve: Serve, engine: Engine
) -> None:
    def guess(client: httpx.Client) -> list[int]:
        return [
            client.get(
                "/subjects", headers={**bearer("wrong"), "X-Forwarded-For": f"192.0.2.{number}"}
            ).status_code
            for number in range(4)
        ]

    client = serve(wrong_key_rate="2/hour")
    create_key(engine, [Scope.IDENTIFY])
    assert guess(client) == [401, 401, 429, 429]
    behind_proxy = serve(wrong_key_rate="2/hour", trusted_proxies=("127.0.0.0/8",))
    assert guess(behind_proxy) == [401] * 4
