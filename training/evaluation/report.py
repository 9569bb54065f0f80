"""Results for people: rich tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from training.evaluation.bootstrap import Estimate
from training.evaluation.result import EvaluationResult, ReportedTable, Row

_SMALL_TABLE = 6


@dataclass(frozen=True, slots=True)
class _Grid:
    title: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]


def console_tables(result: EvaluationResult) -> Group:
    """The whole result for `rich.console.Console.print`: what was evaluated, then its tables."""
    tables: list[Text | Table] = [Text(_headline(result))]
    for grid in _grids(result):
        table = Table(title=grid.title, title_justify="left")
        for index, name in enumerate(grid.head):
            # Folded where the terminal is narrow: a figure that is cut off says another number.
            table.add_column(Text(name), justify="left" if index == 0 else "right", overflow="fold")
        for cells in grid.body:
            table.add_row(*map(Text, cells))
        tables.append(table)
    return Group(*tables)


def _headline(result: EvaluationResult) -> str:
    resampling = result.resampling
    return (
        f"Protocol {result.protocol} on {result.dataset} (content {result.dataset_hash[:12]}): "
        f"{result.subjects} subjects, {result.sequences} sequences. Percentages; in brackets "
        f"{resampling.confidence:.0%} intervals by drawing subjects ({resampling.replicates} "
        f"replicates, seed {resampling.seed}), Wilson's (W) where trials are independent."
    )


def _grids(result: EvaluationResult) -> list[_Grid]:
    grids = [_figures(result)]
    if result.differences:
        grids.append(
            _Grid(
                "Difference in percentage points, paired",
                ("figure", "first", "second", "first − second"),
                tuple(
                    (d.figure, d.first, d.second, _estimate(d.estimate)) for d in result.differences
                ),
            )
        )
    first = result.rows[0]
    for row in result.rows:
        # A baseline's tables only where they are small enough to be read side by side.
        tables = [t for t in row.tables if row is first or len(t.columns) <= _SMALL_TABLE]
        grids += [_view_table(row, table) for table in tables]
    for make in (_verification, _open_set):
        grid = make(result.rows)
        if grid is not None:
            grids.append(grid)
    if first.open_set is not None and first.open_set.thresholds:
        grids.append(_thresholds(first))
    return grids


def _figures(result: EvaluationResult) -> _Grid:
    """Figures down, methods across: there are a dozen of the former and few of the latter."""
    first = [figure for figure in result.rows[0].figures if not figure.detail]
    head = ("figure", *map(_method, result.rows), "trials", "subjects asked")
    body = tuple(
        (
            figure.name,
            *(_estimate(row.figure(figure.name).estimate) for row in result.rows),
            str(figure.trials),
            str(figure.subjects),
        )
        for figure in first
    )
    return _Grid("Rank-1 and other retrieval figures", head, body)


def _method(row: Row) -> str:
    name = f"{row.name}, mirrored too" if row.mirrored else row.name
    return f"{name} ({row.digest[:12]})" if row.digest else name


def _view_table(row: Row, table: ReportedTable) -> _Grid:
    return _Grid(
        f"{row.name}: {table.name}, {table.row_label} down, gallery view across",
        (table.row_label, *table.columns),
        tuple(
            (name, *(_percent(value) for value in values))
            for name, values in zip(table.rows, table.values, strict=True)
        ),
    )


def _verification(rows: Sequence[Row]) -> _Grid | None:
    body = []
    head: tuple[str, ...] = ()
    for row in rows:
        if row.verification is None:
            continue
        found = row.verification
        head = (
            "method",
            "genuine",
            "impostor",
            "EER",
            *(f"FNMR at FMR {_rate(point.target_fmr)}" for point in found.points),
        )
        body.append(
            (
                row.name,
                str(found.genuine),
                str(found.impostor),
                _estimate(found.equal_error_rate),
                *(_estimate(point.fnmr) for point in found.points),
            )
        )
    title = "Verification: probe against enrolled subject"
    return _Grid(title, head, tuple(body)) if body else None


def _open_set(rows: Sequence[Row]) -> _Grid | None:
    body = []
    head: tuple[str, ...] = ()
    enrolled = 0
    for row in rows:
        if row.open_set is None:
            continue
        found = row.open_set
        enrolled = found.gallery_subjects
        head = (
            "method",
            "mated",
            "non-mated",
            "rank-1",
            *(f"FNIR at FPIR {_rate(point.target_fpir)}" for point in found.points),
        )
        body.append(
            (
                row.name,
                str(found.mated),
                str(found.non_mated),
                _percent(found.rank1),
                *(_estimate(point.fnir) for point in found.points),
            )
        )
    title = f"Open set: one gallery of {enrolled} subjects, all views"
    return _Grid(title, head, tuple(body)) if body else None


def _thresholds(row: Row) -> _Grid:
    found = row.open_set.thresholds if row.open_set is not None else ()
    return _Grid(
        f"{row.name}: thresholds for a gallery of another size (* beyond what was observed)",
        ("enrolled subjects", "FPIR at most", "threshold", "mates below it"),
        tuple(
            (
                f"{item.gallery_subjects:,}",
                _rate(item.target_fpir),
                _estimate(item.threshold, scale=1, digits=4) + ("*" if item.extrapolated else ""),
                _estimate(item.fnir),
            )
            for item in found
        ),
    )


def _estimate(estimate: Estimate | None, *, scale: float = 100, digits: int = 1) -> str:
    if estimate is None or not math.isfinite(estimate.value):
        return "–"
    text = f"{estimate.value * scale:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return text
    mark = " W" if estimate.method == "wilson" else ""
    low, high = estimate.low * scale, estimate.high * scale
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]{mark}"


def _percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value * 100:.1f}"


def _rate(rate: float) -> str:
    return f"{rate * 100:g} %"
