"""A gallery that is searched in a vector database, which all processes share.

A process holds neither embeddings nor ids of the gallery: only its *tail*, what came since the
revision that the collection has reached. A search asks the collection for a shortlist, adds that of
the tail, and reads both from the database, which says who is still enrolled, as what, and with
which embedding; those are ranked as every index ranks. So a search misses nothing that was
acknowledged, and finds nobody who was erased, however far the collection is behind.

One process at a time writes the tail to the collection (`index_collections`), every few seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from models.card import Metric
from models.comparison.similarity import index_vectors
from service.foundation.errors import NotFound, Unavailable
from service.gallery.faiss_index import FaissIndex
from service.gallery.index_collections import (
    IndexCollection,
    IndexCollections,
    Serves,
    WriterReplaced,
)
from service.gallery.live_index import EmbedMissing
from service.gallery.memory_index import MemoryIndex
from service.gallery.milvus_index import CollectionGone
from service.gallery.ranking import AT_FIRST, Candidate, GallerySearch, Ranking, seen_from
from service.gallery.records import AddedSequence, Changes, Embedding
from service.gallery.roster import Filter, Roster
from service.gallery.scenes import Scene
from service.gallery.store import GalleryStore
from service.storage.database import in_pieces, new_id

_WAIT_S = 0.2  # between two looks how far another process has written
_SWEEP_S = 60.0
_COUNTED = 20_000  # subjects that are counted anew at every change; more, every so often
_COUNT_S = 60.0
_WRITTEN_AT_ONCE = 1024  # sequences between two signs of life

_log = logging.getLogger(__name__)


class _Tail:
    """What came to a gallery after revision `since`, up to `revision`."""

    def __init__(self, since: int, shape: tuple[int, int], metric: Metric, shortlist: int) -> None:
        self.since = self.revision = since
        self.roster = Roster()
        self.index = FaissIndex(*shape, metric, shortlist=shortlist)

    def nearest(self, probes: Embedding, limit: int, where: Filter | None) -> set[str]:
        """The ids of the `limit` sequences most similar to any of the probes [m, p, c]."""
        among = None if not where else self.roster.matching(where)
        hits = (self.index.search(probe, limit, among) for probe in probes)
        return {self.roster[key].sequence_id for found in hits for key in found.keys.tolist()}


class SharedIndex:
    """One gallery in a collection of Milvus. From any thread."""

    def __init__(
        self,
        serves: Serves,
        shape: tuple[int, int],
        metric: Metric,
        store: GalleryStore,
        collections: IndexCollections,
        embed_missing: EmbedMissing,
        *,
        scene: Scene | None = None,
        shortlist: int = 100,
        longest_tail: int = 20_000,
        go_on: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is read yet.

        Args:
            serves: the gallery, the checkpoint's digest, and what the collection is of.
            shape: p and c of embeddings as they are compared.
            metric: by which they are compared.
            store: the database.
            collections: of the vector database.
            embed_missing: embeds what the checkpoint has not embedded.
            scene: the transform through which everything is compared.
            shortlist: sequences at least that are ranked exactly.
            longest_tail: sequences that a process holds at most; with more to come, a search must
                wait for the collection.
            go_on: raises to end writing that may take long, at the service's end, say.
        """
        self.scene = scene
        self._serves = serves
        self._shape = shape
        self._metric: Metric = metric
        self._store = store
        self._collections = collections
        self._milvus = collections.milvus
        self._embed_missing = embed_missing
        self._shortlist = shortlist
        self._longest_tail = longest_tail
        self._go_on = go_on
        self._writer = new_id()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._collection: IndexCollection | None = None
        self._tail = self._new_tail(0)
        self._subjects = (-1, 0.0, 0)  # as of a revision, when, how many
        self._sweep_at = 0.0

    @property
    def scene_version(self) -> str | None:
        """The version of the scene transform that it compares by."""
        return None if self.scene is None else self.scene.version

    @property
    def nbytes(self) -> int:
        """Roughly how much memory the tail takes."""
        return self._tail.index.nbytes

    @property
    def subjects(self) -> int:
        """How many subjects there are; of very many, as of a minute ago."""
        revision, counted_at, count = self._subjects
        late = self._tail.revision != revision
        if late and (count < _COUNTED or time.monotonic() > counted_at + _COUNT_S):
            revision = self._tail.revision
            count = self._store.count_subjects(self._serves.gallery_id)
            self._subjects = (revision, time.monotonic(), count)
        return count

    def same_as(self, other: GallerySearch) -> bool:
        """Whether both collections have as many rows; True as well if their revisions differ."""
        if not isinstance(other, SharedIndex):
            return False
        mine, others = self._now(), other._now()
        if mine.revision != others.revision or mine.revision == 0:
            return True
        try:
            return self._milvus.count(mine.name) == self._milvus.count(others.name)
        except CollectionGone:
            return False

    def follow(self, newest: int) -> None:
        """Wait until the collection is so near to revision `newest` that searches reach it.

        Writes it, if nobody else does. Raises `Unavailable` while the vector database is away.
        """
        while not self._reach(newest, fresh=True):
            self._go_on()
            if not self._write():
                time.sleep(_WAIT_S)

    def forget(self, sequence_ids: Sequence[str]) -> None:
        """Drop sequences that were erased from the tail."""
        with self._lock:
            self._tail.index.remove(self._tail.roster.remove(sequence_ids))

    def keep(self) -> None:
        """Write the tail to the collection, if nobody else does."""
        collection, revision = self._now(), self._tail.revision
        if collection.revision < revision:
            self._write()
        if time.monotonic() > self._sweep_at:
            self._sweep_at = time.monotonic() + _SWEEP_S
            self._collections.sweep()

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
        """See `GallerySearch.search`; raises `Unavailable` while the collection is far behind."""
        probes = probes[None] if probes.ndim == 2 else probes
        try:
            found = self._found(newest, probes, subjects, where)
        except CollectionGone:
            self._make_anew()
            found = self._found(newest, probes, subjects, where)
        ranking, roster, index = self._ranking()
        _add(ranking, roster, index, found)
        among = None if not where else roster.matching(where)
        if len(found) and (len(probes) > 1 or self.scene is not None):
            met = ranking.met(probes, subjects, among)
            every = self._store.enrolled(
                self._serves.gallery_id, self._serves.digest, subject_ids=met
            )
            known = {item.sequence_id for item in found}
            _add(ranking, roster, index, [one for one in every if one.sequence_id not in known])
            among = None if not where else roster.matching(where)
        best = ranking.best(probes, subjects, among, explain=explain)
        return self._seen_from(best, view)

    def compare(
        self, newest: int, probes: Embedding, subject_id: str, *, view: str | None = None
    ) -> Candidate | None:
        """How the subject resembles the probes; None when there is no such subject."""
        self._reach(newest)  # for `subjects`
        of_subject = self._store.enrolled(
            self._serves.gallery_id, self._serves.digest, subject_ids=[subject_id]
        )
        ranking, roster, index = self._ranking()
        _add(ranking, roster, index, self._embedded(of_subject))
        best = ranking.best(probes, 1) if len(index) else []
        return next(iter(self._seen_from(best, view)), None)

    def _found(
        self, newest: int, probes: Embedding, subjects: int, where: Filter | None
    ) -> list[AddedSequence]:
        """The nearest sequences with embeddings, of as many subjects if there are."""
        seen = self._ranking()[0].seen(probes)
        vectors = index_vectors(seen)
        subjects = subjects if where else min(subjects, self.subjects)
        wanted = max(subjects, AT_FIRST, self._shortlist)
        while True:
            with self._lock:
                if not self._reach_held(newest):
                    raise Unavailable(
                        "Many walks have come to the gallery, and its index is being brought up to "
                        "date.",
                        slug="index-behind",
                        retry_after=5.0,
                    )
                collection = self._now_held()
                ids = self._tail.nearest(seen, wanted, where)
                more = len(self._tail.index) > wanted
            if collection.revision:
                nearest = self._milvus.nearest(
                    collection.name, vectors, wanted, where, collection.written
                )
                ids |= nearest.ids
                more |= nearest.more
            there = self._store.enrolled(
                self._serves.gallery_id, self._serves.digest, sequence_ids=ids
            )
            found = [item for item in there if item.embedding is not None]
            if not more or _subjects_of(found, where) >= subjects:
                return found
            wanted *= 4

    def _ranking(self) -> tuple[Ranking, Roster, MemoryIndex]:
        """Of nothing yet."""
        roster, index = Roster(), MemoryIndex(*self._shape, self._metric)
        ranking = Ranking(index, roster, self._store, self._serves.digest, self.scene)
        return ranking, roster, index

    def _seen_from(self, best: list[Candidate], view: str | None) -> list[Candidate]:
        if view is None or not best:
            return [replace(one, seen_from_this_view=None) for one in best]
        views = self._store.views(self._serves.gallery_id, [one.subject_id for one in best])
        return [
            replace(one, seen_from_this_view=seen_from(views.get(one.subject_id, set()), view))
            for one in best
        ]

    # Following

    def _reach(self, newest: int, *, fresh: bool = False) -> bool:
        """Bring the tail to a revision; False if it would be too long.

        `fresh` asks the database how far the collection is now, instead of some seconds ago.
        """
        with self._lock:
            return self._reach_held(newest, fresh=fresh)

    def _reach_held(self, newest: int, *, fresh: bool = False) -> bool:
        collection = self._now_held(fresh=fresh)
        if self._tail.since != collection.revision:
            self._tail = self._new_tail(collection.revision)
        tail, gallery_id = self._tail, self._serves.gallery_id
        while tail.revision < newest:
            room = self._longest_tail - len(tail.roster)
            if self._store.count_newer(gallery_id, tail.revision, room + 1) > room:
                return False
            changes = self._store.changes(gallery_id, tail.revision, self._serves.digest)
            self._extend(tail, changes)
        return True

    def _extend(self, tail: _Tail, changes: Changes) -> None:
        tail.index.remove(tail.roster.remove(changes.erased))  # first: what was corrected comes
        added = self._embedded(changes.added)
        if added:
            ranking = self._ranking()[0]
            keys = tail.roster.add(added)
            tail.index.add(keys, ranking.seen(_stacked(added)))
        tail.revision = changes.revision

    def _embedded(self, added: Sequence[AddedSequence]) -> list[AddedSequence]:
        """All with their embeddings, but for those that were erased before they had any."""
        missing = [item.sequence_id for item in added if item.embedding is None]
        made = self._embed_missing(missing) if missing else {}
        filled = [
            replace(item, embedding=made.get(item.sequence_id)) if item.embedding is None else item
            for item in added
        ]
        return [item for item in filled if item.embedding is not None]

    def _new_tail(self, since: int) -> _Tail:
        return _Tail(since, self._shape, self._metric, self._shortlist)

    def _now(self) -> IndexCollection:
        """The collection, and how far it is now."""
        with self._lock:
            return self._now_held(fresh=True)

    def _now_held(self, *, fresh: bool = False) -> IndexCollection:
        if self._collection is None or fresh:
            self._collection = self._collections.of(self._serves)
        return self._collection

    def _make_anew(self) -> None:
        """Look for the collection's successor; if there is none, begin one."""
        with self._lock:
            collection = self._collection
            if collection is not None and collection.name == self._now_held(fresh=True).name:
                self._collections.lost(self._serves, collection.name)
            self._collection = None

    # Writing

    def _write(self) -> bool:
        """Write everything that came to the collection; False if another process does."""
        if not self._writing.acquire(blocking=False):
            return False
        try:
            collection = self._collections.claim(self._serves, self._writer)
            if collection is None:
                return False
            try:
                self._write_all(collection)
            finally:
                self._collections.release(collection.name, self._writer)
        except CollectionGone:
            self._make_anew()
        except WriterReplaced:
            return False
        finally:
            self._writing.release()
        return True

    def _write_all(self, collection: IndexCollection) -> None:
        name, revision = collection.name, collection.revision
        gallery_id, digest = self._serves.gallery_id, self._serves.digest
        if revision == 0:
            self._milvus.create(name, self._shape[0] * self._shape[1])
        while True:
            self._go_on()
            try:
                changes = self._store.changes(gallery_id, revision, digest)
            except NotFound:  # the gallery was erased meanwhile
                return
            if changes.revision == revision:
                return
            self._write_changes(name, changes)
            revision = changes.revision
            reached = {"revision": revision, "written": self._milvus.timestamp()}
            if changes.erased:
                reached |= {"erased": revision, "holds_deleted": True}
            self._collections.advance(name, self._writer, **reached)

    def _write_changes(self, name: str, changes: Changes) -> None:
        added = self._embedded(changes.added)
        again = {item.sequence_id for item in added}
        self._milvus.delete(name, [one for one in changes.erased if one not in again])
        ranking = self._ranking()[0]
        for some in in_pieces(added, _WRITTEN_AT_ONCE):
            self._collections.beat(name, self._writer)
            ids = [item.sequence_id for item in some]
            vectors = index_vectors(ranking.seen(_stacked(some)))
            self._milvus.write(name, ids, [item.metadata for item in some], vectors)
            try:
                self._collections.beat(name, self._writer)
            except WriterReplaced:
                self._collections.take_back(name, ids)
                raise


def _add(
    ranking: Ranking, roster: Roster, index: MemoryIndex, found: Sequence[AddedSequence]
) -> None:
    """Add sequences with embeddings to an index and its roster."""
    if found:
        index.add(roster.add(found), ranking.seen(_stacked(found)))


def _stacked(found: Sequence[AddedSequence]) -> Embedding:
    """The embeddings [n, p, c] of sequences that have one."""
    return np.stack([item.embedding for item in found if item.embedding is not None])


def _subjects_of(found: Sequence[AddedSequence], where: Filter | None) -> int:
    roster = Roster()
    keys = roster.add(found)
    keys = keys if not where else roster.matching(where)
    return roster.count_subjects(keys, len(keys))
