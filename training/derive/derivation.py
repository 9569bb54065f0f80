"""Copies of trained networks with another configuration, and their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from models import checkpoint
from models.card import Card, Metric
from models.checkpoint import card_of
from models.networks.network import GaitNetwork
from models.networks.registry import build
from training.process import provenance
from training.process.events import Done, Reporter


def rebuilt(network: GaitNetwork, **changes: object) -> GaitNetwork:
    """A second network with the same weights and some of its configuration changed.

    With `identities` among the changes its classifier is a new one, of random weights.

    Args:
        network: stays as it is.
        changes: to its configuration, none that other weights change shape with.
    """
    config = network.config.model_dump(mode="json")
    second = build(network.config.architecture, {**config, **changes})
    weights = network.state_dict()
    if "identities" in changes:
        weights |= second.head.classifier.state_dict(prefix="head.classifier.")
    second.load_state_dict(weights)
    return second


def save_derived(
    out: Path,
    network: GaitNetwork,
    origin: Card,
    reporter: Reporter,
    *,
    step: str,
    facts: Mapping[str, JsonValue],
    metric: Metric | None = None,
) -> Card:
    """Write a network that was made out of another, with a card that says from which and how.

    Args:
        out: folder of the new checkpoint.
        network: what is saved.
        origin: card of the checkpoint it was made out of.
        reporter: told where it lies.
        step: what was done, a key beside what the origin's card says of its training.
        facts: of that step, beside the origin's digest and this code's commit.
        metric: how embeddings are compared; as the origin's if None.

    Returns:
        The new card, without the figures and thresholds of the old one: they are of another
        network.

    Raises:
        models.card.CheckpointError: it cannot be written.
    """
    done = {"checkpoint": origin.digest, **facts, "commit": provenance.commit()}
    written = checkpoint.save(
        out,
        network,
        card_of(
            network,
            name=origin.name,
            metric=metric or origin.metric,
            input=origin.input,
            mirror=origin.mirror,
            training={**origin.training, step: done},
            notes=origin.notes,
        ),
    )
    reporter.report(Done(str(out), {}))
    return written
