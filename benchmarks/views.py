"""How far recognition carries from one view to another, ten people at a time.

Every walk is searched, again and again, among one walk of its own person and one of each of nine
others, all seen alike: from the side, obliquely, or along the way they go. With as many people in
every dataset, rendered and real ones can be set side by side. Intervals are drawn over people.

    python -m benchmarks.views rendered=A.pack:090+270,045+135+225+315,000+180 real=B.pack:00,45,90
        [--without bg cl] [--checkpoint DIR] [--draws 20] [--out FILE.json]
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.walks import Walks, arguments, publish
from models.encoder.encoder import Encoder
from training.evaluation import Resampling
from training.evaluation.bootstrap import percentile_estimate, subject_weights

PEOPLE = 10
SEEN = ("side", "oblique", "along")


def measure(
    walks: Walks, seen: Sequence[NDArray[np.intp]], draws: int
) -> dict[str, list[float | None]]:
    """Rank-1 in per cent with its interval, from each group of walks to each."""
    random = np.random.default_rng(0)
    weights = subject_weights(walks.people, Resampling())
    found: dict[str, list[float | None]] = {}
    for (probed, probes), (listed, gallery) in product(zip(SEEN, seen, strict=True), repeat=2):
        theirs = [gallery[walks.subjects[gallery] == person] for person in range(walks.people)]
        hits, searches = np.zeros(walks.people), np.zeros(walks.people)
        for probe in probes:
            asked = _searches(walks, probe, theirs, draws, random)
            hits[walks.subjects[probe]] += sum(asked)
            searches[walks.subjects[probe]] += len(asked)
        with np.errstate(invalid="ignore"):  # a draw of people of whom none was searched
            replicates = (weights @ hits) / (weights @ searches)
        estimate = percentile_estimate(hits.sum() / searches.sum(), replicates, 0.95)
        bounds = (estimate.value, estimate.low, estimate.high)
        found[f"{probed} → {listed}"] = [None if b is None else round(100 * b, 1) for b in bounds]
    return found


def _searches(
    walks: Walks,
    probe: int,
    theirs: Sequence[NDArray[np.intp]],
    draws: int,
    random: np.random.Generator,
) -> list[bool]:
    """Whether each other walk of the probe's own person beat nine people's, in every draw."""
    alike, person = walks.similarities[probe], walks.subjects[probe]
    others = [own for number, own in enumerate(theirs) if number != person and len(own)]
    asked = []
    for mate in theirs[person][theirs[person] != probe]:
        for _ in range(draws):
            met = random.choice(len(others), PEOPLE - 1, replace=False)
            impostors = [random.choice(others[number]) for number in met]
            asked.append(bool(alike[mate] > alike[impostors].max()))
    return asked


def main() -> None:
    """Measure and print JSON."""
    parser = arguments(__doc__, "NAME=PACK:SIDE,OBLIQUE,ALONG views, joined by +", draws=20)
    parser.add_argument(
        "--without", nargs="*", default=["bg", "cl"], help="beginnings of conditions"
    )
    options = parser.parse_args()
    encoder = Encoder.open(options.checkpoint)
    without = tuple(options.without)
    rows: dict[str, object] = {}
    content: dict[str, str] = {}
    for item in options.datasets:
        name, _, rest = item.partition("=")
        path, _, views = rest.rpartition(":")
        walks = Walks([Path(path)], encoder)
        normal = np.asarray([not r.condition.startswith(without) for r in walks.records])
        view = np.asarray([r.view for r in walks.records])
        seen = [
            np.flatnonzero(normal & np.isin(view, group.split("+"))) for group in views.split(",")
        ]
        content[name] = walks.content
        rows[name] = measure(walks, seen, options.draws)
    benchmark = f"rank-1 in per cent among {PEOPLE} people, from view to view"
    publish(benchmark, encoder.card, options, content, rows)


if __name__ == "__main__":
    main()
