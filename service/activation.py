"""Give a gallery another model: embed it, compare, swap; and back again at once.

An activation is a job whose command is `Activation.run`. Nothing that it does before the swap is
seen by a search:

1. Every stored sequence is embedded with the new model beside the old one, 32 at a time, each piece
   kept. Killed at any moment, the job resumes with what is missing.
2. Both models search the gallery, every sequence among the others; the threshold is calibrated for
   the new one if the gallery has a calibrated one.
3. One transaction, in which nobody else enrols: nothing lacks an embedding (a few that came last
   are embedded in it, more are embedded first and the transaction tried again), the active model is
   still the one compared with, nobody has cancelled. It swaps *and* ends the job as succeeded.
4. Embeddings of models that are neither active nor previous any more are dropped.

Processes that serve the gallery notice the swap by its row (`service.active_models`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from models.comparison.paired import PairedRank1, Side, compare_rank1
from models.encoder import Encoder
from models.thresholds.calibration import CannotCalibrate
from service.audit import entries
from service.audit.entries import Entry
from service.calibration import CalibrationModel, NotEmbedded, measure, queue_if_stale
from service.carrying_over import TARGET_FPIR, carry_over
from service.database import writing
from service.errors import Conflict, NotFound, Reason
from service.gallery.pins import (
    PinnedGallery,
    count_lacking,
    count_sequences,
    lock_gallery,
    pinned,
    pinned_in,
    prune,
    swap,
    swap_back,
)
from service.gallery.records import ModelPin
from service.gallery.sealing import sealing_of
from service.gallery.store import GalleryStore, embedding_row, lacks
from service.gallery.tables import SequenceRow
from service.jobs.job import Job, JsonObject
from service.jobs.queue import Also, JobQueue, Lease, LeaseLost, add_done, require_running
from service.model_registry import read_card, resolve
from service.operating_point import OperatingPoint
from service.paired_embeddings import drawn_subjects, read_pairs
from service.reembedding import Reembedding
from service.settings import Settings

_LATE_AT_MOST = 16  # embedded while the others wait to enrol: a fraction of a second
_EVALUATIONS_AT_MOST = 16  # of a card, in a job's result
_FIGURES_AT_MOST = 32  # of an evaluation

Progress = Callable[[int, int], None]
"""Told how many sequences are done, of how many."""

Record = Callable[[Entry], None]
"""Puts into the audit record what is about to be committed."""


class CannotActivate(Exception):
    """The activation cannot go on, whatever is tried; the text says why."""


class _TooManyLate(Exception):
    """More came meanwhile than can be embedded while others wait."""


def active_pin(settings: Settings, row: PinnedGallery) -> ModelPin:
    """A gallery's active model; raises `NotFound` when the deployment's own is not there."""
    if row.active is not None:
        return row.active
    return ModelPin(settings.model, read_card(resolve(settings, settings.model))["digest"])


class Activation:
    """The command of an activation job, which ends the job itself."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        queue: JobQueue,
        progress: Progress,
        record: Record,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._queue = queue
        self._progress = progress
        self._record = record
        self._store = GalleryStore(engine)

    def run(self, job_id: str, lease_number: int) -> None:
        """Do all of it under its worker's lease.

        Raises `CannotActivate` and `NotFound`, with the old model in service.
        """
        try:
            lease = self._queue.lease_of(job_id, lease_number)
            self._run(lease)
        except LeaseLost as error:
            raise CannotActivate("the job was cancelled, or another worker has it") from error

    def _run(self, lease: Lease) -> None:
        request = lease.job.request
        row = pinned(self._engine, request["gallery"])
        old = active_pin(self._settings, row)
        if request.get("instead_of") not in (None, old.digest):
            raise CannotActivate(
                "the gallery has another model now than the one that this one was compared with"
            )
        try:
            folder = resolve(self._settings, request["name"])
            encoder = Encoder.open(folder, self._settings.device)
        except ValueError as error:
            raise CannotActivate(f"the model cannot be loaded: {error}") from error
        new = ModelPin(request["name"], encoder.digest)
        if new.digest == old.digest:
            raise CannotActivate("the model is active in this gallery already")
        reembedding = Reembedding(self._store, encoder.encode, new.digest)
        embedded = 0

        def embed() -> None:
            nonlocal embedded
            embedded += reembedding.everything(self._progress, row.gallery_id)

        embed()
        compared = self._compare(row, encoder, new, old)
        point = self._operating_point(row, CalibrationModel.read(folder), old, embed)
        result: JsonObject = {
            "gallery": row.name,
            "model": new.name,
            "digest": new.digest,
            "previous": asdict(old),
            "sequences": 0,  # known in the transaction
            "embedded": 0,  # the same
            "comparison": None if compared is None else shown(compared),
            "figures": {"new": self._figures(new), "previous": self._figures(old)},
            "operating_point": None if point is None else point.result(),
        }

        def finish(session: Session) -> None:
            if not lock_gallery(session, row.gallery_id):
                raise CannotActivate("the gallery was erased meanwhile")
            require_running(session, lease)
            if pinned_in(session, row.name).active != row.active:
                raise CannotActivate("the gallery was given another model meanwhile")
            self._embed_late_ones(session, row.gallery_id, encoder)
            result["sequences"] = count_sequences(session, row.gallery_id)
            result["embedded"] = embedded
            swap(session, row.gallery_id, new, old, None if point is None else point.kept())
            queue_if_stale(session, row.name, new.digest)
            self._record(
                entries.model_change("activate_model", row.name, lease.job.id, old=old, new=new)
            )

        while True:
            embed()
            try:
                self._queue.succeed(lease, result, also=finish)
                break
            except _TooManyLate:
                continue
        prune(self._engine, row.gallery_id, (new.digest, old.digest))

    def _compare(
        self, row: PinnedGallery, encoder: Encoder, new: ModelPin, old: ModelPin
    ) -> PairedRank1 | None:
        subjects = drawn_subjects(self._engine, row.gallery_id)
        pairs = read_pairs(self._engine, row.gallery_id, subjects, new.digest, old.digest)
        if pairs is None:
            return None
        try:
            metric = read_card(resolve(self._settings, old.name))["metric"]
        except NotFound:  # the old model is gone, which may be why another one is wanted
            return None
        return compare_rank1(
            Side(pairs.new, encoder.card.metric), Side(pairs.old, metric), pairs.subjects
        )

    def _operating_point(
        self, row: PinnedGallery, new: CalibrationModel, old: ModelPin, embed: Callable[[], None]
    ) -> OperatingPoint | None:
        """The new model's, at the gallery's own target; None where its card's threshold decides."""
        _, _, kept = self._store.head(row.name)
        before = OperatingPoint.of(kept)
        if before is None and new.threshold is not None:
            return None
        target = TARGET_FPIR if before is None else before.target_fpir
        while True:
            try:
                measured = measure(self._engine, row.name, new, target)
            except NotEmbedded:  # somebody was enrolled since: that makes no gallery too small
                if pinned(self._engine, row.name).gallery_id != row.gallery_id:
                    return None
                embed()
            except CannotCalibrate:
                return (
                    None
                    if new.threshold is not None
                    else self._carried(row, new, old, before, target)
                )
            else:
                return measured.operating_point if measured.gallery_id == row.gallery_id else None

    def _carried(
        self,
        row: PinnedGallery,
        new: CalibrationModel,
        old: ModelPin,
        before: OperatingPoint | None,
        target: float,
    ) -> OperatingPoint | None:
        """Else searches that were decided so far would find no threshold after the swap."""
        try:
            model = CalibrationModel.read(resolve(self._settings, old.name))
        except NotFound:
            return None
        calibrated = before is not None and before.digest == old.digest
        threshold = before.threshold if before is not None and calibrated else model.threshold
        if threshold is None or model.digest != old.digest:
            return None
        return carry_over(self._engine, row.gallery_id, threshold, new, model, target)

    def _figures(self, pin: ModelPin) -> JsonObject:
        """What the model reached in the evaluations on its card."""
        try:
            return figures(read_card(resolve(self._settings, pin.name)).get("metrics"))
        except NotFound:
            return {}

    def _embed_late_ones(self, session: Session, gallery_id: str, encoder: Encoder) -> None:
        late = count_lacking(session, gallery_id, encoder.digest)
        if late > _LATE_AT_MOST:
            raise _TooManyLate
        rows = session.execute(
            select(
                SequenceRow.id,
                SequenceRow.silhouettes,
                SequenceRow.key_id,
                SequenceRow.content_hash,
            ).where(SequenceRow.gallery_id == gallery_id, lacks(encoder.digest))
        ).all()
        if rows:
            sealing = sealing_of(self._engine)
            sealing.require_current(session)
            made = encoder.encode(
                [
                    sealing.silhouettes(
                        row.id, row.silhouettes, row.key_id, hashed=row.content_hash
                    )
                    for row in rows
                ]
            )
            session.add_all(
                embedding_row(row.id, encoder.digest, embedding, sealing)
                for row, embedding in zip(rows, made, strict=True)
            )


