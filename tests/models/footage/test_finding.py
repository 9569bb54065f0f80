from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from models.footage import (
    BackgroundSegmenter,
    FoundWalk,
    MaskSegmenter,
    NetworkSegmenter,
    Outcome,
    Picture,
    Segmenter,
    WalkFinder,
)
from models.footage.boxes import Box
from models.footage.segmentation import Found
from models.footage.weights import installed
from models.silhouettes import prepare
from tests.models.footage.clips import COLUMNS, RATE, Pixels, crossing, mask_of, scene

NETWORKS = pytest.param(
    "network", marks=pytest.mark.skipif(not installed(), reason="`make setup` fetches the networks")
)
SEGMENTERS = ["masks", "background", NETWORKS]
THROUGH = (-60.0, COLUMNS + 60.0)
BACK = (COLUMNS + 60.0, -60.0)


network = cache(lambda: NetworkSegmenter(threads=1))


def make(name: str) -> Segmenter:
    if name == "network":
        return network()
    return MaskSegmenter() if name == "masks" else BackgroundSegmenter()


def find(
    pictures: Sequence[Pixels], segmenter: Segmenter, rate: float = RATE
) -> tuple[list[FoundWalk], WalkFinder]:
    finder = WalkFinder(segmenter)
    shown = (Picture(number / rate, picture) for number, picture in enumerate(pictures))
    return list(finder.find(shown)), finder


def ends(walk: FoundWalk) -> tuple[float, float]:
    return walk.from_s, walk.to_s


@pytest.mark.parametrize("name", SEGMENTERS)
def test_somebody_who_walks_through_is_one_walk(name: str) -> None:
    walks, finder = find(crossing((1, *THROUGH), frames=75, masks=name == "masks"), make(name))
    assert len(walks) == 1
    assert len(walks[0].frames) > 30
    assert finder.people == 1
    prepared = prepare(walks[0].frames)
    assert prepared.quality.issues == ()


@pytest.mark.parametrize("name", SEGMENTERS)
def test_masks_are_the_person(name: str) -> None:
    """Against what was drawn: prepared silhouettes of both."""
    pictures = crossing((1, *THROUGH), frames=75, masks=name == "masks")
    (walk,), _ = find(pictures, make(name))
    first, last = round(walk.from_s * RATE), round(walk.to_s * RATE)
    columns = np.linspace(*THROUGH, 75)
    drawn = [mask_of(1, frame, columns[frame]) for frame in range(first, last + 1)]
    ours, theirs = prepare(walk.frames).silhouettes, prepare(drawn).silhouettes
    ours, theirs = (each[:30].mean(axis=0) / 255 for each in (ours, theirs))
    shared = np.minimum(ours, theirs).sum() / np.maximum(ours, theirs).sum()
    assert shared > 0.8


@pytest.mark.skipif(not installed(), reason="`make setup` fetches the networks")
@pytest.mark.parametrize("shape", [(120, 160), (160, 120)])
def test_people_are_looked_for_in_a_stretched_picture_and_in_one_with_a_border(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = NetworkSegmenter(threads=1)
    seen: list[tuple[int, ...]] = []

    def looked(image: Pixels) -> list[Found]:
        seen.append(image.shape)
        border = (image.shape[1] - shape[1]) / 2, (image.shape[0] - shape[0]) / 2
        near = Found(Box(30 + border[0], 20 + border[1], 20, 60), 0.5 + 0.1 * len(seen))
        far = Found(Box(90.0, 20.0, 10, 25), 0.4)
        return [near] if len(seen) == 2 else [near, far]

    monkeypatch.setattr(segmenter, "_looked", looked)
    found = segmenter.find(np.zeros((*shape, 3), np.uint8))
    assert seen == [(*shape, 3), (160, 160, 3)]
    assert found == [Found(Box(30, 20, 20, 60), 0.7), Found(Box(90, 20, 10, 25), 0.4)]
    seen.clear()
    segmenter.find(np.zeros((160, 160, 3), np.uint8))
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["masks", "background"])
def test_two_who_cross_keep_their_names(name: str) -> None:
    pictures = crossing((1, *THROUGH), (2, *BACK), frames=100, masks=name == "masks")
    finder = WalkFinder(make(name))
    places: dict[int, list[float]] = {}
    for number, picture in enumerate(pictures):
        finder.see(Picture(number / RATE, picture))
        for track in finder._tracker.tracks:
            places.setdefault(track.number, []).append(track.box.centre[0])
    ways = [centres for centres in places.values() if len(centres) > 60]
    assert len(ways) == 2
    assert all(abs(centres[-1] - centres[0]) > 0.7 * COLUMNS for centres in ways)


