"""Adaptation: fit a gallery's scene transform, and use it if it helps.

The job's command, `gaitid adapt-gallery`, runs `Adaptation.run`. It reads what the gallery's model
made of its walks, fits a transform and measures it on people left out of the fit
(`models.comparison.scene`), and calibrates by the transformed similarities, to which no other
threshold applies. One transaction puts the transform and its threshold in use together, or neither,
*and* ends the job. It fits again if something was erased or corrected meanwhile: a transform in use
never holds a share of somebody who is gone.

Nothing of it is written anywhere but into the database, where it is sealed as embeddings are.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from models.card import Card
from models.comparison.scene import SceneFit, SceneTransform
from models.thresholds.calibration import CannotCalibrate
from service.access.audit.entries import Entry
from service.foundation.settings import Settings
from service.gallery import scenes
from service.gallery.active_model import lock_gallery, models_in, models_of
from service.gallery.operating_point import OperatingPoint
from service.gallery.reading import read_gallery
from service.gallery.records import Progress
from service.gallery.scenes import Scene
from service.gallery.tables import ErasedSequenceRow
from service.job_types.calibration import fit_part, plain_point, scene_point
from service.job_types.commands import EndedByItsCommand, Record
from service.job_types.scene_strangers import taught
from service.job_types.threshold_transfer import TARGET_FPIR
from service.jobs.job import JsonObject
from service.jobs.queue import JobQueue, Lease, LeaseLost, require_running
from service.serving.model_files import read_card
from service.serving.registry import active_model, resolve

_STEPS = 3  # the fit, and a calibration with the transform and one without
_ATTEMPTS = 5


class CannotAdapt(Exception):
    """The gallery cannot be adapted now; the text says why."""


class _Outdated(Exception):
    """Something that was read was erased or corrected since."""


class AdaptJob(EndedByItsCommand):
    """The command keeps nothing until it is done: one that was killed begins again."""

    name = "adaptation"
    command = "adapt-gallery"
    wanted = "a result"


@dataclass(frozen=True, slots=True)
class _Found:
    """What a fit of one state of a gallery came to.

    `scene` is None where none is to be used, and `reason` says why; `plain` is the operating point
    without a scene, if it can be found.
    """

    gallery_id: str
    revision: int
    fit: SceneFit
    scene: Scene | None
    plain: OperatingPoint | None
    reason: str | None

    def result(self, gallery: str) -> JsonObject:
        point = None if self.scene is None else OperatingPoint.of(self.scene.operating_point)
        return {
            "gallery": gallery,
            "used": self.scene is not None,
            "reason": self.reason,
            "subjects": self.fit.subjects,
            "walks": self.fit.walks,
            "gain": {"value": self.fit.gain, "interval": list(self.fit.interval)},
            "strength": self.fit.strength,
            "operating_point": None if point is None else point.result(),
        }


class Adaptation:
    """The command of an adaptation job, which ends the job itself."""

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

    def run(self, job_id: str, lease_number: int) -> None:
        """Adapt under the lease of the job's worker.

        Raises `CannotAdapt` and `NotFound`; the gallery is compared as before then.
        """
        try:
            self._run(self._queue.lease_of(job_id, lease_number))
        except LeaseLost as error:
            raise CannotAdapt("the job was cancelled, or another worker has it") from error

    def _run(self, lease: Lease) -> None:
        gallery = lease.job.request["gallery"]
        row = models_of(self._engine, gallery)
        active = active_model(self._settings, self._engine, row)
        folder = resolve(self._settings, self._engine, active.name)
        card = read_card(folder)
        if card.digest != active.digest:
            raise CannotAdapt(f"the model {active.name!r} was replaced on disk; restart first")
        for _ in range(_ATTEMPTS):
            found = self._find(gallery, card)
            if found.gallery_id != row.gallery_id:
                raise CannotAdapt("the gallery was erased meanwhile")
            result = found.result(gallery)

            def finish(session: Session, found: _Found = found) -> None:
                if not lock_gallery(session, found.gallery_id):
                    raise CannotAdapt("the gallery was erased meanwhile")
                require_running(session, lease)
                if models_in(session, gallery).active != row.active:
                    raise CannotAdapt("the gallery was given another model meanwhile")
                if _changed_since(session, found.gallery_id, found.revision):
                    raise _Outdated
                scenes.put(
                    session, found.gallery_id, card.digest, found.fit, found.revision,
                    found.scene, found.plain,
                )  # fmt: skip
                details = {"job_id": lease.job.id, "used": found.scene is not None}
                self._record(Entry("adapt_gallery", gallery, None, details))

            try:
                self._queue.succeed(lease, result, in_transaction=finish)
            except _Outdated:
                continue
            return
        raise CannotAdapt("walks were erased or corrected again and again; try again later")

    def _find(self, gallery: str, card: Card) -> _Found:
        self._progress(0, _STEPS)
        # Without the transform that there is, which may be damaged.
        whole = read_gallery(self._engine, gallery, card.digest, with_scene=False)
        enrolled = whole.sequences
        if enrolled.missing:
            raise CannotAdapt(
                f"{enrolled.missing} of {enrolled.total} sequences are not embedded with the "
                "active model yet; adapt when the service is ready"
            )
        with Session(self._engine) as session:
            cohort = scenes.cohort_in(session, whole.gallery_id, card.digest)
        takes_part = taught(self._engine, whole.gallery_id, enrolled)
        fitted = fit_part(enrolled, takes_part, cohort)
        self._progress(1, _STEPS)
        target = TARGET_FPIR
        if whole.operating_point is not None:
            target = whole.operating_point.target_fpir
        scene, reason = None, None
        if fitted.transform is None:
            reason = "people who took no part are not told apart better with it"
        else:
            try:
                point = scene_point(enrolled, takes_part, cohort, fitted, card, target)
                scene = scenes.new_scene(_kept(fitted.transform), point)
            except CannotCalibrate as error:
                reason = f"no threshold can be found for it: {error}"
        self._progress(2, _STEPS)
        try:
            plain = plain_point(enrolled, card, target)
        except CannotCalibrate:
            plain = None
        self._progress(_STEPS, _STEPS)
        return _Found(whole.gallery_id, whole.revision, fitted, scene, plain, reason)


def _kept(transform: SceneTransform) -> SceneTransform:
    """The transform as it can be read again."""
    try:
        return SceneTransform.from_bytes(transform.to_bytes())
    except ValueError as error:  # of a model with very wide embeddings
        raise CannotAdapt(f"the transform cannot be kept: {error}") from error


def _changed_since(session: Session, gallery_id: str, revision: int) -> bool:
    """Whether a sequence was erased or corrected after a revision."""
    query = select(ErasedSequenceRow.sequence_id).where(
        ErasedSequenceRow.gallery_id == gallery_id, ErasedSequenceRow.revision > revision
    )
    return session.execute(query.limit(1)).first() is not None
