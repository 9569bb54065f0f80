"""Protocols: which sequences are probes, which gallery each meets, and what is reported of it.

`PROTOCOLS` is the registry. A protocol is a frozen dataclass; adding one is one entry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.evaluation.conditions import (
    CASIA_E,
    CCPG,
    SUSTECH1K,
    ProtocolMismatch,
    QuestionRule,
    Questions,
    listed,
    named_conditions,
    own_conditions,
    rendered_conditions,
)
from training.evaluation.metrics import Ranking, rank
from training.evaluation.mixed_gallery import MixedGallery
from training.evaluation.retrieval import (
    EvaluationProtocol,
    Retrieval,
    Split,
    TableOfCells,
    names_of,
    near,
)
from training.evaluation.sequences import EmbeddedSequences, Indices, LabelledSequences
from training.evaluation.trials import Cell, Figure, TrialsBuilder

AUTO_PROTOCOL: Final = "auto"
"""Stands in a recipe for whichever protocol the walks allow."""
_FIELD_DECIMALS = 2


class UnknownProtocol(ValueError):
    """No protocol has that name; the text says which there are."""


PlaceRule = Callable[[str], str | None]
"""From the name of a view to what counts as the same view; None leaves such walks out."""


def _camera(view: str) -> str:
    """CCPG's `05_1`, the second walk past camera 05, → `05`."""
    return view.split("_")[0]


def _but_270(view: str) -> str | None:
    """CASIA-E's evaluator leaves one view out."""
    return None if view == "270" else view


@dataclass(frozen=True, slots=True)
class ViewByView:
    """Each probe view against each gallery view, identical views left out of the mean.

    The protocol of CASIA-B and OU-MVLP: one cell a (condition, probe view, gallery view), rounded
    to two decimals of a percentage as the field's evaluator does; the figure of a condition is the
    mean over probe views of the mean over the other gallery views. A probe whose subject is missing
    in the gallery view is a miss.

    Attributes:
        summary: for people.
        questions: which conditions are asked, of which gallery.
        place: what counts as a view.
        headline: the question whose rank-1 leads; None for the mean of all.
        found_only: also rank-1 of the probes whose subject is in the gallery view.
        same_view_too: also rank-1 with identical views in the mean.
    """

    summary: str
    questions: QuestionRule
    place: PlaceRule = str
    headline: str | None = None
    found_only: bool = False
    same_view_too: bool = False
    mirror: bool = False
    baselines: bool = False

    def split(self, sequences: LabelledSequences) -> Split:
        """Probes and gallery of the views that count, of which there are two at least."""
        sequences = _placed(sequences, self.place)
        views = _places(sequences)
        if len(views) < 2:
            raise ProtocolMismatch(f"two views or more are needed, found {', '.join(views)}")
        return _split_by_condition(sequences, self.questions(sequences.conditions))

    def run(self, sequences: LabelledSequences, method: EmbeddedSequences) -> Retrieval:
        """One cell for each condition, probe view and gallery view."""
        self.split(sequences)
        sequences = _placed(sequences, self.place)
        views = _places(sequences)
        builder = TrialsBuilder(sequences.subjects, ("rank-1", "rank-5", "rank-1 of the enrolled"))
        tables: list[TableOfCells] = []
        figures: list[Figure] = []
        for question in self.questions(sequences.conditions):
            name, gallery = question.name, _where(sequences, question.gallery)
            layout: dict[tuple[str, str], tuple[int, ...]] = {}
            for probe_view in views if len(gallery) else ():
                probes = _where(sequences, question.probes, probe_view)
                if not len(probes):
                    continue
                distances = method.distances(probes, gallery)
                for gallery_view in views:
                    seen = sequences.views[gallery] == gallery_view
                    ranking = _rank(sequences, distances[:, seen], probes, gallery[seen])
                    hits = [ranking.hits(1), ranking.hits(5)]
                    hits.append(np.where(ranking.has_mate, hits[0], np.nan))
                    cell = Cell(name, probe_view, gallery_view)
                    layout[probe_view, gallery_view] = (builder.add(cell, probes, hits),)
            if not layout:
                continue
            crossed = _join(cells for (p, g), cells in layout.items() if p != g)
            figures += [
                Figure(f"{name} {measure}", measure, crossed, _FIELD_DECIMALS)
                for measure in ("rank-1", "rank-5")
            ]
            if self.found_only:
                measure = "rank-1 of the enrolled"
                figures.append(Figure(f"{name} {measure}", measure, crossed, _FIELD_DECIMALS))
            if self.same_view_too:
                every = _join(layout.values())
                same = f"{name} rank-1, same views too"
                figures.append(Figure(same, "rank-1", every, _FIELD_DECIMALS))
            tables.append(_view_table(f"{name} rank-1", views, layout, _FIELD_DECIMALS))
        leading = [figure for figure in figures if figure.name == f"{self.headline} rank-1"]
        if not leading and len(tables) > 1:
            each = {table.name for table in tables}
            everything = _join(figure.cells for figure in figures if figure.name in each)
            leading = [Figure("rank-1", "rank-1", everything, _FIELD_DECIMALS)]
        others = [figure for figure in figures if figure not in leading]
        return Retrieval(builder.build(), (*leading, *others), tuple(tables))


