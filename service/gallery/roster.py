"""Whose the embeddings of an index are, and what is said of them: by key, by subject, by metadata.

A million walks share few metadata, so walks that carry the same are one `Kind`, and a filter looks
at kinds instead of walks. Keys count up and are never used again: a group of them is an array that
stays in order, eight bytes a walk.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.gallery.coverage import label
from service.gallery.index import Keys
from service.gallery.records import AddedSequence, Metadata, Scalar

Filter = Mapping[str, Scalar | tuple[Scalar, ...]]
"""Metadata that a sequence must carry: equal to the value, or to any of several."""

Facet = tuple[str, str, Scalar]
Facets = tuple[Facet, ...]
ID_BYTES = 36


class _Kind:
    """Sequences that carry the same metadata."""

    __slots__ = ("facets", "keys")

    def __init__(self, facets: Facets, keys: bytes = b"") -> None:
        self.facets = facets
        self.keys = array("q", keys)

    @property
    def view(self) -> str | None:
        """Their view as text; None if they name none."""
        return next((label(value) for name, _, value in self.facets if name == "view"), None)


class Entry(NamedTuple):
    """One sequence."""

    sequence_id: str
    subject_id: str
    kind: _Kind


class Listing(NamedTuple):
    """A roster of n sequences as arrays, for keeping; their keys are 0 to n - 1.

    Attributes:
        sequence_ids: bytes [n], ASCII.
        subject_of: positions in `subjects`, int32 [n].
        subjects: the subjects' ids, each once.
        kind_of: positions in `kinds`, int32 [n].
        kinds: what the metadata says, each once.
    """

    sequence_ids: NDArray[np.bytes_]
    subject_of: NDArray[np.int32]
    subjects: list[str]
    kind_of: NDArray[np.int32]
    kinds: list[Facets]


class Roster:
    """The sequences of an index. Not safe for use by several threads at once."""

    def __init__(self) -> None:
        self.next_key = 0
        self._entries: dict[int, Entry] = {}
        self._keys: dict[str, int] = {}
        self._by_subject: dict[str, array[int]] = {}
        self._kinds: dict[Facets, _Kind] = {}
        self._by_facet: dict[Facet, dict[_Kind, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, key: int) -> Entry:
        return self._entries[key]

    @property
    def subjects(self) -> int:
        """How many subjects there are."""
        return len(self._by_subject)

    def sequence_ids(self) -> set[str]:
        """The ids of all."""
        return set(self._keys)

    def named(self, keys: Keys) -> dict[str, int]:
        """These keys by their sequences' ids; keys that are not held are left out. Any thread."""
        entries = map(self._entries.get, keys.tolist())
        return {
            entry.sequence_id: key
            for key, entry in zip(keys.tolist(), entries, strict=True)
            if entry is not None
        }

    def add(self, items: Collection[AddedSequence]) -> Keys:
        """Give sequences keys [n], in their order."""
        first = self.next_key
        self.next_key += len(items)
        for key, item in enumerate(items, first):
            # Ids are shared as objects: each would be read from the database a walk anew.
            subject_id = sys.intern(item.subject_id)
            facets = _facets(item.metadata)
            kind = self._kinds.get(facets) or self._new_kind(facets)
            self._entries[key] = Entry(item.sequence_id, subject_id, kind)
            self._keys[item.sequence_id] = key
            self._by_subject.setdefault(subject_id, array("q")).append(key)
            kind.keys.append(key)
        return np.arange(first, self.next_key)

    def remove(self, sequence_ids: Iterable[str]) -> Keys:
        """Forget sequences, as far as they are held; the keys that they had."""
        gone = []
        for sequence_id in sequence_ids:
            key = self._keys.pop(sequence_id, None)
            if key is None:
                continue
            gone.append(key)
            _, subject_id, kind = self._entries.pop(key)
            if _without(self._by_subject[subject_id], key):
                del self._by_subject[subject_id]
            if _without(kind.keys, key):
                del self._kinds[kind.facets]
                for facet in kind.facets:
                    del self._by_facet[facet][kind]
                    if not self._by_facet[facet]:
                        del self._by_facet[facet]
        return np.array(gone, np.int64)

    def of_subject(self, subject_id: str) -> Keys:
        """A subject's keys; none of one who is not enrolled."""
        return np.array(self._by_subject.get(subject_id, ()), np.int64)

    def views_of(self, subject_id: str) -> set[str | None]:
        """The views of a subject's sequences; None is among them if a sequence names none."""
        kinds = {self._entries[key].kind for key in self._by_subject.get(subject_id, ())}
        return {kind.view for kind in kinds}

    def matching(self, where: Filter) -> Keys:
        """The keys of what a filter lets through, in no order."""
        chosen: set[_Kind] | None = None
        for name, value in where.items():
            values = value if isinstance(value, tuple) else (value,)
            facets = (_facet(name, one) for one in values)
            any_of = {kind for facet in facets for kind in self._by_facet.get(facet, ())}
            chosen = any_of if chosen is None else chosen & any_of
        keys = [np.frombuffer(kind.keys, np.int64) for kind in chosen or ()]
        return np.concatenate(keys) if keys else np.empty(0, np.int64)

    def count_subjects(self, among: Keys, most: int) -> int:
        """How many subjects these keys have; `most` if they are more."""
        seen: set[str] = set()
        for key in among:
            seen.add(self._entries[int(key)].subject_id)
            if len(seen) >= most:
                break
        return len(seen)

    def entries(self) -> tuple[Keys, list[Entry]]:
        """All keys, which rise, and what they stand for."""
        return np.fromiter(self._entries, np.int64, len(self)), list(self._entries.values())

    def restore(self, listing: Listing) -> None:
        """Begin with what was listed, and was checked if it comes from a file."""
        codes = (listing.subject_of, listing.kind_of)
        ids = listing.sequence_ids.astype(np.str_).tolist()
        subjects = [*map(sys.intern, listing.subjects)]
        for subject, held in zip(subjects, _groups(codes[0]), strict=True):
            self._by_subject[subject] = array("q", held.tobytes())
        kinds = [
            self._new_kind(facets, held.tobytes())
            for facets, held in zip(listing.kinds, _groups(codes[1]), strict=True)
        ]
        whose = map(subjects.__getitem__, codes[0].tolist())
        what = map(kinds.__getitem__, codes[1].tolist())
        self._entries = dict(enumerate(map(Entry, ids, whose, what)))
        self._keys = {sequence_id: key for key, sequence_id in enumerate(ids)}
        self.next_key = len(ids)

    def _new_kind(self, facets: Facets, keys: bytes = b"") -> _Kind:
        kind = self._kinds[facets] = _Kind(facets, keys)
        for facet in facets:
            self._by_facet.setdefault(facet, {})[kind] = None
        return kind


