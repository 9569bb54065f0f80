"""One upload of footage to the walk of one person in it, or why there is none."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import cv2
import numpy as np

from models.footage.finding import WalkFinder
from models.footage.pictures import FootageLimits, Image, Picture, read_pictures
from models.footage.segmentation import MaskSegmenter, Segmenter, SegmenterName
from models.footage.walks import FoundWalk, Outcome, Outline
from models.silhouettes.budget import Budget, DecodeLimits
from models.silhouettes.decode import decode_photos
from models.silhouettes.errors import PoorSequence, SequenceError
from models.silhouettes.prepare import Prepared, prepare
from models.silhouettes.sniff import VIDEOS, sniff

MOST_OUTLINES: Final = 2000
"""Of all tracks that a refusal lists: some 300 kB."""

_LOOKED_AT: Final = 5  # pictures that tell footage from masks
_EXTREME: Final = 40  # grey levels from black or white, where codecs smear
_OF_MASKS: Final = 0.85  # of the pixels are black or white
_BLACK: Final = 0.6  # or so many are black: a person in colours, cut out
_EVEN: Final = 0.6  # of an image's border has one colour: somebody cut out, or labels
_FEW_COLOURS: Final = 8  # that nearly all of an image has: labels
_NEARLY_ALL: Final = 0.9
_SAMPLED: Final = 2**16  # pixels
_ENOUGH_SIDE: Final = 320  # of them, to see how much is black or white
_PURE: Final = 16  # the same for pictures that are said to be footage, which may be dark
_OF_PURE: Final = 0.97


@dataclass(frozen=True, slots=True)
class SeenTrack:
    """A person of a clip, for those who choose among several.

    Attributes:
        track: what to send to choose.
        from_s, to_s: when the person walks, in seconds of the clip.
        box: left, top, width and height where the walk begins, in pixels of the original.
        outlines: the person's mask while walking, in every picture; in every second, third … one
            where that would be many.
        thumbnail: the person, as a `data:` URL of a JPEG; nothing is kept for it.
    """

    track: int
    from_s: float
    to_s: float
    box: tuple[float, float, float, float]
    outlines: tuple[Outline, ...]
    thumbnail: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where in footage a walk was found, and what made its silhouettes."""

    segmenter: SegmenterName
    track: int
    from_s: float
    to_s: float


class SeveralPeople(SequenceError):
    """More than one person walks in the footage; `tracks` lists them."""

    def __init__(self, tracks: tuple[SeenTrack, ...]) -> None:
        super().__init__(
            f"{len(tracks)} people walk in the footage; send it again with `track` to choose one"
        )
        self.tracks = tracks

    def facts(self) -> dict[str, Any]:
        """What it says beside its sentence, ready for JSON."""
        return {"tracks": [asdict(track) for track in self.tracks]}


class NoWalker(SequenceError):
    """Nobody walks in full view in the footage, or not the one who was chosen."""


def is_footage(data: bytes, limits: FootageLimits) -> bool:
    """Whether a file is a video, or images, whose pictures are no masks.

    Raises:
        SequenceError: it cannot be read.
    """
    if sniff(data) not in VIDEOS:
        return _are_photos(data, limits)
    masks = scenes = 0
    for picture in _first(read_pictures(data, replace(limits, max_seconds_long=math.inf))):
        black, white = _shares(picture.image, _EXTREME)
        is_mask = black > _BLACK or black + white > _OF_MASKS
        masks, scenes = masks + is_mask, scenes + (not is_mask)
        if 2 * max(masks, scenes) > _LOOKED_AT:
            break
    return scenes > masks


def _are_photos(data: bytes, limits: FootageLimits) -> bool:
    """Whether images show a scene; one look is enough at a first one that shows none."""
    budget = Budget(DecodeLimits(max_side=limits.max_side, max_seconds=limits.max_seconds))
    photos = 0
    for number, image in enumerate(itertools.islice(decode_photos(data, budget), _LOOKED_AT), 1):
        photos += image.ndim == 3 and not _is_drawn(image)
        if 2 * photos < number:
            return False
    return photos > 0


