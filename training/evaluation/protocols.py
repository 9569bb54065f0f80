"""Protocols: which sequences are probes, which gallery each meets, and what is reported of it.

`PROTOCOLS` is the registry. A protocol is a frozen dataclass; adding one is one entry.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import Ranking, rank
from training.evaluation.sequences import EmbeddedSequences, Indices, LabelledSequences
from training.evaluation.trials import Cell, Figure, Trials, TrialsBuilder

AUTO_PROTOCOL: Final = "auto"
"""Stands in a recipe for whichever protocol the walks allow."""
_FIELD_DECIMALS = 2
_FALSE_POSITIVE_RATES = (0.1, 0.01)
_MOST_PAIRS = 3_000_000


class ProtocolMismatch(ValueError):
    """The data set does not have what the protocol needs; the text says what."""


class Split(NamedTuple):
    """Indices of the sequences that are asked, and of those that are enrolled."""

    probes: Indices
    gallery: Indices


@dataclass(frozen=True, slots=True)
class TableOfCells:
    """How to lay a measure out as a table: each entry is the mean of some cells, maybe none."""

    name: str
    measure: str
    row_label: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[tuple[int, ...], ...], ...]
    decimals: int | None = None


@dataclass(frozen=True, eq=False)
class Retrieval:
    """What a protocol found for one method. The first figure is the headline."""

    trials: Trials
    figures: tuple[Figure, ...]
    tables: tuple[TableOfCells, ...] = ()


class EvaluationProtocol(Protocol):
    """What the registry holds."""

    @property
    def summary(self) -> str:
        """One sentence for people."""

    @property
    def mirror(self) -> bool:
        """Whether probes are tried mirrored as well unless the caller says otherwise."""

    @property
    def baselines(self) -> bool:
        """Whether baseline rows are printed unless the caller says otherwise."""

    def split(self, sequences: LabelledSequences) -> Split:
        """Probes and gallery for verification and open-set search.

        Raises:
            ProtocolMismatch: the data set lacks what the protocol needs, as when one of the two
                would be empty: it is asked before anything is embedded or trained.
        """

    def run(self, sequences: LabelledSequences, method: EmbeddedSequences) -> Retrieval:
        """Every trial of the protocol.

        Raises:
            ProtocolMismatch: as `split`.
        """


class Conditions(NamedTuple):
    """Conditions of the gallery, and of the probes under the name they are reported by."""

    gallery: frozenset[str]
    probes: Mapping[str, frozenset[str]]


ConditionRule = Callable[[NDArray[np.str_]], Conditions]


def named_conditions(gallery: str, **probes: str) -> ConditionRule:
    """A rule that names conditions outright, as a data set's own protocol does."""
    named = Conditions(
        frozenset(gallery.split()),
        {name: frozenset(text.split()) for name, text in probes.items()},
    )
    return lambda _: named


