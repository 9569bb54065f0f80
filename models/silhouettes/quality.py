"""Whether a gait can be recognised in a sequence, and if not, why.

The limits were set on ten thousand silhouettes of ten people in three views, as an old background
subtraction left them, with room to spare on every side: what is refused is no walk. Frames that
were dropped condemn a sequence only where they are most of it and no border or emptiness explains
them; otherwise what remains is judged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.silhouettes.cleaning import BORDER, EMPTY, FRAGMENT, OUTLIER
from models.silhouettes.errors import PoorSequence
from models.silhouettes.types import Quality, Silhouettes

EXPLANATIONS: Final[dict[str, str]] = {
    "too_few_frames": "too few frames show the whole person; send at least one full gait cycle",
    "empty_frames": "many frames are empty; check that the person is white on black",
    "touches_border": "the side border cuts the person in many frames; send those in full view",
    "area_jumps": "the silhouette's size jumps from frame to frame; check the segmentation",
    "not_a_person_shape": "the shape is not an upright person's; check that the person is white "
    "on black and alone in the frame",
    "no_gait_cycle": "the legs show no gait cycle; send a walk of at least a second",
    "low_resolution": "the person has few rows of pixels; film from nearer, or with more pixels",
    "several_people": "more than one person is there; send frames with one person in them",
    "several_walks": "more than one walk is there; send each in a file of its own",
    "cut_off": "a border of the image cuts the person; send frames with the whole person in them",
    "inverted": "the person was black on white; send white on black",
    "upside_down": "the person stood on the head or lay on the side; send upright frames",
    "frame_rate": "frames repeat, or are far more than 25 a second; send those of the camera, "
    "each once",
    "stands": "the person stands for a part of it; send the part in which they walk",
}
"""Every reason code with a sentence that says what to do."""

_DOUBT: Final = 0.85
"""What the score is multiplied by for each code that was noticed before the judgement."""

LEAST_FRAMES: Final = 8
_FEW_FRAMES = 16
_ENOUGH_FRAMES = 40

_FOREGROUND = 127
_LOSS_TO_MENTION = 0.25  # of the frames sent, for one reason
_LOSS_TO_REFUSE = 0.5  # the same, for jumps of area
_CODES: Final = (
    ("empty_frames", (EMPTY,)),
    ("touches_border", (BORDER,)),
    ("area_jumps", (FRAGMENT, OUTLIER)),
)

# Relative change of area between frames; real walks have up to 0.06 at 25 frames a second and about
# 0.2 at 5, where legs open and close within two frames.
_JUMP_TO_MENTION = 0.2
_JUMP_TO_REFUSE = 0.5

_PERSON: Final = {  # and what real walks have
    "fill": (0.08, 0.4),  # 0.15 to 0.25
    "width": (8, 56),  # 20 to 31
    "solidity": (0.3, 0.95),  # 0.52 to 0.86
    "runs": (0.9, 3.0),  # 1.0 to 1.3
    "head": (0.1, 3.0),  # 0.27 to 1.1
    "legs": (0.1, 2.5),  # 0.25 to 1.6
    "constancy": (0.55, 1.0),  # 0.69 to 0.95
}
_LADEN: Final = {  # of a person who carries something; beyond is mentioned
    "width": (8, 42),
    "solidity": (0.45, 0.95),
    "head": (0.1, 1.4),
    "legs": (0.1, 2.0),
}

_STILL = 0.2  # the largest change of the legs; real walks: from 0.37, head on
_RESTLESS = 0.4  # below this, a change as large from one frame to the next is noise
_DIP_TO_MENTION = 0.08  # real walks: from 0.11, head on
_FULL_DIP = 0.3
_LONGEST_CYCLE = 60  # frames


class Shape(NamedTuple):
    """What the typical frame looks like.

    Attributes:
        fill: area, as a part of the 64 x 64 frame.
        width: columns that hold the person.
        solidity: area over that of its convex hull.
        runs: separate stretches of the person in a row that holds any.
        head: width of the head over that of the trunk.
        legs: width at the shins over that of the trunk.
        constancy: how much of the person is in the same place in every frame, as its trunk is.
        jump: relative change of area from one frame to the next.
    """

    fill: float
    width: float
    solidity: float
    runs: float
    head: float
    legs: float
    constancy: float
    jump: float


class Motion(NamedTuple):
    """How the legs move, as distances between frames over the legs' own norm.

    Attributes:
        step: from one frame to the next.
        largest: at the lag where frames differ most.
        dip: how much nearer frames come again at a longer lag, in [0, 1]; 1 is exact repetition.
    """

    step: float
    largest: float
    dip: float


def refused(
    reasons: Sequence[str], *, frames_in: int, dropped: Mapping[str, int] | None = None
) -> PoorSequence:
    """The refusal of a sequence of which no silhouettes were made."""
    return _poor(list(reasons), Quality(0.0, (), frames_in, 0, dict(dropped or {})))


def judge(
    silhouettes: Silhouettes,
    *,
    frames_in: int,
    dropped: Mapping[str, int] | None = None,
    noticed: Collection[str] = (),
    legs: Legs | None = None,
) -> Quality:
    """Judge a normalised sequence uint8 `[s, 64, 64]`.

    Args:
        silhouettes: what remains of the sequence.
        frames_in: frames there were before any was dropped.
        dropped: how many were dropped for each reason.
        noticed: codes of what was put right, or could not be.
        legs: those of the silhouettes, if they were measured.

    Raises:
        PoorSequence: no gait can be recognised in it; `.reasons` holds the codes.
    """
    dropped = dict(dropped or {})
    losses = {
        code: sum(dropped.get(reason, 0) for reason in reasons) / max(1, frames_in)
        for code, reasons in _CODES
    }
    refusals = ["area_jumps"] if losses["area_jumps"] > _LOSS_TO_REFUSE else []
    warned = [code for code, loss in losses.items() if loss > _LOSS_TO_MENTION]
    used = len(silhouettes)
    if used < LEAST_FRAMES:
        causes = warned if frames_in >= LEAST_FRAMES else []
        raise _poor(causes or ["too_few_frames"], Quality(0.0, (), frames_in, used, dropped))
    if used < _FEW_FRAMES:
        warned.append("too_few_frames")

    shape, motion = measure_shape(silhouettes), (legs or Legs(silhouettes)).motion
    if not _is_within(shape, _PERSON):
        refusals.append("not_a_person_shape")
    elif not _is_within(shape, _LADEN):
        noticed = {*noticed, "not_a_person_shape"}
    if shape.jump > _JUMP_TO_REFUSE:
        refusals.append("area_jumps")
    elif shape.jump > _JUMP_TO_MENTION:
        warned.append("area_jumps")
    if _is_still(motion):
        refusals.append("no_gait_cycle")
    elif motion.dip < _DIP_TO_MENTION:
        warned.append("no_gait_cycle")

    score = (
        0.3 * min(1.0, used / _ENOUGH_FRAMES)
        + 0.3 * used / max(used, frames_in)
        + 0.2 * max(0.0, 1 - shape.jump / _JUMP_TO_REFUSE)
        + 0.2 * min(1.0, motion.dip / _FULL_DIP)
    ) * _DOUBT ** len(noticed)
    issues = tuple(code for code in EXPLANATIONS if code in warned or code in noticed)
    quality = Quality(round(score, 4), issues, frames_in, used, dropped)
    if refusals:
        raise _poor(refusals, quality)
    return quality


def measure_shape(silhouettes: Silhouettes) -> Shape:
    """Measure the typical frame of a sequence uint8 `[s, 64, 64]`, `s >= 2`."""
    count, height, width = silhouettes.shape
    masks = (silhouettes > _FOREGROUND).view(np.uint8)
    rows = _pack_rows(masks)
    areas = np.bitwise_count(rows).sum(axis=1, dtype=np.int64)
    widths = np.bitwise_count(np.bitwise_or.reduce(rows, axis=1))
    lit = cv2.reduce(masks.reshape(count, -1), 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    mean = (np.asarray(lit, np.int32) / count).reshape(height, width)
    mean_rows = mean.sum(axis=1)
    trunk = max(1.0, float(mean_rows[16:32].mean()))
    return Shape(
        fill=float(np.median(areas)) / (height * width),
        width=float(np.median(widths)),
        solidity=float(np.median(_solidities(rows, areas))),
        runs=_runs(rows),
        head=float(mean_rows[1:8].mean()) / trunk,
        legs=float(mean_rows[52:62].mean()) / trunk,
        constancy=float((mean**2).sum() / max(1e-6, mean.sum())),
        jump=float(np.median(np.abs(np.diff(np.log(np.maximum(areas, 1)))))),
    )


def is_walker(silhouettes: Silhouettes) -> bool:
    """Whether a normalised sequence uint8 `[s, 64, 64]`, `s >= 2`, is of a person who walks."""
    return _is_within(measure_shape(silhouettes), _PERSON) and not _is_still(
        Legs(silhouettes).motion
    )


class Legs:
    """The lower half of a sequence uint8 `[s, 64, 64]`, `s >= 2`: how it moves and repeats.

    Works head on too, where widths hardly change: it looks at distances between whole frames,
    by their lag, and at how far those come down again after they have risen.

    Attributes:
        values: each frame at half the size, in [0, 1], float32 `[s, 512]`.
        norm: their root mean square.
        distances: median between frames so many apart, for lags from 1, over the norm.
    """

    def __init__(self, silhouettes: Silhouettes) -> None:
        self.values = _halve_legs(silhouettes)
        squares = np.einsum("sd,sd->s", self.values, self.values)
        self.norm = max(float(np.sqrt(squares.mean())), 1e-6)
        self.distances = _distances(self.values, squares).astype(np.float64) / self.norm

    @property
    def motion(self) -> Motion:
        """Steps, changes, and how they repeat."""
        highest = np.maximum.accumulate(self.distances)
        dips = 1 - self.distances / np.maximum(highest, 1e-6)
        return Motion(float(self.distances[0]), float(highest[-1]), float(dips.max()))


def _halve_legs(silhouettes: Silhouettes) -> NDArray[np.float32]:
    """The lower half of each frame at half the size, in [0, 1], `[s, 512]`."""
    lower = silhouettes[:, silhouettes.shape[1] // 2 :].astype(np.uint16)
    rows = lower[:, ::2] + lower[:, 1::2]
    sums = rows[:, :, ::2] + rows[:, :, 1::2]
    means = sums.reshape(len(sums), -1).astype(np.float32) / np.float32(4)
    return means / np.float32(255)


def _distances(legs: NDArray[np.float32], squares: NDArray[np.float32]) -> NDArray[np.float32]:
    """The median distance between frames `lag` apart, for lags from 1."""
    count = len(legs)
    lags = np.arange(1, max(2, min(count - 4, _LONGEST_CYCLE)))
    apart = np.full((len(lags), count), np.inf, np.float32)  # where a lag leads past the end
    for lag, row in zip(lags.tolist(), apart, strict=True):
        # Not as one product of matrices: it would round otherwise, and scores with it.
        products = np.einsum("sd,sd->s", legs[lag:], legs[:-lag])
        row[:-lag] = np.maximum(squares[lag:] + squares[:-lag] - 2 * products, 0)
    apart.sort(axis=1)
    pairs = count - lags
    lower, upper = (np.sqrt(apart[lags - 1, middle]) for middle in ((pairs - 1) // 2, pairs // 2))
    medians: NDArray[np.float32] = np.where(pairs % 2, upper, (lower + upper) / np.float32(2))
    return medians


def _pack_rows(masks: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Each row of 64 pixels as one number, `[s, 64]`: bit `i` is column `i`."""
    packed = np.packbits(masks, axis=2, bitorder="little")
    return packed.view("<u8")[:, :, 0]