@dataclass(frozen=True, slots=True)
class MixedViewGallery:
    """Each probe view against one gallery of all views, a subject's identical views removed.

    OpenGait's `cross_view_gallery` form. Only the probe's own subject loses the probe's view;
    everybody else keeps it, which makes it much harder than `ViewByView`. Rank-1 counts probes
    without mates as misses, average precision leaves them out; cells are rounded as there.
    """

    summary: str
    questions: QuestionRule
    mirror: bool = False
    baselines: bool = False

    def split(self, sequences: LabelledSequences) -> Split:
        """Probes and gallery of all conditions and views."""
        return _split_by_condition(sequences, self.questions(sequences.conditions))

    def run(self, sequences: LabelledSequences, method: EmbeddedSequences) -> Retrieval:
        """One cell for each condition and probe view."""
        self.split(sequences)
        views = names_of(sequences.views)
        builder = TrialsBuilder(sequences.subjects, ("rank-1", "mAP"))
        figures: list[Figure] = []
        for name, members, enrolled in self.questions(sequences.conditions):
            gallery = _where(sequences, enrolled)
            cells: list[int] = []
            for probe_view in views if len(gallery) else ():
                probes = _where(sequences, members, probe_view)
                if not len(probes):
                    continue
                ranking = _rank(
                    sequences,
                    method.distances(probes, gallery),
                    probes,
                    gallery,
                    _own_view(sequences, probes, gallery),
                )
                outcome = [ranking.hits(1), ranking.average_precision]
                cells.append(builder.add(Cell(name, probe_view), probes, outcome))
            figures += [
                Figure(f"{name} {measure}", measure, tuple(cells), _FIELD_DECIMALS)
                for measure in ("rank-1", "mAP")
                if cells
            ]
        return Retrieval(builder.build(), tuple(figures))


@dataclass(frozen=True, slots=True)
class OtherViews:
    """Each probe against one gallery of all views, and of all views but those near its own.

    For walkers of whom each walk is seen from one of very many views, as in our rendered packs, and
    for anybody's own walks: too few meet in any one pair of views for a table. In "other views",
    gallery sequences of *all* subjects seen from within `apart` degrees of the probe's view are
    left out (from the identical view where views are not numbers); "any view" leaves none out,
    which is what a service meets. A probe that has no mate left is skipped.

    Attributes:
        summary: for people.
        questions: which conditions are asked, of which gallery.
        apart: degrees.
        leading: which of the two the figures are of; of the other, one stands beside them.
    """

    summary: str
    questions: QuestionRule
    apart: float
    leading: Literal["other views", "any view"] = "other views"
    mirror: bool = False
    baselines: bool = True

    def split(self, sequences: LabelledSequences) -> Split:
        """Probes and gallery of all conditions and views."""
        return _split_by_condition(sequences, self.questions(sequences.conditions))

    def run(self, sequences: LabelledSequences, method: EmbeddedSequences) -> Retrieval:
        """Two cells for each condition: other views, and any view."""
        self.split(sequences)
        builder = TrialsBuilder(sequences.subjects, ("rank-1", "rank-5", "mAP"))
        cells: dict[str, dict[str, int]] = {"other views": {}, "any view": {}}
        for name, members, enrolled in self.questions(sequences.conditions):
            probes, gallery = _where(sequences, members), _where(sequences, enrolled)
            if not (len(probes) and len(gallery)):
                continue
            distances = method.distances(probes, gallery)
            alike = near(sequences.views[probes], sequences.views[gallery], self.apart)
            for kind, excluded in (("other views", alike), ("any view", None)):
                ranking = _rank(sequences, distances, probes, gallery, excluded)
                hits = [np.where(ranking.has_mate, ranking.hits(k), np.nan) for k in (1, 5)]
                outcome = [*hits, ranking.average_precision]
                cells[kind][name] = builder.add(Cell(name, gallery_view=kind), probes, outcome)
        leading = cells.pop(self.leading)
        figures = [Figure("rank-1", "rank-1", tuple(leading.values()))]
        figures += [
            Figure(f"{name} {measure}", measure, (cell,))
            for name, cell in leading.items()
            for measure in ("rank-1", "rank-5", "mAP")
        ]
        figures += [
            Figure(f"{kind} rank-1", "rank-1", tuple(found.values()))
            for kind, found in cells.items()
        ]
        return Retrieval(builder.build(), tuple(figures))