def listed(entries: Collection[Entry]) -> Listing:
    """Entries as arrays."""
    subjects: dict[str, int] = {}
    kinds: dict[Facets, int] = {}
    whose = [subjects.setdefault(entry.subject_id, len(subjects)) for entry in entries]
    what = [kinds.setdefault(entry.kind.facets, len(kinds)) for entry in entries]
    return Listing(
        np.array([entry.sequence_id.encode("ascii") for entry in entries], f"S{ID_BYTES}"),
        np.array(whose, np.int32),
        list(subjects),
        np.array(what, np.int32),
        list(kinds),
    )


def check(listing: Listing) -> None:
    """Raise `ValueError` for arrays that do not fit together."""
    count = len(listing.sequence_ids)
    if len(set(listing.sequence_ids.astype(np.str_).tolist())) != count:
        raise ValueError("a sequence is listed twice")
    for codes, names in ((listing.subject_of, listing.subjects), (listing.kind_of, listing.kinds)):
        if len(codes) != count or len(set(names)) != len(names):
            raise ValueError("a group is listed twice, or a sequence in none")
        # Nobody is listed who has nothing: it would count as enrolled.
        if not np.array_equal(np.unique(codes), np.arange(len(names))):
            raise ValueError("the groups are not those of the sequences")


def _groups(codes: NDArray[np.int32]) -> Iterator[Keys]:
    """The keys of each code in turn, in their order."""
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes)).tolist()
    return (order[start:end] for start, end in pairwise([0, *ends]))


def _without(keys: array[int], key: int) -> bool:
    """Take a key out of an array in order; whether that was the last."""
    del keys[bisect_left(keys, key)]
    return not keys


def _facets(metadata: Metadata) -> Facets:
    return tuple(_facet(name, value) for name, value in metadata.items())


def _facet(name: str, value: Scalar) -> Facet:
    # Equality as in JSON: 1 is 1.0, but true is not 1, though Python says so.
    return (name, "boolean" if isinstance(value, bool) else "other", value)
