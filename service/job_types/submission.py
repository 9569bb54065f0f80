"""Taking on a job: everything that can be known to be wrong is said now, not when it runs."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from pydantic import BaseModel
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from service.foundation.errors import Conflict, Invalid, NotFound, Reason, Unavailable
from service.foundation.settings import Settings
from service.gallery.active_model import models_of
from service.gallery.store import missing_gallery
from service.gallery.tables import GalleryRow
from service.job_types.activate import KIND as KIND_OF_ACTIVATION
from service.job_types.activate import claim as claim_on_embeddings
from service.job_types.audit import claim as claim_audit
from service.job_types.datasets import find_pack, program
from service.job_types.distill import recipe_names, run_arguments
from service.job_types.held_out_split import who_saw_everybody
from service.job_types.requests import (
    ActivateRequest,
    AuditRequest,
    CalibrateRequest,
    Dataset,
    DistillRequest,
    EvaluateRequest,
    GalleryDataset,
    ReindexRequest,
)
from service.jobs.findings import KIND as AUDIT
from service.jobs.job import Job
from service.jobs.queue import Also, JobQueue
from service.jobs.reasons import plain
from service.serving.registry import missing_model, read_card, resolve
from service.serving.thresholds import KIND, claim

CheckRecipe = Callable[[Sequence[str]], Sequence[Reason]]
"""Takes the arguments of a run, returns what is wrong and where in the recipe."""

_BAD_INPUT = 2
_NO_SUCH_KEY = "no such key"  # as the program says it


class RecipeCheck:
    """Asks `python -m training validate`, a few at a time, because each is a process."""

    def __init__(self, *, timeout_s: float = 20.0, at_once: int = 2) -> None:
        self._timeout_s = timeout_s
        self._slots = threading.BoundedSemaphore(at_once)

    def __call__(self, arguments: Sequence[str]) -> Sequence[Reason]:
        """Return what is wrong; raises `Unavailable` when it could not be asked in time."""
        if not self._slots.acquire(timeout=self._timeout_s):
            raise Unavailable("Too many recipes are being checked; try again.", retry_after=2.0)
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
                "The recipe could not be checked in time; try again.", retry_after=10.0
            ) from error
        finally:
            self._slots.release()
        if answer.returncode == 0:
            return ()
        if answer.returncode != _BAD_INPUT:
            raise RuntimeError(f"the check of a recipe failed: {answer.stderr.decode()[-2000:]}")
        errors = json.loads(answer.stdout)["errors"]
        return [Reason(error["where"], plain(error["reason"])) for error in errors]


class Submission:
    """Checks requests for jobs and queues them."""

    def __init__(
        self, settings: Settings, engine: Engine, queue: JobQueue, check_recipe: CheckRecipe
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._queue = queue
        self._check_recipe = check_recipe

    def distill(self, request: DistillRequest, also: Also | None = None) -> Job:
        """Queue a distillation.

        Raises `NotFound` for a recipe, dataset or model that does not exist, `Conflict` when the
        name is taken or about to be, `Invalid` when the recipe and the overrides do not fit.
        """
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
        if request.activate == "if_better":
            self._require_fair_comparison(request)
        self._require_free(request.name)
        self._require_fitting(request, pack)
        content = request.model_dump(mode="json")
        return self._queue.enqueue("distill", content, claim=f"model:{request.name}", also=also)

    def evaluate(self, request: EvaluateRequest, also: Also | None = None) -> Job:
        """Queue an evaluation; raises `NotFound` for a model or dataset that does not exist."""
        self._require_model(request.model, "model")
        self._require_dataset(request.dataset)
        return self._queue.enqueue("evaluate", request.model_dump(mode="json"), also=also)

    def calibrate(self, request: CalibrateRequest, also: Also | None = None) -> Job:
        """Queue a calibration.

        Raises `NotFound` for a gallery that does not exist, and `Conflict` when it is being
        calibrated already.
        """
        self._require_gallery(request.gallery)
        return self._queue.enqueue(
            KIND,
            request.model_dump(mode="json"),
            claim=claim(request.gallery),
            claimed_by="gallery",
            also=also,
        )

    def audit(self, request: AuditRequest, also: Also | None = None) -> Job:
        """Queue an audit.

        Raises `NotFound` for a gallery that does not exist, and `Conflict` when it is being audited
        already.
        """
        self._require_gallery(request.gallery)
        return self._queue.enqueue(
            AUDIT,
            request.model_dump(mode="json"),
            claim=claim_audit(request.gallery),
            claimed_by="gallery",
            also=also,
        )

    def activate(self, name: str, gallery: str, also: Also | None = None) -> Job:
        """Queue the activation of a model in a gallery.

        Raises `NotFound` for a model or gallery that does not exist, `Conflict` when the model is
        active there already, or another job changes the gallery's embeddings.
        """
        self._require_model(name, "name")
        active = models_of(self._engine, gallery).active
        digest = read_card(resolve(self._settings, name))["digest"]
        own = resolve(self._settings, self._settings.model)
        if digest == (active.digest if active else read_card(own)["digest"]):
            raise Conflict(
                f"The model {name!r} is active in the gallery {gallery!r} already.",
                Reason("name", "active"),
                slug="model-active",
            )
        request = ActivateRequest(name=name, gallery=gallery)
        return self._enqueue_for(KIND_OF_ACTIVATION, gallery, request, also)

    def reindex(self, request: ReindexRequest, also: Also | None = None) -> Job:
        """Queue a reindexing.

        Raises `NotFound` for a gallery that does not exist, `Conflict` when another job changes its
        embeddings.
        """
        self._require_gallery(request.gallery)
        return self._enqueue_for("reindex", request.gallery, request, also)

    def _enqueue_for(self, kind: str, gallery: str, request: BaseModel, also: Also | None) -> Job:
        return self._queue.enqueue(
            kind,
            request.model_dump(mode="json"),
            claim=claim_on_embeddings(gallery),
            claimed_by="gallery",
            also=also,
        )

    def _require_fair_comparison(self, request: DistillRequest) -> None:
        self._require_gallery(request.target)
        ancestors = [*request.teachers, *filter(None, [request.student])]
        with Session(self._engine) as session:
            seen_by = who_saw_everybody(session, ancestors, request.target)
        if seen_by is not None:
            raise Conflict(
                f"The model {seen_by!r} was trained on everybody in the gallery "
                f"{request.target!r}, so nobody is left to compare on. Use other teachers, or "
                'leave `activate` at "never" and judge for yourself.',
                Reason("activate", "held_out_people_were_seen"),
                slug="no-fair-comparison",
            )

    def _require_fitting(self, request: DistillRequest, pack: Path | None) -> None:
        wrong = self._check_recipe(run_arguments(self._settings, request, pack))
        if (
            pack is None
        ):  # a gallery, packed when the job runs: the recipe's own dataset is not used
            wrong = [reason for reason in wrong if reason.where != "data.dataset"]
        if wrong:
            raise Invalid(
                "The recipe cannot be run with these overrides; correct what `errors` names.",
                *(Reason(_place(item, request.overrides), item.reason) for item in wrong),
                slug="recipe-invalid",
            )

    def _require_dataset(self, dataset: Dataset) -> Path | None:
        """The pack; None for a gallery, which is packed when the job runs."""
        if isinstance(dataset, GalleryDataset):
            self._require_gallery(dataset.gallery)
            return None
        pack = find_pack(self._settings, dataset)
        if pack is None:
            raise NotFound(
                f"There is no dataset {dataset!r}. Put a pack made by `python -m training pack` "
                'into the folder "datasets" of the data folder, or use {"gallery": NAME}.',
                Reason("dataset", "not_found"),
                slug="dataset-not-found",
            )
        return pack

    def _require_gallery(self, name: str) -> None:
        query = select(GalleryRow.id).where(GalleryRow.name == name)
        with Session(self._engine) as session:
            if session.scalar(query) is None:
                raise missing_gallery(name)

    def _require_model(self, name: str, where: str) -> None:
        try:
            resolve(self._settings, name)
        except NotFound:
            raise missing_model(name, where) from None

    def _require_free(self, name: str) -> None:
        try:
            resolve(self._settings, name)
        except NotFound:
            return
        raise Conflict(
            f"A model called {name!r} exists already; choose another name.",
            Reason("name", "taken"),
            slug="model-exists",
        )


def _place(reason: Reason, overrides: Collection[str]) -> str:
    """Where in the request or the recipe it is; a section nobody has was made by an override."""
    for key in overrides:
        if f"{reason.where}.".startswith(f"{key}."):
            return f"overrides.{key}"
    if reason.reason == _NO_SUCH_KEY:
        for key in overrides:
            if key.startswith(f"{reason.where}."):
                return f"overrides.{key}"
    return f"recipe.{reason.where}" if reason.where else "recipe"