def test_frames_in_which_two_mix_are_in_no_walk() -> None:
    walks, finder = find(
        crossing((1, *THROUGH), (2, *BACK), frames=100, masks=True), MaskSegmenter()
    )
    assert finder.outcome.crowded > 0
    for walk in walks:
        widths = [np.ptp(np.nonzero(frame.any(axis=0))[0]) for frame in walk.frames]
        assert max(widths) < 130  # legs and arms of one person


def test_frames_that_the_border_cuts_are_in_no_walk() -> None:
    (walk,), finder = find(crossing((1, *THROUGH), frames=75, masks=True), MaskSegmenter())
    assert finder.outcome.cut > 0
    assert walk.box.left > 0
    assert walk.from_s > 0.3


@pytest.mark.parametrize("name", ["masks", "background"])
def test_somebody_who_stands_is_no_walk(name: str) -> None:
    empty = np.zeros_like(scene()) if name == "masks" else scene()
    still = crossing((1, 240.0, 240.0), frames=2, masks=name == "masks")[1]
    walks, finder = find([empty] * 20 + [still] * 60, make(name))
    assert walks == []
    assert finder.outcome.standing > 40


def test_who_turns_back_walks_twice() -> None:
    there = crossing((1, 60.0, 400.0), frames=50, masks=True)
    walks, finder = find(there + there[::-1], MaskSegmenter())
    assert finder.people == 1
    assert [walk.track for walk in walks] == [1, 1]
    assert ends(walks[0])[1] == pytest.approx(2.0, abs=0.6)


def test_a_long_walk_is_cut_into_several_and_memory_with_it() -> None:
    pictures = crossing((1, 60.0, 420.0), frames=260, masks=True)
    finder = WalkFinder(MaskSegmenter())
    held = 0
    walks = []
    for number, picture in enumerate(pictures):
        walks += finder.see(Picture(number / RATE, picture))
        held = max([held, *(len(track.observations) for track in finder._tracker.tracks)])
    walks += finder.finish()
    assert len(walks) == 2
    assert held <= 8 * RATE + 2


@pytest.mark.parametrize("name", SEGMENTERS)
def test_an_empty_place_has_no_walks(name: str) -> None:
    empty = [np.zeros_like(scene()) if name == "masks" else scene()] * 40
    walks, finder = find(empty, make(name))
    assert (walks, finder.people, finder.outcome) == ([], 0, Outcome())


class Looks(MaskSegmenter):
    """Counts its looks, of which it needs no more than a network."""

    every_s = 0.19

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def find(self, image: Pixels) -> list[Found]:
        self.looks += 1
        return super().find(image)


def test_an_empty_scene_in_which_nothing_moves_is_hardly_looked_at() -> None:
    random = np.random.default_rng(0)

    def noisy(picture: Pixels) -> Pixels:
        return np.clip(picture // 2 + 60 + random.normal(0, 2, picture.shape), 0, 255).astype(
            np.uint8
        )

    def looked(pictures: Sequence[Pixels]) -> tuple[list[FoundWalk], int]:
        segmenter = Looks()
        return find([noisy(picture) for picture in pictures], segmenter)[0], segmenter.looks

    empty = [np.zeros_like(crossing(frames=1, masks=True)[0])] * 250
    walk = crossing((1, *THROUGH), frames=75, masks=True)
    (alone,), often = looked(walk)
    assert looked(empty) == ([], 5)  # of 50 in ten seconds
    (between,), looks = looked([*empty, *walk, *empty])
    assert looks <= often + 13
    assert between.from_s == pytest.approx(alone.from_s + 10)
    assert len(between.frames) == len(alone.frames)


def test_a_walk_says_where_it_begins_in_the_original() -> None:
    pictures = crossing((1, *THROUGH), frames=75, masks=True)
    finder = WalkFinder(MaskSegmenter())
    shown = (Picture(number / RATE, picture, 2.0) for number, picture in enumerate(pictures))
    (walk,) = finder.find(shown)
    (same,), _ = find(pictures, MaskSegmenter())
    assert walk.box == pytest.approx([2 * value for value in same.box], abs=0.2)
    assert walk.thumbnail.startswith(b"\xff\xd8")


@pytest.mark.parametrize("shape", [(2, 2), (3, 900), (900, 3), (64, 64)])
@pytest.mark.parametrize("name", SEGMENTERS)
def test_pictures_of_odd_sizes_and_noise_hold_nobody(name: str, shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (*shape, 3), np.uint8) for _ in range(12)]
    assert find(noise, make(name))[0] == []
