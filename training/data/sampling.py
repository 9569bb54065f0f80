"""Which sequences and which frames make up a batch: pure functions of a seed and a step.

Nothing here remembers anything. The state of a sampler is `(seed, step)`, so a resumed run draws
what the uninterrupted one would have drawn, and all ranks together draw what one process would.
"""

from __future__ import annotations

from typing import NamedTuple, assert_never

import numpy as np
import numpy.typing as npt

from training.data.options import Clip, OrderedClip, RandomLengthClip, UnorderedClip
from training.data.pack import Pack

Indices = npt.NDArray[np.int64]

_SEQUENCES, _FRAMES = 1, 2  # separate random streams of one seed and step


class SamplingError(ValueError):
    """A batch that this dataset or this number of ranks cannot give."""


class Frames(NamedTuple):
    """Frames of n sequences, counted from the start of each.

    `indices` is [n, s]; `lengths` [n] says how many of the s count, and is None when all do.
    """

    indices: Indices
    lengths: Indices | None


class Plan(NamedTuple):
    """One rank's batch: the sequences [n], subject after subject, and their frames."""

    sequences: Indices
    frames: Frames


class Sampler:
    """P subjects and K sequences of each, anew in every step (OpenGait's `TripletSampler`).

    A subject with fewer than K sequences gives some of them more than once. With several ranks each
    gets P / ranks whole subjects, so that a triplet has its positives whether or not embeddings are
    gathered.

    Where scenes count, subjects come in groups who are filmed in one scene, and each gives a walk
    from there and others from as many other scenes as it has, in an order that the group shares:
    strangers are seen alike, and a person's own walks are not.
    """

    def __init__(
        self,
        pack: Pack,
        *,
        subjects: int,
        sequences: int,
        clip: Clip,
        seed: int,
        same_scene: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Prepare the draw.

        Args:
            pack: the dataset.
            subjects: P, over all ranks.
            sequences: K.
            clip: which frames of a sequence are taken.
            seed: of everything drawn; not negative.
            same_scene: subjects who are filmed in one scene, as the metadata `scene` of the walks
                says; 1: scenes do not count.
            rank: of this process.
            world_size: number of processes.

        Raises:
            SamplingError: the pack has fewer than P subjects, P is not a multiple of
                `world_size` or of `same_scene`, so many subjects meet in no scene, or a number is
                out of range.
        """
        if subjects < 1 or sequences < 1:
            raise SamplingError(f"{subjects} subjects x {sequences} sequences: both at least 1")
        if seed < 0:
            raise SamplingError(f"seed {seed} is negative")
        if not 0 <= rank < world_size:
            raise SamplingError(f"rank {rank} of {world_size}")
        if subjects > len(pack.subjects):
            raise SamplingError(
                f"{subjects} subjects a batch, but {pack.path} has {len(pack.subjects)}"
            )
        if subjects % world_size:
            raise SamplingError(
                f"{subjects} subjects a batch cannot be shared by {world_size} ranks"
            )
        self.subjects = subjects
        self.sequences = sequences
        self.clip = clip
        self.seed = seed
        self._lengths = pack.lengths
        order = np.argsort(pack.labels, kind="stable")
        self._by_label = np.split(order, np.cumsum(np.bincount(pack.labels))[:-1])
        self._meeting: Meeting | None = None
        if same_scene != 1:
            self._meeting = meeting(pack, subjects, same_scene)
        share = subjects // world_size * sequences
        self._mine = slice(rank * share, (rank + 1) * share)

    def plan(self, step: int) -> Plan:
        """This rank's part of the batch of a step."""
        # All ranks draw the whole batch and keep their part: it costs microseconds.
        rng = np.random.default_rng([self.seed, step, _SEQUENCES])
        if self._meeting is None:
            labels = rng.choice(len(self._by_label), self.subjects, replace=False)
            sequences = np.concatenate(
                [
                    rng.choice(own, self.sequences, replace=len(own) < self.sequences)
                    for own in (self._by_label[label] for label in labels)
                ]
            )
        else:
            sequences = self._meeting.draw(self._by_label, self.subjects, self.sequences, rng)
        rng = np.random.default_rng([self.seed, step, _FRAMES])
        indices, lengths = draw_frames(self.clip, self._lengths[sequences], rng)
        mine = self._mine
        return Plan(
            sequences[mine], Frames(indices[mine], None if lengths is None else lengths[mine])
        )


class Meeting(NamedTuple):
    """Who is filmed with whom.

    Attributes:
        scene: of each sequence, a number [n].
        people: labels of those filmed in each scene in which enough of them meet.
        together: how many are drawn from one scene.
    """

    scene: Indices
    people: dict[int, Indices]
    together: int

    def draw(
        self,
        by_label: list[Indices],
        subjects: int,
        sequences: int,
        rng: np.random.Generator,
    ) -> Indices:
        """Sequences of so many subjects, group after group, subject after subject."""
        left = np.ones(len(by_label), np.bool_)
        drawn: list[Indices] = []
        for first in rng.permutation(list(self.people)):
            if len(drawn) == subjects:
                break
            here = self.people[int(first)]
            here = here[left[here]]
            if len(here) < self.together:
                continue
            chosen = rng.choice(here, self.together, replace=False)
            left[chosen] = False
            order = rng.permutation(int(self.scene.max()) + 1)
            order[first] = -1  # before all others
            drawn += [self._walks(by_label[one], order, sequences, rng) for one in chosen]
        # Where scenes share people, none may be left with enough of them.
        rest = rng.choice(np.flatnonzero(left), subjects - len(drawn), replace=False)
        order = rng.permutation(int(self.scene.max()) + 1)
        drawn += [self._walks(by_label[one], order, sequences, rng) for one in rest]
        return np.concatenate(drawn)

    def _walks(self, own: Indices, order: Indices, count: int, rng: np.random.Generator) -> Indices:
        """Walks of one subject, from its scenes in this order, again and again."""
        own = rng.permutation(own)
        scenes = self.scene[own]
        turn = np.array([(scenes[:at] == scene).sum() for at, scene in enumerate(scenes)])
        walks = own[np.lexsort((order[scenes], turn))][:count]
        return np.concatenate([walks, rng.choice(own, count - len(walks))])


def meeting(pack: Pack, subjects: int, together: int) -> Meeting:
    """Who meets in a pack's scenes, to draw so many subjects, so many of them from one scene.

    Raises:
        SamplingError: that cannot be.
    """
    if together < 1 or subjects % together:
        raise SamplingError(
            f"{subjects} subjects a batch are no groups of {together} from one scene"
        )
    names = [str(record.metadata.get("scene", "")) for record in pack.sequences]
    if not all(names):
        raise SamplingError(f"not every walk of {pack.path} says its scene")
    scene = np.unique(names, return_inverse=True)[1].astype(np.int64)
    people = {
        number: who
        for number in range(int(scene.max()) + 1)
        if len(who := np.unique(pack.labels[scene == number])) >= together
    }
    if not people:
        raise SamplingError(f"no {together} subjects of {pack.path} are filmed in one scene")
    return Meeting(scene, people, together)


def draw_frames(clip: Clip, available: Indices, rng: np.random.Generator) -> Frames:
    """Draw the clip of every sequence at once.

    Args:
        clip: what to draw.
        available: frames that each sequence has, int64 [n], at least 1.
        rng: the source of randomness.

    Returns:
        Indices [n, s] below `available`; s is the longest where lengths differ, and what lies
        beyond a sequence's length repeats its frames.
    """
    match clip:
        case OrderedClip():
            return Frames(_ordered(clip.frames, clip.skip, available, rng), None)
        case UnorderedClip():
            return Frames(_unordered(clip.frames, available, rng), None)
        case RandomLengthClip():
            lengths = rng.integers(clip.least, clip.most, len(available), endpoint=True)
            longest = int(lengths.max())
            indices = _unordered_up_to(lengths, longest, available, rng)
            return Frames(indices, lengths.astype(np.int64))
        case _:
            assert_never(clip)


def _ordered(frames: int, skip: int, available: Indices, rng: np.random.Generator) -> Indices:
    window = frames + skip
    # A sequence shorter than the window is repeated until it is not, as the field does.
    tiled = available * -(-window // available)
    tiled = np.where(available < window, tiled, available)
    start = rng.integers(0, tiled - window, endpoint=True)
    keys = rng.random((len(available), window))
    kept = np.sort(np.argsort(keys, axis=1)[:, :frames], axis=1)
    return np.asarray((start[:, None] + kept) % available[:, None], np.int64)


def _unordered(frames: int, available: Indices, rng: np.random.Generator) -> Indices:
    lengths = np.full(len(available), frames, np.int64)
    return _unordered_up_to(lengths, frames, available, rng)


def _unordered_up_to(
    lengths: Indices, longest: int, available: Indices, rng: np.random.Generator
) -> Indices:
    """[n, longest]: the first `lengths` of a row are distinct unless `available` is less."""
    keys = rng.random((len(available), int(available.max())))
    keys[np.arange(keys.shape[1]) >= available[:, None]] = 2.0  # after every frame that exists
    order = np.argsort(keys, axis=1)
    # A row that must repeat is drawn with replacement; in others the tail does not count.
    distinct = order[:, np.minimum(np.arange(longest), keys.shape[1] - 1)]
    repeating = rng.integers(0, available[:, None], (len(available), longest))
    replace = (available < lengths)[:, None] | (np.arange(longest) >= available[:, None])
    return np.asarray(np.where(replace, repeating, distinct), np.int64)
