"""What answers kept for idempotency keys cost other requests: none kept, and 400,000.

Two services over HTTP take turns, call by call: a search without a key and with one, an enrolment
with one, and the erasure of who was enrolled. Kept answers are written into the database as
enrolments keep them, each about somebody else.

    python -m benchmarks.kept_answers [--checkpoint DIR] [--answers 400000] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
from sqlalchemy import insert
from sqlalchemy.orm import Session

from benchmarks import machine
from benchmarks.embedding import SHIPPED
from benchmarks.gallery import fill
from benchmarks.serving import server
from models.card import read_card
from service.cli.demo_walks import WALKS
from service.foundation.settings import Settings
from service.http.resources import open_engine
from service.storage.database import new_id, now, writing
from service.storage.kept_answers import Answer, IdempotencyRow, KeyLock, keep

ENROLLED = 1_000
TURNS = 40
_AT_ONCE = 5_000


def keep_answers(data_dir: Path, count: int) -> None:
    """Keep answers of enrolments in a service that is not running."""
    engine = open_engine(Settings(data_dir=data_dir))
    until = now() + timedelta(hours=2)
    for start in range(0, count, _AT_ONCE):
        locks = [KeyLock(f"{number:064x}", "b") for number in range(start, start + _AT_ONCE)]
        with Session(writing(engine)) as session, session.begin():
            session.execute(
                insert(IdempotencyRow),
                [
                    {
                        "key_hash": lock.key_hash,
                        "fingerprint": "f" * 64,
                        "holder": lock.holder,
                        "expires_at": until,
                        "status": None,
                        "headers": {},
                        "body": "",
                    }
                    for lock in locks
                ],
            )
            for number, lock in enumerate(locks, start):
                keep(session, lock, _answer(f"kept-{number}"))
    engine.dispose()


def _answer(subject: str) -> Answer:
    quality = {"score": 0.9, "issues": []}
    walk = {"sequence_id": new_id(), "frames": 40, "quality": quality, "already_enrolled": False}
    body = {
        "gallery": "default",
        "subject_id": subject,
        "sequences": [walk],
        "model": {"name": "default", "digest": "d" * 64},
        "conflicts": [],
        "coverage": {"sequences": 1, "views": [], "conditions": [], "advice": []},
    }
    return Answer(201, {"content-type": "application/json"}, json.dumps(body))


def measure(checkpoint_dir: Path, answers: int) -> dict[str, object]:
    """Each call with none and with many answers kept, and how many times as long that takes."""
    card = read_card(checkpoint_dir)
    shape = (card.parts, card.channels)
    blank = np.zeros((1, 64, 64), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        none, many = Path(folder) / "none", Path(folder) / "many"
        for data_dir in (none, many):
            fill(data_dir, ENROLLED, card.digest, shape, lambda _rng: blank)
        keep_answers(many, answers)
        with (
            server(none, checkpoint_dir, worker=False) as without,
            server(many, checkpoint_dir, worker=False) as with_them,
        ):
            taken = _take_turns(without, with_them)
    return {
        "benchmark": "requests beside kept answers",
        "machine": machine.describe(),
        "checkpoint": {"name": card.name, "digest": card.digest},
        "turns": TURNS,
        "rows": {
            call: {
                "none kept": machine.milliseconds(few),
                f"{answers} kept": machine.milliseconds(lots),
                "times as long": round(float(np.median(lots) / np.median(few)), 2),
            }
            for call, (few, lots) in taken.items()
        },
    }


def _take_turns(*clients: httpx.Client) -> dict[str, tuple[list[float], ...]]:
    calls = _calls(sorted(WALKS.glob("**/*.zip"))[0].read_bytes())
    taken: dict[str, tuple[list[float], ...]] = {name: ([], []) for name in calls}
    for turn in range(TURNS + 1):
        for name, call in calls.items():
            for client, times in zip(clients, taken[name], strict=True):
                began = time.perf_counter()
                answer = call(client, f"walker-{turn}")
                if turn:  # the first warms up
                    times.append(time.perf_counter() - began)
                answer.raise_for_status()
    return taken


def _calls(walk: bytes) -> dict[str, Callable[[httpx.Client, str], httpx.Response]]:
    def key() -> dict[str, str]:
        return {"Idempotency-Key": str(uuid.uuid4())}

    def search(client: httpx.Client, headers: dict[str, str]) -> httpx.Response:
        return client.post("/identify", files={"sequence": ("walk", walk)}, headers=headers)

    def enrol(client: httpx.Client, subject: str) -> httpx.Response:
        data = {"subject_id": subject, "accept_conflict": "true"}
        return client.post("/enroll", data=data, files={"sequence": ("walk", walk)}, headers=key())

    return {
        "identify": lambda client, _: search(client, {}),
        "identify with a key": lambda client, _: search(client, key()),
        "enroll with a key": enrol,
        "erase a subject": lambda client, subject: client.delete(f"/subjects/{subject}"),
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--answers", type=int, default=400_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine.publish(measure(options.checkpoint, options.answers), options.out)


if __name__ == "__main__":
    main()
