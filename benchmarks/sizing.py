"""Machines for galleries of 10⁵, 10⁷ and 10⁹ walks, computed from what other benchmarks measured.

Every figure is a measured one times walks or requests, so each says how far it is carried beyond
the walks that it was measured with. What nobody here could measure stands in `ASSUMED`. The tables
are those of docs/sizing.md, which a test compares.

    python -m benchmarks.sizing [--rate REQUESTS_A_SECOND]
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from dataclasses import dataclass

from benchmarks.__main__ import RESULTS, table

WALKS = (10**5, 10**7, 10**9)
RATE = 20.0  # identifications a second that a deployment is to answer
NUMBERS = 16 * 32  # of an embedding
ROOM = 0.7  # of memory and processors that is planned with
MACHINES = (4, 8, 16, 32, 64, 128, 256)  # GB of memory that a machine has
TAIL = 20_000  # walks: GAITID_EXACT_BELOW
IN_REACH = 600.0  # seconds that a new process, which has no snapshot, may compute at its start
SPARE = 1  # machines beyond those that the load needs, so that one may die
GB = 1e9


@dataclass(frozen=True, slots=True)
class Assumed:
    """A figure that was not measured here, and where it comes from."""

    value: float
    unit: str
    source: str


PROCESS = Assumed(
    0.7 * GB, "bytes", "an api process with the network and decoders at rest, no gallery"
)
SEARCHED = Assumed(
    NUMBERS / 8 + 16 + NUMBERS + 36 + 3 * 20 + 100,
    "bytes",
    "a walk in the memory of Milvus's query nodes: IVF_RABITQ (a bit a number, and two numbers), a "
    "byte a number to refine by, id, three facts, overhead; from its documentation",
)
STORED = Assumed(
    2 * (NUMBERS * 4 + 36 + 3 * 20) + NUMBERS / 8 + NUMBERS,
    "bytes",
    "a walk in Milvus's object storage: the row, once more while it compacts, and the index",
)
SHARE = Assumed(
    0.34, "", "of the codes that Milvus reads in a search, at FAISS's speed for one-bit codes"
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What results say; `*_at` is the number of walks that a figure was measured with."""

    search_ms: float
    one_bit_ms: float
    search_at: int
    database_bytes: float
    held_bytes: float  # of a walk in a process: its code, ids, subject, metadata
    follow_s: float
    restore_s: float
    start_at: int
    shared_ms: float
    shared_at: int
    identified: float  # a second and core
    identify_at: int

    @classmethod
    def read(cls) -> Measured:
        """The figures in benchmarks/results/."""
        found = {
            name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("search", "search-served", "start", "milvus", "identify")
        }
        at = {name: _walks(one["benchmark"]) for name, one in found.items()}
        search, served, start, milvus, identify = (one["rows"] for one in found.values())
        return cls(
            search_ms=served["the service's"]["ms"],
            one_bit_ms=search["lists, RaBitQ 1, blocks"]["ms"],
            search_at=at["search"],
            database_bytes=start["the database"]["bytes a walk"],
            held_bytes=start["with a snapshot"]["resident, MB"] * 1e6 / at["start"],
            follow_s=start["without a snapshot"]["until coded, s"],
            restore_s=start["with a snapshot"]["until a search, s"],
            start_at=at["start"],
            shared_ms=milvus["Milvus, a search"]["least_ms"],
            shared_at=at["milvus"],
            identified=1000 / identify["now"]["processor"]["ms, 8 clients"],
            identify_at=at["identify"],
        )


def in_processes(measured: Measured) -> dict[str, dict[str, str]]:
    """What each process takes that has the gallery itself (`GAITID_INDEX=faiss`)."""
    rows = {}
    for walks in WALKS:
        rows[_power(walks)] = {
            "memory, GB": _number((PROCESS.value + walks * measured.held_bytes) / GB),
            "a search, CPU ms": _carried(measured.search_ms, walks, measured.search_at),
            "start with a snapshot, CPU s": _carried(measured.restore_s, walks, measured.start_at),
            "start without, CPU s": _carried(measured.follow_s, walks, measured.start_at),
            "within reach": "no" if _is_shared(measured, walks) else "yes",
        }
    return rows


