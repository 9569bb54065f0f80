"""Which connections are open, and which of them must make room for a newcomer.

A connection costs a descriptor whether anything is asked on it or not, and the process needs
descriptors for more than that: without a bound, whoever opens connections and says nothing keeps
everybody out, and the database closed.
"""

from __future__ import annotations

import resource
from collections import defaultdict
from typing import Protocol

from service.access.rates import network_of

_OF_THE_SERVICE = 256  # descriptors: databases, indexes, models, logs, child processes


class Connection(Protocol):
    """A client's connection."""

    @property
    def address(self) -> str:
        """Where it comes from."""

    @property
    def idle(self) -> bool:
        """Whether no request is being answered on it."""

    def drop(self) -> None:
        """Close it now; it is idle."""


class Connections:
    """At most `most`, and at most half of them, though one, from any one address."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._share = max(1, most // 2)
        self._open: dict[Connection, None] = {}  # the longest open ones first
        self._of: defaultdict[str, dict[Connection, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, newcomer: Connection) -> bool:
        """Count a new connection in, where need be in the place of the longest open idle one.

        False where all others are busy, and for one too many from its address where all of that
        address are.
        """
        own = self._of[network_of(newcomer.address)]
        if len(own) >= self._share:
            admitted = self._drop_one(own)
        else:
            admitted = len(self._open) < self._most or self._drop_one(self._open)
        if admitted:
            self._open[newcomer] = None
            self._of[network_of(newcomer.address)][newcomer] = None
        return admitted

    def remove(self, connection: Connection) -> None:
        """Count a connection out, if it was counted in."""
        self._open.pop(connection, None)
        address = network_of(connection.address)
        self._of[address].pop(connection, None)
        if not self._of[address]:
            del self._of[address]

    def _drop_one(self, among: dict[Connection, None]) -> bool:
        idle = next((connection for connection in among if connection.idle), None)
        if idle is None:
            return False
        self.remove(idle)
        idle.drop()
        return True


def affordable(most: int, files: int) -> int:
    """How many of `most` connections this process has descriptors for, beside those of `files`.

    Raises the process's own limit as far as it takes, and may.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = most + files + _OF_THE_SERVICE
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        soft = needed
    if soft == resource.RLIM_INFINITY:
        return most
    return min(most, max(soft // 2, soft - files - _OF_THE_SERVICE))
