"""A run from its first step, or from where a killed one stopped, to its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from models import checkpoint
from models.card import Card
from training.data.batches import BatchSource
from training.evaluation import EvaluationResult
from training.evaluation.operating_points import operating_points
from training.process.events import Done, Evaluated, Event, Reporter, Started
from training.process.stopping import Stopped, StopRequest
from training.recipe import Recipe
from training.run import state
from training.run.distributed import Group, join
from training.run.held_out import HeldOutEvaluator
from training.run.meter import Meter
from training.run.preparation import Preparation, card, prepare
from training.run.trainer import Trainer, require_finite

CHECKPOINT = "checkpoint"


def run_recipe(
    recipe: Recipe,
    name: str,
    out: Path,
    reporter: Reporter,
    stop: StopRequest,
    prototypes: Path,
) -> None:
    """Prepare and run, in this process's place among those of torchrun, if it started them.

    Args:
        recipe: read and checked.
        name: of the checkpoint.
        out: the run's folder.
        reporter: told what happens.
        stop: SIGTERM.
        prototypes: folder that keeps those of teachers, for a run that goes on.
    """
    group = join()
    try:
        kept = prototypes if group.leads else None
        preparation = prepare(recipe, group.device, reporter=reporter, kept=kept)
        run(recipe, out, preparation, name=name, reporter=reporter, stop=stop, group=group)
    finally:
        group.close()


def run(
    recipe: Recipe,
    out: Path,
    preparation: Preparation,
    *,
    name: str,
    reporter: Reporter,
    stop: StopRequest,
    group: Group,
) -> Done:
    """Carry a run out, or on, to its end.

    Args:
        recipe: what to do.
        out: folder for state, logs and the checkpoint; an unfinished run in it is continued.
        preparation: data and networks that the recipe names, checked.
        name: of the checkpoint, on its card.
        reporter: told what happens, by the first process only.
        stop: looked at between steps.
        group: the processes of this run.

    Raises:
        TrainingFailed: loss or weights became infinite or NaN.
        StateError: the folder holds another run, or a damaged state.
        Stopped: SIGTERM; the state has been saved.
    """
    out.mkdir(parents=True, exist_ok=True)
    this = preparation.run(recipe)
    saved = group.newest(state.load(out, run=this))
    parts = recipe.in_stages()
    reached = 0 if saved is None else saved.get("stage", 0)
    before = sum(part.steps for part in parts[:reached])
    began = before + (0 if saved is None else saved["step"])
    report = reporter.report if group.leads else _nothing
    report(Started(total_steps=recipe.total_steps, step=began))

    # With the losses: a run that is finished again must make the very same card.
    meter = Meter(recipe.total_steps, began, (saved or {}).get("losses", {}))
    held_out = HeldOutEvaluator(
        recipe.evaluation, preparation.held_out, metric=recipe.metric, mirror=recipe.mirror
    )
    log = SummaryWriter(str(out / "tensorboard"), purge_step=began) if group.leads else None

    def evaluate(trainer: Trainer, done: int, *, error_rates: bool) -> EvaluationResult | None:
        found = None
        if group.leads and held_out.possible:
            with stop.at_once():
                found = held_out.evaluate(
                    trainer.result, trainer.precision, error_rates=error_rates
                )
            report(Evaluated(found.metrics()))
            _write(log, "evaluation", found.metrics(), done)
        group.wait()
        return found

    def take(number: int, trainer: Trainer) -> None:
        """The steps of one part that are left."""
        part = parts[number]
        source = BatchSource(
            preparation.packs[number],
            subjects=part.batch.subjects,
            sequences=part.batch.sequences,
            clip=part.data.clip,
            seed=part.seed,
            same_scene=part.batch.same_scene,
            rank=group.rank,
            world_size=group.size,
            device=group.device,
            pose=preparation.reads_pose,
        )
        for batch in source.iterate(start=trainer.step, stop=part.steps):
            loss, student = trainer.train(batch)
            meter.add(loss, student, batch.labels)
            done = before + trainer.step
            if done % recipe.log_every == 0 or done == recipe.total_steps:
                progress = meter.read(done, trainer.rate, group.size)
                require_finite(progress.metrics["loss"], done)
                report(progress)
                _write(log, "training", progress.metrics, done)
            stopping = group.any(stop.asked)
            evaluating = (
                recipe.evaluation.every
                and done % recipe.evaluation.every == 0
                and done < recipe.total_steps
            )
            ends = trainer.step == part.steps
            if (stopping or evaluating or ends or done % recipe.save_every == 0) and group.leads:
                here = {**trainer.snapshot(), "stage": number, "losses": meter.last}
                state.save(out, here, run=this)
            if stopping:
                raise Stopped
            if evaluating:
                evaluate(trainer, done, error_rates=False)

    try:
        with stop.deferred():
            trainer = Trainer(parts[reached], preparation, group)
            if saved is not None:
                trainer.restore(saved)
            take(reached, trainer)
            for number in range(reached + 1, len(parts)):
                before += parts[number - 1].steps
                meter.forget()  # other terms
                trainer = trainer.followed_by(parts[number], preparation)
                take(number, trainer)
            judgement = evaluate(trainer, recipe.total_steps, error_rates=True)
    finally:
        if log is not None:
            log.close()

    if group.leads:
        described = _described(trainer, recipe, preparation, name, group, meter, judgement)
        checkpoint.save(out / CHECKPOINT, trainer.result, described)
    group.wait()
    finished = Done(str(out / CHECKPOINT), judgement.metrics() if judgement else {})
    report(finished)
    return finished


def _described(
    trainer: Trainer,
    recipe: Recipe,
    preparation: Preparation,
    name: str,
    group: Group,
    meter: Meter,
    judgement: EvaluationResult | None,
) -> Card:
    """The card of a run's result."""
    # Held-out people are few: only thresholds that they could show.
    thresholds = (
        operating_points(judgement.to_dict()["rows"][0], extrapolated=False) if judgement else ()
    )
    return card(
        trainer.result,
        recipe,
        preparation,
        name=name,
        seconds=trainer.seconds,
        processes=group.size,
        precision=trainer.precision,
        losses=meter.last,
        metrics=judgement.metrics() if judgement else {},
        thresholds=thresholds,
    )


def _nothing(_event: Event) -> None:
    """What every process but the first reports."""


def _write(log: SummaryWriter | None, group: str, metrics: Mapping[str, float], step: int) -> None:
    if log is None:
        return
    for name, value in metrics.items():
        log.add_scalar(f"{group}/{name}", value, step)
    log.flush()
