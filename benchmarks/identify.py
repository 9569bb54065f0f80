"""Identification and bulk enrolment over HTTP: now, before, and what people would run instead.

The service as it is, as it was at another commit, and a plain handler (`benchmarks.plain_server`)
serve the same walk of 40 raw frames at the same time and are asked in turns, so that all of them
share the machine's noise. Each has 10,000 walks enrolled, with random embeddings: those are as slow
to search exactly as any other. Every service has its own default model; the handler has the one of
before, in torch. Beside what clients see there is the processor time that a request takes of all of
a server's processes: what others do on the machine changes that least.

    python -m benchmarks.identify [--before COMMIT] [--bulk N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import numpy as np
import psutil  # type: ignore[import-untyped]

from benchmarks import machine
from benchmarks.front_half import FRAMES, zipped
from benchmarks.serving import ROOT, environment, running, server
from models.silhouettes import decode
from service.cli.demo_walks import WALKS

BEFORE = "90ffb89"  # the last commit before this was made fast
ENROLLED = 10_000
TURNS = 60
CLIENTS = (1, 4, 8, 16)
SECONDS = 4.0  # of a measurement with several clients
ROUNDS = 2
LOAD = 0.8
PACED_S = 12.0
REFUSED_S = 0.05  # until one is sent again that was refused because too much was waiting
LISTENING: Final = psutil.CONN_LISTEN
BULK = 1000  # walks that are enrolled by `gaitid enroll`
_FILL = """
import sys
from pathlib import Path
import numpy as np
from benchmarks.gallery import fill
data, sequences, digest, parts, channels = sys.argv[1:]
blank = np.zeros((1, 64, 64), np.uint8)
shape = int(parts), int(channels)
fill(Path(data), int(sequences), digest, shape, lambda _: blank)
"""


class Request:
    """The same identification, encoded once."""

    def __init__(self, walk: bytes) -> None:
        request = httpx.Request("POST", "http://any", files={"sequence": ("walk", walk)})
        self._body, self._type = request.read(), request.headers["Content-Type"]

    def send(self, client: httpx.Client) -> httpx.Response:
        """Send it, and return the answer, whatever its status."""
        return client.post("/identify", content=self._body, headers={"Content-Type": self._type})


def tree_of(commit: str, folder: Path) -> Path:
    """The files of a commit, in a folder; raises `CalledProcessError` for an unknown one."""
    archive = subprocess.run(
        ["git", "archive", commit],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def default_model(tree: Path) -> Path:
    """The checkpoint that a tree's service starts with."""
    return tree / "models" / "checkpoints" / "default"


def enrolled(tree: Path, data_dir: Path) -> None:
    """Enrol random walks with the code of a tree, whose schema its service reads."""
    card = json.loads((default_model(tree) / "card.json").read_text(encoding="utf-8"))
    shape = (str(card["parts"]), str(card["channels"]))
    command = [sys.executable, "-c", _FILL, str(data_dir), str(ENROLLED), card["digest"], *shape]
    subprocess.run(command, check=True, cwd=tree, env=environment(tree))


