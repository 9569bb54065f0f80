"""Which subjects resemble a probe: the order of an index's hits, one row a subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.comparison.similarity import part_similarity
from service.gallery.index import GalleryIndex, Hits, Keys
from service.gallery.records import Embedding
from service.gallery.roster import Filter, Roster
from service.gallery.scenes import Scene, scored
from service.gallery.store import GalleryStore

AT_FIRST = 100  # sequences that a search asks its index for, which ranks as many anyway


@dataclass(frozen=True, slots=True)
class Candidate:
    """A subject that resembles the probe; `sequence_id` is its most similar sequence.

    `seen_from_this_view` says whether the subject has a sequence in the probe's view; None where
    that view, or the view of some sequence, was not said.
    """

    subject_id: str
    sequence_id: str
    similarity: float
    parts: tuple[float, ...] | None
    seen_from_this_view: bool | None = None


Scores = Mapping[str, tuple[int, float]]
"""Of subjects the key of the best sequence, and how alike they are."""


class GallerySearch(Protocol):
    """One gallery under one checkpoint and one scene transform, or none, as requests search it.

    Each search names the revision of the database that its answer must include. From any thread.
    """

    @property
    def scene(self) -> Scene | None:
        """The transform through which everything is compared."""

    @property
    def scene_version(self) -> str | None:
        """The version of the scene transform that it compares by."""

    @property
    def nbytes(self) -> int:
        """Roughly how much memory it takes in this process."""

    @property
    def subjects(self) -> int:
        """How many subjects there are, as of the last revision that was applied."""

    def same_as(self, other: GallerySearch) -> bool:
        """Whether both hold the same sequences; True as well if their revisions differ."""

    def follow(self, newest: int) -> None:
        """Apply the changes up to revision `newest`, at least."""

    def forget(self, sequence_ids: Sequence[str]) -> None:
        """Drop sequences that were erased; nothing is read or embedded."""

    def search(
        self,
        newest: int,
        probes: Embedding,
        subjects: int,
        *,
        where: Filter | None = None,
        view: str | None = None,
        explain: bool = False,
    ) -> list[Candidate]:
        """The `subjects` most similar subjects, best first.

        Without a scene transform by their best sequence, with one by all of them (`scenes.scored`):
        of those subjects whose best sequence is among the nearest.

        Args:
            newest: a revision that the answer must include.
            probes: a walk [p, c], or several of one person [m, p, c], which are fused.
            subjects: how many are asked for.
            where: restricts the search.
            view: of the probes, for `Candidate.seen_from_this_view`.
            explain: whether candidates are to have `parts`.
        """

    def compare(
        self, newest: int, probes: Embedding, subject_id: str, *, view: str | None = None
    ) -> Candidate | None:
        """How the subject resembles the probes; None when there is no such subject."""

    def keep(self) -> None:
        """Write down what the next start, or other processes, can use; called every so often."""


class Ranking:
    """An index, with a roster that says whose its keys are."""

    def __init__(
        self,
        index: GalleryIndex,
        roster: Roster,
        store: GalleryStore,
        digest: str,
        scene: Scene | None,
    ) -> None:
        """`store` has the embeddings as the checkpoint of this digest made them."""
        self._index = index
        self._roster = roster
        self._store = store
        self._digest = digest
        self._scene = scene

    def best(
        self,
        probes: Embedding,
        subjects: int,
        among: Keys | None = None,
        *,
        view: str | None = None,
        explain: bool = False,
    ) -> list[Candidate]:
        """The `subjects` most similar subjects, best first; see `GallerySearch.search`."""
        probes = probes[None] if probes.ndim == 2 else probes
        seen = self.seen(probes)
        nearest = [self._nearest(probe, subjects, among) for probe in seen]
        if nearest[0] and (len(nearest) > 1 or self._scene is not None):
            # Whom one probe resembles the others are compared with too, and by all sequences.
            met = {subject_id for found in nearest for subject_id in found}
            keys = np.concatenate([self._roster.of_subject(subject_id) for subject_id in met])
            keys = keys if among is None else np.intersect1d(keys, among)
            nearest = [self._scores(self._index.search(one, len(keys), keys)) for one in seen]
        fused = {
            subject_id: fuse([found[subject_id][1] for found in nearest])
            for subject_id in nearest[0]
            # Not everywhere: erased by another process while the probes were compared.
            if all(subject_id in found for found in nearest)
        }
        candidates = []
        for subject_id in sorted(fused, key=lambda one: -fused[one])[:subjects]:
            keys_of = [found[subject_id][0] for found in nearest]
            best = max(range(len(nearest)), key=lambda row: nearest[row][subject_id][1])
            candidates.append(
                Candidate(
                    subject_id=subject_id,
                    sequence_id=self._roster[keys_of[best]].sequence_id,
                    similarity=fused[subject_id],
                    parts=self._parts(probes, keys_of) if explain else None,
                    seen_from_this_view=seen_from(self._roster.views_of(subject_id), view),
                )
            )
        return candidates

    def met(self, probes: Embedding, subjects: int, among: Keys | None = None) -> set[str]:
        """Whom the nearest sequences of any probe [m, p, c] belong to."""
        nearest = (self._nearest(probe, subjects, among) for probe in self.seen(probes))
        return {subject_id for found in nearest for subject_id in found}

    def _nearest(self, probe: Embedding, subjects: int, among: Keys | None) -> Scores:
        """At least so many subjects, if there are."""
        reachable = len(self._index) if among is None else len(among)
        subjects = (  # there may not be as many
            min(subjects, self._roster.subjects)
            if among is None
            else self._roster.count_subjects(among, subjects)
        )
        wanted = max(subjects, AT_FIRST)
        while True:
            # Subjects with many sequences may fill a shortlist: widen it until there are enough.
            scores = self._scores(self._index.search(probe, wanted, among))
            if len(scores) >= subjects or wanted >= reachable:
                return scores
            wanted *= 4

    def _scores(self, hits: Hits) -> Scores:
        keys = hits.keys.tolist()
        whose = [self._roster[key].subject_id for key in keys]
        found = scored(hits.similarities, whose, self._scene)
        return {subject_id: (keys[row], score) for subject_id, (row, score) in found.items()}

    def _parts(self, probes: Embedding, keys: Sequence[int]) -> tuple[float, ...] | None:
        """The similarity of each part of probes [m, p, c] to m sequences, on average.

        A scene transform mixes the parts, so with one they are compared as the checkpoint made
        them. None if the sequences were erased a moment ago.
        """
        if self._scene is None:
            alike = [
                self._index.part_similarity(probe, np.array([key], np.int64))
                for probe, key in zip(probes, keys, strict=True)
            ]
        else:
            ids = [self._roster[key].sequence_id for key in keys]
            stored = dict(self._store.embeddings(self._digest, ids))
            alike = [
                part_similarity(probe, stored[one][None], "cosine")
                for probe, one in zip(probes, ids, strict=True)
                if one in stored
            ]
        return tuple(np.concatenate(alike).mean(axis=0).tolist()) if alike else None

    def seen(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings [n, p, c] as the index holds them."""
        return embeddings if self._scene is None else self._scene.embeddings(embeddings)


def seen_from(views: set[str | None], view: str | None) -> bool | None:
    """Whether a view is among a subject's; None where it, or one of theirs, was not said."""
    if view is None:
        return None
    return True if view in views else (None if None in views else False)


def fuse(similarities: Sequence[float]) -> float:
    """How alike a subject is to several walks of one person: the mean of the similarities.

    A stranger's walks seldom all resemble somebody, so the mean reaches a threshold that was found
    for single walks no more often than one of them does.
    """
    return sum(similarities) / len(similarities)
