"""A live index: one gallery under one checkpoint, in memory, kept current with the database.

Each search names the revision that it must include, and the index first applies the changes up to
it. So clients read their own writes, and any number of processes serve one gallery.

An index has one scene transform, or none, for its whole life: what it holds and what it is asked
for go through the same.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.comparison.similarity import part_similarity
from service.gallery.coverage import label
from service.gallery.index import GalleryIndex, Hits, Keys
from service.gallery.records import AddedSequence, Changes, Embedding, Metadata, Scalar
from service.gallery.scenes import Scene
from service.gallery.store import GalleryStore

Filter = Mapping[str, Scalar | tuple[Scalar, ...]]
"""Metadata that a sequence must carry: equal to the value, or to any of several."""

_AT_FIRST = 100  # sequences that a search asks its index for, which ranks as many anyway

Facet = tuple[str, str, Scalar]
Name = TypeVar("Name")
EmbedMissing = Callable[[Sequence[str]], Mapping[str, Embedding]]
"""Embeds stored sequences that this checkpoint has not embedded, and keeps the result."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A subject that resembles the probe, by its most similar sequence.

    `seen_from_this_view` says whether the subject has a sequence in the probe's view; None where
    that view, or the view of some sequence, was not said.
    """

    subject_id: str
    sequence_id: str
    similarity: float
    parts: tuple[float, ...] | None
    seen_from_this_view: bool | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    sequence_id: str
    subject_id: str
    facets: tuple[Facet, ...]
    view: str | None


_ByBest = dict[str, tuple[int, float]]
"""Subjects by their best sequence: its key and its similarity."""


class LiveIndex:
    """The index of a gallery, with what a search needs to know of each sequence."""

    def __init__(
        self,
        gallery_id: str,
        digest: str,
        index: GalleryIndex,
        store: GalleryStore,
        embed_missing: EmbedMissing,
        scene: Scene | None = None,
    ) -> None:
        """`index` is empty, of the shape and metric that `scene`, if any, makes of embeddings."""
        self.scene = scene
        self._gallery_id = gallery_id
        self._digest = digest
        self._index = index
        self._store = store
        self._embed_missing = embed_missing
        self._lock = threading.Lock()
        self._revision = 0
        self._next_key = 0
        self._entries: dict[int, _Entry] = {}
        self._keys: dict[str, int] = {}
        self._by_subject: dict[str, set[int]] = defaultdict(set)
        self._by_facet: dict[Facet, set[int]] = defaultdict(set)

    @property
    def scene_version(self) -> str | None:
        """The version of the scene transform that it compares by."""
        return None if self.scene is None else self.scene.version

    @property
    def nbytes(self) -> int:
        """Roughly how much memory the index takes."""
        return self._index.nbytes

    @property
    def subjects(self) -> int:
        """How many subjects there are, as of the last revision that was applied."""
        return len(self._by_subject)

    def same_as(self, other: LiveIndex) -> bool:
        """Whether both hold the same sequences; True as well if their revisions differ."""
        with self._lock:
            revision, held = self._revision, set(self._keys)
        with other._lock:
            return revision != other._revision or held == other._keys.keys()

    def follow(self, newest: int) -> None:
        """Apply the changes up to revision `newest`, at least."""
        with self._lock:
            self._follow(newest)

    def forget(self, sequence_ids: Iterable[str]) -> None:
        """Drop sequences that were erased; nothing is read or embedded."""
        with self._lock:
            self._drop(sequence_ids)

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
        """The `subjects` most similar subjects, each by its best sequence, best first.

        Args:
            newest: a revision that the answer must include.
            probes: a walk [p, c], or several of one person [m, p, c], which are fused.
            subjects: how many are asked for.
            where: restricts the search.
            view: of the probes, for `Candidate.seen_from_this_view`.
            explain: whether candidates are to have `parts`.
        """
        with self._lock:
            self._follow(newest)
            among = None if not where else self._matching(where)
            return self._best(probes, subjects, among, view=view, explain=explain)

    def compare(
        self, newest: int, probes: Embedding, subject_id: str, *, view: str | None = None
    ) -> Candidate | None:
        """The subject's sequence most similar to the probes; None when there is no such subject."""
        with self._lock:
            self._follow(newest)
            keys = self._by_subject.get(subject_id)
            if not keys:
                return None
            return self._best(probes, 1, _array(keys), view=view, explain=False)[0]

    def _best(
        self,
        probes: Embedding,
        subjects: int,
        among: Keys | None,
        *,
        view: str | None,
        explain: bool,
    ) -> list[Candidate]:
        probes = probes[None] if probes.ndim == 2 else probes
        seen = self._seen(probes)
        nearest = [self._nearest(probe, subjects, among) for probe in seen]
        if len(nearest) > 1:
            # Whom one probe resembles, the others are compared with too.
            met = {subject_id for found in nearest for subject_id in found}
            keys = _array(set().union(*(self._by_subject[subject_id] for subject_id in met)))
            keys = keys if among is None else np.intersect1d(keys, among)
            nearest = [self._by_best(self._index.search(one, len(keys), keys)) for one in seen]
        fused = {
            subject_id: fuse([found[subject_id][1] for found in nearest])
            for subject_id in nearest[0]
        }
        candidates = []
        for subject_id in sorted(fused, key=lambda one: -fused[one])[:subjects]:
            keys_of = [found[subject_id][0] for found in nearest]
            best = max(range(len(nearest)), key=lambda row: nearest[row][subject_id][1])
            candidates.append(
                Candidate(
                    subject_id=subject_id,
                    sequence_id=self._entries[keys_of[best]].sequence_id,
                    similarity=fused[subject_id],
                    parts=self._parts(probes, keys_of) if explain else None,
                    seen_from_this_view=self._seen_from(subject_id, view),
                )
            )
        return candidates

    def _nearest(self, probe: Embedding, subjects: int, among: Keys | None) -> _ByBest:
        """At least so many subjects, if there are, best first."""
        reachable = len(self._index) if among is None else len(among)
        subjects = min(subjects, self._count_subjects(among))  # there are no more to look for
        wanted = max(subjects, _AT_FIRST)
        while True:
            # Subjects with many sequences may fill a shortlist: widen it until there are enough.
            best = self._by_best(self._index.search(probe, wanted, among))
            if len(best) >= subjects or wanted >= reachable:
                return best
            wanted *= 4

    def _by_best(self, hits: Hits) -> _ByBest:
        """Of each subject the best sequence: how a subject with several is scored."""
        best: _ByBest = {}
        for key, similarity in zip(hits.keys.tolist(), hits.similarities.tolist(), strict=True):
            best.setdefault(self._entries[key].subject_id, (key, similarity))
        return best

    def _parts(self, probes: Embedding, keys: Sequence[int]) -> tuple[float, ...] | None:
        """The similarity of each part of probes [m, p, c] to m sequences, on average.

        A scene transform mixes the parts, so with one they are compared as the checkpoint made
        them. None if the sequences were erased a moment ago.
        """
        if self.scene is None:
            alike = [
                self._index.part_similarity(probe, np.array([key], np.int64))
                for probe, key in zip(probes, keys, strict=True)
            ]
        else:
            ids = [self._entries[key].sequence_id for key in keys]
            stored = dict(self._store.embeddings(self._digest, ids))
            alike = [
                part_similarity(probe, stored[one][None], "cosine")
                for probe, one in zip(probes, ids, strict=True)
                if one in stored
            ]
        return tuple(np.concatenate(alike).mean(axis=0).tolist()) if alike else None

    def _seen_from(self, subject_id: str, view: str | None) -> bool | None:
        if view is None:
            return None
        views = {self._entries[key].view for key in self._by_subject[subject_id]}
        return True if view in views else (None if None in views else False)

    def _seen(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings [n, p, c] as the index holds them."""
        return embeddings if self.scene is None else self.scene.embeddings(embeddings)

    def _count_subjects(self, among: Keys | None) -> int:
        if among is None:
            return len(self._by_subject)
        return len({self._entries[key].subject_id for key in among.tolist()})

    def _matching(self, where: Filter) -> Keys:
        matching: set[int] | None = None
        for name, value in where.items():
            values = value if isinstance(value, tuple) else (value,)
            any_of: set[int] = set()
            for one in values:
                any_of |= self._by_facet.get(_facet(name, one), set())
            matching = any_of if matching is None else matching & any_of
        return _array(matching or set())

    def _follow(self, newest: int) -> None:
        while self._revision < newest:
            changes = self._store.changes(self._gallery_id, self._revision, self._digest)
            missing = [item.sequence_id for item in changes.added if item.embedding is None]
            made = self._embed_missing(missing) if missing else {}
            self._apply(changes, made)

    def _apply(self, changes: Changes, made: Mapping[str, Embedding]) -> None:
        self._drop(changes.erased)  # first: what was corrected comes again
        embedded = [
            (item, embedding)
            for item in changes.added
            # None: erased before it could be embedded, as a later revision will say.
            if (embedding := made.get(item.sequence_id, item.embedding)) is not None
        ]
        if embedded:
            keys = np.arange(self._next_key, self._next_key + len(embedded), dtype=np.int64)
            self._index.add(keys, self._seen(np.stack([vector for _, vector in embedded])))
            self._next_key += len(embedded)
            for key, (item, _) in zip(keys.tolist(), embedded, strict=True):
                self._remember(key, item)
        self._revision = changes.revision

    def _drop(self, sequence_ids: Iterable[str]) -> None:
        gone = [self._forget(item) for item in sequence_ids if item in self._keys]
        self._index.remove(np.array(gone, np.int64))

    def _remember(self, key: int, item: AddedSequence) -> None:
        view = label(item.metadata.get("view"))
        entry = _Entry(item.sequence_id, item.subject_id, _facets(item.metadata), view)
        self._entries[key] = entry
        self._keys[entry.sequence_id] = key
        self._by_subject[entry.subject_id].add(key)
        for facet in entry.facets:
            self._by_facet[facet].add(key)

    def _forget(self, sequence_id: str) -> int:
        key = self._keys.pop(sequence_id)
        entry = self._entries.pop(key)
        _discard(self._by_subject, entry.subject_id, key)
        for facet in entry.facets:
            _discard(self._by_facet, facet, key)
        return key


def fuse(similarities: Sequence[float]) -> float:
    """How alike a subject is to several walks of one person: the mean of the similarities.

    A stranger's walks seldom all resemble somebody, so the mean reaches a threshold that was found
    for single walks no more often than one of them does.
    """
    return sum(similarities) / len(similarities)


def _discard(groups: dict[Name, set[int]], name: Name, key: int) -> None:
    groups[name].discard(key)
    if not groups[name]:
        del groups[name]


def _array(keys: set[int]) -> Keys:
    return np.array(sorted(keys), np.int64)


def _facets(metadata: Metadata) -> tuple[Facet, ...]:
    return tuple(_facet(name, value) for name, value in metadata.items())


def _facet(name: str, value: Scalar) -> Facet:
    # Equality as in JSON: 1 is 1.0, but true is not 1, though Python says so.
    return (name, "boolean" if isinstance(value, bool) else "other", value)
