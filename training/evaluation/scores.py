"""Similarities of probes to enrolled subjects: what verification and open-set search decide on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluation.distances import to_similarity
from training.evaluation.retrieval import Split
from training.evaluation.sequences import EmbeddedSequences, LabelledSequences


@dataclass(frozen=True, eq=False)
class SubjectScores:
    """Each probe against each enrolled subject, who is its best sequence, as in `identify`.

    Attributes:
        similarities: larger is better [n, g].
        own: column of each probe's own subject [n]; -1 where it is not enrolled.
        probe_subject: which subject each probe is of, as an index that counts every subject [n].
        enrolled_subject: the same index for each column [g].
        subjects: how many subjects there are in all.
    """

    similarities: NDArray[np.float32]
    own: NDArray[np.int64]
    probe_subject: NDArray[np.int64]
    enrolled_subject: NDArray[np.int64]
    subjects: int

    @property
    def genuine(self) -> NDArray[np.bool_]:
        """Which comparisons are of one person [n, g]."""
        own: NDArray[np.bool_] = self.own[:, None] == np.arange(self.similarities.shape[1])[None, :]
        return own


def subject_scores(
    sequences: LabelledSequences, split: Split, method: EmbeddedSequences
) -> SubjectScores:
    """Compare all probes of a split with all subjects of its gallery."""
    names, index = np.unique(sequences.subjects, return_inverse=True)
    order = np.argsort(index[split.gallery], kind="stable")
    gallery = split.gallery[order]
    enrolled, starts = np.unique(index[gallery], return_index=True)
    similarities = to_similarity(method.distances(split.probes, gallery), method.metric)
    column = np.full(len(names), -1)
    column[enrolled] = np.arange(len(enrolled))
    probe_subject = index[split.probes]
    return SubjectScores(
        np.maximum.reduceat(similarities, starts, axis=1),
        column[probe_subject],
        probe_subject,
        enrolled,
        len(names),
    )
