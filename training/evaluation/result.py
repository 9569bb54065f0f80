"""What an evaluation says, complete enough to be read, compared and repeated."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from models.card import Metric
from training.evaluation.bootstrap import Estimate, Resampling
from training.evaluation.open_set import OpenSet
from training.evaluation.sequences import Role
from training.evaluation.verification import Verification


@dataclass(frozen=True, slots=True)
class ReportedFigure:
    """One number of a row, in [0, 1], and what it rests on."""

    name: str
    estimate: Estimate
    trials: int
    subjects: int
    detail: bool = False


@dataclass(frozen=True, slots=True)
class ReportedTable:
    """A matrix of cell means in [0, 1]; None if nothing was compared."""

    name: str
    row_label: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Everything about one method. The first figure is the protocol's headline."""

    name: str
    role: Role
    metric: Metric
    mirrored: bool
    digest: str
    figures: tuple[ReportedFigure, ...]
    tables: tuple[ReportedTable, ...]
    verification: Verification | None
    open_set: OpenSet | None

    def figure(self, name: str) -> ReportedFigure:
        """The figure of that name.

        Raises:
            KeyError: the protocol does not report it.
        """
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Difference:
    """First minus second on the same trials, subjects drawn for both at once."""

    figure: str
    first: str
    second: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The result of one protocol on one data set.

    Attributes:
        protocol: its name in the registry.
        dataset: name of the data set.
        dataset_hash: content hash of the data set.
        subjects: evaluated.
        sequences: evaluated.
        resampling: how the intervals were made.
        rows: the methods under evaluation first, the baselines after them.
        differences: of the first row to each other, in the headline figure.
    """

    protocol: str
    dataset: str
    dataset_hash: str
    subjects: int
    sequences: int
    resampling: Resampling
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]

    def metrics(self) -> dict[str, float]:
        """The first row's figures by plain names, for events, cards and logs.

        `rank1` is the headline whatever the protocol calls it; `NM rank-1` becomes `nm_rank1`.
        Figures without any trial are left out.
        """
        row = self.rows[0]
        named = {"rank1": row.figures[0].estimate.value}
        named |= {_plain(figure.name): figure.estimate.value for figure in row.figures}
        if row.verification is not None:
            named["equal_error_rate"] = row.verification.equal_error_rate.value
        if row.open_set is not None:
            for point in row.open_set.points:
                if point.fnir is not None:
                    named[f"fnir_at_fpir_{point.target_fpir:g}"] = point.fnir.value
        return {name: value for name, value in named.items() if math.isfinite(value)}

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers; what is not a finite number is None."""
        plain: dict[str, Any] = _finite(dataclasses.asdict(self))
        return plain

    def to_json(self) -> str:
        """One JSON object on one line."""
        return json.dumps(self.to_dict(), allow_nan=False, ensure_ascii=False)


def _plain(name: str) -> str:
    joined = name.replace("→", "_to_").replace("rank-", "rank").lower()
    return re.sub(r"[^a-z0-9]+", "_", joined).strip("_")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
