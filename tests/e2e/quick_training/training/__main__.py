"""Speaks the command line and the events of the real program; its student is its teacher's copy.

`--set steps=N` and `--set seconds=S` (of a step) set the pace; the state survives a kill.
"""

# ruff: noqa: T201
import json
import os
import shutil
import sys
import time
from pathlib import Path

command, *arguments = sys.argv[1:]


def option(name: str, default: str = "") -> str:
    return arguments[arguments.index(name) + 1] if name in arguments else default


def say(event: str, **content: object) -> None:
    print(json.dumps({"event": event, **content}), flush=True)


settings = dict(
    arguments[position + 1].split("=", 1)
    for position, argument in enumerate(arguments)
    if argument == "--set"
)
unknown = settings.keys() - {"steps", "seconds"}
match command:
    case "validate":
        print(json.dumps({"errors": [{"where": key, "reason": "no such key"} for key in unknown]}))
        sys.exit(2 if unknown else 0)
    case "pack":
        pack = Path(option("--out"))
        pack.mkdir()
        shutil.copy(arguments[0], pack / "index.json")
        if partition := option("--partition"):
            shutil.copy(partition, pack / "partition.json")
    case "export":
        shutil.copytree(arguments[0], option("--out"))
    case "distill":
        out = Path(option("--out"))
        out.mkdir(parents=True, exist_ok=True)
        (out / "pid").write_text(str(os.getpid()))
        state = out / "state.pt"
        step = int(state.read_text()) if state.exists() else 0
        total = int(settings.get("steps", "5"))
        say("start", total_steps=total, step=step)
        while step < total:
            time.sleep(float(settings.get("seconds", "0.01")))
            step += 1
            state.with_suffix(".new").write_text(str(step))
            state.with_suffix(".new").replace(state)
            say("progress", step=step, total_steps=total, eta_s=1.0, metrics={"loss": 1 / step})
        shutil.copytree(option("--teacher"), out / "checkpoint", dirs_exist_ok=True)
        say("done", checkpoint=str(out / "checkpoint"), metrics={"rank1": 1.0})
