"""Export a trained checkpoint for use in a service."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import JsonValue

from models import checkpoint
from models.card import Card, Metric
from models.networks.registry import build
from training.derive.quantise import quantise
from training.evaluation.operating_points import operating_points, threshold_at
from training.process.events import Done, Reporter
from training.recipe import Problem, RecipeError

EmbeddingSource = Literal["embedding", "neck"]
CLASSIFIER = "head.classifier.weight"
_COMPARED: Final = ("embedding_source", "window", "quantised")
"""Of the configuration: what changes embeddings of the same weights."""


def export_checkpoint(
    source: Path,
    out: Path,
    reporter: Reporter,
    *,
    name: str | None = None,
    keep_classifier: bool = False,
    half: bool = True,
    metric: Metric | None = None,
    embedding_source: EmbeddingSource | None = None,
    window: int | None = None,
    calibration: Path | None = None,
    evaluations: Sequence[Path] = (),
    decides_at: tuple[float, int] | None = None,
    notes: str | None = None,
) -> Card:
    """Write a checkpoint without the training identities and in half precision.

    Args:
        source: folder of a trained checkpoint.
        out: folder of the new one.
        reporter: told where it lies.
        name: on the new card; the old one's when None.
        keep_classifier: keep the classifier, for a teacher of logits.
        half: store matrices and kernels in float16.
        metric: how embeddings are compared; as the old card says when None.
        embedding_source: what is compared, before or after the neck; as configured when None.
        window: frames that the maximum over time is taken of (`NetworkConfig.window`); as
            configured when None.
        calibration: a pack of walks to quantise the network for, to whole numbers of 8 bits (see
            `training.derive.quantise`): its figures and thresholds are then still to be measured.
        evaluations: results that `evaluate --out` wrote. All give figures to the card; the first
            that measured open-set errors, without mirrored probes, gives the thresholds.
        decides_at: which of the thresholds decides by default: FPIR and enrolled
            subjects; 1 % with 100, where it is among them, when None.
        notes: on the new card; the old one's when None.

    Returns:
        The new card. What the old one says of training and metrics stays on it.

    Raises:
        RecipeError: an evaluation cannot be read or is of the network before it is quantised, no
            threshold is for `decides_at`, or the network cannot be quantised with these walks.
        models.card.CheckpointError: the source cannot be read or the target not be written.
        training.data.pack.PackError: the walks cannot be used.
    """
    if calibration is not None and evaluations:
        reason = "is of the network before it is quantised; evaluate and export the result"
        raise RecipeError([Problem("--evaluation", reason)])
    results = [_read(path) for path in evaluations]
    measured = (operating_points(result["rows"][0]) for result in results)
    points = next(filter(None, measured), ())
    network, card = checkpoint.load(source, "cpu")
    identities = network.identities if keep_classifier else 0
    changes: dict[str, JsonValue] = {"identities": identities}
    if embedding_source is not None:
        changes["embedding_source"] = embedding_source
    if window is not None:
        changes["window"] = window
    slim = build(card.architecture, {**card.config, **changes})
    weights = network.state_dict()
    if not keep_classifier:
        weights[CLASSIFIER] = slim.state_dict()[CLASSIFIER]
    slim.load_state_dict(weights)
    training: dict[str, JsonValue] = {**card.training, "exported_from": card.digest}
    metrics = card.metrics
    if calibration is not None:
        slim, facts = quantise(slim, calibration)
        training["quantised"] = {"checkpoint": card.digest, **facts}
        metrics = {}
    config = slim.config.model_dump(mode="json")
    compared_alike = (metric or card.metric, *map(config.get, _COMPARED)) == (
        card.metric,
        *map(card.config.get, _COMPARED),
    )
    threshold = threshold_at(points)
    if not points and compared_alike:  # otherwise the old ones are on another scale
        points, threshold = card.thresholds, card.threshold
    if decides_at is not None:
        threshold = threshold_at(points, *decides_at)
        if threshold is None:
            rate, size = decides_at
            reason = f"there is no threshold for an FPIR of {rate:g} with {size:,} enrolled"
            raise RecipeError([Problem("--decides-at", reason)])
    described = card.model_copy(
        update={
            "name": name or card.name,
            "config": config,
            "identities": identities,
            "metric": metric or card.metric,
            "training": training,
            "metrics": {**metrics, **{_title(result): _figures(result) for result in results}},
            "notes": card.notes if notes is None else notes,
            "thresholds": points,
            "threshold": threshold,
        }
    )
    written = checkpoint.save(out, slim, described, half=half)
    reporter.report(Done(str(out), {}))
    return written


def _read(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # What everything below relies on.
        result["rows"][0]["figures"], result["rows"][0]["mirrored"], result["dataset_hash"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RecipeError(
            [Problem("--evaluation", f"{path.name} is not a result of `evaluate --out`")]
        ) from error
    return result


def _title(result: dict[str, Any]) -> str:
    return f"{result['protocol']} on {result['dataset']} {result['dataset_hash'][:12]}"


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    """Every row's headline figures as `[value, low, high]`, and what they rest on."""
    rows = {
        row["name"]: {
            figure["name"]: [
                None if figure["estimate"][key] is None else round(figure["estimate"][key], 4)
                for key in ("value", "low", "high")
            ]
            for figure in row["figures"]
            if not figure["detail"]
        }
        for row in result["rows"]
    }
    return {
        "subjects": result["subjects"],
        "sequences": result["sequences"],
        "interval": result["resampling"],
        "rows": rows,
    }
