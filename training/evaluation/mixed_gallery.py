"""The protocol `mixed-gallery`: some people enrolled from every view, some from one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.evaluation.conditions import ProtocolMismatch, kind
from training.evaluation.retrieval import Retrieval, Split, names_of, near
from training.evaluation.sequences import EmbeddedSequences, Indices, LabelledSequences
from training.evaluation.trials import Cell, Figure, TrialsBuilder

_FALSE_POSITIVE_RATES = (0.1, 0.01)
_MOST_PAIRS = 3_000_000


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

    By scene: a scene, which the labels name, takes the view's place. Each draw is of people who are
    filmed in the same scenes, so those enrolled in one are among strangers filmed there too.

    Attributes:
        people: drawn at most each time, so that data sets of any size compare.
        draws: of people and views, by `seed`.
        enrolled: walks a view; the figures of those after the first are details.
        by_scene: whether scenes count instead of views.
        views: in which each of the first half is enrolled, drawn too; None: all.
    """

    summary: str
    people: int = 20
    draws: int = 30
    seed: int = 0
    enrolled: tuple[int, ...] = (2, 1)
    apart: float = 15
    by_scene: bool = False
    views: int | None = None
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
        if self.by_scene:
            if sequences.scenes is None:
                raise ProtocolMismatch("the walks do not say in which scene they were filmed")
            sequences = dataclasses.replace(sequences, views=sequences.scenes)
        groups = self._groups(sequences, self._walks_of(sequences))
        rng = np.random.default_rng(self.seed)
        return [
            self._draw(sequences, groups[number % len(groups)], enrolled, rng)
            for number in range(self.draws)
        ]

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
            what = "scene" if self.by_scene else "view"
            for name, chosen in (
                (f"another {what}", ~searches.alike),
                (f"same {what}", searches.alike),
            ):
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
        if len(names_of(sequences.views)) < 2:
            raise ProtocolMismatch(
                f"two views or more are needed, found {', '.join(names_of(sequences.views))}"
            )
        kinds = np.asarray([kind(str(condition)) for condition in sequences.conditions])
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

    def _groups(
        self, sequences: LabelledSequences, walks: dict[str, Indices]
    ) -> list[dict[str, Indices]]:
        """Those who are drawn from together: everybody, or those who share their scenes."""
        if not self.by_scene:
            return [walks]
        groups: dict[tuple[str, ...], dict[str, Indices]] = {}
        for name, own in walks.items():
            groups.setdefault(names_of(sequences.views[own]), {})[name] = own
        several = [group for group in groups.values() if len(group) > 1]
        if not several:
            raise ProtocolMismatch("two people filmed in the same scenes are needed, found none")
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
            shown = np.unique(views)
            if self.views is not None and self.views < len(shown):
                shown = rng.choice(shown, self.views, replace=False)
            gallery += [own[views == view][:enrolled] for view in shown]
        probes: list[Indices] = []
        for name in chosen[len(everywhere) :]:
            own = rng.permutation(walks[name])
            view = rng.choice(np.unique(sequences.views[own]))
            once = own[sequences.views[own] == view][:enrolled]
            gallery.append(once)
            probes.append(np.setdiff1d(own, once))
        asked, listed = np.concatenate(probes), np.concatenate(gallery)
        same = near(sequences.views[asked], sequences.views[listed], self.apart)
        mates = sequences.subjects[asked][:, None] == sequences.subjects[listed][None, :]
        everything = np.concatenate([walks[name] for name in chosen])
        return Draw(asked, listed, (same & mates).any(axis=1), everything)


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
