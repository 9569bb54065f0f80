from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from training.data.augmentation import (
    Stream,
    augment,
    draw_homographies,
    generator,
    mask,
    plain,
    swap_patches,
    vary,
    warp,
)
from training.data.options import Augmentation, Masking, Swap

NONE = Augmentation.none()


def only(**options: object) -> Augmentation:
    return Augmentation.model_validate(NONE.model_dump() | options)


@pytest.fixture
def silhouettes() -> Tensor:
    """uint8 [12, 7, 64, 64]: a body with legs that move, another one in each sequence."""
    rng = np.random.default_rng(0)
    frames = np.zeros((12, 7, 64, 64), np.uint8)
    for n in range(12):
        centre, width = int(rng.integers(28, 36)), int(rng.integers(5, 10))
        for s in range(7):
            image = np.zeros((64, 64), np.uint8)
            cv2.circle(image, (centre, 7), 5, 255, -1)
            cv2.ellipse(image, (centre, 26), (width, 16), 0, 0, 360, 255, -1)
            for side in (-1, 1):
                foot = centre + side * int(9 * np.sin(s + n))
                cv2.line(image, (centre, 38), (foot, 63), 255, 5)
            frames[n, s] = image
    return torch.from_numpy(frames)


def cut(silhouettes: Tensor) -> Tensor:
    return silhouettes[..., 10:54].float() / 255


def test_without_augmentation_silhouettes_are_only_cut_and_scaled(silhouettes: Tensor) -> None:
    grey = torch.arange(64 * 64, dtype=torch.int64).reshape(1, 1, 64, 64).remainder(256).byte()
    for given in (silhouettes, grey):
        assert torch.equal(augment(given, NONE, generator(0, 0)), cut(given))
        assert torch.equal(plain(given), cut(given))


def test_the_silhouettes_themselves_are_not_changed(silhouettes: Tensor) -> None:
    before = silhouettes.clone()
    names = ("flip", "perspective", "rotate", "erase", "drop", "holes")
    augment(silhouettes, only(**dict.fromkeys(names, 1.0)), generator(0, 0))
    assert torch.equal(silhouettes, before)


def test_the_same_seed_gives_bit_equal_views_and_another_one_others(silhouettes: Tensor) -> None:
    options = Augmentation.faults()
    teacher = augment(silhouettes, options, generator(3, 40))
    student = augment(silhouettes, options, generator(3, 40))
    assert torch.equal(teacher, student)
    for seed, step, rank in ((4, 40, 0), (3, 41, 0), (3, 40, 1), (3 + 2**32, 40, 0)):
        other = augment(silhouettes, options, generator(seed, step, rank))
        assert not torch.equal(teacher, other)


def test_a_flip_mirrors_whole_sequences_exactly(silhouettes: Tensor) -> None:
    views = augment(silhouettes, only(flip=0.5), generator(0, 0))
    straight, mirrored = cut(silhouettes), cut(silhouettes.flip(-1))
    flipped = [torch.equal(v, m) for v, m in zip(views, mirrored, strict=True)]
    kept = [torch.equal(v, s) for v, s in zip(views, straight, strict=True)]
    assert all(f != k for f, k in zip(flipped, kept, strict=True))
    assert 2 <= sum(flipped) <= 10