def in_milvus(measured: Measured) -> dict[str, dict[str, str]]:
    """What the parts take when galleries are searched in Milvus."""
    rows = {}
    for walks in WALKS:
        tail = TAIL * (4 * NUMBERS + measured.held_bytes)
        scan = measured.one_bit_ms * SHARE.value / 0.28 * walks / measured.search_at
        factor = _factor(walks, measured.search_at)
        rows[_power(walks)] = {
            "an api process, GB": _number((PROCESS.value + tail) / GB),
            "query nodes' memory, GB": _number(walks * SEARCHED.value / GB),
            "object storage, GB": _number(walks * STORED.value / GB),
            "a search in Milvus, CPU ms": f"{_number(scan)} (×{factor})",
            "a search here beside that, ms": _number(measured.shared_ms),
        }
    return rows


def machines(measured: Measured, rate: float) -> dict[str, dict[str, str]]:
    """Machines that answer `rate` identifications a second, and go on when one dies."""
    rows = {}
    for walks in WALKS:
        shared = _is_shared(measured, walks)
        scan = measured.search_ms * walks / measured.search_at / 1000
        cores = rate * (1 / measured.identified + (0 if shared else scan)) / ROOM
        held = TAIL * 4 * NUMBERS if shared else walks * measured.held_bytes
        apis = max(1, math.ceil(cores / 8)) + SPARE
        row = {
            "GAITID_INDEX": "milvus" if shared else "faiss",
            "api": f"{apis} × {_cores(cores / max(1, apis - SPARE))} cores, "
            f"{_machine(PROCESS.value + held)} GB",
            "database on disk, GB": f"{_number(walks * measured.database_bytes / GB)}"
            f" (×{_factor(walks, measured.start_at)})",
        }
        if shared:
            one_bit = measured.one_bit_ms * SHARE.value / 0.28 * walks / measured.search_at / 1000
            memory, busy = walks * SEARCHED.value / ROOM, rate * one_bit / ROOM
            nodes = max(math.ceil(memory / (MACHINES[-1] * GB)), math.ceil(busy / 64))
            size = _machine(walks * SEARCHED.value / nodes)
            row["Milvus's query nodes"] = (
                f"{nodes + SPARE} × {_cores(busy / nodes)} cores, {size} GB"
            )
            row["its object storage, GB"] = _number(walks * STORED.value / GB)
        rows[_power(walks)] = row
    return rows


def assumptions() -> dict[str, dict[str, str]]:
    """What was not measured, and where it comes from."""
    return {
        one.source: {"figure": f"{_number(one.value)} {one.unit}".strip()}
        for one in (PROCESS, SEARCHED, STORED, SHARE)
    }


def page(measured: Measured, rate: float) -> str:
    """The tables, with their titles."""
    parts = [
        f"### Machines for {rate:g} identifications a second",
        table(machines(measured, rate)),
        "### The gallery in each process",
        table(in_processes(measured)),
        "### The gallery in Milvus",
        table(in_milvus(measured)),
        "### Not measured",
        table(assumptions()),
    ]
    return "\n\n".join(parts) + "\n"


def _is_shared(measured: Measured, walks: int) -> bool:
    """Whether a gallery is better searched in Milvus: a new process would start too slowly."""
    return measured.follow_s * walks / measured.start_at > IN_REACH


def _walks(title: str) -> int:
    """How many walks a benchmark's title names."""
    found = re.search(r"([\d,]+) (?:walks|enrolled)", title)
    if found is None:
        raise ValueError(f"no number of walks in {title!r}")
    return int(found[1].replace(",", ""))


def _carried(value: float, walks: int, measured_at: int) -> str:
    """A figure for so many walks, and how many times those that it was measured with they are."""
    return f"{_number(value * walks / measured_at)} (×{_factor(walks, measured_at)})"


def _factor(walks: int, measured_at: int) -> str:
    return _number(walks / measured_at)


def _number(value: float) -> str:
    """Two digits that count."""
    if value >= 100:
        digits = len(str(int(value))) - 2
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.2g}"


def _cores(busy: float) -> int:
    """Cores of a machine that keep so many busy."""
    return max(2, 1 << math.ceil(math.log2(max(1.0, busy))))


def _machine(needed: float) -> int:
    """GB of memory of the smallest machine that has room for so many bytes."""
    wanted = needed / ROOM / GB
    return next((size for size in MACHINES if size >= wanted), MACHINES[-1])


def _power(walks: int) -> str:
    return "10" + str(len(str(walks)) - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=RATE)
    sys.stdout.write(page(Measured.read(), parser.parse_args().rate))


if __name__ == "__main__":
    main()
