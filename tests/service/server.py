"""The real application behind a real socket, for tests over HTTP."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from service.foundation.settings import Settings
from service.http.app import create_app
from service.http.protocol import Patience
from service.http.serve import Server, server_config
from service.http.upload_slots import UploadSlots

Serve = Callable[..., httpx.Client]
"""The fixture `serve`: starts the service with changed settings."""


def settings_for(data_dir: Path, models: Path, **changes: Any) -> Settings:
    """Settings that stay within a test's own folder."""
    return Settings(
        **{
            "data_dir": data_dir,
            "shipped_models_dir": models,
            "device": "cpu",
            "reserve_bytes": 4096,
            "stop_seconds": 5.0,
            **changes,
        }
    )


@cache
def openapi_document() -> dict[str, Any]:
    """The description of the interface, which every application would make anew."""
    with TemporaryDirectory() as folder:
        return create_app(settings_for(Path(folder), Path(folder))).openapi()


@contextmanager
def serving(
    settings: Settings,
    *,
    until_ready: bool = True,
    patience: Patience | None = None,
    upload_slots: UploadSlots | None = None,
) -> Iterator[httpx.Client]:
    """Serve until the block ends; it begins once the service is ready, or alive at least."""
    app = create_app(settings, upload_slots=upload_slots)
    app.openapi_schema = openapi_document()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = server_config(app, settings, patience)
        server = Server(app, config, settings, lambda: None)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            try:
                wait_until(client, "/readyz" if until_ready else "/healthz")
                yield client
            finally:
                server.should_exit = True
                thread.join(20)


def wait_until(client: httpx.Client, path: str, seconds: float = 30) -> None:
    """Return once the path answers 200."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if client.get(path).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError("the service did not answer 200")
        time.sleep(0.02)