def roll_back(settings: Settings, engine: Engine, gallery: str, also: Also) -> Job:
    """Make the previous model active again, in one transaction, and record that as a job.

    Raises `NotFound` for a missing gallery, `Conflict` when there is nothing to go back to.
    """
    with Session(writing(engine), expire_on_commit=False) as session, session.begin():
        done = swap_back(session, gallery)
        if not _still_there(settings, done.active):
            raise Conflict(
                f"The previous model {done.active.name!r} is no longer there, or was replaced. "
                "Put it back, or activate another one.",
                Reason("gallery", "previous_model_missing"),
                slug="previous-model-missing",
            )
        queue_if_stale(session, gallery, done.active.digest)
        result = {
            "gallery": gallery,
            "model": done.active.name,
            "digest": done.active.digest,
            "previous": asdict(done.previous),
        }
        job = add_done(session, "rollback", {"gallery": gallery}, result)
        also(session, job)
    return job


def shown(compared: PairedRank1) -> JsonObject:
    """A comparison for clients."""
    return {**asdict(compared), "interval": list(compared.interval)}


def _still_there(settings: Settings, model: ModelPin) -> bool:
    try:
        digest: str = read_card(resolve(settings, model.name))["digest"]
    except NotFound:
        return False
    return digest == model.digest


def figures(metrics: Any) -> JsonObject:
    """The figures among a card's metrics, a bounded number of them.

    Plain numbers, and of each evaluation that `python -m training export` put there the first row:
    `[value, low, high]` by figure.
    """
    found: JsonObject = {}
    for name, value in metrics.items() if isinstance(metrics, dict) else ():
        if len(found) == _EVALUATIONS_AT_MOST:
            break
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
        rows = value.get("rows") if isinstance(value, dict) else None
        if isinstance(rows, dict) and rows:
            first = next(iter(rows.values()))
            if isinstance(first, dict):
                found[name] = dict(list(first.items())[:_FIGURES_AT_MOST])
    return found
