"""What a service on PostgreSQL takes for a call, and one on SQLite.

Two services over HTTP take turns, call by call: a search, an enrolment, the erasure of who was
enrolled. PostgreSQL runs on the same machine, reached by a socket, and waits for the disk at every
commit, as SQLite does. Also lines of the audit record, in one process.

    python -m benchmarks.database [--checkpoint DIR] [--turns 40] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TypeVar

import httpx
import numpy as np

from benchmarks import machine
from benchmarks.embedding import SHIPPED
from benchmarks.gallery import fill
from benchmarks.serving import running
from models.card import read_card
from service.access.audit.entries import Actor, Entry
from service.access.audit.record import AuditRecord
from service.cli.demo_walks import WALKS
from service.foundation.settings import Settings
from tests.service import postgresql

ENROLLED = 1_000
LINES = 300
_DURABLE = {"fsync": "on", "full_page_writes": "on", "autovacuum": "on", "shared_buffers": "128MB"}

Asked = TypeVar("Asked")


def measure(checkpoint_dir: Path, turns: int) -> dict[str, object]:
    """Each call on either database, and how many times as long PostgreSQL's takes."""
    card = read_card(checkpoint_dir)
    programs = postgresql.binaries()
    if programs is None:
        raise SystemExit("there is no PostgreSQL on this machine")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(postgresql.running(programs, **_DURABLE))
        urls = {"SQLite": None, "PostgreSQL": server.url(server.create())}
        settings = {
            name: Settings(data_dir=folder / name, database_url=url) for name, url in urls.items()
        }
        blank = np.zeros((1, 64, 64), np.uint8)
        for one in settings.values():
            fill(
                one.data_dir,
                ENROLLED,
                card.digest,
                (card.parts, card.channels),
                lambda _rng: blank,
                one.database_url,
            )
        records = {
            name: stack.enter_context(closing(AuditRecord(one, lambda *_: True)))
            for name, one in settings.items()
        }
        search = Entry("identify", "default", "s000", {"similarity": 0.5, "candidates": 5})
        taken = take_turns(
            records,
            {"record a search": lambda record, _: record.read(search, Actor("anyone"))},
            LINES,
        )
        clients = {
            name: stack.enter_context(running(_command(one), _environment(one, checkpoint_dir)))
            for name, one in settings.items()
        }
        taken |= take_turns(clients, _calls(), turns)
    return {
        "benchmark": "a service on PostgreSQL and on SQLite",
        "machine": machine.describe(),
        "checkpoint": {"name": card.name, "digest": card.digest},
        "enrolled": ENROLLED,
        "turns": turns,
        "rows": {
            call: {
                **{name: machine.milliseconds(times) for name, times in of.items()},
                "times as long": round(
                    float(np.median(of["PostgreSQL"]) / np.median(of["SQLite"])), 2
                ),
            }
            for call, of in taken.items()
        },
    }


def take_turns(
    asked: Mapping[str, Asked], calls: Mapping[str, Callable[[Asked, int], object]], turns: int
) -> dict[str, dict[str, list[float]]]:
    """The seconds of each call, by whom was asked; the first turn warms up."""
    taken: dict[str, dict[str, list[float]]] = {
        call: {name: [] for name in asked} for call in calls
    }
    for turn in range(turns + 1):
        for name, call in calls.items():
            for of, one in asked.items():
                began = time.perf_counter()
                call(one, turn)
                if turn:
                    taken[name][of].append(time.perf_counter() - began)
    return taken


def _calls() -> dict[str, Callable[[httpx.Client, int], object]]:
    walk = sorted(WALKS.glob("**/*.zip"))[0].read_bytes()

    def enrol(client: httpx.Client, turn: int) -> object:
        data = {"subject_id": f"walker-{turn}", "accept_conflict": "true"}
        answer = client.post("/enroll", data=data, files={"sequence": ("walk", walk)})
        return answer.raise_for_status()

    return {
        "list ten subjects": lambda client, _: client.get(
            "/subjects", params={"limit": 10}
        ).raise_for_status(),
        "identify": lambda client, _: client.post(
            "/identify", files={"sequence": ("walk", walk)}
        ).raise_for_status(),
        "enroll": enrol,
        "erase a subject": lambda client, turn: client.delete(
            f"/subjects/walker-{turn}"
        ).raise_for_status(),
    }


def _command(settings: Settings) -> list[str]:
    return ["service", "serve", "--port", "0", "--no-worker", "--data-dir", str(settings.data_dir)]


def _environment(settings: Settings, checkpoint_dir: Path) -> dict[str, str]:
    given = {
        "GAITID_SHIPPED_MODELS_DIR": str(checkpoint_dir.parent),
        "GAITID_MODEL": checkpoint_dir.name,
    }
    if settings.database_url is not None:
        given["GAITID_DATABASE_URL"] = settings.database_url
    return given


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine.publish(measure(options.checkpoint, options.turns), options.out)


if __name__ == "__main__":
    main()
