"""In which views and conditions a subject is enrolled, and what is missing.

Measured against the gallery itself: the views and conditions that anybody is enrolled in there.
Beside that, a subject should have two sequences (one alone makes every bad frame count) and two
views (between views people are told apart much worse than within one).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.gallery.records import Scalar
from service.gallery.tables import SequenceRow

LEAST_SEQUENCES: Final = 2
LEAST_VIEWS: Final = 2
_MOST_MISSING: Final = 12

Advice = Literal["another_sequence", "another_view", "name_the_view"]


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a subject is enrolled in.

    Attributes:
        sequences: how many there are.
        views: that they are labelled with.
        conditions: that they are labelled with.
        missing_views: in use in the gallery, none of this subject's; the most used first, at most
            12 of them.
        missing_conditions: the same.
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


def coverage(session: Session, gallery_id: str, subject_id: str) -> Coverage:
    """What the subject is enrolled in, as the session sees it."""
    rows = session.execute(
        select(SequenceRow.view, SequenceRow.condition).where(
            SequenceRow.gallery_id == gallery_id, SequenceRow.subject_id == subject_id
        )
    ).all()
    views = _labels(row.view for row in rows)
    conditions = _labels(row.condition for row in rows)
    return Coverage(
        sequences=len(rows),
        views=views,
        conditions=conditions,
        missing_views=_in_use(session, gallery_id, SequenceRow.view, views),
        missing_conditions=_in_use(session, gallery_id, SequenceRow.condition, conditions),
        advice=_advice(len(rows), views, labelled=all(row.view is not None for row in rows)),
    )


def _labels(values: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({value for value in values if value is not None}))


def _in_use(
    session: Session,
    gallery_id: str,
    column: InstrumentedAttribute[str | None],
    besides: tuple[str, ...],
) -> tuple[str, ...]:
    query = (
        select(column)
        .where(SequenceRow.gallery_id == gallery_id, column.is_not(None))
        .group_by(column)
        .order_by(func.count().desc(), column)
        .limit(_MOST_MISSING + len(besides))
    )
    found = [value for value in session.scalars(query) if value and value not in besides]
    return tuple(found[:_MOST_MISSING])


def _advice(sequences: int, views: tuple[str, ...], *, labelled: bool) -> tuple[Advice, ...]:
    advice: list[Advice] = []
    if sequences < LEAST_SEQUENCES:
        advice.append("another_sequence")
    if not labelled:  # what nobody named may be any view
        advice.append("name_the_view")
    elif len(views) < LEAST_VIEWS:
        advice.append("another_view")
    return tuple(advice)
