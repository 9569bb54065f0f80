"""What a small gallery of mixed views promises and does, without a scene transform and with one.

Of the people of a dataset two are never enrolled: they are the strangers. Of eight others five are
enrolled with two walks in each view, three with two walks in one. The gallery is adapted to and
calibrated as the jobs do it, and searched with all walks of the strangers and all other walks of
those enrolled. Intervals are drawn over people.

    python -m benchmarks.scene_thresholds NAME=PACK [NAME=PACK …]
        [--checkpoint DIR] [--draws 30] [--out FILE.json]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.scenes import Tally, best
from benchmarks.walks import arguments, publish
from models.card import Card
from models.comparison.several import subject_scores
from models.comparison.similarity import index_vectors
from models.encoder.encoder import Encoder
from models.thresholds.calibration import CannotCalibrate
from service.gallery.reading import EmbeddedSequences
from service.job_types.calibration import fit_part, plain_point, scene_point
from training.data.pack import Pack
from training.evaluation import LabelledSequences, labels_of
from training.evaluation.embedding import embed_with_encoder

PROMISED = (0.1, 0.01)
STRANGERS = 2
ENROLLED = (5, 3)
"""People in all views, and in one."""
WALKS = 2


@dataclass(frozen=True)
class Draw:
    """Rows of walks, and whose those enrolled are, in the names that are enrolled."""

    gallery: NDArray[np.intp]
    strangers: NDArray[np.intp]
    elsewhere: NDArray[np.intp]
    alike: NDArray[np.intp]


def drawn(sequences: LabelledSequences, rng: np.random.Generator) -> Draw:
    """One gallery, and what is searched in it: strangers, another view, the same view."""
    views = np.unique(sequences.views)
    people = rng.permutation(np.unique(sequences.subjects))[: STRANGERS + sum(ENROLLED)]
    strangers, enrolled = people[:STRANGERS], people[STRANGERS:]
    gallery: list[int] = []
    probes: dict[bool, list[int]] = {False: [], True: []}
    for number, person in enumerate(enrolled):
        shown = views if number < ENROLLED[0] else rng.choice(views, 1)
        for view in views:
            mine = (sequences.subjects == person) & (sequences.views == view)
            walks = rng.permutation(np.flatnonzero(mine)).tolist()
            if view in shown:
                gallery += walks[:WALKS]
                walks = walks[WALKS:]
            probes[view in shown] += walks
    return Draw(
        np.array(gallery),
        np.flatnonzero(np.isin(sequences.subjects, strangers)),
        np.array(probes[False]),
        np.array(probes[True]),
    )


def measure(
    sequences: LabelledSequences, embeddings: NDArray[np.float32], card: Card, draws: int
) -> dict[str, Any]:
    """A row for each promised rate, without a transform and with one where it is adopted."""
    names, whose = np.unique(sequences.subjects, return_inverse=True)
    rng = np.random.default_rng(0)
    tallies: dict[tuple[str, float, str], Tally] = {}
    adopted, refused = 0, dict.fromkeys(PROMISED, 0)
    for _ in range(draws):
        draw = drawn(sequences, rng)
        listed = whose[draw.gallery]
        enrolled = EmbeddedSequences(
            [str(row) for row in draw.gallery],
            [str(names[one]) for one in listed],
            [{}] * len(listed),
            embeddings[draw.gallery],
            0,
        )
        everybody = np.ones(len(listed), np.bool_)
        fitted = fit_part(enrolled, everybody, None)
        if fitted.transform is None:
            continue
        adopted += 1
        seen = {
            "without": (index_vectors(embeddings), best),
            "with": (index_vectors(fitted.transform.apply(embeddings)), subject_scores),
        }
        for promised in PROMISED:
            try:
                points = {
                    "without": plain_point(enrolled, card, promised),
                    "with": scene_point(enrolled, everybody, None, fitted, card, promised),
                }
            except CannotCalibrate:  # some people are too alike for the rate
                refused[promised] += 1
                continue
            for way, (vectors, scoring) in seen.items():
                alike = (vectors @ vectors[draw.gallery].T).astype(np.float64)
                scores = scoring(alike, listed, len(names))
                own = np.eye(len(names), dtype=np.bool_)[whose]
                stranger = np.where(own, -np.inf, scores).max(axis=1)
                mate = scores[np.arange(len(whose)), whose]
                nobody = draw.strangers
                for kind, walks, hit, above in (
                    ("strangers", nobody, stranger[nobody] > -np.inf, stranger[nobody]),
                    *(
                        (kind, walks, mate[walks] > stranger[walks], mate[walks])
                        for kind, walks in (
                            ("another view", draw.elsewhere),
                            ("same view", draw.alike),
                        )
                    ),
                ):
                    tally = tallies.setdefault((way, promised, kind), Tally())
                    tally.add(whose[walks], hit, above >= points[way].threshold)
    rows: dict[str, Any] = {
        "adopted": adopted,
        "no threshold": {f"{promised:.0%}": count for promised, count in refused.items()},
    }
    for (way, promised, kind), tally in tallies.items():
        figures = tally.figures(len(names))
        row = rows.setdefault(f"{way} a transform, {promised:.0%} promised", {})
        row |= {"FPIR": figures["found"]} if kind == "strangers" else {kind: figures}
    return rows


def main() -> None:
    """Measure and print JSON."""
    options = arguments(__doc__, "NAME=PACK", draws=30).parse_args()
    encoder = Encoder.open(options.checkpoint)
    rows: dict[str, Any] = {}
    content: dict[str, str] = {}
    for item in options.datasets:
        name, _, path = item.partition("=")
        pack = Pack.open(Path(path))
        content[name] = pack.content_hash[:12]
        embeddings = embed_with_encoder(encoder, pack)
        rows[name] = measure(labels_of(pack), embeddings, encoder.card, options.draws)
    publish("promised and observed rates, per cent", encoder.card, options, content, rows)


if __name__ == "__main__":
    main()
