"""Keeps one worker process running beside the api."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, cast

from service.jobs.kill_with_parent import command_line

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0  # a worker that ran this long did start


class WorkerSupervisor:
    """Starts a worker and starts it again when it dies; a context manager.

    The worker runs under a watchdog: if this process is killed, the worker is too; if the watchdog
    is killed, so is the worker, before another one is started.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, grace_s: float
    ) -> None:
        """Run `command`; `grace_s` is the time it has to stop when asked to."""
        self._command = command_line(tuple(command))
        self._environment = {**os.environ, **environment}
        self._grace_s = grace_s
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._group: int | None = None  # of the worker and its watchdog, which leads it
        self._thread = threading.Thread(
            target=self._supervise, name="worker-supervisor", daemon=True
        )

    def __enter__(self) -> WorkerSupervisor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._signal(signal.SIGTERM)
        self._thread.join(timeout=self._grace_s)
        if self._thread.is_alive():
            _log.warning("the worker did not stop in %s s and is killed", self._grace_s)
            self._signal(signal.SIGKILL)
        self._thread.join()

    def _supervise(self) -> None:
        pause = _FIRST_PAUSE_S
        while (process := self._start()) is not None:
            begin = time.monotonic()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            self._signal(signal.SIGKILL)  # what is left of the group: a watchdog may die before it
            with self._lock:
                self._group = None  # once reaped, its number may be another's
                process.wait()
            cast(IO[bytes], process.stdin).close()
            if self._stopping.is_set():
                return
            if time.monotonic() - begin >= _STEADY_S:
                pause = _FIRST_PAUSE_S
            _log.error(
                "the worker ended with status %s; starting it again in %.1f s",
                process.returncode,
                pause,
            )
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )
            self._group = process.pid
            return process

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            if self._group is not None:
                os.killpg(self._group, number)
