"""The watchdog: a small program that runs a command and kills it when its own parent dies.

A worker may be killed with SIGKILL at any moment, and then nobody would stop the training it
started: a second worker would resume the job beside it, on the same device and in the same folder.
So the worker starts this program as the leader of a new process group and keeps the other end of
its standard input. The kernel closes that end when the worker dies; the watchdog then kills the
whole group, itself included. When the watchdog is killed, the kernel (Linux) kills its command.

The command of a job inherits the lock on the job's folder, and the watchdog keeps it until the
command's output is in place. It also ends the command when the number of a later lease appears in
the folder (see `service.jobs.lock`), and when the time is over until which the worker's lease is
certain to hold: the worker writes a new one to the standard input with each renewal. So a worker
that is paused, or cut off from the database, does not keep a command running that another host may
have begun as well.

Only the standard library is imported here: this must start fast and stay small.
"""

from __future__ import annotations

import ctypes
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

_NICENESS = 10  # jobs give way to processes that answer requests
_LOOK_S = 0.5  # between two looks for a later lease
_PR_SET_PDEATHSIG = 1
TRY_AGAIN = 75  # EX_TEMPFAIL: the command's database is busy, or the disk is full


class Attempt(NamedTuple):
    """The attempt at a job that a command is part of.

    `lock` is the descriptor of the folder's lock, `later_lease` the file in which the number of a
    waiting lease, higher than `number`, may appear. At `deadline`, by this machine's monotonic
    clock, the command is killed; `grace_s` before that it is asked to end. When the command has
    succeeded, `partial` is renamed to `output`; both are empty for a command without output.
    """

    lock: int
    later_lease: str
    number: int
    deadline: float
    grace_s: float
    partial: str = ""
    output: str = ""


def command_line(command: tuple[str, ...], attempt: Attempt | None = None) -> list[str]:
    """The command line that runs `command` under a watchdog."""
    options = [] if attempt is None else [str(value) for value in attempt]
    # By path and isolated (-I): independent of the working directory, and of this folder's names.
    return [sys.executable, "-I", __file__, *options, "--", *command]


def _kill_group_in_time(attempt: Attempt | None) -> None:
    deadline = math.inf if attempt is None else attempt.deadline
    written, asked = b"", False
    while True:
        due = deadline if attempt is None or asked else deadline - attempt.grace_s
        patience = None if attempt is None else max(0.0, min(_LOOK_S, due - time.monotonic()))
        readable, _, _ = select.select([0], [], [], patience)
        if readable:
            read = os.read(0, 4096)
            if not read:
                break
            *lines, written = (written + read).split(b"\n")
            if lines and not asked:  # what was asked to end, ends
                deadline = float(lines[-1])
        if attempt is None:
            continue
        if _number_in(attempt.later_lease) > attempt.number:
            break
        if time.monotonic() >= deadline:
            break
        if time.monotonic() >= deadline - attempt.grace_s and not asked:
            asked = True
            os.killpg(0, signal.SIGTERM)
    os.killpg(0, signal.SIGKILL)


def _number_in(file: str) -> int:
    try:
        return int(Path(file).read_text())
    except (OSError, ValueError):
        return 0


def _start(command: list[str], attempt: Attempt | None) -> subprocess.Popen[bytes]:
    watchdog = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def die_with_the_watchdog() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != watchdog:  # it died before that took effect
            os._exit(1)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        pass_fds=[] if attempt is None else [attempt.lock],
        preexec_fn=die_with_the_watchdog,  # unsafe beside other threads: none are started yet
    )


def main(arguments: list[str]) -> NoReturn:
    """Run the command after `--` and end with its exit status (128 + n when signal n ended it)."""
    separator = arguments.index("--")
    options, command = arguments[:separator], arguments[separator + 1 :]
    attempt = None
    if options:
        lock, later_lease, number, deadline, grace_s, partial, output = options
        attempt = Attempt(
            int(lock), later_lease, int(number), float(deadline), float(grace_s), partial, output
        )
        os.nice(_NICENESS)
    # Signals are sent to the whole group: the command decides what they mean, the watchdog waits. A
    # handler, unlike SIG_IGN, is not inherited by the command.
    for number_of_signal in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number_of_signal, lambda *_: None)
    # From the main thread: the kernel takes the end of the thread that started a command for the
    # end of its parent.
    child = _start(command, attempt)
    threading.Thread(target=_kill_group_in_time, args=(attempt,), daemon=True).start()
    status = child.wait()
    if status == 0 and attempt is not None and attempt.output:
        try:
            Path(attempt.partial).replace(attempt.output)
        except OSError as error:
            sys.stderr.write(f"{error}\n")
            status = TRY_AGAIN
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main(sys.argv[1:])
