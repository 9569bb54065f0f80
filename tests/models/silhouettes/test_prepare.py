from __future__ import annotations

import ast
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import models.silhouettes
from models.silhouettes import (
    PoorSequence,
    cut,
    decode,
    gait_energy_image,
    is_prepared,
    normalise,
    prepare,
)
from tests.models.silhouettes.uploads import images, npy, walker, zipped

REAL = Path(__file__).parents[3] / "../shared/data/real-dev"


def test_prepared_frames_of_64_by_64_pass_untouched() -> None:
    silhouettes = prepare(walker()).silhouettes
    frames = decode(npy(silhouettes))
    assert is_prepared(frames)
    np.testing.assert_array_equal(prepare(frames).silhouettes, silhouettes)
    np.testing.assert_array_equal(prepare(frames, clean=False).silhouettes, silhouettes)


def test_prepared_frames_of_64_by_44_pass_untouched_through_the_cut() -> None:
    frames = cut(prepare(walker()).silhouettes)
    again = prepare(decode(npy(frames))).silhouettes
    assert again.shape == (len(frames), 64, 64)
    np.testing.assert_array_equal(cut(again), frames)


def test_prepared_frames_may_touch_their_sides() -> None:
    frames = cut(prepare(walker()).silhouettes).copy()
    frames[::2, 40:50, :3] = 255
    np.testing.assert_array_equal(cut(prepare(list(frames)).silhouettes), frames)


def test_empty_frames_among_prepared_ones_are_dropped_and_counted() -> None:
    frames = list(prepare(walker()).silhouettes)
    with_gaps = [*frames[:20], np.zeros((64, 64), np.uint8), *frames[20:]]
    prepared = prepare(with_gaps)
    np.testing.assert_array_equal(prepared.silhouettes, np.stack(frames))
    assert prepared.quality.dropped == {"empty": 1}


def test_raw_frames_are_not_taken_for_prepared_ones() -> None:
    assert not is_prepared(walker())
    assert not is_prepared([])
    assert not is_prepared([np.zeros((64, 64), np.uint8)] * 9)
    small = walker(12, height=40, size=(64, 64), speed=0)
    assert not is_prepared(small)
    off_centre = [np.roll(frame, 9, axis=1) for frame in prepare(walker()).silhouettes]
    assert not is_prepared(off_centre)
    mixed = [*prepare(walker()).silhouettes, np.zeros((64, 44), np.uint8)]
    assert not is_prepared(mixed)


def test_without_cleaning_whole_frames_are_normalised_as_the_field_does() -> None:
    walk = walker()
    for frame in walk:
        frame[100:103, 300:303] = 255
    expected = [normalise(frame) for frame in walk]
    np.testing.assert_array_equal(
        prepare(walk, clean=False).silhouettes,
        np.stack([frame for frame in expected if frame is not None]),
    )


def test_cleaning_makes_a_noisy_walk_close_to_the_clean_one() -> None:
    walk = walker()
    random = np.random.default_rng(0)
    noisy = []
    for frame in walk:
        specks = cv2.dilate((random.random(frame.shape) < 0.0005).astype(np.uint8), np.ones((3, 3)))
        specks[:, :2] = specks[:, -2:] = 0
        noisy.append(np.maximum(frame, specks * 255))
    clean, cleaned = prepare(walk).silhouettes, prepare(noisy).silhouettes
    left = np.stack([normalise(frame) for frame in noisy])  # type: ignore[misc]
    assert cleaned.shape == clean.shape

    def error(silhouettes: np.ndarray) -> float:
        return float(np.mean(np.abs(silhouettes.astype(int) - clean)))

    assert error(cleaned) < 0.1 * error(left)


def test_the_scale_and_place_of_the_person_do_not_matter() -> None:
    near = prepare(walker(height=200, size=(300, 400))).silhouettes
    far = prepare(walker(height=100)).silhouettes
    assert np.mean(np.abs(near.astype(int) - far)) < 8  # of 255


def test_specks_in_very_wide_frames_cost_little_even_uncleaned() -> None:
    speck = np.zeros((2, 4096), np.uint8)
    speck[0, 1000:1200] = 255
    for clean in (True, False):
        with pytest.raises(PoorSequence) as caught:
            prepare([speck] * 500, clean=clean)
        assert caught.value.quality.dropped == {"fragment": 500}


def test_no_frames_are_too_few() -> None:
    with pytest.raises(PoorSequence) as caught:
        prepare([])
    assert caught.value.reasons == ("too_few_frames",)


def test_a_gait_energy_image_is_the_mean_of_the_cut_silhouettes() -> None:
    silhouettes = prepare(walker()).silhouettes
    image = gait_energy_image(silhouettes)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, (cut(silhouettes) / 255).mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(gait_energy_image(cut(silhouettes)), image)


def test_a_gait_energy_image_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        gait_energy_image(np.zeros((0, 64, 64), np.uint8))


def test_an_uploaded_archive_becomes_silhouettes() -> None:
    prepared = prepare(decode(zipped(images(walker()))))
    assert prepared.silhouettes.shape == (48, 64, 64)
    assert prepared.silhouettes.dtype == np.uint8


@pytest.mark.parametrize("view", ["00", "45", "90"])
def test_real_walks_are_accepted_without_a_warning(view: str) -> None:
    walks = sorted(REAL.glob(f"*/{view}_[13].zip"))
    if not walks:
        pytest.skip("the real silhouettes (shared/data/real-dev) are not beside this checkout")
    for path in walks:
        quality = prepare(decode(path.read_bytes())).quality
        assert quality.issues == (), path.name
        assert quality.score > 0.8
        assert quality.frames_used > 0.8 * quality.frames_in


def test_silhouettes_never_import_torch() -> None:
    folder = Path(models.silhouettes.__file__).parent
    imported = {
        name.split(".")[0]
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"models", "numpy", "cv2", "PIL", "av"}
