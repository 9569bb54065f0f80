"""From what training leaves to what is put into service."""

from __future__ import annotations

from pathlib import Path

from models import checkpoint
from models.checkpoint import Card
from models.registry import build
from training.events import Done, Reporter

CLASSIFIER = "head.classifier.weight"


def export_checkpoint(
    source: Path,
    out: Path,
    reporter: Reporter,
    *,
    name: str | None = None,
    keep_classifier: bool = False,
    half: bool = True,
) -> Card:
    """Write a checkpoint without the training identities and in half precision.

    Args:
        source: folder of a trained checkpoint.
        out: folder of the new one.
        reporter: told where it lies.
        name: on the new card; the old one's when None.
        keep_classifier: keep the classifier, for a teacher of logits.
        half: store matrices and kernels in float16.

    Returns:
        The new card. What the old one says of training and metrics stays on it.

    Raises:
        models.checkpoint.CheckpointError: the source cannot be read or the target not be written.
    """
    network, card = checkpoint.load(source, "cpu")
    identities = network.identities if keep_classifier else 0
    slim = build(card.architecture, {**card.config, "identities": identities})
    weights = network.state_dict()
    if not keep_classifier:
        weights[CLASSIFIER] = slim.state_dict()[CLASSIFIER]
    slim.load_state_dict(weights)
    described = card.model_copy(
        update={
            "name": name or card.name,
            "config": slim.config.model_dump(mode="json"),
            "identities": identities,
            "training": {**card.training, "exported_from": card.digest},
        }
    )
    written = checkpoint.save(out, slim, described, half=half)
    reporter.report(Done(str(out), {}))
    return written
