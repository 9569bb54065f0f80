"""Which subjects a run learns and holds out, and whether two networks number them alike."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import NamedTuple


class Split(NamedTuple):
    """Subject ids, sorted. A label is an index into `train`."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def split(
    subjects: Sequence[str], partition: tuple[Sequence[str], Sequence[str]] | None, share: float
) -> Split:
    """Choose the subjects to train on and those to evaluate on.

    Held-out subjects are chosen by a hash of their id, not by the run's seed: a teacher and its
    students hold out the same people, and so share their classes.

    Args:
        subjects: all ids of the dataset.
        partition: its training and test ids, if it comes with a partition.
        share: of the training subjects to hold out; with 0 the partition's test subjects are
            held out.

    Raises:
        ValueError: fewer than two subjects would be left to train on, or a share holds out fewer
            than two.
    """
    available = set(subjects)
    trained, tested = (available, set[str]()) if partition is None else map(set, partition)
    train, test = sorted(trained & available), sorted(tested & available)
    held_out: list[str] = test
    if share:
        count = max(2, math.floor(len(train) * share + 0.5))
        chosen = set(sorted(train, key=_shuffled)[:count])
        held_out = [s for s in train if s in chosen]
        train = [s for s in train if s not in chosen]
    if len(train) < 2:
        raise ValueError(f"{len(train)} subjects are left to train on; at least two are needed")
    return Split(tuple(train), tuple(held_out))


def _shuffled(subject: str) -> bytes:
    return hashlib.sha256(subject.encode()).digest()


def identity_hash(subjects: Sequence[str]) -> str:
    """Names a list of classes and their order: equal hashes mean equal axes of logits."""
    return hashlib.sha256(json.dumps(list(subjects)).encode()).hexdigest()