def _runs(rows: NDArray[np.uint64]) -> float:
    starts = np.bitwise_count(rows & ~(rows << np.uint64(1)))
    return int(starts.sum(dtype=np.int64)) / max(1, int(np.count_nonzero(rows)))


def _solidities(rows: NDArray[np.uint64], areas: NDArray[np.int64]) -> list[float]:
    """Area over that of the convex hull, for each frame."""
    smeared = rows | rows >> np.uint64(1)
    for shift in (2, 4, 8, 16, 32):
        smeared |= smeared >> np.uint64(shift)
    ends = np.empty((*rows.shape, 2, 2), np.int32)  # column and row of each row's outer pixels
    ends[..., 0, 0] = np.bitwise_count((rows & -rows) - np.uint64(1))
    ends[..., 1, 0] = np.bitwise_count(smeared) - np.uint8(1)
    ends[..., 1] = np.arange(rows.shape[1])[:, None]
    frames, empty = np.nonzero(rows == 0)
    ends[frames, empty] = ends[frames, (rows != 0).argmax(axis=1)[frames]]
    points = ends.reshape(len(rows), -1, 2)
    return list(map(_solidity, points, areas.tolist()))


def _solidity(ends: NDArray[np.int32], area: int) -> float:
    if area == 0:
        return 0.0
    # The outer pixels of the rows have the hull of all pixels.
    hull = cv2.convexHull(ends)
    # contourArea runs through pixel centres; half the outline is missing from it.
    return area / (cv2.contourArea(hull) + cv2.arcLength(hull, True) / 2 + 1)


def _is_within(shape: Shape, limits: Mapping[str, tuple[float, float]]) -> bool:
    return all(least <= getattr(shape, name) <= most for name, (least, most) in limits.items())


def _is_still(motion: Motion) -> bool:
    flickers = motion.largest < _RESTLESS and motion.step > 0.85 * motion.largest
    return motion.largest < _STILL or flickers


def _poor(reasons: list[str], quality: Quality) -> PoorSequence:
    codes = tuple(code for code in EXPLANATIONS if code in reasons)
    sentence = "; ".join(EXPLANATIONS[code] for code in codes)
    return PoorSequence(sentence, reasons=codes, quality=quality)
