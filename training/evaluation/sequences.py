"""What is evaluated: labelled sequences, and the embeddings one method gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.card import Metric
from training.evaluation.distances import pairwise_distances

Indices = NDArray[np.int64]
Role = Literal["checkpoint", "baseline"]


@dataclass(frozen=True, eq=False)
class LabelledSequences:
    """The labels of n sequences, one array a kind.

    Attributes:
        subjects: who walks [n].
        conditions: under what condition, or which walk it is [n].
        views: from where [n].
        probes: where the data set itself says which sequences are probes [n], else None.
        scenes: in which scene each was filmed [n]; None where it is not known of all.
    """

    subjects: NDArray[np.str_]
    conditions: NDArray[np.str_]
    views: NDArray[np.str_]
    probes: NDArray[np.bool_] | None = None
    scenes: NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.subjects), len(self.conditions), len(self.views)}
        lengths |= {len(one) for one in (self.probes, self.scenes) if one is not None}
        if len(lengths) != 1:
            raise ValueError(f"labels of different lengths: {sorted(lengths)}")

    @classmethod
    def of(
        cls,
        subjects: Sequence[str],
        conditions: Sequence[str],
        views: Sequence[str],
        probes: Sequence[bool] | None = None,
        scenes: Sequence[str] | None = None,
    ) -> LabelledSequences:
        """Labels from plain lists."""
        return cls(
            np.asarray(subjects, np.str_),
            np.asarray(conditions, np.str_),
            np.asarray(views, np.str_),
            None if probes is None else np.asarray(probes, np.bool_),
            None if scenes is None else np.asarray(scenes, np.str_),
        )

    def __len__(self) -> int:
        return len(self.subjects)


@dataclass(frozen=True, eq=False)
class EmbeddedSequences:
    """What one method makes of the sequences: a row of the result.

    Attributes:
        name: as the table shows it.
        embeddings: [n, p, c], in the order of the labels.
        metric: how the method compares.
        mirrored: embeddings of the same sequences with left and right exchanged [n, p, c]. When
            given, a probe is compared as it is and mirrored, and the nearer counts.
        role: the checkpoint under evaluation, or a row to read it against.
        digest: of the checkpoint that embedded them; empty for a method without weights.
    """

    name: str
    embeddings: NDArray[np.float32]
    metric: Metric
    mirrored: NDArray[np.float32] | None = None
    role: Role = "checkpoint"
    digest: str = ""

    def __post_init__(self) -> None:
        if self.mirrored is not None and self.mirrored.shape != self.embeddings.shape:
            raise ValueError(
                f"{self.name}: {self.mirrored.shape} mirrored, {self.embeddings.shape} not"
            )

    def distances(self, probes: Indices, gallery: Indices) -> NDArray[np.float32]:
        """Distances [len(probes), len(gallery)] between sequences given by their indices."""
        gallery_embeddings = self.embeddings[gallery]
        distances = pairwise_distances(self.embeddings[probes], gallery_embeddings, self.metric)
        if self.mirrored is None:
            return distances
        other = pairwise_distances(self.mirrored[probes], gallery_embeddings, self.metric)
        return np.minimum(distances, other, out=distances)
