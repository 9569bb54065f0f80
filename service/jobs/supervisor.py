"""Keeps one worker process running beside the api."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence

from service.jobs.guard import command_line

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0  # a worker that ran this long did not die of how it starts


class WorkerSupervisor:
    """Starts a worker and starts it again when it dies; a context manager.

    The worker runs under a guard: should this process be killed, the worker goes with it.
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
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(
            target=self._supervise, name="worker-supervisor", daemon=True
        )

    def __enter__(self) -> WorkerSupervisor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopping.set()
            process = self._process
            if process is not None:
                self._signal(process, signal.SIGTERM)
        self._thread.join(timeout=self._grace_s)
        if self._thread.is_alive() and process is not None:
            _log.warning("the worker did not stop in %s s and is killed", self._grace_s)
            self._signal(process, signal.SIGKILL)
        self._thread.join()

    def _supervise(self) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            with self._lock:
                if self._stopping.is_set():
                    return
                process = self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    env=self._environment,
                    start_new_session=True,
                )
            try:
                process.wait(timeout=_STEADY_S)
            except subprocess.TimeoutExpired:
                pause = _FIRST_PAUSE_S
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
            if self._stopping.is_set():
                return
            _log.error(
                "the worker ended with status %s; starting it again in %.1f s",
                process.returncode,
                pause,
            )
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            _log.debug("the worker was gone already")