def reference_warp(frame: npt.NDArray[np.uint8], to_source: npt.NDArray[np.float64]) -> Tensor:
    """One frame through OpenCV, as the field's loaders do it."""
    warped = cv2.warpPerspective(
        frame.astype(np.float32),
        to_source,
        (64, 64),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return torch.from_numpy(warped[:, 10:54] / 255)


def test_the_one_interpolation_equals_opencv_frame_by_frame(silhouettes: Tensor) -> None:
    options = only(perspective=0.6, rotate=0.6, scale=0.6, shift=0.6)
    homographies, hit = draw_homographies(12, options, generator(0, 0))
    assert 9 <= len(hit) <= 12
    warped = warp(silhouettes[hit], homographies.float())
    for i, n in enumerate(hit.tolist()):
        for s in range(7):
            expected = reference_warp(silhouettes[n, s].numpy(), homographies[i].numpy())
            difference = (warped[i, s] - expected).abs()
            # OpenCV rounds coordinates to 1/32 of a pixel.
            assert difference.max() < 0.05
            assert difference.mean() < 2e-3


def test_augmented_sequences_are_the_warped_ones_and_the_others_are_untouched(
    silhouettes: Tensor,
) -> None:
    options = only(rotate=0.5)
    views = augment(silhouettes, options, generator(5, 0))
    unchanged = [torch.equal(v, c) for v, c in zip(views, cut(silhouettes), strict=True)]
    assert 2 <= sum(unchanged) <= 10


def test_a_rotation_is_opencvs_about_the_middle(silhouettes: Tensor) -> None:
    options = only(rotate=1.0)
    homographies, hit = draw_homographies(12, options, generator(0, 0))
    assert hit.tolist() == list(range(12))
    angles = []
    for homography, sequence in zip(homographies.numpy(), silhouettes.numpy(), strict=True):
        angle = float(np.degrees(np.arctan2(homography[1, 0], homography[0, 0])))
        angles.append(angle)
        turn = cv2.getRotationMatrix2D((31.5, 31.5), angle, 1.0)
        expected = cv2.warpAffine(sequence[0].astype(np.float32), turn, (64, 64))
        np.testing.assert_allclose(
            reference_warp(sequence[0], homography).numpy(), expected[:, 10:54] / 255, atol=0.05
        )
    assert max(angles) <= 10
    assert min(angles) >= -10
    assert max(angles) - min(angles) > 8


def test_a_perspective_shows_corners_further_in_as_opencv_computes_it() -> None:
    options = only(perspective=1.0)
    homographies, _ = draw_homographies(40, options, generator(0, 0))
    corners = np.array([[10, 0], [54, 0], [54, 64], [10, 64]], np.float32)
    seen = []
    for homography in homographies.numpy():
        shown = cv2.perspectiveTransform(corners[None], homography)[0]
        insets = (shown[:, 0] - corners[:, 0]) * [1, -1, -1, 1]
        np.testing.assert_allclose(shown[:, 1], corners[:, 1], atol=1e-4)
        np.testing.assert_allclose(insets, insets.round(), atol=1e-4)
        seen.extend(insets.round().astype(int).tolist())
        expected = cv2.getPerspectiveTransform(corners, shown)
        np.testing.assert_allclose(homography, expected, atol=1e-4)
    assert set(seen) == set(range(10))


def test_a_scale_above_one_enlarges_and_a_shift_moves() -> None:
    point = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    point[..., 30:34, 30:34] = 255
    doubled = torch.diag(torch.tensor([0.5, 0.5, 1.0]))
    doubled[:2, 2] = 31.5 / 2
    assert warp(point, doubled[None]).sum() == pytest.approx(64, rel=0.02)
    homographies, _ = draw_homographies(50, only(scale=1.0), generator(0, 0))
    factors = 1 / homographies[:, 0, 0]
    assert float(factors.min()) < 0.93
    assert float(factors.max()) > 1.07
    homographies, _ = draw_homographies(50, only(shift=1.0), generator(0, 0))
    moved = homographies[:, :2, 2]
    assert float(moved.abs().max()) <= 3.0
    assert float(moved.std()) > 1.0


@pytest.mark.parametrize(("option", "operation"), [("dilate", cv2.dilate), ("erode", cv2.erode)])
def test_a_part_is_grown_or_shrunk_as_opencv_does_and_the_rest_is_kept(
    silhouettes: Tensor, option: str, operation: object
) -> None:
    views = augment(silhouettes, only(**{option: 1.0}), generator(0, 0))
    kernel = np.ones((3, 3), np.uint8)
    heights = []
    for view, before in zip(views, cut(silhouettes), strict=True):
        changed = np.stack([operation(f.numpy(), kernel) for f in before])  # type: ignore[operator]
        rows_changed = [row for row in range(64) if not torch.equal(view[:, row], before[:, row])]
        assert rows_changed
        top, bottom = rows_changed[0], rows_changed[-1] + 1
        np.testing.assert_array_equal(view[:, top:bottom].numpy(), changed[:, top:bottom])
        heights.append(bottom - top)
    assert max(heights) <= 24


def test_a_blurred_part_keeps_its_place_and_softens_its_outline(silhouettes: Tensor) -> None:
    views = augment(silhouettes, only(blur=1.0), generator(0, 0))
    before = cut(silhouettes)
    changed = (views != before).any(1).any(-1)
    assert int(changed.sum(1).min()) > 0
    assert int(changed.sum(1).max()) <= 24
    assert not ((before > 0) & (before < 1)).any()
    assert ((views > 0) & (views < 1)).any()


def test_erasing_clears_one_rectangle_in_all_frames() -> None:
    full = torch.full((200, 3, 64, 64), 255, dtype=torch.uint8)
    views = augment(full, only(erase=1.0), generator(0, 0))
    erased = views == 0
    assert torch.equal(erased, erased[:, :1].expand_as(erased))
    height = erased[:, 0].any(2).sum(1)
    width = erased[:, 0].any(1).sum(1)
    assert torch.equal(erased[:, 0].sum((1, 2)), height * width)
    share = (height * width).double() / (64 * 44)
    assert 0.03 < float(share.min()) < 0.08
    assert 0.15 < float(share.max()) < 0.22


def test_a_lost_strip_is_rows_of_some_consecutive_frames() -> None:
    full = torch.full((100, 20, 64, 64), 255, dtype=torch.uint8)
    views = augment(full, only(strips=1.0), generator(0, 0))
    lost = views == 0
    assert torch.equal(lost.any(-1), lost.all(-1))
    for sequence in lost.all(-1):  # [s, 64]
        frames, rows = sequence.any(1).nonzero().flatten(), sequence.any(0).nonzero().flatten()
        assert len(frames) == frames[-1] - frames[0] + 1
        assert len(rows) == rows[-1] - rows[0] + 1
        assert int(sequence.sum()) == len(frames) * len(rows)
        assert 2 <= len(frames) <= 10
        assert 3 <= len(rows) <= 12
    assert lost[:, :, 0].any()  # heads
    assert lost[:, :, 63].any()  # feet


def test_holes_are_small_squares_in_some_frames() -> None:
    full = torch.full((50, 20, 64, 64), 255, dtype=torch.uint8)
    views = augment(full, only(holes=1.0), generator(0, 0))
    area = (views == 0).sum((-1, -2)).flatten()
    assert 0.25 < float((area > 0).double().mean()) < 0.35
    sides = area[area > 0].double().sqrt()
    assert torch.equal(sides, sides.round())
    assert set(sides.int().tolist()) == set(range(2, 9))


def test_lost_frames_are_replaced_by_the_one_before() -> None:
    levels = torch.arange(30, dtype=torch.uint8)[None, :, None, None]
    numbered = levels.expand(40, 30, 64, 64).clone()
    shown = (augment(numbered, only(drop=1.0), generator(0, 0))[..., 0, 0] * 255).round().int()
    place = torch.arange(30)
    lost = shown != place
    assert 0.1 < float(lost.double().mean()) < 0.2
    assert not lost[:, 0].any()
    for sequence, gone in zip(shown.tolist(), lost.tolist(), strict=True):
        for s in range(1, 30):
            assert sequence[s] == (sequence[s - 1] if gone[s] else s)


@pytest.mark.parametrize(
    "option",
    ["flip", "perspective", "rotate", "shift", "scale", "erase", "dilate", "erode", "blur",
     "strips", "holes", "drop"],
)  # fmt: skip
def test_every_option_hits_the_share_of_sequences_that_it_says(option: str) -> None:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (300, 12, 64, 64), generator=rng, dtype=torch.uint8)
    views = augment(noise, only(**{option: 0.3}), generator(0, 0))
    changed = (views != cut(noise)).flatten(1).any(1).double().mean()
    assert 0.22 < float(changed) < 0.38
    assert float(views.min()) >= 0
    assert float(views.max()) <= 1
    untouched = augment(noise, NONE, generator(0, 0))
    assert torch.equal(untouched, cut(noise))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_gpu_draws_the_same_views_as_a_cpu(silhouettes: Tensor) -> None:
    options = Augmentation.faults()
    here = augment(silhouettes, options, generator(0, 0))
    there = augment(silhouettes.cuda(), options, generator(0, 0)).cpu()
    assert torch.allclose(here, there, atol=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(2, 3, 64, 44, dtype=torch.uint8), torch.zeros(2, 3, 64, 64)],
)
def test_other_shapes_and_dtypes_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[n, s, 64, 64\]"):
        augment(wrong, NONE, generator(0, 0))


