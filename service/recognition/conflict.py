"""The rule that says when a walk may be another person's than the subject's.

A walk conflicts with a subject when `identify` would answer that subject (the similarity reaches
the gallery's threshold) and the subject that it is enrolled for is not the nearer one. Two things
count as nearer, because walks that are sent together come from one camera and one minute:

- **Each walk by itself** is compared with all other walks of its subject, those of its request
  included: that finds one stray walk among right ones. The first walk of a new subject has none, so
  for it a match with another subject is enough.
- **The request as a whole** is compared with what its subject had before, by the best of its walks.
  Walks that are sent together resemble each other even if they are another person's, so they cannot
  vouch for each other. A new subject had nothing before: several walks of a new subject that match
  another one are enrolled, and the answer says so. At worst one person becomes two subjects.

The threshold is the one that strangers reach with a known probability, so this is also how often a
new person is asked about without need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from service.foundation.errors import Conflict, Reason

ConflictReason = Literal["nearer_to_another", "matches_another", "same_walk"]


@dataclass(frozen=True, slots=True)
class Resemblance:
    """How alike a new walk is to a subject; `sequence_id` is None for a walk of its own request."""

    subject_id: str
    similarity: float
    sequence_id: str | None


@dataclass(frozen=True, slots=True)
class ComparedWalk:
    """A walk to be enrolled, and what it resembles most.

    Attributes:
        name: what to call it in an error.
        kept: the nearest that its subject had before.
        sent: the nearest of the same request.
        other: the nearest of all other subjects.
    """

    name: str
    kept: Resemblance | None
    sent: Resemblance | None
    other: Resemblance | None


@dataclass(frozen=True, slots=True)
class ConflictingWalk:
    """A walk that may be another's.

    Attributes:
        name: what to call it in an error.
        reason: what is wrong; `matches_another` is no reason to refuse it.
        subject_id: whose it is said to be.
        own: the nearest of that subject's; None where there is nothing to compare it with.
        other: whose it may be.
    """

    name: str
    reason: ConflictReason
    subject_id: str
    own: Resemblance | None
    other: Resemblance

    @property
    def grave(self) -> bool:
        """Whether the walk is refused for it."""
        return self.reason != "matches_another"


class EnrolmentConflict(Conflict):
    """Walks that may be another subject's; nothing was enrolled."""

    def __init__(self, conflicts: Sequence[ConflictingWalk], threshold: float | None) -> None:
        """Say which walks conflict with whom; `threshold` is what the gallery decides by."""
        super().__init__(
            f"{_said(conflicts[0])} Check whose it is; `accept_conflict=true` enrols all the same.",
            *(Reason(conflict.name, conflict.reason) for conflict in conflicts),
            slug="enrolment-conflict",
        )
        self.conflicts = tuple(conflicts)
        self.threshold = threshold

    def members(self) -> Mapping[str, Any]:
        """Both subjects of each conflict, with the similarity to each, and the threshold."""
        return {
            "conflicts": [
                {
                    "where": conflict.name,
                    "reason": conflict.reason,
                    "own": _member(conflict.own, conflict.subject_id),
                    "other": _member(conflict.other, conflict.other.subject_id),
                }
                for conflict in self.conflicts
            ],
            "threshold": self.threshold,
        }


def find_conflicts(
    subject_id: str, walks: Sequence[ComparedWalk], threshold: float
) -> tuple[ConflictingWalk, ...]:
    """The walks of one request that may be another subject's, in their order."""
    matched = [
        (walk, walk.other)
        for walk in walks
        if walk.other is not None and walk.other.similarity >= threshold
    ]
    astray = tuple(
        ConflictingWalk(walk.name, "nearer_to_another", subject_id, own, other)
        for walk, other in matched
        if not _reaches(own := nearer(walk.kept, walk.sent), other)
    )
    if astray or not matched:
        return astray
    walk, other = max(matched, key=lambda one: one[1].similarity)
    kept: Resemblance | None = None
    for one in walks:
        kept = nearer(kept, one.kept)
    if kept is None:
        return (ConflictingWalk(walk.name, "matches_another", subject_id, walk.sent, other),)
    if _reaches(kept, other):
        return ()
    return (ConflictingWalk(walk.name, "nearer_to_another", subject_id, kept, other),)


def _reaches(own: Resemblance | None, other: Resemblance) -> bool:
    return own is not None and own.similarity >= other.similarity


def nearer(one: Resemblance | None, another: Resemblance | None) -> Resemblance | None:
    """The greater resemblance; the first of equals."""
    if one is None or another is None:
        return one or another
    return one if one.similarity >= another.similarity else another


def _member(found: Resemblance | None, subject_id: str) -> dict[str, Any]:
    return {
        "subject_id": subject_id,
        "similarity": None if found is None else found.similarity,
        "sequence_id": None if found is None else found.sequence_id,
    }


def _said(conflict: ConflictingWalk) -> str:
    other = conflict.other
    if conflict.reason == "same_walk":
        return f"{conflict.name} is enrolled already, as {other.subject_id!r}."
    compared = (
        f"and nothing of {conflict.subject_id!r} is enrolled"
        if conflict.own is None
        else f"to {conflict.subject_id!r} only {conflict.own.similarity:.3f}"
    )
    return (
        f"{conflict.name} may be {other.subject_id!r}: the similarity is {other.similarity:.3f}, "
        f"{compared}."
    )
