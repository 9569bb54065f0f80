"""Runs the README's commands against a fresh service and prints the answers, to be copied there.

    gaitid serve --data-dir /tmp/readme-data &
    python -m benchmarks.readme [--url http://127.0.0.1:8000] [--clip hall.mp4] [--train]

Answers are whole, broken into lines of the README's width. `took_ms` is worth copying from a quiet
machine only. `--clip` is footage of one person; `--train` distils and activates as well.
"""

from __future__ import annotations

import argparse
import json
import textwrap
import time
from pathlib import Path
from typing import Any

import httpx

from service.cli.demo_walks import WALKS

WIDTH = 140
FINAL = ("succeeded", "failed", "cancelled")
VIEW = {"metadata": '{"view": "090", "condition": "normal"}'}


def show(command: str, answer: dict[str, Any]) -> None:
    """Print a command and its answer."""
    text = json.dumps(answer, ensure_ascii=False)
    lines = textwrap.wrap(text, WIDTH, subsequent_indent=" ", break_long_words=False)
    print(f"$ curl {command}", *lines, "", sep="\n")


def ended(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    """A job once it has ended."""
    while (now := client.get(f"/jobs/{job['id']}").json())["status"] not in FINAL:
        time.sleep(0.5)
    return dict(now)


def main() -> None:
    """Run the commands in the README's order."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    walks = Path(WALKS)

    def files(person: str, *numbers: int) -> list[tuple[str, tuple[str, bytes]]]:
        paths = [walks / person / f"walk-{number}.zip" for number in numbers]
        return [("sequence", (path.name, path.read_bytes())) for path in paths]

    with httpx.Client(base_url=options.url, timeout=600) as client:

        def post(to: str, **sent: Any) -> dict[str, Any]:
            return dict(client.post(to, **sent).json())

        anna = {"subject_id": "anna", **VIEW}
        show("… /enroll", post("/enroll", data=anna, files=files("person-1", 1, 2)))
        for number in range(2, 7):
            data = {"subject_id": f"person-{number}", **VIEW}
            post("/enroll", data=data, files=files(f"person-{number}", 1, 2))
        for command, data, person in (
            ("-F sequence=@walk-3.zip -F top_k=2 … /identify", {"top_k": "2"}, "person-1"),
            ("-F sequence=@stranger.zip -F top_k=1 … /identify", {"top_k": "1"}, "stranger"),
        ):
            (path, *_) = sorted((walks / person).glob("*.zip"))[-1:]
            sent = [("sequence", (path.name, path.read_bytes()))]
            show(command, post("/identify", data=data, files=sent))
        show("… /verify", post("/verify", data={"subject_id": "anna"}, files=files("person-1", 3)))
        if options.clip is not None:
            clip = ("sequence", (options.clip.name, options.clip.read_bytes()))
            command = f"-F sequence=@{options.clip.name} -F top_k=1 … /identify"
            show(command, post("/identify", data={"top_k": "1"}, files=[clip]))
        for kind in ("adapt", "calibrate"):
            job = ended(client, post(f"/jobs/{kind}", json={"gallery": "default"}))
            show(f"… /jobs/{kind}, its job once it has ended", job)
        if options.train:
            asked = {"recipe": "demo", "name": "mine", "teachers": ["teacher"]}
            job = post("/jobs/distill", json={**asked, "dataset": {"gallery": "default"}})
            show("… /jobs/distill, its job once it has ended", ended(client, job))
            job = post("/models/mine/activate", json={"gallery": "default"})
            show("… /models/mine/activate, its job once it has ended", ended(client, job))
        show("-X DELETE … /subjects/person-6", dict(client.delete("/subjects/person-6").json()))
        readme = [("sequence", ("README.md", b"# GaitID"))]
        show("… -F sequence=@README.md … /enroll", post("/enroll", data=anna, files=readme))


if __name__ == "__main__":
    main()
