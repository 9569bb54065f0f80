"""What every protocol is and gives: a split, trials, figures and tables of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from training.evaluation.conditions import natural
from training.evaluation.sequences import EmbeddedSequences, Indices, LabelledSequences
from training.evaluation.trials import Figure, Trials


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


def near(probes: NDArray[np.str_], gallery: NDArray[np.str_], apart: float) -> NDArray[np.bool_]:
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


def names_of(labels: NDArray[np.str_]) -> tuple[str, ...]:
    """Each label once, in natural order."""
    return tuple(sorted({str(label) for label in labels}, key=natural))
