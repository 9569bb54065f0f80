"""Activation: give a gallery another model, and back again at once.

The job's command, `gaitid activate-model`, runs `Activation.run`. Nothing that it does before the
swap is seen by a search:

1. Every stored sequence is embedded with the new model beside the old one, 32 at a time, each batch
   kept. Killed at any moment, the job resumes with what is missing.
2. Both models search the gallery, every sequence among the others; the threshold is calibrated for
   the new one if the gallery has a calibrated one.
3. One transaction, in which no enrolment commits: nothing lacks an embedding (a few that came last
   are embedded in it, more are embedded first and the transaction tried again), the active model is
   still the one compared with, the job is not cancelled. It swaps *and* ends the job as succeeded.
4. Embeddings of models that are neither active nor previous any more are dropped.

Processes that serve the gallery notice the swap by its row (`service.serving.active_models`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from models.card import Card, ModelReference
from models.comparison.paired import PairedRank1, Side, compare_rank1
from models.encoder.encoder import Encoder
from models.thresholds.calibration import CannotCalibrate
from service.access.audit import entries
from service.foundation.errors import Conflict, NotFound, Reason
from service.foundation.settings import Settings
from service.gallery.active_model import (
    GalleryModels,
    count_sequences,
    lock_gallery,
    models_in,
    models_of,
    prune,
    swap,
    swap_back,
)
from service.gallery.operating_point import OperatingPoint
from service.gallery.reading import drawn_subjects, read_pairs
from service.gallery.records import Progress
from service.gallery.scenes import plain_point
from service.gallery.sealing import sealing_of
from service.gallery.store import GalleryStore, hold_without
from service.job_types.calibration import NotEmbedded, measure
from service.job_types.commands import EndedByItsCommand, Record
from service.job_types.threshold_transfer import TARGET_FPIR, transfer_threshold
from service.jobs.job import Job, JsonObject
from service.jobs.queue import (
    InTransaction,
    JobQueue,
    Lease,
    LeaseLost,
    record_finished,
    require_running,
)
from service.serving.adaptation import queue_if_due
from service.serving.model_files import read_card
from service.serving.reembedding import Reembedding
from service.serving.registry import active_model, find_model, resolve
from service.serving.thresholds import queue_if_stale
from service.storage.database import writing

_LATE_AT_MOST = 16  # embedded while the others wait to enrol: a fraction of a second
_EVALUATIONS_AT_MOST = 16  # of a card, in a job's result
_FIGURES_AT_MOST = 32  # of an evaluation


class CannotActivate(Exception):
    """The activation cannot go on, whatever is tried; the text says why."""


class _TooManyLate(Exception):
    """More was enrolled meanwhile than can be embedded while others wait."""


class ActivateJob(EndedByItsCommand):
    """The command resumes by itself: what it embedded is kept."""

    name = "activation"
    command = "activate-model"
    wanted = "a swap"


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
        """Activate under the lease of the job's worker.

        Raises `CannotActivate` and `NotFound`, with the old model in service.
        """
        try:
            self._run(self._queue.lease_of(job_id, lease_number))
        except LeaseLost as error:
            raise CannotActivate("the job was cancelled, or another worker has it") from error

    def _run(self, lease: Lease) -> None:
        request = lease.job.request
        row = models_of(self._engine, request["gallery"])
        old = active_model(self._settings, self._engine, row)
        if request.get("instead_of") not in (None, old.digest):
            raise CannotActivate(
                "the gallery has another model now than the one that this one was compared with"
            )
        try:
            folder = resolve(self._settings, self._engine, request["name"])
            encoder = Encoder.for_uploads(folder, self._settings.device)
        except ValueError as error:
            raise CannotActivate(f"the model cannot be loaded: {error}") from error
        new = ModelReference(request["name"], encoder.digest)
        if new.digest == old.digest:
            raise CannotActivate("the model is active in this gallery already")
        reembedding = Reembedding(self._store, encoder.encode, new.digest)
        embedded = 0

        def embed() -> None:
            nonlocal embedded
            embedded += reembedding.everything(self._progress, row.gallery_id)

        embed()
        compared = self._compare(row, encoder, new, old)
        point = self._operating_point(row, read_card(folder), old, embed)
        result: JsonObject = {
            "gallery": row.name,
            "model": new.name,
            "digest": new.digest,
            "previous": asdict(old),
            "sequences": 0,  # known in the transaction, as is the next
            "embedded": 0,
            "comparison": None if compared is None else shown(compared),
            "figures": {"new": self._figures(new), "previous": self._figures(old)},
            "operating_point": None if point is None else point.result(),
        }

        def finish(session: Session) -> None:
            if not lock_gallery(session, row.gallery_id):
                raise CannotActivate("the gallery was erased meanwhile")
            require_running(session, lease)
            if models_in(session, row.name).active != row.active:
                raise CannotActivate("the gallery was given another model meanwhile")
            self._embed_late_ones(session, row.gallery_id, encoder)
            result["sequences"] = count_sequences(session, row.gallery_id)
            result["embedded"] = embedded
            swap(session, row.gallery_id, new, old, None if point is None else point.kept())
            queue_if_stale(session, row.name, new.digest)
            queue_if_due(session, row.name, new.digest)
            self._record(
                entries.model_change("activate_model", row.name, lease.job.id, old=old, new=new)
            )

        while True:
            embed()
            try:
                self._queue.succeed(lease, result, in_transaction=finish)
                break
            except _TooManyLate:
                continue
        prune(self._engine, row.gallery_id, (new.digest, old.digest))

    def _compare(
        self, row: GalleryModels, encoder: Encoder, new: ModelReference, old: ModelReference
    ) -> PairedRank1 | None:
        subjects = drawn_subjects(self._engine, row.gallery_id)
        pairs = read_pairs(self._engine, row.gallery_id, subjects, new.digest, old.digest)
        if pairs is None:
            return None
        try:
            metric = read_card(resolve(self._settings, self._engine, old.name)).metric
        except NotFound:  # the old model is gone, which may be why another one is wanted
            return None
        return compare_rank1(
            Side(pairs.new, encoder.card.metric), Side(pairs.old, metric), pairs.subjects
        )

    def _operating_point(
        self, row: GalleryModels, new: Card, old: ModelReference, embed: Callable[[], None]
    ) -> OperatingPoint | None:
        """The new model's, at the gallery's own target; None where its card's threshold decides."""
        before = OperatingPoint.of(self._store.head(row.name).operating_point)
        if before is None and new.threshold is not None:
            return None
        target = TARGET_FPIR if before is None else before.target_fpir
        while True:
            try:
                measured = measure(self._engine, row.name, new, target, plain=True)
            except NotEmbedded:  # enrolled since: no sign that the gallery is too small
                if models_of(self._engine, row.name).gallery_id != row.gallery_id:
                    return None
                embed()
            except CannotCalibrate:
                if new.threshold is not None:
                    return None
                return self._transferred(row, new, old, before, target)
            else:
                return measured.operating_point if measured.gallery_id == row.gallery_id else None

    def _transferred(
        self,
        row: GalleryModels,
        new: Card,
        old: ModelReference,
        before: OperatingPoint | None,
        target: float,
    ) -> OperatingPoint | None:
        """The old threshold for the new model, else searches would have none after the swap."""
        try:
            model = read_card(resolve(self._settings, self._engine, old.name))
        except NotFound:
            return None
        with Session(self._engine) as session:
            if before is not None and before.scene is not None:  # of other similarities
                before = OperatingPoint.of(plain_point(session, row.gallery_id, before.kept()))
        calibrated = before is not None and before.digest == old.digest
        threshold = before.threshold if before is not None and calibrated else model.threshold
        if threshold is None or model.digest != old.digest:
            return None
        return transfer_threshold(self._engine, row.gallery_id, threshold, new, model, target)

    def _figures(self, model: ModelReference) -> JsonObject:
        """What the model reached in the evaluations on its card."""
        try:
            return figures(read_card(resolve(self._settings, self._engine, model.name)).metrics)
        except NotFound:
            return {}

    def _embed_late_ones(self, session: Session, gallery_id: str, encoder: Encoder) -> None:
        late = self._store.some_without(encoder.digest, _LATE_AT_MOST + 1, gallery_id)
        if len(late) > _LATE_AT_MOST:
            raise _TooManyLate
        if late:
            sealing = sealing_of(self._engine)
            sealing.require_current(session)
            made = encoder.encode([silhouettes for _, silhouettes in late])
            ids = [sequence_id for sequence_id, _ in late]
            rows = sealing.seal_embeddings(encoder.digest, zip(ids, made, strict=True))
            # A process that served this model before may have embedded some of them meanwhile.
            lacking = hold_without(session, encoder.digest, rows)
            session.add_all(rows[sequence_id] for sequence_id in lacking)


