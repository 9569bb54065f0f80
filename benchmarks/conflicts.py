"""Whom enrolment asks about: honest walks that are refused, and walks under a wrong name caught.

The walks of a dataset are enrolled in a random order, in requests of a few walks of one person, as
`POST /enroll` decides. Before each further request of a person the same walks are offered under the
name of somebody else who is enrolled, and as a new subject. What is refused is enrolled all the
same in the end, as by somebody who knows better. That is repeated in other orders.

    python -m benchmarks.conflicts demo=A.pack real-dev=B.pack [--checkpoint DIR] [--draws 20]
        [--out FILE.json]
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.walks import Walks, arguments, publish
from models.card import CardThreshold
from models.encoder.encoder import Encoder
from models.thresholds.calibration import CannotCalibrate, calibrate
from service.recognition.conflict import ComparedWalk, Resemblance, find_conflicts

REQUESTS = (1, 2, 4)
CALIBRATED = 0.1
"""What a gallery of a dataset's size is calibrated for, beside the card's own threshold."""

_NEW = "somebody new"


class _Gallery:
    """Who is enrolled with which walk, by the similarities of a dataset."""

    def __init__(self, walks: Walks, threshold: float) -> None:
        self._alike = walks.similarities
        self._threshold = threshold
        self._enrolled: dict[int, str] = {}

    def subjects(self) -> list[str]:
        return sorted(set(self._enrolled.values()))

    def enrol(self, request: list[int], subject: str) -> None:
        self._enrolled.update(dict.fromkeys(request, subject))

    def answer(self, request: list[int], subject: str) -> str:
        """`refused`, `remarked` or `enrolled`."""
        walks = [self._new(walk, request, subject) for walk in request]
        found = find_conflicts(subject, walks, self._threshold)
        if any(conflict.grave for conflict in found):
            return "refused"
        return "remarked" if found else "enrolled"

    def _new(self, walk: int, request: list[int], subject: str) -> ComparedWalk:
        kept = [one for one, whose in self._enrolled.items() if whose == subject]
        others = [one for one, whose in self._enrolled.items() if whose != subject]
        return ComparedWalk(
            name=str(walk),
            kept=self._nearest(walk, kept),
            sent=self._nearest(walk, [one for one in request if one != walk]),
            other=self._nearest(walk, others),
        )

    def _nearest(self, walk: int, among: list[int]) -> Resemblance | None:
        if not among:
            return None
        best = among[int(self._alike[walk, among].argmax())]
        subject = self._enrolled.get(best, "")
        return Resemblance(subject, float(self._alike[walk, best]), str(best))


def measure(walks: Walks, threshold: float, size: int, draws: int) -> dict[str, Any]:
    """One row: shares of requests of `size` walks at most."""
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("new", "further", "wrong name", "as somebody new")
    }
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        requests = _requests(walks, size, rng)
        gallery = _Gallery(walks, threshold)
        for request, subject in requests:
            known = subject in gallery.subjects()
            counts["further" if known else "new"][gallery.answer(request, subject)] += 1
            others = [one for one in gallery.subjects() if one != subject]
            if known and others:
                wrong = others[int(rng.integers(len(others)))]
                counts["wrong name"][gallery.answer(request, wrong)] += 1
                counts["as somebody new"][gallery.answer(request, _NEW)] += 1
            gallery.enrol(request, subject)
    return {
        "threshold": round(threshold, 4),
        "new people refused": _share(counts["new"], "refused"),
        "and remarked on": _share(counts["new"], "remarked"),
        "further walks refused": _share(counts["further"], "refused"),
        "under a wrong name, refused": _share(counts["wrong name"], "refused"),
        "enrolled people as new, refused": _share(counts["as somebody new"], "refused"),
        "and remarked on too": _share(counts["as somebody new"], "refused", "remarked"),
    }


def _requests(walks: Walks, size: int, rng: np.random.Generator) -> list[tuple[list[int], str]]:
    requests = []
    for person in range(walks.people):
        own = rng.permutation(np.flatnonzero(walks.subjects == person)).tolist()
        requests += [(own[at : at + size], str(person)) for at in range(0, len(own), size)]
    return [requests[index] for index in rng.permutation(len(requests))]


def _share(answers: Counter[str], *of: str) -> str:
    total = answers.total()
    return f"{sum(answers[one] for one in of) / total:.1%} of {total}" if total else "none"


def thresholds(
    walks: Walks, card_threshold: float | None, known: tuple[CardThreshold, ...]
) -> dict[str, float]:
    """The card's own threshold, and what calibrating the whole dataset finds."""
    found = {} if card_threshold is None else {"the card's": card_threshold}
    same = walks.subjects[:, None] == walks.subjects[None, :]
    met = np.where(same, -np.inf, walks.similarities).max(1)
    try:
        calibrated = calibrate(met, walks.subjects, CALIBRATED, known)
    except CannotCalibrate:
        return found
    return {**found, f"calibrated for {CALIBRATED:.0%}": calibrated.threshold}


def main() -> None:
    """Measure and print JSON."""
    options = arguments(__doc__, "NAME=PACK[,PACK…]", draws=20).parse_args()
    encoder = Encoder.open(options.checkpoint)
    card = encoder.card
    known = card.thresholds
    rows: dict[str, Any] = {}
    content: dict[str, str] = {}
    for item in options.datasets:
        name, _, paths = item.partition("=")
        walks = Walks([Path(path) for path in paths.split(",")], encoder)
        content[name] = walks.content
        for source, threshold in thresholds(walks, card.threshold, known).items():
            for size in REQUESTS:
                row = f"{name}, {walks.people} people, {source}, {size} a request"
                rows[row] = measure(walks, threshold, size, options.draws)
    benchmark = "enrolment conflicts: honest walks refused, wrong names caught"
    publish(benchmark, card, options, content, rows)


if __name__ == "__main__":
    main()