def rendered_conditions(conditions: NDArray[np.str_]) -> Conditions:
    """The rule for data sets without a protocol of their own, as our rendered ones.

    A condition is a kind and, if the kind was walked more than once, a number: `normal-03`,
    `nm-01`, `coat`. The earlier half of the normal walks (rounded up, but not the last one) is the
    gallery; every other walk is a probe, reported under its kind.

    Raises:
        ProtocolMismatch: no condition is `normal` or `nm`.
    """
    kinds: dict[str, list[str]] = {}
    for condition in sorted({str(c) for c in conditions}, key=_natural):
        kinds.setdefault(_kind(condition), []).append(condition)
    normal = next((kind for kind in ("normal", "nm") if kind in kinds), None)
    if normal is None:
        raise ProtocolMismatch(
            f"no condition is 'normal' or 'nm', so nothing is enrolled; found: {', '.join(kinds)}"
        )
    walks = kinds.pop(normal)
    enrolled = walks[: max(1, min((len(walks) + 1) // 2, len(walks) - 1))]
    asked: dict[str, frozenset[str]] = (
        {normal: frozenset(walks[len(enrolled) :])} if len(walks) > 1 else {}
    )
    asked |= {kind: frozenset(names) for kind, names in kinds.items()}
    return Conditions(frozenset(enrolled), asked)


@dataclass(frozen=True, slots=True)
class ViewByView:
    """Each probe view against each gallery view, identical views left out of the mean.

    The protocol of CASIA-B and OU-MVLP: one cell a (condition, probe view, gallery view), rounded
    to two decimals of a percentage as the field's evaluator does; the figure of a condition is the
    mean over probe views of the mean over the other gallery views. A probe whose subject is missing
    in the gallery view is a miss.
    """

    summary: str
    conditions: ConditionRule
    mirror: bool = False
    baselines: bool = False

    def split(self, sequences: LabelledSequences) -> Split:
        """Probes and gallery of all conditions and views, of which there are two at least."""
        views = _names(sequences.views)
        if len(views) < 2:
            raise ProtocolMismatch(f"two views or more are needed, found {', '.join(views)}")
        return _split_by_condition(sequences, self.conditions(sequences.conditions))

    def run(self, sequences: LabelledSequences, method: EmbeddedSequences) -> Retrieval:
        """One cell for each condition, probe view and gallery view."""
        conditions = self.conditions(sequences.conditions)
        gallery = self.split(sequences).gallery
        views = _names(sequences.views)
        builder = TrialsBuilder(sequences.subjects, ("rank-1", "rank-5"))
        tables: list[TableOfCells] = []
        figures: list[Figure] = []
        for name, members in conditions.probes.items():
            layout: dict[tuple[str, str], tuple[int, ...]] = {}
            for probe_view in views:
                probes = _where(sequences, members, probe_view)
                if not len(probes):
                    continue
                distances = method.distances(probes, gallery)
                for gallery_view in views:
                    seen = sequences.views[gallery] == gallery_view
                    ranking = _rank(sequences, distances[:, seen], probes, gallery[seen])
                    cell = Cell(name, probe_view, gallery_view)
                    index = builder.add(cell, probes, [ranking.hits(1), ranking.hits(5)])
                    layout[probe_view, gallery_view] = (index,)
            crossed = _join(cells for (p, g), cells in layout.items() if p != g)
            figures += [
                Figure(f"{name} {measure}", measure, crossed, _FIELD_DECIMALS)
                for measure in ("rank-1", "rank-5")
            ]
            tables.append(_view_table(f"{name} rank-1", views, layout, _FIELD_DECIMALS))
        if len(conditions.probes) > 1:
            everything = _join(f.cells for f in figures if f.measure == "rank-1")
            figures.insert(0, Figure("rank-1", "rank-1", everything, _FIELD_DECIMALS))
        return Retrieval(builder.build(), tuple(figures), tuple(tables))


@dataclass(frozen=True, slots=True)
class MixedViewGallery:
    """Each probe view against one gallery of all views, a subject's identical views removed.

    OpenGait's `cross_view_gallery` form. Only the probe's own subject loses the probe's view;
    everybody else keeps it, which makes it much harder than `ViewByView`. Rank-1 counts probes
    without mates as misses, average precision leaves them out; cells are rounded as there.
    """

    summary: str
    conditions: ConditionRule
    mirror: bool = False
    baselines: bool = False

    def split(self, sequences: LabelledSequences) -> Split:
        """Probes and gallery of all conditions and views."""
        return _split_by_condition(sequences, self.conditions(sequences.conditions))

    def run(self, sequences: LabelledSequences, method: EmbeddedSequences) -> Retrieval:
        """One cell for each condition and probe view."""
        conditions = self.conditions(sequences.conditions)
        gallery = self.split(sequences).gallery
        views = _names(sequences.views)
        builder = TrialsBuilder(sequences.subjects, ("rank-1", "mAP"))
        figures: list[Figure] = []
        for name, members in conditions.probes.items():
            cells: list[int] = []
            for probe_view in views:
                probes = _where(sequences, members, probe_view)
                if not len(probes):
                    continue
                same_view = sequences.views[gallery][None, :] == sequences.views[probes][:, None]
                own = sequences.subjects[gallery][None, :] == sequences.subjects[probes][:, None]
                ranking = _rank(
                    sequences, method.distances(probes, gallery), probes, gallery, own & same_view
                )
                outcome = [ranking.hits(1), ranking.average_precision]
                cells.append(builder.add(Cell(name, probe_view), probes, outcome))
            figures += [
                Figure(f"{name} {measure}", measure, tuple(cells), _FIELD_DECIMALS)
                for measure in ("rank-1", "mAP")
            ]
        return Retrieval(builder.build(), tuple(figures))


@dataclass(frozen=True, slots=True)
class OtherViews:
    """Each probe against one gallery of all views but those near its own.

    For walkers of whom each walk is seen from one of very many views, as in our rendered packs:
    too few meet in any one pair of views for a table. Gallery sequences of *all* subjects seen from
    within `apart` degrees of the probe's view are left out (from the identical view where views
    are not numbers), and so is a probe whose subject has no other view. Beside it the same without
    leaving views out, which is what a service meets.
    """

    summary: str
    conditions: ConditionRule
    apart: float
    mirror: bool = False
    baselines: bool = True

    def split(self, sequences: LabelledSequences) -> Split:
        """Probes and gallery of all conditions and views."""
        return _split_by_condition(sequences, self.conditions(sequences.conditions))

    def run(self, sequences: LabelledSequences, method: EmbeddedSequences) -> Retrieval:
        """Two cells for each condition: other views, and any view."""
        conditions = self.conditions(sequences.conditions)
        gallery = self.split(sequences).gallery
        builder = TrialsBuilder(sequences.subjects, ("rank-1", "rank-5", "mAP"))
        other: dict[str, int] = {}
        free: list[int] = []
        for name, members in conditions.probes.items():
            probes = _where(sequences, members)
            if not len(probes):
                continue
            distances = method.distances(probes, gallery)
            near = _near(sequences.views[probes], sequences.views[gallery], self.apart)
            for kind, excluded in (("other views", near), ("any view", None)):
                ranking = _rank(sequences, distances, probes, gallery, excluded)
                hits = [np.where(ranking.has_mate, ranking.hits(k), np.nan) for k in (1, 5)]
                outcome = [*hits, ranking.average_precision]
                cell = builder.add(Cell(name, gallery_view=kind), probes, outcome)
                if excluded is None:
                    free.append(cell)
                else:
                    other[name] = cell
        figures = [Figure("rank-1", "rank-1", tuple(other.values()))]
        figures += [
            Figure(f"{name} {measure}", measure, (cell,))
            for name, cell in other.items()
            for measure in ("rank-1", "rank-5", "mAP")
        ]
        figures.append(Figure("any view rank-1", "rank-1", tuple(free)))
        return Retrieval(builder.build(), tuple(figures))


@dataclass(frozen=True, slots=True)
class SingleGallery:
    """One gallery of everything enrolled, whatever the view: the protocol of data from the wild.

    Attributes:
        summary: for people.
        conditions: which are enrolled and asked; None when the data set lists its probes (the
            `PROBE_SET` of its partition), everything else being the gallery.
        ranks: reported.
        without_mate: Gait3D skips a probe whose subject is not enrolled, GREW counts a miss.
        precision: report mAP and mINP too.
        decimals: of a percentage, each figure rounded first.
    """

    summary: str
    conditions: ConditionRule | None
    ranks: tuple[int, ...] = (1, 5, 10)
    without_mate: Literal["miss", "skip"] = "skip"
    precision: bool = True
    decimals: int | None = None
    mirror: bool = False
    baselines: bool = False

    def split(self, sequences: LabelledSequences) -> Split:
        """Probes and gallery, by list or by condition."""
        if self.conditions is not None:
            return _split_by_condition(sequences, self.conditions(sequences.conditions))
        if sequences.probes is None:
            raise ProtocolMismatch(
                "the data set does not list its probes: partition.json needs a PROBE_SET of "
                "'subject-condition-view' entries"
            )
        return _findable(sequences, _split(sequences.probes, ~sequences.probes))

    def run(self, sequences: LabelledSequences, method: EmbeddedSequences) -> Retrieval:
        """One cell."""
        probes, gallery = self.split(sequences)
        ranking = _rank(sequences, method.distances(probes, gallery), probes, gallery)
        outcomes = [ranking.hits(k) for k in self.ranks]
        if self.without_mate == "skip":
            outcomes = [np.where(ranking.has_mate, hits, np.nan) for hits in outcomes]
        measures = [f"rank-{k}" for k in self.ranks]
        if self.precision:
            outcomes += [ranking.average_precision, ranking.inverse_penalty]
            measures += ["mAP", "mINP"]
        builder = TrialsBuilder(sequences.subjects, measures)
        cell = builder.add(Cell(), probes, outcomes)
        figures = tuple(Figure(name, name, (cell,), self.decimals) for name in measures)
        return Retrieval(builder.build(), figures)


@dataclass(frozen=True, slots=True)
class EachWalkEnrolled:
    """Each walk in turn is the gallery, in each view; all other walks ask, from each view.

    The "nine pairs" of a data set with three views: for gallery view g, probe view p and walk N the
    gallery is walk N of every subject seen from g, the probes are all walks but N seen from p;
    rank-1 averaged over N. A condition is a walk.
    """

    summary: str
    mirror: bool = True
    baselines: bool = True

    def split(self, sequences: LabelledSequences) -> Split:
        """The first walk is enrolled from every view, the others ask."""
        walks = _names(sequences.conditions)
        first = sequences.conditions == walks[0]
        return _split(~first, first)

    def run(self, sequences: LabelledSequences, method: EmbeddedSequences) -> Retrieval:
        """One cell for each walk, probe view and gallery view."""
        walks, views = _names(sequences.conditions), _names(sequences.views)
        if len(walks) < 2:
            raise ProtocolMismatch("one walk a subject: there is nobody left to ask")
        everything = np.arange(len(sequences))
        distances = method.distances(everything, everything)
        builder = TrialsBuilder(sequences.subjects, ("rank-1",))
        pairs: dict[tuple[str, str], list[int]] = {(p, g): [] for p in views for g in views}
        for walk in walks:
            this = sequences.conditions == walk
            for probe_view, gallery_view in pairs:
                probes = np.flatnonzero(~this & (sequences.views == probe_view))
                gallery = np.flatnonzero(this & (sequences.views == gallery_view))
                if not (len(probes) and len(gallery)):
                    continue
                ranking = _rank(sequences, distances[np.ix_(probes, gallery)], probes, gallery)
                cell = Cell(walk, probe_view, gallery_view)
                pairs[probe_view, gallery_view].append(builder.add(cell, probes, [ranking.hits(1)]))
        layout = {pair: tuple(cells) for pair, cells in pairs.items()}
        same = _join(cells for (p, g), cells in layout.items() if p == g)
        cross = _join(cells for (p, g), cells in layout.items() if p != g)
        figures = [
            Figure("nine pairs" if len(views) == 3 else "all pairs", "rank-1", same + cross),
            Figure("same view", "rank-1", same),
            Figure("cross view", "rank-1", cross),
        ]
        figures += [
            # A view against itself stands beside the means, the other pairs only in the table.
            Figure(f"{p}→{g}", "rank-1", cells, detail=p != g)
            for (p, g), cells in layout.items()
        ]
        table = _view_table("rank-1", views, layout, None)
        return Retrieval(builder.build(), tuple(figures), (table,))


@dataclass(frozen=True, slots=True)
class MixedGallery:
    """One gallery as people have it: half of them enrolled in all views, half in one.

    People are drawn again and again. Of the first half up to two walks in each view are enrolled;
    of the second half up to two walks in one view, drawn too, and all their other walks are asked.
    A view is the same if it is within `apart` degrees of one in which the probe's subject is
    enrolled (the identical one where views are not numbers). Where some conditions are `normal` or
    `nm`, only those count.

    Found at FPIR: rank-1, and above the threshold that this share of the same probes reach when
    their own subject is not enrolled; one threshold for all draws, which the interval takes as
    given. Error of all pairs: every walk of those drawn with every other; of a walk, half the share
    of its genuine pairs below one threshold and half the share of its impostor pairs above it, at
    the threshold where the means of both meet: the equal error rate.

    Attributes:
        people: drawn at most each time, so that data sets of any size compare.
        draws: of people and views, by `seed`.
        enrolled: walks a view; the figures of those after the first are details.
    """

    summary: str
    people: int = 20
    draws: int = 30
    seed: int = 0
    enrolled: tuple[int, ...] = (2, 1)
    apart: float = 15
    mirror: bool = False
    baselines: bool = True

    def split(self, sequences: LabelledSequences) -> Split:
        """Probes and gallery of the first draw."""
        first = dataclasses.replace(self, draws=1).galleries(sequences, self.enrolled[0])[0]
        return Split(first.probes, first.gallery)

    def galleries(self, sequences: LabelledSequences, enrolled: int) -> list[Draw]:
        """Every draw, of so many walks a view.

        Raises:
            ProtocolMismatch: as `split`.
        """
        walks = self._walks_of(sequences)
        rng = np.random.default_rng(self.seed)
        return [self._draw(sequences, walks, enrolled, rng) for _ in range(self.draws)]

    def run(self, sequences: LabelledSequences, method: EmbeddedSequences) -> Retrieval:
        """Cells: probes seen otherwise and alike, for each number enrolled; then all pairs."""
        found_at = [f"found at FPIR {rate:.0%}" for rate in _FALSE_POSITIVE_RATES]
        measures = ("rank-1", *found_at, "EER")
        builder = TrialsBuilder(sequences.subjects, measures)
        figures: list[Figure] = []
        for number in self.enrolled:
            detail = number != self.enrolled[0]
            draws = self.galleries(sequences, number)
            searches = _Searches.joined([_search(sequences, method, draw) for draw in draws])
            thresholds = [_above(searches.stranger, rate) for rate in _FALSE_POSITIVE_RATES]
            outcomes = [searches.hit, *(searches.hit_above(least) for least in thresholds)]
            for name, chosen in (("another view", ~searches.alike), ("same view", searches.alike)):
                counted = [outcome[chosen] for outcome in outcomes]
                unknown = np.full(int(chosen.sum()), np.nan)
                cell = Cell(f"{number} enrolled", name)
                index = builder.add(cell, searches.probes[chosen], [*counted, unknown])
                figures += [
                    Figure(
                        f"{name} {measure}" + (f", {number} enrolled" if detail else ""),
                        measure,
                        (index,),
                        detail=detail,
                    )
                    for measure in measures[:-1]
                ]
            if not detail:
                members, errors = _errors_of_pairs(sequences, method, [d.walks for d in draws])
                unknown = np.full(len(members), np.nan)
                index = builder.add(
                    Cell("all pairs"), members, [*[unknown] * (len(measures) - 1), errors]
                )
                figures.append(Figure("EER, all pairs", "EER", (index,)))
        return Retrieval(builder.build(), tuple(figures))

    def _walks_of(self, sequences: LabelledSequences) -> dict[str, Indices]:
        """The walks that count of each person who can be asked in two views."""
        if len(_names(sequences.views)) < 2:
            raise ProtocolMismatch(
                f"two views or more are needed, found {', '.join(_names(sequences.views))}"
            )
        kinds = np.asarray([_kind(str(condition)) for condition in sequences.conditions])
        normal = np.isin(kinds, ("normal", "nm"))
        counted = np.flatnonzero(normal if normal.any() else np.ones(len(kinds), np.bool_))
        subjects = sequences.subjects[counted]
        walks = {str(name): counted[subjects == name] for name in np.unique(subjects)}
        several = {n: own for n, own in walks.items() if len(np.unique(sequences.views[own])) > 1}
        if len(several) < 2:
            raise ProtocolMismatch(
                f"two people with walks in two views are needed, found {len(several)}"
            )
        return several

    def _draw(
        self,
        sequences: LabelledSequences,
        walks: Mapping[str, Indices],
        enrolled: int,
        rng: np.random.Generator,
    ) -> Draw:
        chosen = rng.permutation(sorted(walks))[: self.people]
        everywhere = chosen[: len(chosen) // 2]
        gallery: list[Indices] = []
        for name in everywhere:
            own = rng.permutation(walks[name])
            views = sequences.views[own]
            gallery += [own[views == view][:enrolled] for view in np.unique(views)]
        probes: list[Indices] = []
        for name in chosen[len(everywhere) :]:
            own = rng.permutation(walks[name])
            view = rng.choice(np.unique(sequences.views[own]))
            once = own[sequences.views[own] == view][:enrolled]
            gallery.append(once)
            probes.append(np.setdiff1d(own, once))
        asked, listed = np.concatenate(probes), np.concatenate(gallery)
        near = _near(sequences.views[asked], sequences.views[listed], self.apart)
        mates = sequences.subjects[asked][:, None] == sequences.subjects[listed][None, :]
        everything = np.concatenate([walks[name] for name in chosen])
        return Draw(asked, listed, (near & mates).any(axis=1), everything)


class Draw(NamedTuple):
    """One mixed gallery.

    Attributes:
        probes: walks that are asked, of people enrolled in one view [n].
        gallery: walks that are enrolled [g].
        alike: whether the probe's subject is enrolled in its view [n].
        walks: all walks that count of all people drawn, enrolled or not.
    """

    probes: Indices
    gallery: Indices
    alike: NDArray[np.bool_]
    walks: Indices


class _Searches(NamedTuple):
    """Searches of probes [n]: their mate's similarity, the best stranger's."""

    probes: Indices
    alike: NDArray[np.bool_]
    mate: NDArray[np.float64]
    stranger: NDArray[np.float64]

    @classmethod
    def joined(cls, several: Sequence[_Searches]) -> _Searches:
        """All of several, one after another."""
        return cls(*(np.concatenate(parts) for parts in zip(*several, strict=True)))

    @property
    def hit(self) -> NDArray[np.float64]:
        """1 where the mate is in front."""
        return (self.mate > self.stranger).astype(np.float64)

    def hit_above(self, threshold: float | None) -> NDArray[np.float64]:
        """1 where the mate is in front and above a threshold; NaN if there is none."""
        if threshold is None:
            return np.full(len(self.mate), np.nan)
        return self.hit * (self.mate > threshold)


def _search(sequences: LabelledSequences, method: EmbeddedSequences, draw: Draw) -> _Searches:
    distances = method.distances(draw.probes, draw.gallery).astype(np.float64)
    own = sequences.subjects[draw.probes][:, None] == sequences.subjects[draw.gallery][None, :]
    return _Searches(
        draw.probes,
        draw.alike,
        -np.where(own, distances, np.inf).min(axis=1),
        -np.where(own, np.inf, distances).min(axis=1),
    )


def _above(strangers: NDArray[np.float64], rate: float) -> float | None:
    """What at most this share exceeds; None if they are too few to show it."""
    if len(strangers) * rate < 1:
        return None
    return float(np.sort(strangers)[len(strangers) - 1 - int(len(strangers) * rate)])


def _errors_of_pairs(
    sequences: LabelledSequences, method: EmbeddedSequences, draws: Sequence[Indices]
) -> tuple[Indices, NDArray[np.float64]]:
    """The walks of as many draws as are compared, and what each adds to the equal error rate."""
    rows, compared = 0, 0
    distances: list[NDArray[np.float32]] = []
    weights: list[NDArray[np.float64]] = []  # a walk's genuine pairs make 1, its impostor pairs -1
    owners: list[NDArray[np.int64]] = []
    for walks in draws:
        if compared and compared + len(walks) ** 2 > _MOST_PAIRS:
            break
        compared += len(walks) ** 2
        same = sequences.subjects[walks][:, None] == sequences.subjects[walks][None, :]
        mates = same & ~np.eye(len(walks), dtype=np.bool_)
        share = mates / mates.sum(1, keepdims=True) - ~same / (~same).sum(1, keepdims=True)
        pairs = share != 0
        distances.append(method.distances(walks, walks)[pairs])
        weights.append(share[pairs])
        owners.append(rows + np.nonzero(pairs)[0])
        rows += len(walks)
    distance, weight = np.concatenate(distances), np.concatenate(weights)
    owner = np.concatenate(owners)
    order = np.argsort(distance, kind="stable")
    accepted = np.cumsum(weight[order])  # matched mates less matched strangers
    mean_genuine = np.cumsum(np.maximum(weight[order], 0))
    # FNMR = 1 - genuine / rows and FMR = (genuine - accepted) / rows are nearest to each other at
    last = order[np.argmin(np.abs(rows - 2 * mean_genuine + accepted))]
    matches = distance <= distance[last]
    wrong = np.where(weight > 0, ~matches, matches)
    errors: NDArray[np.float64] = np.zeros(rows)
    np.add.at(errors, owner, np.abs(weight) * wrong / 2)
    return np.concatenate(draws)[:rows], errors


PROTOCOLS: Final[dict[str, EvaluationProtocol]] = {
    "casia-b": ViewByView(
        "CASIA-B: normal, bag and coat probes against normal walks 1–4, identical views excluded",
        named_conditions(
            "nm-01 nm-02 nm-03 nm-04", NM="nm-05 nm-06", BG="bg-01 bg-02", CL="cl-01 cl-02"
        ),
    ),
    "casia-b-mixed-gallery": MixedViewGallery(
        "CASIA-B: first walk of each condition against the second walks of all, in all views",
        named_conditions("nm-02 bg-02 cl-02", NM="nm-01", BG="bg-01", CL="cl-01"),
    ),
    "ou-mvlp": ViewByView(
        "OU-MVLP: walk 00 against walk 01, identical views excluded",
        named_conditions("01", NM="00"),
    ),
    "ou-mvlp-mixed-gallery": MixedViewGallery(
        "OU-MVLP: walk 00 against walk 01 in all views", named_conditions("01", NM="00")
    ),
    "gait3d": SingleGallery(
        "Gait3D: the listed probes against everything else; probes without mates skipped", None
    ),
    "grew": SingleGallery(
        "GREW: walk 02 against walk 01; a probe without a mate is a miss",
        named_conditions("01", RS="02"),
        ranks=(1, 5, 10, 20),
        without_mate="miss",
        precision=False,
        decimals=2,
    ),
    "cross-view": OtherViews(
        "later normal walks and every other condition against earlier normal walks, in one gallery "
        "of all views more than 15 degrees from the probe's",
        rendered_conditions,
        apart=15,
    ),
    "nine-pairs": EachWalkEnrolled(
        "each walk in turn enrolled from each view, all other walks asked from each view"
    ),
    "mixed-gallery": MixedGallery(
        "people enrolled in one view, among as many enrolled in all views, asked in the same view "
        "and in others; 30 draws of up to 20 people"
    ),
}


def protocol_named(name: str) -> EvaluationProtocol:
    """The protocol of that name.

    Raises:
        ValueError: there is none; the text lists those there are.
    """
    try:
        return PROTOCOLS[name]
    except KeyError:
        known = ", ".join(sorted(PROTOCOLS))
        raise ValueError(f"unknown protocol {name!r}; known: {known}") from None


def _rank(
    sequences: LabelledSequences,
    distances: NDArray[np.float32],
    probes: Indices,
    gallery: Indices,
    excluded: NDArray[np.bool_] | None = None,
) -> Ranking:
    return rank(distances, sequences.subjects[probes], sequences.subjects[gallery], excluded)


def _where(
    sequences: LabelledSequences, conditions: frozenset[str], view: str | None = None
) -> Indices:
    members = np.isin(sequences.conditions, list(conditions))
    if view is not None:
        members &= sequences.views == view
    return np.flatnonzero(members)


def _near(probes: NDArray[np.str_], gallery: NDArray[np.str_], apart: float) -> NDArray[np.bool_]:
    """Pairs of views that are identical, or at most `apart` degrees from each other [n, m]."""
    names, index = np.unique(np.r_[probes, gallery], return_inverse=True)
    if all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in names):
        degrees = names.astype(np.float64)
        gap = (degrees[:, None] - degrees[None, :]) % 360
        near = np.minimum(gap, 360 - gap) <= apart
    else:
        near = np.eye(len(names), dtype=np.bool_)
    pairs: NDArray[np.bool_] = near[np.ix_(index[: len(probes)], index[len(probes) :])]
    return pairs


def _split_by_condition(sequences: LabelledSequences, conditions: Conditions) -> Split:
    asked = [name for names in conditions.probes.values() for name in names]
    split = _split(
        np.isin(sequences.conditions, asked),
        np.isin(sequences.conditions, list(conditions.gallery)),
    )
    return _findable(sequences, split)


def _split(probes: NDArray[np.bool_], gallery: NDArray[np.bool_]) -> Split:
    for role, members in (("probe", probes), ("gallery", gallery)):
        if not members.any():
            raise ProtocolMismatch(f"no sequence of the data set is a {role} in this protocol")
    return Split(np.flatnonzero(probes), np.flatnonzero(gallery))


def _findable(sequences: LabelledSequences, split: Split) -> Split:
    """Return the split; raises `ProtocolMismatch` if no probe has its subject in the gallery."""
    if not np.isin(sequences.subjects[split.probes], sequences.subjects[split.gallery]).any():
        raise ProtocolMismatch(
            "no subject has both a probe and a sequence in the gallery, so there is nobody to find"
        )
    return split


def _view_table(
    name: str,
    views: tuple[str, ...],
    layout: Mapping[tuple[str, str], tuple[int, ...]],
    decimals: int | None,
) -> TableOfCells:
    """Probe views down, gallery views across, and the mean of the other views at the end."""
    rows = []
    for probe in views:
        row = [layout.get((probe, gallery), ()) for gallery in views]
        rows.append(
            (*row, _join(cells for view, cells in zip(views, row, strict=True) if view != probe))
        )
    return TableOfCells(
        name, "rank-1", "probe view", views, (*views, "others"), tuple(rows), decimals
    )


def _join(groups: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(cell for group in groups for cell in group)


def _names(labels: NDArray[np.str_]) -> tuple[str, ...]:
    return tuple(sorted({str(label) for label in labels}, key=_natural))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which `walk-10` follows `walk-9`."""
    return [(int(piece) if piece.isdigit() else -1, piece) for piece in re.split(r"(\d+)", name)]


def _kind(condition: str) -> str:
    """`coat-02` → `coat`; a condition that is only a number is its own kind."""
    return re.sub(r"[-_ ]*\d+$", "", condition) or condition
