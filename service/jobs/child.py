"""A child process of the worker, in a process group of its own that leaves no orphans."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, cast

from service.jobs.kill_with_parent import Attempt, command_line

_LONGEST_LINE = 64 * 1024
_MOST_PENDING_LINES = 1000
_DRAIN_S = 1.0


class Child:
    """A command that runs under a watchdog.

    Standard error goes to `log`, standard output is read line by line with `lines`. The thread that
    reads puts lines into a bounded queue, so that a child that prints without end is slowed down
    and does not fill the worker's memory.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        attempt: Attempt,
        log: IO[bytes],
        environment: Mapping[str, str],
    ) -> None:
        """Start the command, which takes over the lock of its attempt."""
        self._process = subprocess.Popen(
            command_line(tuple(command), attempt),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            pass_fds=[attempt.lock],
        )
        self._input = cast(IO[bytes], self._process.stdin)  # the watchdog waits for its end
        os.set_blocking(self._input.fileno(), False)
        self._deadline, self._grace_s = attempt.deadline, attempt.grace_s
        self._output = cast(IO[bytes], self._process.stdout)
        self._lines: queue.Queue[str] = queue.Queue(_MOST_PENDING_LINES)
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id of the watchdog, which is also the process group."""
        return self._process.pid

    @property
    def overdue(self) -> bool:
        """Whether the watchdog has asked the command to end, because its time is over."""
        return time.monotonic() >= self._deadline - self._grace_s

    def extend(self, deadline: float) -> None:
        """Let the command run until `deadline`, by this machine's monotonic clock.

        Too late for one that was asked to end: it ends.
        """
        if self.overdue:
            return
        try:
            os.write(self._input.fileno(), f"{deadline}\n".encode())
        except (BrokenPipeError, BlockingIOError):  # the watchdog has ended, or is paused
            return
        self._deadline = deadline

    def lines(self, timeout_s: float) -> list[str]:
        """Return what was printed since the last call, waiting at most `timeout_s` for a line."""
        lines = []
        try:
            lines.append(self._lines.get(timeout=timeout_s))
            while len(lines) < _MOST_PENDING_LINES:
                lines.append(self._lines.get_nowait())
        except queue.Empty:
            pass
        return lines

    def ended(self) -> bool:
        """Whether the command has ended; its group is left for `close` to clean up."""
        # WNOWAIT leaves the process unreaped, so that its id still names our group in `close`.
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    def stop(self, grace_s: float) -> None:
        """Ask the group to end, and after `grace_s` kill it."""
        os.killpg(self._process.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> tuple[int, list[str]]:
        """Kill what is left of the group; return the exit status (128 + signal) and last lines."""
        os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self._input.close()
        last = []
        deadline = time.monotonic() + _DRAIN_S
        while self._reader.is_alive() and time.monotonic() < deadline:
            last += self.lines(0.02)
        last += self.lines(0.0)
        self._closing.set()
        if not self._reader.is_alive():  # else a process that left the group keeps the pipe open
            self._output.close()
        return (status if status >= 0 else 128 - status), last

    def _read(self) -> None:
        while line := self._output.readline(_LONGEST_LINE):
            text = line.decode("utf-8", errors="replace").rstrip("\r\n")
            while not self._closing.is_set():
                try:
                    self._lines.put(text, timeout=0.2)
                    break
                except queue.Full:
                    continue