def _is_drawn(image: Image) -> bool:
    """Whether an image is a mask, somebody cut out, or labels: no camera's picture is so even."""
    black, white = _shares(image, _EXTREME)
    if black > _BLACK or black + white > _OF_MASKS:
        return True
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    if (border == np.median(border, axis=0)).all(axis=1).mean() >= _EVEN:
        return True
    some = image.reshape(-1, 3)[:: max(1, image.size // 3 // _SAMPLED)].astype(np.int32)
    _, counts = np.unique(some @ (1, 2**8, 2**16), return_counts=True)
    return bool(np.sort(counts)[-_FEW_COLOURS:].sum() >= _NEARLY_ALL * len(some))


def _first(pictures: Iterator[Picture]) -> Iterator[Picture]:
    return itertools.islice(pictures, _LOOKED_AT)


def _shares(image: Image, off: int) -> tuple[float, float]:
    """Shares of pixels that are so many grey levels from black, and from white, at most.

    Of a large picture's some are looked at: who waits for an answer waits for this first.
    """
    apart = max(1, max(image.shape[:2]) // _ENOUGH_SIDE)
    image = np.ascontiguousarray(image[::apart, ::apart])
    black = cv2.countNonZero(cv2.inRange(image, (0, 0, 0), (off, off, off)))
    white = cv2.countNonZero(cv2.inRange(image, (255 - off,) * 3, (255, 255, 255)))
    count = image.shape[0] * image.shape[1]
    return black / count, white / count


def read_walk(
    data: bytes,
    limits: FootageLimits,
    make: Callable[[], Segmenter],
    *,
    track: int | None = None,
    frame_rate: float | None = None,
    clean: bool = True,
) -> tuple[Prepared, Origin]:
    """The best walk of the one person who walks in a clip, or of the track that is chosen.

    Args:
        data: the clip's bytes; hostile ones are expected.
        limits: what it may cost.
        make: makes the segmenter, once the first pictures have been read. Pictures that are masks
            already need none.
        track: of a former answer; the same clip has the same tracks.
        frame_rate: as for `read_pictures`.
        clean: as for `prepare`.

    Raises:
        SeveralPeople: and no track is chosen.
        NoWalker: nobody walks, or not the track that is chosen.
        PoorSequence: the walk was found, and no gait can be recognised in it.
        SequenceError: as `read_pictures`.
        MissingWeights: `make` needs networks that were not installed.
    """
    segmenter, pictures = choose_segmenter(read_pictures(data, limits, frame_rate), make)
    finder = WalkFinder(segmenter)
    walks = list(finder.find(pictures))
    tracks = _by_track(walks)
    if not tracks:
        raise NoWalker(why_nobody(finder.people, finder.outcome))
    if track is None and len(tracks) > 1:
        outlines = sum(len(walk.outlines) for walk in walks)
        each = math.ceil(outlines / MOST_OUTLINES)
        raise SeveralPeople(tuple(_listed(own, each) for own in tracks.values()))
    own = tracks.get(next(iter(tracks)) if track is None else track)
    if own is None:
        listed = ", ".join(map(str, tracks))
        raise NoWalker(f"track {track} is not in the footage; it has {listed}")
    return _best(own, segmenter.name, clean=clean)


def choose_segmenter(
    pictures: Iterator[Picture], make: Callable[[], Segmenter]
) -> tuple[Segmenter, Iterator[Picture]]:
    """What finds people in these pictures, and the pictures from the first one on.

    Those that are masks already need no segmenter of `make`'s.
    """
    first = list(_first(pictures))
    pure = [sum(_shares(picture.image, _PURE)) > _OF_PURE for picture in first]
    segmenter = MaskSegmenter() if 2 * sum(pure) > len(pure) else make()
    return segmenter, itertools.chain(first, pictures)


def _best(
    walks: list[FoundWalk], segmenter: SegmenterName, *, clean: bool
) -> tuple[Prepared, Origin]:
    best: tuple[Prepared, Origin] | None = None
    refused: PoorSequence | None = None
    for walk in sorted(walks, key=lambda one: -len(one.frames)):
        try:
            prepared = prepare(walk.frames, clean=clean)
        except PoorSequence as error:
            refused = refused or error
            continue
        if best is None or prepared.quality.score > best[0].quality.score:
            best = prepared, Origin(segmenter, walk.track, walk.from_s, walk.to_s)
    if best is not None:
        return best
    raise refused or NoWalker(why_nobody(1, Outcome()))


def _by_track(walks: list[FoundWalk]) -> dict[int, list[FoundWalk]]:
    tracks: dict[int, list[FoundWalk]] = {}
    for walk in sorted(walks, key=lambda one: (one.track, one.from_s)):
        tracks.setdefault(walk.track, []).append(walk)
    return tracks


def _listed(walks: list[FoundWalk], each: int) -> SeenTrack:
    first = walks[0]
    outlines = [outline for walk in walks for outline in walk.outlines]
    picture = base64.b64encode(first.thumbnail).decode("ascii")
    return SeenTrack(
        track=first.track,
        from_s=first.from_s,
        to_s=walks[-1].to_s,
        box=(first.box.left, first.box.top, first.box.width, first.box.height),
        outlines=tuple(outlines[::each]),
        thumbnail=f"data:image/jpeg;base64,{picture}",
    )


def why_nobody(people: int, outcome: Outcome) -> str:
    """What was seen instead of walks, and what to send."""
    if people == 0:
        what = "nobody was seen in full view" if outcome.cut else "nobody was seen"
        return f"{what}; send footage in which somebody walks from head to feet in the picture"
    most = max(
        (outcome.cut, "the picture's border cuts whoever walks"),
        (outcome.crowded, "people cover each other"),
        (outcome.standing, "people are seen, and nobody walks"),
        (outcome.short, "nobody walks for long enough"),
    )
    return f"{most[1]}; send at least a second of somebody walking alone and in full view"