@dataclass(frozen=True, slots=True)
class SingleGallery:
    """One gallery of everything enrolled, whatever the view: the protocol of data from the wild.

    Attributes:
        summary: for people.
        questions: which are enrolled and asked; None when the data set lists its probes or its
            gallery (`PROBE_SET` or `GALLERY_SET` of its partition), all others being the other.
        ranks: reported.
        without_mate: Gait3D skips a probe whose subject is not enrolled, GREW counts a miss.
        precision: report mAP and mINP too.
        decimals: of a percentage, each figure rounded first.
        place: what counts as a view.
        other_views: a probe's own subject loses its walks in the probe's view, as re-identification
            does with cameras.
    """

    summary: str
    questions: QuestionRule | None
    ranks: tuple[int, ...] = (1, 5, 10)
    without_mate: Literal["miss", "skip"] = "skip"
    precision: bool = True
    decimals: int | None = None
    place: PlaceRule = str
    other_views: bool = False
    mirror: bool = False
    baselines: bool = False

    def split(self, sequences: LabelledSequences) -> Split:
        """Probes and gallery, by list or by condition."""
        if self.questions is not None:
            return _split_by_condition(sequences, self.questions(sequences.conditions))
        if sequences.probes is None:
            raise ProtocolMismatch(
                "the data set does not list its probes: partition.json needs a PROBE_SET or a "
                "GALLERY_SET of 'subject-condition-view' entries"
            )
        for role, members in (("PROBE_SET", sequences.probes), ("GALLERY_SET", ~sequences.probes)):
            if not members.any():
                raise ProtocolMismatch(
                    f"by the lists of partition.json no walk is of the {role}; its entries must be "
                    f"named as walks are, for instance {_entry(sequences, 0)!r}"
                )
        probes, gallery = np.flatnonzero(sequences.probes), np.flatnonzero(~sequences.probes)
        return _findable(sequences, Split(probes, gallery))

    def run(self, sequences: LabelledSequences, method: EmbeddedSequences) -> Retrieval:
        """One cell for each condition, or for all that is listed."""
        asked = {"": self.split(sequences)}
        if self.questions is not None:
            asked = {
                name: Split(_where(sequences, members), _where(sequences, enrolled))
                for name, members, enrolled in self.questions(sequences.conditions)
            }
        sequences = _placed(sequences, self.place)
        measures = [f"rank-{k}" for k in self.ranks] + ["mAP", "mINP"] * self.precision
        builder = TrialsBuilder(sequences.subjects, measures)
        cells: dict[str, int] = {}
        for name, (probes, gallery) in asked.items():
            if not (len(probes) and len(gallery)):
                continue
            own = _own_view(sequences, probes, gallery) if self.other_views else None
            ranking = _rank(sequences, method.distances(probes, gallery), probes, gallery, own)
            outcomes = [ranking.hits(k) for k in self.ranks]
            if self.without_mate == "skip":
                outcomes = [np.where(ranking.has_mate, hits, np.nan) for hits in outcomes]
            if self.precision:
                outcomes += [ranking.average_precision, ranking.inverse_penalty]
            cells[name] = builder.add(Cell(name), probes, outcomes)
        means = measures if len(asked) == 1 else measures[:1]
        figures = [Figure(name, name, tuple(cells.values()), self.decimals) for name in means]
        if len(asked) > 1:
            figures += [
                Figure(f"{name} {measure}", measure, (cell,), self.decimals)
                for name, cell in cells.items()
                for measure in measures
            ]
        return Retrieval(builder.build(), tuple(figures))


