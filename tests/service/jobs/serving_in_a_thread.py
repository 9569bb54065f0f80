"""A real server for a test's application: streams and headers as clients see them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from service.http.listening import listen, url_of


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve the application on a free loopback port; yields its URL."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield url_of("127.0.0.1", listener)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
