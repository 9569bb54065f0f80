from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from models.footage import BackgroundSegmenter, FootageLimits, MaskSegmenter, Segmenter
from models.footage.upload import NoWalker, SeveralPeople, is_footage, read_walk
from models.silhouettes import SequenceTooLarge
from tests.models.footage.clips import COLUMNS, Pixels, crossing, encode, photos, scene, still

LIMITS = FootageLimits()
THROUGH = (-60.0, COLUMNS + 60.0)


def unused() -> Segmenter:
    raise AssertionError("masks need no segmenter")


def masks(*ways: tuple[int, float, float], frames: int = 60) -> list[Pixels]:
    return crossing(*ways, frames=frames, masks=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("footage", True), ("masks", False), ("inverted", False), ("matte", False), ("cutout", False)],
)
def test_footage_is_told_from_silhouettes_by_its_pictures(name: str, expected: bool) -> None:
    seen = masks((1, 100.0, 300.0), frames=8)
    pictures = {
        "footage": [scene()] * 8,
        "masks": seen,
        "inverted": [255 - picture for picture in seen],
        "matte": [picture // 2 for picture in seen],
        "cutout": [picture // np.array([1, 3, 2], np.uint8) for picture in seen],
    }[name]
    assert is_footage(encode(pictures), LIMITS) is expected


def cut_out(pictures: list[Pixels], seen: list[Pixels], background: int = 0) -> list[Pixels]:
    """People in colour before a background of one grey, cut out closely."""
    cut = []
    for picture, mask in zip(pictures, seen, strict=True):
        left, top, wide, high = cv2.boundingRect(mask[..., 0])
        alone = np.where(mask > 127, picture, np.uint8(background))
        cut.append(np.pad(alone, ((9, 9), (9, 9), (0, 0)), constant_values=background)
                   [top : top + high + 18, left : left + wide + 18])  # fmt: skip
    return cut


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("footage", True), ("grey footage", True), ("dark footage", True)),
        *(("masks", False), ("inverted", False), ("matte", False), ("cutout", False)),
        *(("cutout on white", False), ("cutout on grey", False), ("labels", False)),
        *(("labels of a scene", False), ("opacity", False)),
    ],
)
def test_photos_are_told_from_silhouettes_by_their_pixels(
    suffix: str, name: str, expected: bool
) -> None:
    way = (1, 100.0, 300.0)
    there, seen = crossing(way, frames=8), masks(way, frames=8)
    labels = [mask // 51 * np.array([1, 9, 30], np.uint8) + (np.arange(480) // 200 * 40)
              .astype(np.uint8)[None, :, None] for mask in seen]  # fmt: skip
    pictures: Any = {
        "footage": there,
        "grey footage": [picture[..., :1].repeat(3, 2) for picture in there],
        "dark footage": [picture // 3 for picture in there],
        "masks": seen,
        "inverted": [255 - picture for picture in seen],
        "matte": [cv2.GaussianBlur(picture, (0, 0), 3) for picture in seen],
        "cutout": cut_out(there, seen),
        "cutout on white": cut_out(there, seen, 255),
        "cutout on grey": cut_out(there, seen, 128),
        "labels": [picture // np.array([1, 3, 2], np.uint8) for picture in seen],
        "labels of a scene": labels,
        "opacity": [np.dstack([picture, mask[..., 0]])
                    for picture, mask in zip(there, seen, strict=True)],
    }[name]  # fmt: skip
    if name == "opacity":
        suffix = ".png"
    assert is_footage(photos(pictures, suffix), LIMITS) is expected
    assert is_footage(still(pictures[0], suffix), LIMITS) is expected


def test_photos_of_a_walk_are_read_as_a_video_of_it_is() -> None:
    there = crossing((1, *THROUGH), frames=75)
    prepared, origin = read_walk(photos(there, ".png"), LIMITS, BackgroundSegmenter)
    filmed, where = read_walk(encode(there), LIMITS, BackgroundSegmenter)
    assert abs(origin.from_s - where.from_s) < 0.2
    assert abs(len(prepared.silhouettes) - len(filmed.silhouettes)) < 6
    _, slow = read_walk(photos(there, ".png"), LIMITS, BackgroundSegmenter, frame_rate=20.0)
    assert slow.to_s == pytest.approx(origin.to_s * 25 / 20, abs=0.3)


def test_a_dark_clip_that_is_said_to_be_footage_is_not_taken_for_masks() -> None:
    dark = [picture // 8 for picture in crossing((1, *THROUGH), frames=50)]
    used = []

    def make() -> Segmenter:
        used.append(BackgroundSegmenter())
        return used[-1]

    with pytest.raises(NoWalker):
        read_walk(encode(dark[:3] * 6), LIMITS, make)
    assert used


def test_the_best_walk_of_the_only_person_is_taken() -> None:
    there = masks((1, 60.0, 400.0), frames=60)
    clip = encode(there + there[::-1][:35])
    prepared, origin = read_walk(clip, LIMITS, unused)
    assert (origin.segmenter, origin.track) == ("masks", 1)
    assert origin.to_s < 2.8
    assert len(prepared.silhouettes) > 40


def test_the_same_clip_has_the_same_tracks() -> None:
    clip = encode(masks((1, -60.0, 400.0), (3, 540.0, 80.0), frames=90))
    listed = []
    for _ in range(2):
        with pytest.raises(SeveralPeople) as several:
            read_walk(clip, LIMITS, unused)
        listed.append(several.value.tracks)
    assert listed[0] == listed[1]
    for track in listed[0]:
        _, origin = read_walk(clip, LIMITS, unused, track=track.track)
        assert origin.track == track.track


def test_who_is_not_whole_is_told_from_who_does_not_walk() -> None:
    cut = [np.roll(picture, 60, axis=0) for picture in masks((1, *THROUGH))]
    for picture in cut:
        picture[:60] = 0
    with pytest.raises(NoWalker, match="nobody was seen in full view"):
        read_walk(encode(cut), LIMITS, MaskSegmenter)
    with pytest.raises(NoWalker, match="nobody walks"):
        read_walk(encode(masks((1, 200.0, 200.0), frames=2)[:1] * 50), LIMITS, MaskSegmenter)


def test_a_clip_that_lasts_too_long_is_refused_whatever_is_in_it() -> None:
    clip = encode(masks((1, *THROUGH)), rate=10)
    assert not is_footage(clip, FootageLimits(max_seconds_long=2))
    with pytest.raises(SequenceTooLarge, match="2 s that are read"):
        read_walk(clip, FootageLimits(max_seconds_long=2), unused)