def roll_back(
    settings: Settings, engine: Engine, gallery: str, in_transaction: InTransaction
) -> Job:
    """Make the previous model active again, in one transaction, and record that as a job.

    Raises `NotFound` for a missing gallery, `Conflict` when there is nothing to go back to.
    """
    with Session(writing(engine), expire_on_commit=False) as session, session.begin():
        done = swap_back(session, gallery)
        if not _exists(settings, engine, done.active):
            raise Conflict(
                f"The previous model {done.active.name!r} is no longer there, or was replaced. "
                "Put it back, or activate another one.",
                Reason("gallery", "previous_model_missing"),
                slug="previous-model-missing",
            )
        queue_if_stale(session, gallery, done.active.digest)
        queue_if_due(session, gallery, done.active.digest)
        result = {
            "gallery": gallery,
            "model": done.active.name,
            "digest": done.active.digest,
            "previous": asdict(done.previous),
        }
        job = record_finished(session, "rollback", {"gallery": gallery}, result)
        in_transaction(session, job)
    return job


def shown(compared: PairedRank1) -> JsonObject:
    """A comparison for clients."""
    return {**asdict(compared), "interval": list(compared.interval)}


def _exists(settings: Settings, engine: Engine, model: ModelReference) -> bool:
    try:
        return find_model(settings, engine, model.name) == model
    except NotFound:
        return False


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
        first = next(iter(rows.values()), None) if isinstance(rows, dict) else None
        if isinstance(first, dict):
            found[name] = dict(list(first.items())[:_FIGURES_AT_MOST])
    return found
