from dataclasses import replace

import numpy as np
import pytest

from training.rendering.faults import MARGIN, Faults, draw_faults, spoil

FRAMES = 24
STILL = np.zeros(FRAMES)


def walker() -> np.ndarray:
    """A box of a person: a head, a trunk and two legs, 80 pixels tall."""
    frame = np.zeros((80 + 2 * MARGIN, 60), np.uint8)
    frame[MARGIN : MARGIN + 10, 25:35] = 255
    frame[MARGIN + 10 : MARGIN + 45, 20:40] = 255
    frame[MARGIN + 45 : MARGIN + 80, 20:27] = 255
    frame[MARGIN + 45 : MARGIN + 80, 33:40] = 255
    return np.repeat(frame[None], FRAMES, axis=0)


def spoiled(**faults: object) -> np.ndarray:
    rng = np.random.default_rng(4)
    return spoil(walker(), replace(Faults(), **faults), STILL, rng)  # type: ignore[arg-type]


def test_without_faults_an_outline_stays_as_it_is() -> None:
    clean = walker()
    assert np.array_equal(spoil(clean, Faults(), STILL, np.random.default_rng(0)), clean)


def test_severity_zero_draws_no_faults() -> None:
    rng = np.random.default_rng(0)
    assert all(draw_faults(rng, frames=30, severity=0.0) == Faults() for _ in range(20))


def test_the_input_is_not_changed() -> None:
    clean = walker()
    before = clean.copy()
    everything = Faults(
        ragged=0.5, block=0.03, coarse=True, grow=0.02, opening=0.03, lost=0.1, band=0.4,
        missing=(0.0, 0.2), missing_frames=(2, 5), shadow=0.3, merged=0.2, merged_rows=(0.2, 0.5),
        merged_frames=(1, 9), occluder=0.1, specks=1.0, dropped=0.2,
    )  # fmt: skip
    spoil(clean, everything, STILL, np.random.default_rng(0))
    assert np.array_equal(clean, before)


def test_growing_and_shrinking_do_what_they_say() -> None:
    area = (walker() > 0).sum()
    assert (spoiled(grow=0.02) > 0).sum() > 1.1 * area
    assert (spoiled(grow=-0.02) > 0).sum() < 0.9 * area


def test_the_lost_share_of_the_person_is_lost() -> None:
    area = (walker() > 0).sum()
    left = (spoiled(lost=0.1) > 0).sum()
    assert left / area == pytest.approx(0.9, abs=0.04)


def test_what_is_missing_is_missing_in_its_frames_only() -> None:
    seen = spoiled(missing=(0.0, 0.12), missing_frames=(5, 4))
    head = np.any(seen[:, MARGIN : MARGIN + 9].reshape(FRAMES, -1), axis=1)
    assert not head[5:9].any()
    assert head[:5].all()
    assert head[9:].all()


def test_a_shadow_lies_at_the_feet_on_one_side() -> None:
    seen = spoiled(shadow=0.25, shadow_height=0.04)
    aside = (seen.shape[2] - 60) // 2
    assert (seen[:, -MARGIN - 3 :, aside + 45 :] > 0).any()
    assert not (seen[:, :, : aside + 18] > 0).any()
    assert not (seen[:, : MARGIN + 60, aside + 45 :] > 0).any()


@pytest.mark.parametrize("side", [1, -1])
def test_a_piece_of_the_scene_sticks_out_beside_the_person_for_a_while(side: int) -> None:
    seen = spoiled(merged=0.2 * side, merged_rows=(0.3, 0.6), merged_frames=(5, 4))
    aside = (seen.shape[2] - 60) // 2
    there = np.zeros(seen.shape, bool)
    there[:, :, aside : aside + 60] = walker() > 0
    more = (seen > 0) & ~there
    assert np.array_equal(np.flatnonzero(more.any(axis=(1, 2))), [5, 6, 7, 8])
    rows = np.flatnonzero(more.any(axis=(0, 2))) - MARGIN
    assert rows.min() >= 80 * 0.3
    assert rows.max() <= 80 * 0.6
    columns = np.flatnonzero(more.any(axis=(0, 1))) - aside
    outside = columns - 39 if side > 0 else 20 - columns
    outside = outside[(columns > 39) | (columns < 20)]
    assert 0.4 * 0.7 * 16 - 1 <= outside.max() <= 1.2 * 16 + 1
    assert not ((columns < 20) if side > 0 else (columns > 39)).any()


def test_a_slit_opens_at_its_height() -> None:
    seen = spoiled(band=0.5, band_height=0.05)
    gone = (walker() > 0) & ~(seen > 0)
    rows = np.flatnonzero(gone.any(axis=(0, 2))) - MARGIN
    assert len(rows)
    assert rows.min() > 80 * 0.4
    assert rows.max() < 80 * 0.6


def test_an_occluder_passes_with_the_scene() -> None:
    path = np.linspace(-60, 60, FRAMES)
    seen = spoil(walker(), Faults(occluder=0.1), path, np.random.default_rng(1))
    hidden = (walker() > 0) & ~(seen > 0)
    columns = [np.flatnonzero(frame.any(axis=0)).mean() for frame in hidden if frame.any()]
    assert len(columns) > 2
    assert np.all(np.diff(columns) < 0)  # the scene goes against the walker


def test_dropped_frames_are_not_there() -> None:
    assert len(spoiled(dropped=0.3)) < FRAMES


def test_a_coarse_outline_is_made_of_squares() -> None:
    seen = spoiled(coarse=True, block=0.05)  # 4 pixels
    inner = seen[0, :, 20:40]
    changes = np.flatnonzero(np.any(np.diff(inner.astype(int), axis=0), axis=1))
    assert np.diff(changes).min() >= 3


def test_every_drawn_fault_leaves_frames_of_zeros_and_ones() -> None:
    rng = np.random.default_rng(9)
    path = np.linspace(0, 90, FRAMES)
    for _ in range(40):
        faults = draw_faults(rng, frames=FRAMES, severity=1.5)
        seen = spoil(walker(), faults, path, rng)
        assert seen.dtype == np.uint8
        assert seen.shape[1] == walker().shape[1]
        assert set(np.unique(seen)) <= {0, 255}