@pytest.mark.parametrize(
    "wrong",
    [{"flips": 0.2}, {"flip": 1.2}, {"flip": -0.1}, {"strip_rows": (9, 3)}, {"part_rows": (3, 60)},
     {"erase_area": (0.1, 1.0)}, {"perspective_columns": 30}],
)  # fmt: skip
def test_a_misspelt_or_impossible_option_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Augmentation.model_validate(wrong)


def test_the_defaults_are_the_published_recipe() -> None:
    given = {name: p for name, p in Augmentation() if p != getattr(NONE, name)}
    assert given == {"flip": 0.2, "perspective": 0.2, "rotate": 0.2}


def faces(n: int, frames: int = 3) -> Tensor:
    """Noise, so that every patch tells whose it is."""
    draw = torch.Generator().manual_seed(9)
    return torch.randint(0, 256, (n, frames, 64, 64), generator=draw, dtype=torch.uint8)


SWAP_ALL = Swap(probability=1.0, share=(0.25, 0.25), rows=16)


def test_pairs_of_one_subject_exchange_the_same_rows_in_all_frames() -> None:
    walks, subjects = faces(7), ["a", "b", "a", "b", "b", "b", "c"]
    before = walks.clone()
    swapped, partners = swap_patches(walks, subjects, SWAP_ALL, torch.Generator().manual_seed(0))
    assert torch.equal(walks, before)
    assert partners[6] == 6
    assert torch.equal(swapped[6], walks[6])
    for walk in range(6):
        other = int(partners[walk])
        assert other != walk
        assert partners[other] == walk
        assert subjects[other] == subjects[walk]
        strips = swapped[walk].reshape(3, 16, 4, 64)
        own = (strips == walks[walk].reshape(3, 16, 4, 64)).all(dim=(0, 2, 3))
        theirs = (strips == walks[other].reshape(3, 16, 4, 64)).all(dim=(0, 2, 3))
        assert (own ^ theirs).all()
        assert int(theirs.sum()) == 4


