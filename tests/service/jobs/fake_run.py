"""A tiny stand-in for `python -m training`: counts steps, keeps its state, resumes, reports.

usage: fake_run.py OUT [--steps N] [--seconds S] [--behave HOW] [--witness FILE]

No two runs with one witness may be at work at once: the second one says so in FILE.
"""

# ruff: noqa: T201
import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

arguments = argparse.ArgumentParser()
arguments.add_argument("out", type=Path)
arguments.add_argument("--steps", type=int, default=3)
arguments.add_argument("--seconds", type=float, default=0.01, help="of one step")
arguments.add_argument("--behave", default="well")
arguments.add_argument("--witness", type=Path)
options = arguments.parse_args()
if options.witness:
    witness = options.witness.open("a")
    try:
        fcntl.flock(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        witness.write("two at once\n")
        witness.flush()


def say(event: str, **content: object) -> None:
    print(json.dumps({"event": event, **content}), flush=True)


options.out.mkdir(parents=True, exist_ok=True)
(options.out / "pid").write_text(str(os.getpid()))
with (options.out / "starts").open("a") as starts:
    starts.write("start\n")
match options.behave:
    case "bad input":
        say("failed", reason="no teacher at /secret/place/teacher")
        sys.exit(2)
    case "raise":
        raise RuntimeError("\x1b[31mcannot read /secret/place/frames.bin\x1b[0m")
    case "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    case "crash once" if len((options.out / "starts").read_text().splitlines()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    case "busy once" if len((options.out / "starts").read_text().splitlines()) == 1:
        print("gaitid: The database is busy with other work.", file=sys.stderr)
        sys.exit(75)
    case "babble":
        print("Downloading... 100%")
        print('{"event": "progress", "step": "three"}')
        print('{"event": "progress", "step": 1, "total_steps": 3, "metrics": {"loss": NaN}}')
        print("x" * 200_000)
        sys.stdout.flush()
    case "saves":

        def save(*_: object) -> None:
            (options.out / "saved").touch()
            sys.exit(143)

        signal.signal(signal.SIGTERM, save)
    case "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    case "parent":
        orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (options.out / "grandchild").write_text(str(orphan.pid))

state = options.out / "state"
step = int(state.read_text()) if state.exists() else 0
say("start", total_steps=options.steps, step=step)
while step < options.steps:
    time.sleep(options.seconds)
    step += 1
    state.with_suffix(".new").write_text(str(step))
    state.with_suffix(".new").replace(state)
    say("progress", step=step, total_steps=options.steps, eta_s=1.5, metrics={"loss": 1 / step})
say("evaluation", metrics={"rank1": 0.75})
say("done", checkpoint=str(options.out / "checkpoint"), metrics={"rank1": 0.8})
