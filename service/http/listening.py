"""The listening socket; it is opened before the model loads, so that a taken port is known soon."""

from __future__ import annotations

import socket

_BACKLOG = 2048


class CannotListen(Exception):
    """The address is taken or not this machine's; the text says what to do."""


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket; port 0 takes a free one. Raises `CannotListen`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotListen(f"cannot listen on {host}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(
            f"cannot listen on {host} port {port}: {error.strerror or error}; "
            "choose another one with --port (0 takes a free one)"
        ) from error
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """Return the URL at which this machine reaches the listener."""
    port = listener.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not a binding
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
