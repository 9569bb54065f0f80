"""A gallery's scene: the transform by which its embeddings are compared, and sums of who passed.

Stored embeddings stay as the checkpoint made them. A gallery under a checkpoint has at most one
transform, and what is compared through it (`compared`) has thresholds of its own, so a transform
comes with an operating point and is never used without. `put` and `drop` exchange both at once and
make every process build its index anew; until then it goes on with the old index, which holds the
old transform. So no search mixes two.

A transform holds a share of everybody it was fitted on. `drop` is what an erasure calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, delete, func, select
from sqlalchemy.orm import Session

from models.card import Metric
from models.comparison.scene import SceneFit, SceneSums, SceneTransform
from models.comparison.several import subject_scores
from service.foundation.errors import Conflict, Reason
from service.gallery.active_model import lock_gallery, renew_indexes
from service.gallery.operating_point import OperatingPoint
from service.gallery.sealing import DamagedScene, sealing_of
from service.gallery.store import missing_gallery
from service.gallery.tables import GalleryRow, SceneCohortRow, SceneRow, SequenceRow, SubjectRow
from service.storage.database import new_id, now, writing

_BLOCK = 4096  # embeddings that are transformed at once
_WIDEST = 2048  # numbers of an embedding whose products are summed: 32 MB


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A transform in use, and what a gallery decides by with it."""

    version: str
    transform: SceneTransform
    operating_point: dict[str, Any]

    def embeddings(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings [n, p, c] as they are compared, by the mean cosine of parts: [n, q, k]."""
        return transformed(self.transform, embeddings)


def transformed(transform: SceneTransform, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """`transform.apply`, in pieces where there are many embeddings."""
    if len(embeddings) <= _BLOCK:
        return transform.apply(embeddings)
    pieces = range(0, len(embeddings), _BLOCK)
    return np.concatenate([transform.apply(embeddings[start : start + _BLOCK]) for start in pieces])


def compared(
    embeddings: NDArray[np.float32], metric: Metric, scene: Scene | None
) -> tuple[NDArray[np.float32], Metric]:
    """What is compared of embeddings [n, p, c] of a checkpoint with this metric, and how."""
    if scene is None:
        return embeddings, metric
    return scene.embeddings(embeddings), "cosine"


def scored(
    similarities: NDArray[np.floating[Any]], whose: Sequence[str], scene: Scene | None
) -> dict[str, tuple[int, float]]:
    """How alike a walk is to subjects, by its similarities to all of their walks [g].

    With a scene transform half-way from the mean of a subject's walks to the best, without one the
    best (`models.comparison.several` says why). Thresholds are found by the same scores.

    Returns:
        Of each subject the row of the best walk, the first of equals, and the score.
    """
    numbers: dict[str, int] = {}
    of = np.array([numbers.setdefault(name, len(numbers)) for name in whose], np.intp)
    best: dict[str, tuple[int, float]] = {}
    for row in np.argsort(-similarities, kind="stable").tolist():
        best.setdefault(whose[row], (row, float(similarities[row])))
    if scene is None:
        return best
    scores = subject_scores(similarities, of, len(numbers)).tolist()
    return {name: (row, scores[numbers[name]]) for name, (row, _) in best.items()}


def scene_in(session: Session, gallery_id: str, digest: str) -> Scene | None:
    """The transform that a gallery uses under a checkpoint; None if it uses none.

    Raises `DamagedScene`, and `Unavailable` without its key.
    """
    row = session.execute(
        select(
            SceneRow.version, SceneRow.transform, SceneRow.key_id, SceneRow.operating_point
        ).where(SceneRow.gallery_id == gallery_id, SceneRow.digest == digest)
    ).one_or_none()
    if row is None or row.version is None:
        return None
    sealing = sealing_of(session.get_bind().engine)
    data = sealing.scene("transform", gallery_id, digest, row.transform, row.key_id)
    try:
        transform = SceneTransform.from_bytes(data)
    except ValueError as error:
        raise DamagedScene("transform") from error
    return Scene(row.version, transform, row.operating_point)


def versions(engine: Engine, gallery_id: str) -> dict[str, str]:
    """The versions of the transforms that a gallery uses, by the checkpoints' digests."""
    query = select(SceneRow.digest, SceneRow.version).where(
        SceneRow.gallery_id == gallery_id, SceneRow.version.is_not(None)
    )
    with Session(engine) as session:
        return {digest: version for digest, version in session.execute(query) if version}


def version_in(session: Session, gallery_id: str, digest: str) -> str | None:
    """The version of the transform that a gallery uses under a checkpoint."""
    row = session.get(SceneRow, (gallery_id, digest))
    return None if row is None else row.version


def plain_point(session: Session, gallery_id: str, kept: dict[str, Any]) -> dict[str, Any] | None:
    """An operating point that holds without a transform: the one given, or what is kept for it."""
    point = OperatingPoint.model_validate(kept)
    if point.scene is None:
        return kept
    row = session.get(SceneRow, (gallery_id, point.digest))
    return None if row is None else row.plain_operating_point


def put(
    session: Session,
    gallery_id: str,
    digest: str,
    found: SceneFit,
    revision: int,
    scene: Scene | None,
    plain: OperatingPoint | None,
) -> None:
    """Use a scene from now on, or none, in a transaction that holds the gallery's lock.

    Args:
        session: of the transaction.
        gallery_id: the gallery; `digest` is of its active model.
        digest: of the checkpoint.
        found: what the fit came to.
        revision: of the gallery when it was read for the fit.
        scene: to use; its operating point becomes the gallery's.
        plain: what to decide by without a scene; None leaves what was found before.
    """
    sealing = sealing_of(session.get_bind().engine)
    sealing.require_current(session)
    now_enrolled = counts(session, gallery_id)
    gallery = session.get_one(GalleryRow, gallery_id)
    row = session.get(SceneRow, (gallery_id, digest))
    if row is None:
        row = SceneRow(gallery_id=gallery_id, digest=digest)
        session.add(row)
    before = gallery.operating_point
    if plain is not None:
        row.plain_operating_point = plain.kept()
    elif before is not None and before["digest"] == digest and not before.get("scene"):
        row.plain_operating_point = before
    if scene is not None:
        gallery.operating_point = scene.operating_point
    elif before is not None and before.get("scene"):
        gallery.operating_point = row.plain_operating_point
    exchanged = scene is not None or row.version is not None
    row.version = None if scene is None else scene.version
    row.operating_point = None if scene is None else scene.operating_point
    row.transform = (
        None
        if scene is None
        else sealing.seal_scene("transform", gallery_id, digest, scene.transform.to_bytes())
    )
    row.key_id = None if scene is None else sealing.key_id
    row.revision = revision
    row.gain, (row.gain_low, row.gain_high) = found.gain, found.interval
    row.fitted_at = now()
    row.gallery_subjects, row.gallery_sequences = now_enrolled
    session.flush()
    if exchanged:
        renew_indexes(session, gallery_id)


def drop(session: Session, gallery_id: str) -> bool:
    """Forget the gallery's transforms under every model; returns whether there were any.

    The gallery is decided by what it was without, from this transaction on. For one that erases, or
    holds the gallery's lock.
    """
    rows = session.scalars(
        select(SceneRow).where(SceneRow.gallery_id == gallery_id, SceneRow.version.is_not(None))
    ).all()
    if not rows:
        return False
    gallery = session.get_one(GalleryRow, gallery_id)
    for name in ("operating_point", "previous_operating_point"):
        if kept := getattr(gallery, name):
            setattr(gallery, name, plain_point(session, gallery_id, kept))
    for row in rows:
        row.version = row.transform = row.key_id = row.operating_point = row.fitted_at = None
    renew_indexes(session, gallery_id)
    session.flush()
    return True


def counts(session: Session, gallery_id: str) -> tuple[int, int]:
    """How many subjects and sequences a gallery has."""
    subjects, sequences = (
        session.scalar(select(func.count()).where(table.gallery_id == gallery_id)) or 0
        for table in (SubjectRow, SequenceRow)
    )
    return subjects, sequences


def cohort_in(session: Session, gallery_id: str, digest: str) -> SceneSums | None:
    """The sums of who passed, under a checkpoint; None where nobody has been added.

    Raises `DamagedScene`, and `Unavailable` without their key.
    """
    row = session.get(SceneCohortRow, (gallery_id, digest))
    if row is None:
        return None
    sealing = sealing_of(session.get_bind().engine)
    try:
        return SceneSums.from_bytes(sealing.scene("sums", gallery_id, digest, row.sums, row.key_id))
    except ValueError as error:
        raise DamagedScene("sums") from error


def add_to_cohort(
    session: Session, gallery_id: str, gallery: str, digest: str, embeddings: NDArray[np.float32]
) -> int:
    """Add walks [n, p, c] to the sums under a checkpoint; returns how many are in them now.

    Raises `NotFound` when the gallery is gone, `Conflict` for a model whose embeddings are too wide
    to sum their products, and what `cohort_in` raises.
    """
    width = embeddings.shape[1] * embeddings.shape[2]
    if width > _WIDEST:
        raise Conflict(
            f"The model of this gallery makes {width} numbers of a walk, and products are summed "
            f"of at most {_WIDEST}. Activate a smaller model.",
            Reason("gallery", "model_too_wide"),
            slug="model-too-wide",
        )
    if not lock_gallery(session, gallery_id):
        raise missing_gallery(gallery)
    sealing = sealing_of(session.get_bind().engine)
    sealing.require_current(session)
    sums = SceneSums.of(embeddings)
    before = cohort_in(session, gallery_id, digest)
    if before is not None:
        sums = before + sums
    row = session.get(SceneCohortRow, (gallery_id, digest))
    if row is None:
        row = SceneCohortRow(gallery_id=gallery_id, digest=digest)
        session.add(row)
    row.walks = sums.count
    row.sums = sealing.seal_scene("sums", gallery_id, digest, sums.to_bytes())
    row.key_id = sealing.key_id
    session.flush()
    return sums.count


def forget_cohort(session: Session, gallery_id: str) -> bool:
    """Delete a gallery's sums of who passed; returns whether there were any."""
    gone = delete(SceneCohortRow).where(SceneCohortRow.gallery_id == gallery_id)
    return bool(session.scalars(gone.returning(SceneCohortRow.digest)).all())


def new_scene(transform: SceneTransform, point: OperatingPoint) -> Scene:
    """A scene with a version of its own, and the operating point that was found with it."""
    version = new_id()
    kept = point.model_copy(update={"scene": version}).kept()
    return Scene(version, transform, kept)


def switch_off(engine: Engine) -> None:
    """Forget every gallery's transforms: the deployment uses none."""
    with Session(engine) as session:
        galleries = session.scalars(select(SceneRow.gallery_id).distinct()).all()
    for gallery_id in galleries:
        with Session(writing(engine)) as session, session.begin():
            if lock_gallery(session, gallery_id):
                drop(session, gallery_id)
                session.execute(delete(SceneRow).where(SceneRow.gallery_id == gallery_id))
