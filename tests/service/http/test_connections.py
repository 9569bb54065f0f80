"""How many connections are open, and whose."""

from __future__ import annotations

import resource

import pytest

from service.http.connections import Connections, affordable


class Fake:
    def __init__(self, address: str, *, idle: bool) -> None:
        self.address = address
        self.idle = idle
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True


def admitted(connections: Connections, *newcomers: Fake) -> list[bool]:
    return [connections.admit(newcomer) for newcomer in newcomers]


def test_the_longest_open_idle_connection_makes_room() -> None:
    connections = Connections(4)
    busy, idle, other, third = (
        Fake("10.0.0.1", idle=False),
        Fake("10.0.0.2", idle=True),
        Fake("10.0.0.3", idle=True),
        Fake("10.0.0.4", idle=True),
    )
    assert all(admitted(connections, busy, idle, other, third, Fake("10.0.0.5", idle=True)))
    assert [one.dropped for one in (busy, idle, other, third)] == [False, True, False, False]
    assert len(connections) == 4


def test_one_address_has_half_of_the_connections_at_most() -> None:
    connections = Connections(4)
    first, *others = (Fake("10.0.0.1", idle=True) for _ in range(9))
    stranger = Fake("10.0.0.2", idle=True)
    assert all(admitted(connections, stranger, first, *others))
    assert first.dropped
    assert not stranger.dropped
    assert len(connections) == 3


def test_the_addresses_of_one_ipv6_host_are_one() -> None:
    connections = Connections(4)
    assert admitted(
        connections, *(Fake(f"2001:db8::{number}", idle=False) for number in range(1, 4))
    ) == [True, True, False]


def test_who_is_being_answered_is_not_dropped() -> None:
    connections = Connections(2)
    mine, yours = Fake("10.0.0.1", idle=False), Fake("10.0.0.2", idle=False)
    assert admitted(
        connections, mine, yours, Fake("10.0.0.1", idle=True), Fake("10.0.0.3", idle=True)
    ) == [True, True, False, False]
    connections.remove(mine)
    connections.remove(mine)
    assert admitted(connections, Fake("10.0.0.3", idle=True)) == [True]


@pytest.mark.parametrize(
    ("soft", "hard", "expected", "raised"),
    [
        (1024, 20000, 1000, 1000 + 500 + 256),
        (1024, resource.RLIM_INFINITY, 1000, 1000 + 500 + 256),
        (20000, 20000, 1000, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1000, None),
        (1024, 1600, 1600 - 500 - 256, 1600),
        (1024, 1024, 512, None),
    ],
)
def test_connections_leave_descriptors_for_everything_else(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, expected: int, raised: int | None
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    assert affordable(1000, 500) == expected
    assert limits[-1][0] == (soft if raised is None else raised)
