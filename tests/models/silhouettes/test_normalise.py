from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.silhouettes import Frame, cut, normalise, pad

GOLDENS = Path(__file__).parents[3] / "../shared/goldens"


@pytest.fixture(scope="module")
def goldens() -> dict[str, Any]:
    if not (GOLDENS / "preprocessing.npz").exists():
        pytest.skip("the reference outputs (shared/goldens) are not beside this checkout")
    with np.load(GOLDENS / "preprocessing.npz") as arrays:
        return {
            **arrays,
            "frames": json.loads((GOLDENS / "preprocessing.json").read_text())["frames"],
        }


def by_the_letter(frame: Frame) -> Frame | None:
    """The rules of the field's preprocessing, one after the other, with a loop for the middle."""
    if int(frame.sum(dtype=np.int64)) <= 10_000:
        return None
    rows = [index for index in range(len(frame)) if frame[index].any()]
    person = frame[rows[0] : rows[-1] + 1]
    width = int(64 * (person.shape[1] / person.shape[0]))
    if width == 0:
        return None
    resized = cv2.resize(person, (width, 64), interpolation=cv2.INTER_CUBIC)
    half, passed, middle = resized.sum(dtype=np.int64) / 2, 0, None
    for column in range(width):
        passed += int(resized[:, column].sum(dtype=np.int64))
        if passed > half:
            middle = column
            break
    if not middle:
        return None
    left, right = middle - 32, middle + 32
    if left <= 0 or right >= width:
        margin = np.zeros((64, 32), np.uint8)
        resized = np.concatenate([margin, resized, margin], axis=1)
        left, right = left + 32, right + 32
    return np.asarray(resized[:, left:right], np.uint8)


def test_each_reference_frame_is_kept_or_dropped_as_the_field_does_it(
    goldens: dict[str, Any],
) -> None:
    kept = {name: normalise(goldens[f"raw/{name}"]) is not None for name in goldens["frames"]}
    assert kept == {name: frame["kept"] for name, frame in goldens["frames"].items()}


def test_normalised_frames_equal_the_reference_bit_for_bit(goldens: dict[str, Any]) -> None:
    names = [name for name, frame in goldens["frames"].items() if frame["kept"]]
    assert len(names) == 9
    for name in names:
        np.testing.assert_array_equal(normalise(goldens[f"raw/{name}"]), goldens[f"aligned/{name}"])


@pytest.mark.parametrize("width", [44, 64, 88, 128])
def test_cut_frames_equal_the_reference(goldens: dict[str, Any], width: int) -> None:
    ours = cut(goldens[f"cutting/in_{width}"]).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(ours, goldens[f"cutting/out_{width}"])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_normalising_follows_the_rules_to_the_letter(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows, columns = random.integers(8, 160, 2)
    frame = np.zeros((rows, columns), np.uint8)
    top, left = random.integers(0, rows), random.integers(0, columns)
    height, width = random.integers(1, rows + 1), random.integers(1, columns + 1)
    frame[top : top + height, left : left + width] = random.integers(1, 256)
    frame[random.random(frame.shape) < random.random() / 2] = 0
    ours, expected = normalise(frame), by_the_letter(frame)
    assert (ours is None) == (expected is None)
    if ours is not None:
        np.testing.assert_array_equal(ours, expected)


def test_a_normalised_frame_is_64_by_64_and_its_middle_is_column_32() -> None:
    frame = np.zeros((240, 320), np.uint8)
    frame[40:200, 250:290] = 255
    ours = normalise(frame)
    assert ours is not None
    assert ours.shape == (64, 64)
    mass = ours.sum(axis=0, dtype=np.int64).cumsum()
    assert int((mass > mass[-1] / 2).argmax()) == 32


def test_padding_undoes_cutting() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 44), np.uint8)
    assert pad(frames).shape == (3, 64, 64)
    np.testing.assert_array_equal(cut(pad(frames)), frames)