def test_a_grid_of_columns_exchanges_patches() -> None:
    walks = faces(2)
    options = Swap(probability=1.0, share=(0.5, 0.5), rows=4, columns=2)
    swapped, _ = swap_patches(walks, ["a", "a"], options, torch.Generator().manual_seed(0))
    patches = (swapped[0] == walks[1]).reshape(3, 4, 16, 2, 32).all(dim=4).all(dim=2).all(dim=0)
    assert int(patches.sum()) == 4
    assert patches.any(dim=1).sum() > patches.all(dim=1).sum(), "not whole rows"


def test_no_pair_exchanges_anything_at_probability_zero_and_all_keep_their_partners() -> None:
    walks = faces(4)
    none = Swap(probability=0.0)
    swapped, partners = swap_patches(walks, [0, 0, 1, 1], none, torch.Generator().manual_seed(0))
    assert torch.equal(swapped, walks)
    assert partners.tolist() == [1, 0, 3, 2]


def test_a_masked_view_lacks_half_of_its_strips_or_half_of_its_frames() -> None:
    views = torch.ones(40, 8, 64, 44)
    masked = mask(views, Masking(probability=1.0), torch.Generator().manual_seed(0))
    assert views.all()
    rows = masked.any(dim=(1, 3)).sum(dim=1)
    frames = masked.any(dim=(2, 3)).sum(dim=1)
    assert set(zip(rows.tolist(), frames.tolist(), strict=True)) == {(32, 8), (64, 4)}
    kept = mask(views, Masking(probability=0.0), torch.Generator().manual_seed(0))
    assert torch.equal(kept, views)


