"""Trials: what every probe achieved in every cell of a protocol, and the figures made of them.

A figure is always the mean over some cells (conditions, views) of the mean over the cell's trials,
which is what the field's tables are, and which makes resampling subjects two matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.evaluation.bootstrap import (
    Estimate,
    Resampling,
    percentile_estimate,
    subject_weights,
    wilson_estimate,
)


class Cell(NamedTuple):
    """One gallery and the probes asked of it; empty where the protocol makes no difference."""

    condition: str = ""
    probe_view: str = ""
    gallery_view: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A named mean over cells of one measure.

    Attributes:
        name: as the table shows it.
        measure: which column of the outcomes.
        cells: indices of the cells it is the mean of.
        decimals: each cell is first rounded to so many decimals of a percentage, as the field's
            evaluators do; None leaves it.
        detail: of interest to a card or a plot, too much for a table of figures.
    """

    name: str
    measure: str
    cells: tuple[int, ...]
    decimals: int | None = None
    detail: bool = False


@dataclass(frozen=True, eq=False)
class Trials:
    """t trials, each of one probe in one cell.

    Attributes:
        cells: what the cell indices mean.
        measures: what the columns of the outcomes mean.
        subjects: every subject the data holds, also those never asked; sorted.
        cell: [t].
        subject: index into `subjects` of the probe's subject [t].
        outcomes: [t, len(measures)] in [0, 1]; NaN where the trial does not count for a measure.
    """

    cells: tuple[Cell, ...]
    measures: tuple[str, ...]
    subjects: tuple[str, ...]
    cell: NDArray[np.int64]
    subject: NDArray[np.int64]
    outcomes: NDArray[np.float64]

    def cell_means(self, measure: str) -> NDArray[np.float64]:
        """Mean of each cell's counted trials [cells]; NaN in a cell without any."""
        successes, counts = self._totals(measure)
        return _ratio(successes.sum(0), counts.sum(0))

    def value(self, figure: Figure) -> float:
        """The figure, in [0, 1]; NaN when none of its cells has a trial."""
        means = self.cell_means(figure.measure)[list(figure.cells)]
        if figure.decimals is not None:
            means = np.round(means * 100, figure.decimals) / 100
        means = means[np.isfinite(means)]
        return float(means.mean()) if len(means) else float("nan")

    def replicates(self, figure: Figure, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The figure for each draw of subjects [b] (not rounded).

        Args:
            figure: what to resample.
            weights: how often each subject was drawn [b, len(subjects)].
        """
        successes, counts = self._totals(figure.measure)
        chosen = list(figure.cells)
        means = _ratio(weights @ successes[:, chosen], weights @ counts[:, chosen])
        known = np.isfinite(means)
        return _ratio(np.where(known, means, 0).sum(1), known.sum(1).astype(np.float64))

    def estimate(self, figure: Figure, resampling: Resampling) -> Estimate:
        """The figure with its interval.

        Wilson's when the trials are independent (one cell, one yes-or-no trial a subject), a
        bootstrap over subjects otherwise. Where nobody ever fails or nobody ever succeeds, every
        draw is alike and a bootstrap would claim certainty: there Wilson's too, with each subject
        as one trial. One subject alone gives no interval.
        """
        value = self.value(figure)
        _, counts = self._totals(figure.measure)
        asked = counts[:, list(figure.cells)]
        subjects = int((asked.sum(1) > 0).sum())
        if subjects < 2:
            return Estimate(value)
        independent = len(figure.cells) == 1 and asked.max() == 1 and self._is_binary(figure)
        if independent or value in (0.0, 1.0):
            wilson = wilson_estimate(round(value * subjects), subjects, resampling.confidence)
            return Estimate(value, wilson.low, wilson.high, wilson.method)
        weights = subject_weights(len(self.subjects), resampling)
        return percentile_estimate(value, self.replicates(figure, weights), resampling.confidence)

    def difference(self, other: Trials, figure: Figure, resampling: Resampling) -> Estimate:
        """This figure minus another method's on the same trials, subjects drawn for both at once.

        Raises:
            ValueError: the trials are not of the same sequences.
        """
        if self.subjects != other.subjects or self.cells != other.cells:
            raise ValueError("the two methods were not tried on the same sequences")
        weights = subject_weights(len(self.subjects), resampling)
        replicates = self.replicates(figure, weights) - other.replicates(figure, weights)
        return percentile_estimate(
            self.value(figure) - other.value(figure), replicates, resampling.confidence
        )

    def counted(self, figure: Figure) -> tuple[int, int]:
        """How many trials, and of how many subjects, the figure rests on."""
        _, counts = self._totals(figure.measure)
        asked = counts[:, list(figure.cells)].sum(1)
        return int(asked.sum()), int((asked > 0).sum())

    def _totals(self, measure: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums and numbers of counted outcomes, each [subjects, cells]."""
        outcome = self.outcomes[:, self.measures.index(measure)]
        counted = np.isfinite(outcome)
        flat = self.subject * len(self.cells) + self.cell
        shape = (len(self.subjects), len(self.cells))
        sums, counts = (
            np.bincount(flat, weights, shape[0] * shape[1]).astype(np.float64).reshape(shape)
            for weights in (np.where(counted, outcome, 0.0), counted)
        )
        return sums, counts

    def _is_binary(self, figure: Figure) -> bool:
        outcome = self.outcomes[:, self.measures.index(figure.measure)]
        outcome = outcome[np.isin(self.cell, figure.cells) & np.isfinite(outcome)]
        return bool(np.isin(outcome, (0.0, 1.0)).all())


class TrialsBuilder:
    """Collects the outcomes of one cell after another."""

    def __init__(self, subjects: NDArray[np.str_], measures: Sequence[str]) -> None:
        """Args: the subject of every sequence [n]; the names of the measures."""
        names, self._subject_of = np.unique(subjects, return_inverse=True)
        self._subjects = tuple(str(name) for name in names)
        self._measures = tuple(measures)
        self._cells: list[Cell] = []
        self._subject: list[NDArray[np.int64]] = []
        self._cell: list[NDArray[np.int64]] = []
        self._outcomes: list[NDArray[np.float64]] = []

    def add(
        self, cell: Cell, probes: NDArray[np.int64], outcomes: Sequence[NDArray[np.float64]]
    ) -> int:
        """Add a cell's trials: one array [len(probes)] a measure. Returns the cell's index."""
        index = len(self._cells)
        self._cells.append(cell)
        self._subject.append(self._subject_of[probes])
        self._cell.append(np.full(len(probes), index, np.int64))
        self._outcomes.append(np.stack(outcomes, axis=1))
        return index

    def build(self) -> Trials:
        """The trials of all cells.

        Raises:
            ValueError: no cell has a trial.
        """
        if not any(len(part) for part in self._cell):
            raise ValueError("no probe met a gallery: nothing was compared")
        return Trials(
            tuple(self._cells),
            self._measures,
            self._subjects,
            np.concatenate(self._cell),
            np.concatenate(self._subject),
            np.concatenate(self._outcomes),
        )


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio
