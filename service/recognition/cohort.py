"""Walks of whoever passed: a scene is learnt from them as well, and only their sums are kept.

See `models.comparison.scene.SceneSums`. From the sums nobody can be found or told apart, and a walk
cannot be taken out of them again: they are deleted as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from service.gallery.active_model import lock_gallery
from service.gallery.scenes import add_to_cohort, drop, forget_cohort
from service.gallery.store import GalleryStore, missing_gallery
from service.recognition.intake import Intake, Upload
from service.serving import adaptation
from service.serving.active_models import ActiveModels
from service.storage.database import writing
from service.storage.writers import Writers

InTransaction = Callable[[Session, int], None]
"""Given how many walks are in the sums, in the transaction that adds to them."""


class Cohort:
    """The use cases behind POST and DELETE /galleries/{gallery}/cohort."""

    def __init__(
        self, store: GalleryStore, writers: Writers, intake: Intake, models: ActiveModels
    ) -> None:
        self._store = store
        self._writers = writers
        self._intake = intake
        self._models = models

    async def add(
        self, gallery: str, uploads: Sequence[Upload], in_transaction: InTransaction
    ) -> int:
        """Add walks to the sums; returns how many walks are in them now.

        Raises what `scenes.add_to_cohort`, `ActiveModels.using`, `Intake.embed` and
        `in_transaction` raise; nothing is added then.
        """
        async with self._models.using(gallery) as loaded:
            walks = await self._intake.embed(uploads, loaded.batcher)
            embeddings = np.stack([walk.embedding for walk in walks])
            return await self._writers.run(
                self._add, gallery, loaded.digest, embeddings, in_transaction
            )

    def _add(
        self,
        gallery: str,
        digest: str,
        embeddings: NDArray[np.float32],
        in_transaction: InTransaction,
    ) -> int:
        gallery_id = self._store.head(gallery).gallery_id
        with Session(writing(self._store.engine)) as session, session.begin():
            seen = add_to_cohort(session, gallery_id, gallery, digest, embeddings)
            in_transaction(session, seen)
        return seen

    def forget(self, gallery: str, in_transaction: Callable[[Session], None]) -> None:
        """Delete the sums, and the transforms that have them in it; others are fitted, by a job.

        Raises `NotFound` for a missing gallery.
        """
        gallery_id = self._store.head(gallery).gallery_id
        with Session(writing(self._store.engine)) as session, session.begin():
            if not lock_gallery(session, gallery_id):
                raise missing_gallery(gallery)
            if forget_cohort(session, gallery_id) and drop(session, gallery_id):
                adaptation.queue(session, gallery)
            in_transaction(session)