@dataclass(frozen=True, slots=True)
class FirstWalkEnrolled:
    """Each subject's first walk, in the order of the data set, is enrolled; all others ask.

    For walks whose conditions say nothing, as in most galleries of a service.
    """

    summary: str
    mirror: bool = False
    baselines: bool = False

    def split(self, sequences: LabelledSequences) -> Split:
        """First walks, and all others."""
        _, first = np.unique(sequences.subjects, return_index=True)
        others = np.setdiff1d(np.arange(len(sequences)), first)
        if not len(others):
            raise ProtocolMismatch("one walk a subject: there is nobody left to ask")
        return Split(others, np.sort(first))

    def run(self, sequences: LabelledSequences, method: EmbeddedSequences) -> Retrieval:
        """One cell."""
        probes = np.zeros(len(sequences), np.bool_)
        probes[self.split(sequences).probes] = True
        listed = dataclasses.replace(sequences, probes=probes)
        return SingleGallery(self.summary, None).run(listed, method)


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
        """The first walk of anybody who walks twice is enrolled from every view, all others ask."""
        walks = np.unique(np.stack([sequences.subjects, sequences.conditions]), axis=1)
        subjects, count = np.unique(walks[0], return_counts=True)
        several = walks[1][np.isin(walks[0], subjects[count > 1])]
        if not len(several):
            raise ProtocolMismatch("one walk a subject: there is nobody left to ask")
        first = sequences.conditions == names_of(several)[0]
        return Split(np.flatnonzero(~first), np.flatnonzero(first))

    def run(self, sequences: LabelledSequences, method: EmbeddedSequences) -> Retrieval:
        """One cell for each walk, probe view and gallery view."""
        self.split(sequences)
        walks, views = names_of(sequences.conditions), names_of(sequences.views)
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
    "casia-e": ViewByView(
        "CASIA-E: normal, bag and coat probes of scenes 2 and 3 against normal walks of scene 1, "
        "identical views excluded, view 270 left out",
        CASIA_E,
        place=_but_270,
    ),
    "ccgr-mini": SingleGallery(
        "CCGR-Mini: everything else against the listed gallery; probes without mates skipped", None
    ),
    "ccpg": ViewByView(
        "CCPG for gait: changed clothes, top, trousers and bag, each against a gallery of its own, "
        "identical cameras excluded",
        CCPG,
        place=_camera,
        same_view_too=True,
    ),
    "ccpg-reid": SingleGallery(
        "CCPG for re-identification: the same questions, each of one gallery of all cameras in "
        "which the probe's own subject loses the probe's camera; probes without mates skipped",
        CCPG,
        place=_camera,
        other_views=True,
    ),
    "ou-mvlp": ViewByView(
        "OU-MVLP: walk 00 against walk 01, identical views excluded",
        named_conditions("01", NM="00"),
        found_only=True,
    ),
    "ou-mvlp-mixed-gallery": MixedViewGallery(
        "OU-MVLP: walk 00 against walk 01 in all views", named_conditions("01", NM="00")
    ),
    "first-walk": FirstWalkEnrolled(
        "each subject's first walk enrolled, all other walks asked, whatever conditions and views"
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
    "hid": SingleGallery(
        "HID, on people whose names are known: walk 1 against walk 0; a probe without a mate is a "
        "miss",
        named_conditions("0", NM="1"),
        ranks=(1, 5, 10, 20),
        without_mate="miss",
        precision=False,
        decimals=2,
    ),
    "sustech1k": ViewByView(
        "SUSTech1K: walks of each covariate, and all, against walk 00-nm, identical views excluded",
        SUSTECH1K,
        headline="Overall",
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
    "mixed-scenes": MixedGallery(
        "people enrolled in one scene, among as many enrolled in all scenes in which they are "
        "filmed, asked in the same scene and in others; 30 draws of up to 20 people",
        by_scene=True,
    ),
}


class NamedProtocol(NamedTuple):
    """A protocol and the name that results give it."""

    name: str
    rule: EvaluationProtocol


def own_protocol(
    enrolled: Sequence[str], asked: Mapping[str, Sequence[str]], apart: float = 0
) -> NamedProtocol:
    """These conditions enrolled, those asked: the protocol of a person's own walks.

    Args:
        enrolled: patterns of names of conditions (`*`, `?`, `[…]`).
        asked: by the name it is reported under, patterns of conditions.
        apart: degrees up to which views count as the same; identical ones always do.

    Raises:
        ValueError: nothing is enrolled, or nothing asked.
    """
    if not enrolled or not asked or not all(asked.values()):
        raise ProtocolMismatch("conditions to enrol and conditions to ask are needed")
    questions = "; ".join(
        name if [name] == list(patterns) else f"{name}={','.join(patterns)}"
        for name, patterns in asked.items()
    )
    gap = f", views over {apart:g} degrees apart are others" if apart else ""
    return NamedProtocol(
        f"{','.join(enrolled)} enrolled, asked: {questions}{gap}",
        OtherViews(
            "walks of chosen conditions against walks of others, in one gallery of all views",
            own_conditions(enrolled, asked),
            apart=apart,
            leading="any view",
        ),
    )


def protocol_named(name: str) -> EvaluationProtocol:
    """The protocol of that name.

    Raises:
        UnknownProtocol: there is none; the text lists those there are.
    """
    try:
        return PROTOCOLS[name]
    except KeyError:
        known = ", ".join(sorted(PROTOCOLS))
        raise UnknownProtocol(f"unknown protocol {name!r}; known: {known}") from None


def protocol_for(protocol: str | NamedProtocol, sequences: LabelledSequences) -> NamedProtocol:
    """The protocol, by its name or itself, if it suits these walks.

    Raises:
        UnknownProtocol: there is none of that name.
        ProtocolMismatch: the walks lack what it needs.
        Either text ends with the protocols that would run on them.
    """
    try:
        named = protocol
        if isinstance(named, str):
            named = NamedProtocol(named, protocol_named(named))
        named.rule.split(sequences)
        return named
    except (UnknownProtocol, ProtocolMismatch) as error:
        would = ", ".join(suited(sequences)) or "none"
        raise type(error)(f"{error}; protocols that would run on these walks: {would}") from None


def suited(sequences: LabelledSequences) -> tuple[str, ...]:
    """Names of the protocols that would run on these walks, in alphabetical order."""

    def suits(rule: EvaluationProtocol) -> bool:
        try:
            rule.split(sequences)
        except ProtocolMismatch:
            return False
        return True

    return tuple(name for name, rule in sorted(PROTOCOLS.items()) if suits(rule))


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
    members &= sequences.views != "" if view is None else sequences.views == view
    return np.flatnonzero(members)


def _placed(sequences: LabelledSequences, place: PlaceRule) -> LabelledSequences:
    """The sequences with what counts as their view; empty for those that are left out."""
    names, index = np.unique(sequences.views, return_inverse=True)
    views = np.asarray([place(str(name)) or "" for name in names], np.str_)[index]
    return dataclasses.replace(sequences, views=views)


def _places(sequences: LabelledSequences) -> tuple[str, ...]:
    return tuple(view for view in names_of(sequences.views) if view)


def _own_view(sequences: LabelledSequences, probes: Indices, gallery: Indices) -> NDArray[np.bool_]:
    """Pairs of one subject in one view [n, m]."""
    pairs: NDArray[np.bool_] = (
        sequences.subjects[probes][:, None] == sequences.subjects[gallery][None, :]
    ) & (sequences.views[probes][:, None] == sequences.views[gallery][None, :])
    return pairs


def _split_by_condition(sequences: LabelledSequences, questions: Questions) -> Split:
    """The first gallery in which somebody can be found, and everything asked of it.

    Galleries of one protocol may hold each other's probes, so that they cannot be joined.
    """
    asked: dict[frozenset[str], frozenset[str]] = {}
    for question in questions:
        others = asked.get(question.gallery, frozenset())
        asked[question.gallery] = others | question.probes
    refused: list[ProtocolMismatch] = []
    for enrolled, conditions in asked.items():
        split = Split(_where(sequences, conditions), _where(sequences, enrolled))
        try:
            return _findable(sequences, split)
        except ProtocolMismatch as error:
            refused.append(error)
    if refused:
        raise refused[0]
    raise ProtocolMismatch("there is nobody left to ask")


def _entry(sequences: LabelledSequences, index: int) -> str:
    """A walk as lists of a partition name it."""
    labels = (sequences.subjects, sequences.conditions, sequences.views)
    return "-".join(str(each[index]) for each in labels)


def _findable(sequences: LabelledSequences, split: Split) -> Split:
    """Return the split; raises `ProtocolMismatch` if no probe has its subject in the gallery."""
    for role, members in (("asked", split.probes), ("enrolled", split.gallery)):
        if not len(members):
            found = listed({str(condition) for condition in sequences.conditions})
            raise ProtocolMismatch(f"no walk has a condition that is {role}; found: {found}")
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
