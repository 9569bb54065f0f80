"""The gate: whether a new model is better than a gallery's own, on people it was not trained on.

Both search the held-out people of the gallery (see `service.job_types.held_out_split`), less any
that the new model's training has learnt, every walk among the walks of those people. The new one is
better when the 95 % interval of the paired difference of rank-1 lies above 0 and at least
`LEAST_SUBJECTS` people have two walks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from models.card import ModelReference
from models.comparison.paired import LEAST_SUBJECTS, PairedRank1, Side, compare_rank1
from models.encoder.encoder import Encoder
from service.foundation.settings import Settings
from service.gallery.active_model import models_of
from service.gallery.reading import drawn_subjects
from service.gallery.records import Embedding, Progress, Silhouettes
from service.gallery.sealing import sealing_of
from service.gallery.tables import SequenceRow
from service.job_types.activation import shown
from service.job_types.held_out_split import is_held_out, trained_on
from service.serving.registry import active_model, resolve
from service.storage.database import in_pieces

_AT_ONCE = 32  # sequences in memory


class Verdict(BaseModel):
    """The result of a comparison, and with which model.

    Attributes:
        better: whether the new model is to be activated.
        reason: why, or why not, in one sentence.
        against: name and digest of the gallery's own model.
        comparison: the figures; None when there was nobody to compare on.
    """

    model_config = ConfigDict(frozen=True)

    gallery_id: str
    better: bool
    reason: str
    against: ModelReference
    comparison: dict[str, Any] | None


def compare_with_active(
    settings: Settings,
    engine: Engine,
    gallery: str,
    checkpoint: Path,
    pack: Path,
    progress: Progress,
) -> Verdict:
    """Compare a checkpoint with a gallery's own model; keeps no embedding.

    Raises:
        NotFound: no such gallery, or its model is not there.
        ValueError: a checkpoint cannot be loaded, or `pack` is not a pack.
    """
    row = models_of(engine, gallery)
    active = active_model(settings, engine, row)
    new = Encoder.for_uploads(checkpoint, settings.device)
    old = Encoder.for_uploads(resolve(settings, engine, active.name), settings.device)
    learnt = trained_on(pack)
    subjects = drawn_subjects(
        engine, row.gallery_id, among=lambda name: is_held_out(name) and name not in learnt
    )
    whose: list[str] = []
    made: tuple[list[Embedding], list[Embedding]] = ([], [])
    for position, subject in enumerate(subjects):
        for batch in _walks(engine, row.gallery_id, subject):
            whose += [subject] * len(batch)
            made[0].extend(new.encode(batch))
            made[1].extend(old.encode(batch))
        progress(position + 1, len(subjects))
    compared = None
    if whose:
        compared = compare_rank1(
            Side(np.stack(made[0]), new.card.metric),
            Side(np.stack(made[1]), old.card.metric),
            np.unique(whose, return_inverse=True)[1].astype(np.int64),
        )
    return Verdict(
        gallery_id=row.gallery_id,
        better=compared is not None and compared.shows_better,
        reason=_reason(compared),
        against=ModelReference(active.name, old.digest),
        comparison=None if compared is None else shown(compared),
    )


def _reason(compared: PairedRank1 | None) -> str:
    people = 0 if compared is None else compared.subjects
    if compared is None or people < LEAST_SUBJECTS:
        return (
            f"{people} of the held-out people have two walks that the training did not see; "
            f"{LEAST_SUBJECTS} are needed to show anything"
        )
    low, high = compared.interval
    found = (
        f"rank-1 {compared.rank1_new:.3f} against {compared.rank1_old:.3f} on {people} people "
        f"that the training did not see, difference {low:+.3f} to {high:+.3f}"
    )
    return f"{found}: {'better' if compared.shows_better else 'not shown to be better'}"


def _walks(engine: Engine, gallery_id: str, subject: str) -> Iterator[list[Silhouettes]]:
    query = (
        select(SequenceRow.id, SequenceRow.silhouettes, SequenceRow.key_id)
        .where(SequenceRow.gallery_id == gallery_id, SequenceRow.subject_id == subject)
        .order_by(SequenceRow.id)
    )
    sealing = sealing_of(engine)
    with Session(engine) as session:
        rows = session.execute(query).all()
    for some in in_pieces(rows, _AT_ONCE):
        yield [sealing.silhouettes(row.id, row.silhouettes, row.key_id) for row in some]
