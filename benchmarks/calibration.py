"""A promise kept: the FPIR that calibration promises, and the one that strangers then met.

Of the people of a dataset some are drawn as the gallery, all their walks enrolled; it is calibrated
as `POST /jobs/calibrate` does, and everybody else, whom the calibration never saw, is searched in
it. Each stranger counts alike, however many walks there are. That is repeated with other draws.

    python -m benchmarks.calibration rendered=A.pack,B.pack real-dev=C.pack
        [--checkpoint DIR] [--draws 40] [--out FILE.json] [--page FILE.md]
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.walks import Walks, arguments, heading
from models.card import CardThreshold
from models.encoder.encoder import Encoder
from models.thresholds.calibration import CannotCalibrate, calibrate

TARGETS = (0.1, 0.03, 0.01)
SHARES = (1 / 8, 1 / 4, 1 / 2)
FEW_SHARES = (0.3, 0.5, 0.7)  # of a dataset with so few people that half of them are hardly any
FEW = 40


def measure(walks: Walks, known: tuple[CardThreshold, ...], draws: int) -> dict[str, object]:
    """Promised and observed for three sizes and three rates."""
    rows: dict[str, object] = {}
    for share in FEW_SHARES if walks.people < FEW else SHARES:
        size = round(share * walks.people)
        for target in TARGETS:
            name = f"{size} enrolled, {target:.0%} promised"
            rows[name] = _row(walks, known, size, target, draws)
    return rows


def _row(
    walks: Walks, known: tuple[CardThreshold, ...], size: int, target: float, draws: int
) -> dict[str, object]:
    observed, held, below, methods, thresholds, mates = [], [], [], Counter[str](), [], []
    for seed in range(draws):
        drawn = np.random.default_rng(seed).permutation(walks.people)[:size]
        inside = np.isin(walks.subjects, drawn)
        enrolled = walks.subjects[inside]
        among = walks.similarities[np.ix_(inside, inside)]
        same = enrolled[:, None] == enrolled[None, :]
        try:
            found = calibrate(np.where(same, -np.inf, among).max(1), enrolled, target, known)
        except CannotCalibrate:
            methods["none"] += 1
            continue
        methods[found.method] += 1
        thresholds.append(found.threshold)
        met = walks.similarities[np.ix_(~inside, inside)].max(1)
        rate = _Rate(met, walks.subjects[~inside])
        observed.append(rate(found.threshold))
        below.append(observed[-1] <= target)
        if found.interval is not None:
            low, high = found.interval
            held.append(rate(high) <= target <= rate(low))
        np.fill_diagonal(same, val=False)
        mates.append((np.where(same, among, -np.inf).max(1) >= found.threshold).mean())
    if not observed:
        return {"method": "none: the job fails"}
    low, high = np.quantile(observed, [0.05, 0.95])
    return {
        "method": ", ".join(method for method, _ in methods.most_common()),
        "threshold": round(float(np.median(thresholds)), 4),
        "observed": f"{np.mean(observed):.2%}",
        "of draws 5 to 95 %": f"{low:.1%} to {high:.1%}",
        "draws at or below the promise": f"{np.mean(below):.0%}",
        "interval holds it": f"{np.mean(held):.0%}" if held else "no interval",
        "enrolled walks that find another of their own": f"{np.mean(mates):.1%}",
    }


class _Rate:
    """The share of strangers' searches that reach a threshold, each stranger alike."""

    def __init__(self, met: NDArray[np.float64], subjects: NDArray[np.int64]) -> None:
        self._met = met
        _, of, counts = np.unique(subjects, return_inverse=True, return_counts=True)
        self._weights = 1 / counts[of] / len(counts)

    def __call__(self, threshold: float) -> float:
        return float(self._weights[self._met >= threshold].sum())


def page(result: dict[str, object], datasets: dict[str, dict[str, Any]]) -> str:
    """The result as a page of the documentation."""
    from benchmarks.__main__ import table

    parts = [
        "# Calibration: promised and observed",
        "Some people of a dataset are enrolled with all their walks, and the gallery is calibrated "
        "as `POST /jobs/calibrate` does. Everyone else is then searched in it. Figures are means "
        f"of {result['draws']} draws of the enrolled people. "
        "[operations.md](operations.md#calibration) explains `method`, `interval` and a gallery's "
        "curve. Draws with `none` failed and are left out. Draws share people and strangers are "
        "few, so observed rates vary too; `interval holds it` counts that against the calibration.",
        f"Checkpoint {result['checkpoint']}; written by `python -m benchmarks.calibration`.",
    ]
    for name, about in datasets.items():
        parts.append(f"## {name[0].upper()}{name[1:]}")
        parts.append(
            f"{about['people']} people, {about['walks']} walks; content {about['content']}."
        )
        parts.append(table(about["rows"]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, print JSON, and write the page if one is asked for."""
    parser = arguments(__doc__, "NAME=PACK[,PACK…]", draws=40)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    encoder = Encoder.open(options.checkpoint)
    card = encoder.card
    known = card.thresholds
    datasets: dict[str, dict[str, Any]] = {}
    for item in options.datasets:
        name, _, paths = item.partition("=")
        walks = Walks([Path(path) for path in paths.split(",")], encoder)
        datasets[name] = {
            "people": walks.people,
            "walks": len(walks.subjects),
            "content": walks.content,
            "rows": measure(walks, known, options.draws),
        }
    result: dict[str, object] = {
        **heading("calibration: promised and observed FPIR", card),
        "draws": options.draws,
        "datasets": datasets,
    }
    machine.publish(result, options.out)
    if options.page is not None:
        options.page.write_text(page(result, datasets), encoding="utf-8")


if __name__ == "__main__":
    main()
