from __future__ import annotations

import numpy as np
import pytest

from models.footage import BackgroundSegmenter, FootageLimits, MaskSegmenter, Segmenter
from models.footage.upload import NoWalker, SeveralPeople, is_footage, read_walk
from models.silhouettes import SequenceTooLarge
from tests.models.footage.clips import COLUMNS, Pixels, crossing, encode, scene

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
