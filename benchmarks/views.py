"""How far recognition carries from one view to another, ten people at a time.

Every walk is searched, again and again, among one walk of its own person and one of each of nine
others, all seen alike: from the side, obliquely, or along the way they go. With as many people in
every dataset, rendered and real ones can be set side by side. Intervals are drawn over people.

    python -m benchmarks.views rendered=A.pack:090+270,045+135+225+315,000+180 real=B.pack:00,45,90
        [--without bg cl] [--checkpoint DIR] [--draws 20] [--out FILE.json]
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.calibration import Walks
from benchmarks.embedding import SHIPPED
from models.encoder import Encoder
from training.data.pack import Pack
from training.evaluation import Resampling
from training.evaluation.bootstrap import percentile_estimate, subject_weights

PEOPLE = 10


def measure(
    walks: Walks, seen: list[np.ndarray[tuple[int], np.dtype[np.intp]]], draws: int
) -> dict[str, list[float | None]]:
    """Rank-1 in per cent with its interval, from each group of walks to each."""
    random = np.random.default_rng(0)
    names = ("side", "oblique", "along")
    weights = subject_weights(walks.people, Resampling())
    found: dict[str, list[float | None]] = {}
    for (probed, probes), (listed, gallery) in product(zip(names, seen, strict=True), repeat=2):
        theirs = [gallery[walks.subjects[gallery] == person] for person in range(walks.people)]
        hits, searches = np.zeros(walks.people), np.zeros(walks.people)
        for probe in probes:
            person = walks.subjects[probe]
            others = [n for n, own in enumerate(theirs) if n != person and len(own)]
            for mate in theirs[person]:
                if mate == probe:
                    continue
                for _ in range(draws):
                    met = random.choice(others, PEOPLE - 1, replace=False)
                    impostors = [random.choice(theirs[other]) for other in met]
                    alike = walks.similarities[probe]
                    hits[person] += alike[mate] > alike[impostors].max()
                    searches[person] += 1
        with np.errstate(invalid="ignore"):  # a draw of people of whom none was searched
            replicates = (weights @ hits) / (weights @ searches)
        estimate = percentile_estimate(hits.sum() / searches.sum(), replicates, 0.95)
        bounds = (estimate.value, estimate.low, estimate.high)
        found[f"{probed} → {listed}"] = [None if b is None else round(100 * b, 1) for b in bounds]
    return found


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "datasets", nargs="+", help="NAME=PACK:SIDE,OBLIQUE,ALONG views, joined by +"
    )
    parser.add_argument(
        "--without", nargs="*", default=["bg", "cl"], help="beginnings of conditions"
    )
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    encoder = Encoder.open(options.checkpoint)
    rows: dict[str, object] = {}
    content: dict[str, str] = {}
    for item in options.datasets:
        name, _, rest = item.partition("=")
        path, _, views = rest.rpartition(":")
        records = Pack.open(Path(path)).sequences
        walks = Walks([Path(path)], encoder)
        seen = [
            np.asarray(
                [
                    number
                    for number, record in enumerate(records)
                    if record.view in group.split("+")
                    and not record.condition.startswith(tuple(options.without))
                ],
                np.intp,
            )
            for group in views.split(",")
        ]
        content[name] = walks.content[0]
        rows[name] = measure(walks, seen, options.draws)
    result = {
        "benchmark": f"rank-1 in per cent among {PEOPLE} people, from view to view",
        "machine": machine.describe(),
        "checkpoint": f"{encoder.card.name} {encoder.card.digest[:12]}",
        "content": content,
        "draws": options.draws,
        "rows": rows,
    }
    machine.publish(result, options.out)


if __name__ == "__main__":
    main()
