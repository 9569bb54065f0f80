"""What mends a gallery of mixed views: ways to compare that learn from the gallery's own walks.

Galleries are those of the protocol `mixed-gallery`: half of the people enrolled in all views, half
in one. Every way learns from what a draw enrols, and from nothing else; the walks that are searched
are never in it. Beside the protocol's probes, those who are enrolled in all views are searched
too, so that nothing serves the one half at the other's cost. Found: rank-1 at a false-positive rate
of 10 %, at each gallery's own threshold. EER: pairs of walks that are not enrolled. Intervals are
drawn over people. Of walks that all name their scene, scenes count instead of views, and people
are drawn from those who share theirs. Then, as served and as shipped, by the number of people, of
views of those enrolled in several, and of walks a view; the others are as above.

    python -m benchmarks.scenes NAME=PACK [NAME=PACK …] [--prior PACK] [--people 20]
        [--checkpoint DIR] [--draws 30] [--out FILE.json]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.walks import arguments, publish
from models.comparison.scene import fit
from models.comparison.several import fused, subject_scores
from models.comparison.similarity import index_vectors
from models.encoder.encoder import Encoder
from training.data.pack import Pack
from training.evaluation import LabelledSequences, Resampling, labels_of
from training.evaluation.bootstrap import percentile_estimate, subject_weights
from training.evaluation.embedding import embed_with_encoder
from training.evaluation.mixed_gallery import Draw, MixedGallery
from training.evaluation.verification import error_rates

FOUND_AT = 0.1
TOGETHER = (1, 2, 4)
"""Walks of one person that are searched as one."""

BY_NUMBER: tuple[dict[str, int], ...] = (
    {"people": 6},
    {"people": 8},
    {"people": 10},
    {"people": 14},
    {"people": 20},
    {"views": 1},
    {"views": 2},
    {"views": 3},
    {"walks": 1},
    {"walks": 2},
    {"walks": 3},
)
"""What is varied, one at a time."""

Floats = NDArray[np.float64]
Vectors = Callable[[Floats], Floats]
"""Walks [n, d] as they are compared, by inner products [n, k]."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """What is enrolled: index vectors [g, d], whose they are [g], as embeddings [g, p, c]."""

    vectors: Floats
    whose: NDArray[np.intp]
    embeddings: NDArray[np.float32]
    prior: Floats | None


Way = Callable[[Gallery], tuple[Floats, Vectors]]
"""From a gallery, its entries as they are compared, and how a probe is made comparable."""


def _units(vectors: Floats) -> Floats:
    units: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units


def _mapped(gallery: Gallery, matrix: Floats) -> tuple[Floats, Vectors]:
    mean = gallery.vectors.mean(axis=0)

    def compared(vectors: Floats) -> Floats:
        return _units((vectors - mean) @ matrix)

    return compared(gallery.vectors), compared


def _power(covariance: Floats, power: float) -> Floats:
    values, axes = np.linalg.eigh(covariance)
    return np.asarray((axes * values**power) @ axes.T)


def _shrunk(covariance: Floats, strength: float) -> Floats:
    floor: Floats = np.eye(len(covariance)) * (np.trace(covariance) / len(covariance))
    shrunk: Floats = strength * covariance + (1 - strength) * floor
    return shrunk


def within(vectors: Floats, whose: NDArray[np.intp]) -> Floats:
    """Covariance of walks around their own person's mean [d, d]."""
    _, own, counts = np.unique(whose, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(sums, own, vectors)
    rest = vectors - (sums / counts[:, None])[own]
    return np.asarray(rest.T @ rest / max(1, len(own) - len(counts)))


def unchanged(vectors: Floats) -> Floats:
    """Walks as the network made them."""
    return vectors


def as_served(gallery: Gallery) -> tuple[Floats, Vectors]:
    """Compare as the network says."""
    return gallery.vectors, unchanged


def centred(gallery: Gallery) -> tuple[Floats, Vectors]:
    """Take the gallery's mean off."""
    return _mapped(gallery, np.eye(gallery.vectors.shape[1]))


def centred_locally(gallery: Gallery) -> tuple[Floats, Vectors]:
    """Take 0.8 of the mean of the 10 nearest off: of an entry those of others, of a probe any."""

    def less(vectors: Floats, alike: Floats) -> Floats:
        near = np.argsort(-alike, axis=1)[:, :10]
        return _units(vectors - 0.8 * gallery.vectors[near].mean(axis=1))

    alike = gallery.vectors @ gallery.vectors.T
    alike[gallery.whose[:, None] == gallery.whose[None, :]] = -np.inf
    entries = less(gallery.vectors, alike)
    return entries, lambda vectors: less(vectors, vectors @ gallery.vectors.T)


def without_directions(gallery: Gallery) -> tuple[Floats, Vectors]:
    """Take the mean and the 8 first principal directions off."""
    rest = gallery.vectors - gallery.vectors.mean(axis=0)
    first = np.linalg.svd(rest, full_matrices=False)[2][:8]
    return _mapped(gallery, np.eye(rest.shape[1]) - first.T @ first)


def total_inverted(gallery: Gallery) -> tuple[Floats, Vectors]:
    """Invert the covariance of all walks, as if nobody's name were known."""
    return _mapped(gallery, _power(_shrunk(np.cov(gallery.vectors.T), 0.08), -1))


def within_whitened(gallery: Gallery) -> tuple[Floats, Vectors]:
    """Whiten the covariance within persons, half of it their mean variance."""
    covariance = within(gallery.vectors, gallery.whose)
    return _mapped(gallery, _power(_shrunk(covariance, 0.5), -0.5))


def within_inverted(gallery: Gallery) -> tuple[Floats, Vectors]:
    """Two-covariance model, people differing alike in all directions; 0.04 of the scene."""
    covariance = within(gallery.vectors, gallery.whose)
    return _mapped(gallery, _power(_shrunk(covariance, 0.04), -1))


def within_inverted_with_prior(gallery: Gallery) -> tuple[Floats, Vectors]:
    """The same, half of the covariance being that of rendered people."""
    own = within(gallery.vectors, gallery.whose)
    if gallery.prior is None:
        raise ValueError("this way needs --prior")
    rendered = gallery.prior * (np.trace(own) / np.trace(gallery.prior))
    return _mapped(gallery, _power(_shrunk((own + rendered) / 2, 0.08), -1))


def prior_inverted(gallery: Gallery) -> tuple[Floats, Vectors]:
    """The covariance of rendered people alone: nothing but the mean is of the scene."""
    if gallery.prior is None:
        raise ValueError("this way needs --prior")
    return _mapped(gallery, _power(_shrunk(gallery.prior, 0.08), -1))


def local_then_within(gallery: Gallery) -> tuple[Floats, Vectors]:
    """Centre locally, then the two-covariance model of what is left."""
    entries, less = centred_locally(gallery)
    inner = Gallery(entries, gallery.whose, gallery.embeddings, gallery.prior)
    mapped, compared = within_inverted(inner)
    return mapped, lambda vectors: compared(less(vectors))


def shipped(gallery: Gallery) -> tuple[Floats, Vectors]:
    """What `models.comparison.scene.fit` decides, which may be to compare as served."""
    transform = fit(gallery.embeddings, [str(person) for person in gallery.whose]).transform
    if transform is None:
        return as_served(gallery)

    def compared(vectors: Floats) -> Floats:
        shape = (len(vectors), *gallery.embeddings.shape[1:])
        mapped = transform.apply(vectors.reshape(shape).astype(np.float32))
        return index_vectors(mapped).astype(np.float64)

    return compared(gallery.vectors), compared


def best(similarities: Floats, whose: NDArray[np.intp], people: int) -> Floats:
    """Each person by their best walk [n, people]."""
    found = np.full((len(similarities), people), -np.inf)
    for person in np.unique(whose):
        found[:, person] = similarities[:, whose == person].max(axis=1)
    return found


def mean(similarities: Floats, whose: NDArray[np.intp], people: int) -> Floats:
    """Each person by the mean of their walks [n, people]."""
    found = np.full((len(similarities), people), -np.inf)
    for person in np.unique(whose):
        found[:, person] = similarities[:, whose == person].mean(axis=1)
    return found


def normalised(similarities: Floats, whose: NDArray[np.intp], people: int) -> Floats:
    """Each person by their best walk, after adaptive score normalisation by the probe's side."""
    scores = best(similarities, whose, people)
    nearest = -np.sort(-similarities, axis=1)[:, :10].mean(axis=1, keepdims=True)
    less: Floats = scores - nearest / 2
    return less


Scoring = Callable[[Floats, NDArray[np.intp], int], Floats]
WAYS: dict[str, tuple[Way, Scoring | None]] = {
    "as served": (as_served, best),
    "as served, the mean of a person's walks": (as_served, mean),
    "the mean taken off": (centred, best),
    "local centring": (centred_locally, best),
    "local centring, scores normalised": (centred_locally, normalised),
    "8 principal directions taken off": (without_directions, best),
    "total covariance (no names)": (total_inverted, best),
    "within persons, whitened": (within_whitened, best),
    "two covariances": (within_inverted, best),
    "two covariances, scores normalised": (within_inverted, normalised),
    "local centring, two covariances": (local_then_within, best),
    "two covariances, the mean of a person's walks": (within_inverted, mean),
    "two covariances, half-way from mean to best": (within_inverted, subject_scores),
    "shipped": (shipped, None),  # half-way from mean to best where a transform is used
}
WITH_PRIOR: dict[str, tuple[Way, Scoring | None]] = {
    "rendered people alone": (prior_inverted, best),
    "two covariances, half rendered": (within_inverted_with_prior, best),
}


@dataclass
class Tally:
    """Searches of each kind: of whom, and whether found in front, and above the threshold."""

    searched: list[NDArray[np.intp]] = field(default_factory=list)
    hits: list[NDArray[np.bool_]] = field(default_factory=list)
    found: list[NDArray[np.bool_]] = field(default_factory=list)

    def add(
        self, people: NDArray[np.intp], hit: NDArray[np.bool_], found: NDArray[np.bool_]
    ) -> None:
        """Add searches of a gallery, each array [n]."""
        self.searched.append(people)
        self.hits.append(hit)
        self.found.append(hit & found)

    def figures(self, people: int) -> dict[str, list[float | None]]:
        """Rank-1 and what is found at the false-positive rate, in per cent, with intervals."""
        weights = subject_weights(people, Resampling())
        searched = np.concatenate(self.searched)
        counts = np.bincount(searched, minlength=people)
        figures: dict[str, list[float | None]] = {}
        for name, outcomes in (("rank-1", self.hits), ("found", self.found)):
            sums = np.bincount(searched, np.concatenate(outcomes), people)
            with np.errstate(invalid="ignore"):  # a draw of people of whom none was searched
                replicates = (weights @ sums) / (weights @ counts)
            value = sums.sum() / counts.sum() if counts.sum() else float("nan")
            estimate = percentile_estimate(float(value), replicates, 0.95)
            bounds = (estimate.value, estimate.low, estimate.high)
            figures[name] = [None if b is None else round(100 * b, 1) for b in bounds]
        return figures


def measure(
    sequences: LabelledSequences,
    embeddings: NDArray[np.float32],
    prior: Floats | None,
    rule: MixedGallery,
    ways: Mapping[str, tuple[Way, Scoring | None]] | None = None,
) -> dict[str, Any]:
    """Every way, or those given, on the same galleries, a row each."""
    vectors = index_vectors(embeddings).astype(np.float64)
    names, whose = np.unique(sequences.subjects, return_inverse=True)
    draws = rule.galleries(sequences, rule.enrolled[0])
    if ways is None:
        ways = WAYS if prior is None else WAYS | WITH_PRIOR
    rows: dict[str, Any] = {}
    compared: dict[tuple[Way, int], tuple[Floats, Vectors]] = {}
    for name, (way, scoring) in ways.items():
        tallies: dict[str, Tally] = {}
        errors: list[float] = []
        for number, draw in enumerate(draws):
            listed = draw.gallery
            if (way, number) not in compared:
                gallery = Gallery(vectors[listed], whose[listed], embeddings[listed], prior)
                compared[way, number] = way(gallery)
            entries, probe = compared[way, number]
            score = scoring or (best if probe is unchanged else subject_scores)
            _search(tallies, draw, whose, score, entries, probe(vectors), len(names))
            errors.append(_error_of_pairs(probe(vectors[draw.probes]), whose[draw.probes]))
        rows[name] = {
            kind: tally.figures(len(names)) for kind, tally in tallies.items() if tally.searched
        }
        rows[name]["EER"] = round(100 * float(np.mean(errors)), 1)
    return rows


def by_number(
    sequences: LabelledSequences, embeddings: NDArray[np.float32], rule: MixedGallery
) -> dict[str, Any]:
    """As served and as shipped, a row for each number that the data set has, and none twice."""
    seen = sequences.views
    if rule.by_scene and sequences.scenes is not None:
        seen = sequences.scenes
    labels = {(str(who), str(where)) for who, where in zip(sequences.subjects, seen, strict=True)}
    counts = Counter(who for who, _ in labels)
    groups = Counter(
        tuple(sorted(where for who, where in labels if who == name)) for name in counts
    )
    people = min(rule.people, max(groups.values()) if rule.by_scene else len(counts))
    views = max(counts.values())
    ways = {name: WAYS[name] for name in ("as served", "shipped")}
    rows: dict[str, Any] = {}
    for size in BY_NUMBER:
        if size.get("people", 0) > people or size.get("views", 0) > views:
            continue
        changed = replace(
            rule,
            people=size.get("people", people),
            views=size.get("views"),
            enrolled=(size.get("walks", rule.enrolled[0]),),
        )
        ((what, number),) = size.items()
        rows[f"{what}: {number}"] = measure(sequences, embeddings, None, changed, ways)
    return rows


def _search(
    tallies: dict[str, Tally],
    draw: Draw,
    whose: NDArray[np.intp],
    scoring: Scoring,
    entries: Floats,
    probes: Floats,
    people: int,
) -> None:
    """Search a draw's probes, then the walks not enrolled of those enrolled in all views."""
    others = np.setdiff1d(draw.walks, np.concatenate([draw.probes, draw.gallery]))
    listed = whose[draw.gallery]
    scores = scoring(probes @ entries.T, listed, people)
    own = np.eye(people, dtype=np.bool_)[whose]
    others_alone = np.where(own, -np.inf, scores)
    stranger = others_alone.max(axis=1)
    # A stranger is not enrolled, so no score of theirs is normalised by walks of their own.
    for person in np.unique(whose[draw.probes]):
        mine, rest = draw.probes[whose[draw.probes] == person], listed != person
        others_alone[mine] = scoring(probes[mine] @ entries[rest].T, listed[rest], people)
    absent = others_alone[draw.probes].max(axis=1)
    threshold = float(np.quantile(absent, 1 - FOUND_AT, method="higher"))
    mate = scores[np.arange(len(whose)), whose]
    for kind, walks in (
        ("another view", draw.probes[~draw.alike]),
        ("same view", draw.probes[draw.alike]),
        ("enrolled in all views", others),
    ):
        tally = tallies.setdefault(kind, Tally())
        if len(walks):
            tally.add(whose[walks], mate[walks] > stranger[walks], mate[walks] > threshold)
    elsewhere = np.random.default_rng(0).permutation(draw.probes[~draw.alike])
    for together in TOGETHER[1:]:
        asked, scored, absent_as = [], [], []
        for person in np.unique(whose[elsewhere]):
            walks = elsewhere[whose[elsewhere] == person]
            for at in range(0, len(walks) - together + 1, together):
                asked.append(person)
                scored.append(fused(scores[walks[at : at + together]]))
                absent_as.append(fused(others_alone[walks[at : at + together]]))
        if not asked:
            continue
        several, persons = np.asarray(scored), np.asarray(asked)
        mates = several[np.arange(len(persons)), persons]
        several[np.arange(len(persons)), persons] = -np.inf
        strangers = several.max(axis=1)
        absent = np.asarray(absent_as).max(axis=1)
        least = float(np.quantile(absent, 1 - FOUND_AT, method="higher"))
        tally = tallies.setdefault(f"another view, {together} walks as one", Tally())
        tally.add(persons, mates > strangers, mates > least)


def _error_of_pairs(vectors: Floats, whose: NDArray[np.intp]) -> float:
    first, second = np.triu_indices(len(whose), 1)
    alike, same = (vectors @ vectors.T)[first, second], whose[first] == whose[second]
    return error_rates(alike[same], alike[~same]).equal_error_rate()


def main() -> None:
    """Measure and print JSON."""
    parser = arguments(__doc__, "NAME=PACK", draws=30)
    parser.add_argument("--people", type=int, default=20, help="in a gallery at most")
    parser.add_argument("--prior", type=Path, help="pack of rendered people")
    options = parser.parse_args()
    encoder = Encoder.open(options.checkpoint)
    prior = None
    if options.prior is not None:
        pack = Pack.open(options.prior)
        vectors = index_vectors(embed_with_encoder(encoder, pack)).astype(np.float64)
        prior = within(vectors, np.unique(labels_of(pack).subjects, return_inverse=True)[1])
    rows: dict[str, Any] = {}
    content: dict[str, str] = {}
    for item in options.datasets:
        name, _, path = item.partition("=")
        pack = Pack.open(Path(path))
        content[name] = pack.content_hash[:12]
        sequences, embeddings = labels_of(pack), embed_with_encoder(encoder, pack)
        rule = MixedGallery(
            "",
            people=options.people,
            draws=options.draws,
            by_scene=sequences.scenes is not None,
        )
        rows[name] = measure(sequences, embeddings, prior, rule)
        rows[f"{name}, by number"] = by_number(sequences, embeddings, rule)
    benchmark = f"mixed galleries of {options.people} people at most, per cent"
    publish(benchmark, encoder.card, options, content, rows)


if __name__ == "__main__":
    main()