def alone(contenders: Mapping[str, httpx.Client], request: Request) -> dict[str, dict[str, float]]:
    """Latency of one client, request by request in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(TURNS + 3):
        for name, client in contenders.items():
            began = time.perf_counter()
            request.send(client).raise_for_status()
            if turn >= 3:
                seconds[name].append(time.perf_counter() - began)
    return {name: machine.milliseconds(times) for name, times in seconds.items()}


class Served(NamedTuple):
    """What a server did for so many clients, each sending one identification after the other."""

    answered: int
    seconds: float
    processor_s: float

    @property
    def rate(self) -> float:
        """Identifications a second."""
        return self.answered / self.seconds


def processor_s(client: httpx.Client) -> float:
    """Processor time of a server so far, and of the processes that it has started."""
    port = client.base_url.port
    (server,) = [
        child
        for child in psutil.Process().children()
        if any(port == at.laddr.port for at in child.net_connections() if at.status == LISTENING)
    ]
    # the sum is of what they took themselves, and those that have ended below them
    return sum(sum(one.cpu_times()[:4]) for one in (server, *server.children(recursive=True)))


def throughput(client: httpx.Client, request: Request, clients: int) -> Served:
    """Identifications that so many clients get, each sending one after the other."""
    before = processor_s(client)
    until = time.perf_counter() + SECONDS
    counts = [0] * clients

    def ask(number: int) -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as mine:
            while time.perf_counter() < until:
                answer = request.send(mine)
                if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                    time.sleep(REFUSED_S)
                    continue
                answer.raise_for_status()
                counts[number] += 1

    began = time.perf_counter()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    return Served(sum(counts), seconds, processor_s(client) - before)


def paced(client: httpx.Client, request: Request, rate: float) -> dict[str, float]:
    """Latency at so many identifications a second, from the moment that each was due."""
    seconds: list[float] = []
    began = time.perf_counter() + 0.2

    def ask(due: float) -> None:
        time.sleep(max(0.0, due - time.perf_counter()))
        while (answer := request.send(client)).status_code == httpx.codes.SERVICE_UNAVAILABLE:
            time.sleep(REFUSED_S)
        answer.raise_for_status()
        seconds.append(time.perf_counter() - due)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, began + np.arange(0, PACED_S, 1 / rate)))
    return machine.milliseconds(seconds)


def write_walks(folder: Path, walks: Sequence[Path], count: int) -> None:
    """Walks to enrol: those of the demonstration, each begun at another frame."""
    for number in range(count):
        frames = decode(walks[number % len(walks)].read_bytes())[:FRAMES]
        first = number // len(walks) % len(frames)
        person = folder / f"p{number // 4:04}"
        person.mkdir(parents=True, exist_ok=True)
        (person / f"{number % 4}.zip").write_bytes(zipped(frames[first:] + frames[:first]))


def bulk_enrolment(client: httpx.Client, walks: Path, count: int, tree: Path) -> float:
    """Walks a second of `gaitid enroll FOLDER`, as a whole, of a folder of so many."""
    command = [sys.executable, "-m", "service", "enroll", str(walks), "--accept-conflict"]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--url", str(client.base_url)],
        check=True,
        cwd=tree,
        env=environment(tree),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return count / (time.perf_counter() - began)


def measure(before: str, bulk: int) -> dict[str, object]:
    """Everything, as rows of a table."""
    demo = sorted(WALKS.glob("**/*.zip"))
    request = Request(zipped(decode(demo[0].read_bytes())[:FRAMES]))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        trees = {"now": ROOT, "before": tree_of(before, folder / "before")}
        contenders: dict[str, httpx.Client] = {}
        for which, tree in trees.items():
            data_dir = folder / f"data-{which}"
            enrolled(tree, data_dir)
            serving = server(data_dir, default_model(tree), worker=False, tree=tree)
            contenders[which] = stack.enter_context(serving)
        plain = ["benchmarks.plain_server", str(default_model(trees["before"])), str(ENROLLED)]
        contenders["plain handler"] = stack.enter_context(running(plain))
        rows: dict[str, dict[str, Any]] = {
            which: {"one client": latency} for which, latency in alone(contenders, request).items()
        }
        served: dict[str, dict[int, list[Served]]] = {which: {} for which in contenders}
        for clients, which in _in_rounds(contenders):
            one = throughput(contenders[which], request, clients)
            served[which].setdefault(clients, []).append(one)
        for which, row in rows.items():
            rates = {number: max(one.rate for one in of) for number, of in served[which].items()}
            rate = LOAD * max(rates.values())
            row |= {f"a second, {number} clients": round(one, 1) for number, one in rates.items()}
            row["processor"] = {
                f"ms, {number} clients": round(
                    min(1000 * a.processor_s / a.answered for a in of), 1
                )
                for number, of in served[which].items()
            }
            row[f"at {LOAD:.0%} load"] = paced(contenders[which], request, rate)
        write_walks(folder / "walks", demo, bulk)
        for which, tree in trees.items():
            rate = bulk_enrolment(contenders[which], folder / "walks", bulk, tree)
            rows[which]["enrolled a second"] = round(rate, 1)
    return {
        "benchmark": f"identify over HTTP, {FRAMES} raw frames, {ENROLLED:,} enrolled",
        "machine": machine.describe(),
        "before": before,
        "rows": rows | {"now, times before": _ratios(rows["now"], rows["before"])},
    }


def _in_rounds(contenders: Mapping[str, httpx.Client]) -> Iterator[tuple[int, str]]:
    """Numbers of clients and whom they ask, in turns."""
    for _ in range(ROUNDS):
        for clients in CLIENTS:
            for which in contenders:
                yield clients, which


def _ratios(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """How many times better each figure is."""
    ratios: dict[str, Any] = {}
    for title, figure in now.items():
        was = before[title]
        if isinstance(figure, dict):
            ratios[title] = {name: round(was[name] / figure[name], 2) for name in figure}
        else:
            ratios[title] = round(figure / was, 2)
    return ratios


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", default=BEFORE, help="the commit to compare with")
    parser.add_argument("--bulk", type=int, default=BULK, help="walks to enrol")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine.publish(measure(options.before, options.bulk), options.out)


if __name__ == "__main__":
    main()