def test_a_single_frame_is_never_masked_away() -> None:
    masked = mask(torch.ones(20, 1, 64, 44), Masking(probability=1.0), torch.Generator())
    assert masked.any(dim=(1, 2, 3)).all()


def test_rows_count_as_lost_only_where_every_frame_lost_them() -> None:
    silhouettes = torch.full((30, 10, 64, 64), 255, dtype=torch.uint8)
    draw = torch.Generator().manual_seed(0)
    for frames, every in (((1.0, 1.0), True), ((0.2, 0.4), False)):
        options = Augmentation(flip=0, perspective=0, rotate=0, strips=0.7, strip_frames=frames)
        views, lost = vary(silhouettes, options, draw)
        assert torch.equal(lost, ~views.any(dim=(1, 3)))
        assert bool(lost.any()) == every


def test_streams_of_a_step_differ_and_a_second_view_leaves_the_first_as_it_was() -> None:
    first = {stream: torch.rand(4, generator=generator(1, 2, 0, stream)) for stream in Stream}
    values = list(first.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])
    assert torch.equal(first[Stream.WEAK], torch.rand(4, generator=generator(1, 2)))


def test_pose_maps_move_with_their_silhouette_and_have_none_of_a_segmenters_faults(
    silhouettes: Tensor,
) -> None:
    walks = torch.stack([silhouettes, silhouettes // 2, silhouettes], 2)
    strong = Augmentation.strong()
    alone = vary(silhouettes, strong, generator(0, 1))
    beside = vary(walks, strong, generator(0, 1))
    assert torch.equal(beside.views[:, :, 2], alone.views)
    assert torch.equal(beside.lost, alone.lost)
    moves = strong.model_copy(update={"dilate": 0.0, "blur": 0.0, "strips": 0.0})
    moved = vary(walks, moves, generator(0, 1)).views
    assert torch.equal(moved[:, :, 0], beside.views[:, :, 0])
    assert not torch.equal(beside.views[:, :, 0], beside.views[:, :, 2])
    torch.testing.assert_close(moved[:, :, 0], moved[:, :, 2])


def test_walks_exchange_pose_maps_with_their_patches_and_lose_both(silhouettes: Tensor) -> None:
    walks = torch.stack([silhouettes] * 3, 2)
    groups = [n // 2 for n in range(len(walks))]
    swapped, partners = swap_patches(walks, groups, Swap(probability=1.0), generator(0, 1))
    alone, same = swap_patches(silhouettes, groups, Swap(probability=1.0), generator(0, 1))
    assert torch.equal(partners, same)
    assert all(torch.equal(swapped[:, :, stream], alone) for stream in range(3))
    masked = mask(plain(walks), Masking(probability=1.0), generator(0, 1))
    assert torch.equal(
        masked[:, :, 0], mask(plain(silhouettes), Masking(probability=1.0), generator(0, 1))
    )
    assert torch.equal(masked[:, :, 0], masked[:, :, 2])
