"""In which views and conditions a subject is enrolled, and what is missing.

Measured against the gallery itself: the views and conditions that anybody is enrolled in there.
Beside that, a subject should have two sequences (one alone makes every bad frame count) and two
views (between views people are told apart much worse than within one).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    bindparam,
    func,
    literal_column,
    select,
    text,
    union_all,
)
from sqlalchemy.orm import Session

from service.gallery.records import Scalar
from service.gallery.tables import SequenceRow

LEAST_SEQUENCES: Final = 2
LEAST_VIEWS: Final = 2
_MOST_MISSING: Final = 12
_TO_SPARE: Final = 12  # labels that the subject may be given before the answer is made

Advice = Literal["another_sequence", "another_view", "name_the_view"]


@dataclass(frozen=True, slots=True)
class LabelsInUse:
    """A gallery's labels, the most used first: more of them than one subject's coverage names.

    How often the subject's own walks use them makes no difference, because what the subject has is
    not missing. So what was read before its newest walks were added serves after that as well.
    """

    views: tuple[str, ...]
    conditions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a subject is enrolled in.

    Attributes:
        sequences: how many there are.
        views: that they are labelled with.
        conditions: that they are labelled with.
        missing_views: in use in the gallery, none of this subject's; the most used first, at most
            12 of them.
        missing_conditions: likewise.
        advice: what to enrol next.
    """

    sequences: int
    views: tuple[str, ...]
    conditions: tuple[str, ...]
    missing_views: tuple[str, ...]
    missing_conditions: tuple[str, ...]
    advice: tuple[Advice, ...]


def label(value: Scalar) -> str | None:
    """A view or condition as text: 90 is "90"; None where metadata names none."""
    if value is None or isinstance(value, bool) or value == "":
        return None
    return value if isinstance(value, str) else json.dumps(value)


def labels_in_use(session: Session, gallery_id: str, subject_id: str) -> LabelsInUse:
    """What a gallery's walks are labelled with, for the coverage of one of its subjects.

    It reads through the whole gallery: not for a transaction that holds the write lock.
    """
    own = _own(session, gallery_id, subject_id)
    most = {
        "gallery": gallery_id,
        "views": _MOST_MISSING + _TO_SPARE + len({row.view for row in own}),
        "conditions": _MOST_MISSING + _TO_SPARE + len({row.condition for row in own}),
    }
    found = session.execute(_MOST_USED, most).all()
    return LabelsInUse(
        views=tuple(row.label for row in found if row.kind == "view" and row.label),
        conditions=tuple(row.label for row in found if row.kind == "condition" and row.label),
    )


def coverage(session: Session, gallery_id: str, subject_id: str, in_use: LabelsInUse) -> Coverage:
    """What the subject is enrolled in, as the session sees it, beside what the gallery has."""
    rows = _own(session, gallery_id, subject_id)
    views = _labels(row.view for row in rows)
    conditions = _labels(row.condition for row in rows)
    return Coverage(
        sequences=len(rows),
        views=views,
        conditions=conditions,
        missing_views=_missing(in_use.views, views),
        missing_conditions=_missing(in_use.conditions, conditions),
        advice=_advice(len(rows), views, labelled=all(row.view is not None for row in rows)),
    )


def _own(
    session: Session, gallery_id: str, subject_id: str
) -> Sequence[Row[str | None, str | None]]:
    return session.execute(
        select(SequenceRow.view, SequenceRow.condition).where(
            SequenceRow.gallery_id == gallery_id, SequenceRow.subject_id == subject_id
        )
    ).all()


def _labels(values: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({value for value in values if value is not None}))


def _most_used(
    kind: str, column: ColumnElement[str | None], most: str
) -> Select[str, str | None, int]:
    walks = func.sum(_PAIRS.c.walks)
    chosen = (
        select(
            literal_column(f"'{kind}'").label("kind"), column.label("label"), walks.label("walks")
        )
        .select_from(_PAIRS)
        .where(column.is_not(None))
        .group_by(column)
        .order_by(walks.desc(), column)
        .limit(bindparam(most))
        .subquery()
    )
    return select(chosen.c.kind, chosen.c.label, chosen.c.walks)


_PAIRS = (
    select(SequenceRow.view, SequenceRow.condition, func.count().label("walks"))
    .where(SequenceRow.gallery_id == bindparam("gallery"))
    .group_by(SequenceRow.view, SequenceRow.condition)
    .cte("pairs")
)
# One statement, which goes through the gallery once.
_MOST_USED = union_all(
    _most_used("view", _PAIRS.c.view, "views"),
    _most_used("condition", _PAIRS.c.condition, "conditions"),
).order_by(text("kind"), text("walks DESC"), text("label"))


def _missing(in_use: tuple[str, ...], own: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value for value in in_use if value not in own)[:_MOST_MISSING]


def _advice(sequences: int, views: tuple[str, ...], *, labelled: bool) -> tuple[Advice, ...]:
    advice: list[Advice] = []
    if sequences < LEAST_SEQUENCES:
        advice.append("another_sequence")
    if not labelled:  # what nobody named may be any view
        advice.append("name_the_view")
    elif len(views) < LEAST_VIEWS:
        advice.append("another_view")
    return tuple(advice)
