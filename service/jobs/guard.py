"""A small program: runs a command that must not outlive whoever asked for it.

The worker may be killed with SIGKILL at any moment, and then nobody would stop the training it
started: a second worker would resume the job beside it, on the same device and in the same folder.
So the worker starts this small process as the leader of a new process group and keeps the other end
of its standard input. The kernel closes that end when the worker dies, however it dies; the guard
then kills the whole group, itself included.

The guard also holds a lock on the job's folder while the command runs, and the command inherits it:
should guard and worker both be killed, the next attempt waits for the orphan instead of joining it.

Only the standard library is imported here: this must start fast and stay small.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from typing import IO, NoReturn

LOCK_TIMEOUT_S = 20.0
_NICENESS = 10  # a job gives way to whoever answers requests on the same cores
LOCKED = 75  # EX_TEMPFAIL: another process uses the folder; a command says it of the database


def command_line(command: tuple[str, ...], *, lock: str | None = None) -> list[str]:
    """The command line that runs `command` under a guard, holding the file `lock`."""
    options = ["--lock", lock] if lock is not None else []
    # By path and isolated (-I): independent of the working directory, and of this folder's names.
    return [sys.executable, "-I", __file__, *options, "--", *command]


def _kill_group_when_abandoned() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def _acquire(path: str) -> IO[bytes]:
    file = open(path, "ab")  # noqa: SIM115, PTH123 - held until the process ends
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                sys.stderr.write("another process still uses this job's folder\n")
                sys.exit(LOCKED)
            time.sleep(0.1)


def main(arguments: list[str]) -> NoReturn:
    """Run the command after `--` and end with its exit status (128 + n when signal n ended it)."""
    separator = arguments.index("--")
    options, command = arguments[:separator], arguments[separator + 1 :]
    # Signals are sent to the whole group: the command decides what they mean, the guard waits. A
    # handler, unlike SIG_IGN, is not inherited by the command.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_kill_group_when_abandoned, daemon=True).start()
    held = [_acquire(options[1])] if options else []
    if held:
        os.nice(_NICENESS)
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, pass_fds=[file.fileno() for file in held]
    )
    status = child.wait()
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main(sys.argv[1:])
