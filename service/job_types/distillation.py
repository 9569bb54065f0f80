"""Distillation: `python -m training distill` on a pack, then export and registration."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from models.files.gallery_file import exported_subjects
from service.foundation.errors import Conflict, NotFound
from service.foundation.settings import Settings
from service.job_types.commands import deployment, device, program
from service.job_types.datasets import dataset_steps, gallery_export
from service.job_types.gate import Verdict
from service.job_types.requests import ActivateRequest, DistillRequest, GalleryDataset, Override
from service.jobs.job import Job, JsonObject
from service.jobs.job_type import JobRefused, Outcome, Step, partial
from service.jobs.queue import ERASED, enqueue_unless_claimed
from service.jobs.scratch import scratch
from service.jobs.tables import JobRow
from service.serving.lineage import TrainingRecord, subjects_now
from service.serving.registry import ModelRegistry, resolve
from service.storage.file_store import open_store


class DistillJob:
    """Trains a student from teachers and registers it."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._models = ModelRegistry(settings, engine)
        self._record = TrainingRecord.of(settings.data_dir, open_store(settings))

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """Export and pack a gallery, train, export the checkpoint, compare it if asked to."""
        request = DistillRequest.model_validate(job.request)
        before, pack = dataset_steps(
            self._settings, request.dataset, folder, hold_out=request.holds_out
        )
        try:
            what = run_arguments(self._settings, self._engine, request, pack)
        except NotFound as error:
            raise JobRefused(f"{error} It was there when the job was queued.") from error
        model = _model(folder)
        # Prototypes identify people as embeddings do: not in the run's folder, which is kept.
        kept = scratch(folder).absolute() / "prototypes"
        train = program(
            "training", "distill", *what, "--out", str(_run(folder)), "--prototypes", str(kept),
            "--json",
        )  # fmt: skip
        export = program(
            "training", "export", str(_checkpoint(folder)), "--out", str(partial(model)),
            "--name", request.name,
        )  # fmt: skip
        verdict = _verdict(folder)
        compare = program(
            "service", "compare-models", request.target, str(partial(verdict)),
            "--checkpoint", str(model), "--pack", str(pack.absolute()),
        )  # fmt: skip
        comparison = Step(
            "comparison", compare, output=verdict, environment=deployment(self._settings)
        )
        return (
            *before,
            Step(
                "training",
                train,
                state=_run(folder) / "state.pt",
                environment=device(self._settings),
            ),
            Step("export", export, output=model, environment=device(self._settings)),
            *((comparison,) if request.holds_out else ()),
        )

    def complete(self, job: Job, folder: Path) -> Outcome:
        """Register the model and its subjects; queue its activation if it is better.

        The held-out subjects count too: the job had their walks, and the comparison used them.
        """
        request = DistillRequest.model_validate(job.request)
        name = request.name
        _refuse_erased(job.error)
        gallery, exported = None, dict[str, str]()
        if isinstance(request.dataset, GalleryDataset):
            gallery = request.dataset.gallery
            exported = exported_subjects(gallery_export(folder))

        def record(session: Session) -> None:
            subject_ids = {*exported.values(), *subjects_now(session, list(exported))}
            self._record.add(session, name, gallery, subject_ids, request.ancestors)

        try:
            staged = self._models.stage_trained(
                name, _model(folder), job_id=job.id, metrics=job.metrics
            )
        except (Conflict, NotFound) as error:
            raise JobRefused(f"the model could not be registered: {error}") from error
        result: JsonObject = {"model": name, "digest": staged.row.digest}
        verdict: Verdict | None = None
        if request.holds_out:
            verdict = Verdict.model_validate_json(_verdict(folder).read_bytes())
            result |= {"gallery": request.target, **verdict.model_dump(exclude={"gallery_id"})}
            result["activation"] = None

        def settle(session: Session) -> None:
            session.add(staged.row)
            try:
                _refuse_erased(session.scalar(select(JobRow.error).where(JobRow.id == job.id)))
            except JobRefused:
                staged.files.withdraw()
                raise
            staged.files.move_in()
            if verdict is not None and verdict.better:
                _queue_activation(session, request, verdict, result)

        return Outcome(
            result,
            before=record,  # the subjects of a model in its folder are known at any moment
            in_transaction=settle,
            spent=(_run(folder) / "state.pt", _checkpoint(folder)),
        )


def _refuse_erased(error: str | None) -> None:
    """Raise `JobRefused` when walks that the job trained on were erased meanwhile."""
    if error == ERASED:
        raise JobRefused(ERASED)


def _queue_activation(
    session: Session, request: DistillRequest, verdict: Verdict, result: JsonObject
) -> None:
    """Queue the activation of a better model if possible; the result says whether it was."""
    activation = ActivateRequest(
        name=request.name, gallery=request.target, instead_of=verdict.against.digest
    )
    job = enqueue_unless_claimed(
        session,
        activation.job_type,
        activation.model_dump(mode="json"),
        claim=activation.claim,
    )
    if job is None:
        result["reason"] += "; not activated, because another job changes the gallery now"
    else:
        result["activation"] = job.id


def run_arguments(
    settings: Settings, engine: Engine, request: DistillRequest, pack: Path | None
) -> tuple[str, ...]:
    """The arguments of `python -m training` for a request; raises `NotFound` for a model."""
    arguments = [str(recipe_path(settings, request.recipe))]
    if pack is not None:
        arguments += ["--dataset", str(pack)]
    for teacher in request.teachers:
        arguments += ["--teacher", str(resolve(settings, engine, teacher).absolute())]
    if request.student is not None:
        arguments += ["--student", str(resolve(settings, engine, request.student).absolute())]
    for key, value in request.overrides.items():
        arguments += ["--set", setting(key, value)]
    return tuple(arguments)


def recipe_names(settings: Settings) -> Sequence[str]:
    """The names of all recipes, without those that `python -m training render` reads."""
    names = (path.stem for path in settings.recipes_dir.glob("*.toml"))
    return sorted(name for name in names if not name.startswith("render-"))


def recipe_path(settings: Settings, name: str) -> Path:
    """The file of the recipe called `name`, which may be missing."""
    return settings.recipes_dir.absolute() / f"{name}.toml"


def recipe_needs(settings: Settings, name: str) -> dict[str, float]:
    """What a recipe says that its run needs of a worker; its own file's table counts whole.

    The training program, which checks the recipe, knows what such a table may hold.
    """
    content = tomllib.loads(recipe_path(settings, name).read_text("utf-8"))
    if "needs" not in content and "like" in content:
        return recipe_needs(settings, content["like"])
    return {key: float(amount) for key, amount in content.get("needs", {}).items()}


def setting(key: str, value: Override) -> str:
    """An override as `--set` reads it: the value in TOML, whose scalars JSON's are.

    A string is quoted, so that it stays a string whatever is in it. TOML wants one character
    escaped that JSON does not.
    """
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"{key}={text}"


def _run(folder: Path) -> Path:
    return folder.absolute() / "run"


def _checkpoint(folder: Path) -> Path:
    return _run(folder) / "checkpoint"


def _verdict(folder: Path) -> Path:
    return scratch(folder).absolute() / "verdict.json"


def _model(folder: Path) -> Path:
    return scratch(folder).absolute() / "model"
