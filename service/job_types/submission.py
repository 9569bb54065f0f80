"""Submitting jobs: everything that can be checked is checked now, not when the job runs."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from service.foundation.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Reason,
    TooLarge,
    Unavailable,
)
from service.foundation.settings import Settings
from service.gallery.active_model import models_of
from service.job_types.commands import program
from service.job_types.datasets import find_pack, has_pack
from service.job_types.distillation import recipe_names, recipe_needs, run_arguments
from service.job_types.footage import clip_in
from service.job_types.held_out_split import trained_on_all
from service.job_types.requests import (
    ActivateRequest,
    AdaptRequest,
    Dataset,
    DistillRequest,
    EvaluateRequest,
    FootageRequest,
    GalleryChoice,
    GalleryDataset,
    JobRequest,
)
from service.jobs.findings import note_listing
from service.jobs.job import Job
from service.jobs.job_files import JobFiles
from service.jobs.output import public_reason
from service.jobs.queue import InTransaction, JobQueue
from service.jobs.scratch import remove_folder
from service.serving.registry import active_model, card_of, find_model, missing_model
from service.storage.database import new_id
from service.storage.objects import StoreUnavailable

CheckRecipe = Callable[[Sequence[str]], Sequence[Reason]]
"""Takes the arguments of a run, returns what is wrong and where in the recipe."""

_BAD_INPUT = 2
_PIECE = 1 << 20
_NO_SUCH_KEY = "no such key"  # as the program says it


class RecipeCheck:
    """Runs `python -m training validate`, a few at a time, because each is a process."""

    def __init__(self, *, timeout_s: float = 20.0, at_once: int = 2) -> None:
        self._timeout_s = timeout_s
        self._slots = threading.BoundedSemaphore(at_once)

    def __call__(self, arguments: Sequence[str]) -> Sequence[Reason]:
        """Return what is wrong; raises `Unavailable` when there is no answer in time."""
        if not self._slots.acquire(timeout=self._timeout_s):
            raise Unavailable(
                "Too many recipes are being checked; try again.",
                slug="overloaded",
                retry_after=2.0,
            )
        try:
            answer = subprocess.run(
                program("training", "validate", "--for", "distill", *arguments),
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=self._timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(
                "The recipe could not be checked in time; try again.",
                slug="overloaded",
                retry_after=10.0,
            ) from error
        finally:
            self._slots.release()
        if answer.returncode == 0:
            return ()
        if answer.returncode < 0:  # killed, perhaps because memory ran short
            raise Unavailable(
                "The check of the recipe was ended from outside; try again.", retry_after=2.0
            )
        if answer.returncode != _BAD_INPUT:
            raise RuntimeError(f"the check of a recipe failed: {answer.stderr.decode()[-2000:]}")
        errors = json.loads(answer.stdout)["errors"]
        return [Reason(error["where"], public_reason(error["reason"])) for error in errors]


class Submission:
    """Checks requests for jobs and queues them."""

    def __init__(
        self, settings: Settings, engine: Engine, queue: JobQueue, check_recipe: CheckRecipe
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._queue = queue
        self._check_recipe = check_recipe
        self._files = JobFiles.of(settings)

    def submit(
        self,
        request: JobRequest,
        in_transaction: InTransaction | None = None,
        *,
        job_id: str | None = None,
    ) -> Job:
        """Queue a job, calling `in_transaction` in the same transaction.

        `job_id` is of a job whose folder holds something already.

        Raises `NotFound` for a gallery, model, dataset or recipe that does not exist, `Conflict`
        when another unfinished job has claimed what this one would change or make, or a model of
        its name exists already, `Invalid` when a recipe and its overrides do not fit, `Forbidden`
        where the deployment does not adapt.
        """
        match request:
            case DistillRequest():
                self._check_distillation(request)
            case EvaluateRequest():
                self._require_model(request.model, "model")
                self._require_dataset(request.dataset)
            case AdaptRequest():
                self._require_adapting()
                models_of(self._engine, request.gallery)
            case GalleryChoice():
                models_of(self._engine, request.gallery)  # it exists
        return self._queue.enqueue(
            request.job_type,
            request.model_dump(mode="json", exclude={"needs"}),
            needs=self._needs(request),
            claim=request.claim,
            claimed_by=request.claimed_by,
            job_id=job_id,
            in_transaction=in_transaction,
        )

    def footage(
        self, request: FootageRequest, clip: IO[bytes], in_transaction: InTransaction
    ) -> Job:
        """Queue the search of a clip, which is copied into the job's folder.

        Raises what `submit` raises, and `TooLarge`; nothing of the clip is left then.
        """
        models_of(self._engine, request.gallery)  # it exists, before gigabytes are copied
        job_id = new_id()
        folder = self._settings.jobs_dir / job_id

        def note_and_keep(session: Session, job: Job) -> None:
            note_listing(session, request.gallery, job.id)
            in_transaction(session, job)

        try:
            clip_in(folder).parent.mkdir(mode=0o700, parents=True)
            self._copy(clip, clip_in(folder))
            self._files.bring(job_id, folder, clip_in(folder))
            return self.submit(request, note_and_keep, job_id=job_id)
        except BaseException:
            remove_folder(folder)
            with suppress(StoreUnavailable):  # a sweep deletes it
                self._files.delete([job_id])
            raise

    def _copy(self, clip: IO[bytes], to: Path) -> None:
        most, size = self._settings.max_footage_bytes, 0
        descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            while piece := clip.read(_PIECE):
                size += len(piece)
                if size > most:
                    raise TooLarge(
                        f"The clip is over the limit of {most:,} bytes. Cut it.",
                        Reason("footage", "too_large"),
                    )
                file.write(piece)

    def activate(self, name: str, gallery: str, in_transaction: InTransaction | None = None) -> Job:
        """Queue the activation of a model in a gallery.

        Raises what `submit` raises, `Conflict` when the model is active there already, and
        `Invalid` for one that no upload suits.
        """
        self._require_model(name, "name")
        if card_of(self._settings, self._engine, name).reads_pose:
            raise Invalid(
                f"The model {name!r} reads pose maps beside silhouettes, which no upload has. It "
                "can be a teacher.",
                Reason("name", "reads_pose"),
                slug="model-reads-pose",
            )
        active = active_model(self._settings, self._engine, models_of(self._engine, gallery))
        if find_model(self._settings, self._engine, name).digest == active.digest:
            raise Conflict(
                f"The model {name!r} is active in the gallery {gallery!r} already.",
                Reason("name", "active"),
                slug="model-active",
            )
        return self.submit(ActivateRequest(name=name, gallery=gallery), in_transaction)

    def _needs(self, request: JobRequest) -> dict[str, float]:
        """What a worker must have: what the recipe says, and the request in its place."""
        if not isinstance(request, DistillRequest | EvaluateRequest):
            return {}
        needs = {"gpu": 1.0} if self._settings.device == "cuda" else {}
        if isinstance(request, DistillRequest):
            needs |= recipe_needs(self._settings, request.recipe)
        return needs | request.needs

    def _check_distillation(self, request: DistillRequest) -> None:
        known = recipe_names(self._settings)
        if request.recipe not in known:
            raise NotFound(
                f"There is no recipe {request.recipe!r}. There are: {', '.join(known) or 'none'}.",
                Reason("recipe", "not_found"),
                slug="recipe-not-found",
            )
        pack = self._require_dataset(request.dataset)
        for position, teacher in enumerate(request.teachers):
            self._require_model(teacher, f"teachers[{position}]")
        if request.student is not None:
            self._require_model(request.student, "student")
        if request.holds_out:
            self._require_fair_comparison(request)
        self._require_free(request.name)
        self._require_fitting(request, pack)

    def _require_adapting(self) -> None:
        if not self._settings.adapt:
            raise Forbidden(
                "This deployment compares without scene transforms: its operator has set "
                "GAITID_ADAPT=false.",
                Reason("gallery", "adaptation_off"),
                slug="adaptation-off",
            )

    def _require_fair_comparison(self, request: DistillRequest) -> None:
        models_of(self._engine, request.target)
        with Session(self._engine) as session:
            seen_by = trained_on_all(session, request.ancestors, request.target)
        if seen_by is not None:
            raise Conflict(
                f"The model {seen_by!r} was trained on everybody in the gallery "
                f"{request.target!r}, so nobody is left to compare on. Use other teachers, or "
                'leave `activate` at "never" and judge for yourself.',
                Reason("activate", "held_out_people_were_seen"),
                slug="no-fair-comparison",
            )

    def _require_fitting(self, request: DistillRequest, pack: Path | None) -> None:
        wrong = self._check_recipe(run_arguments(self._settings, self._engine, request, pack))
        if pack is None:  # it is there later: the recipe's own dataset is not used
            wrong = [reason for reason in wrong if reason.where != "data.dataset"]
        if wrong:
            raise Invalid(
                "The recipe cannot be run with these overrides; correct what `errors` names.",
                *(Reason(_place(item, request.overrides), item.reason) for item in wrong),
                slug="recipe-invalid",
            )

    def _require_dataset(self, dataset: Dataset) -> Path | None:
        """The pack; None for what is there only when the job runs: a gallery, one in the store."""
        if isinstance(dataset, GalleryDataset):
            models_of(self._engine, dataset.gallery)
            return None
        if not has_pack(self._settings, dataset):
            raise NotFound(
                f"There is no dataset {dataset!r}. Put a pack made by `python -m training pack` "
                'into the folder "datasets" of the data folder (and `gaitid share` it if hosts '
                'share a store), or use {"gallery": NAME}.',
                Reason("dataset", "not_found"),
                slug="dataset-not-found",
            )
        return None if self._settings.store else find_pack(self._settings, dataset)

    def _require_model(self, name: str, where: str) -> None:
        try:
            find_model(self._settings, self._engine, name)
        except NotFound:
            raise missing_model(name, where) from None

    def _require_free(self, name: str) -> None:
        try:
            find_model(self._settings, self._engine, name)
        except NotFound:
            return
        raise Conflict(
            f"A model called {name!r} exists already; choose another name.",
            Reason("name", "taken"),
            slug="model-exists",
        )


def _place(reason: Reason, overrides: Collection[str]) -> str:
    """The place in the request or the recipe; an unknown section was made by an override."""
    for key in overrides:
        if f"{reason.where}.".startswith(f"{key}."):
            return f"overrides.{key}"
    if reason.where in ("teachers", "student"):  # fields of the request, too
        return reason.where
    if reason.reason == _NO_SUCH_KEY:
        for key in overrides:
            if key.startswith(f"{reason.where}."):
                return f"overrides.{key}"
    return f"recipe.{reason.where}" if reason.where else "recipe"
