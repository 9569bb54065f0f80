"""Which connections are open, and which of them makes room for a new one.

Every connection costs a file descriptor, an idle one too, and the process needs descriptors for its
databases as well. Without a bound, a client that opens connections and sends nothing keeps all
others out.
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
        """Whether it waits for a request."""

    def drop(self) -> None:
        """Close it; it is idle."""


class Connections:
    """At most `most` connections; one address may have half of them, and always one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._share = max(1, most // 2)
        self._open: dict[Connection, None] = {}  # the longest open ones first
        self._of: defaultdict[str, dict[Connection, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, newcomer: Connection) -> bool:
        """Add a new connection; if there are too many, close the idle one that is open for longest.

        Returns False if none is idle: none of its address for one over that address's share.
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
        """Remove a connection, if it was added."""
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
    """Return how many of `most` connections this process has descriptors for, beside `files` files.

    Raises the process's own limit as far as needed and allowed.
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
