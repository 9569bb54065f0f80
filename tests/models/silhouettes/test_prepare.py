from __future__ import annotations

import ast
import itertools
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import models.silhouettes
from models.silhouettes import (
    DecodeLimits,
    Frame,
    PoorSequence,
    Prepared,
    Quality,
    SequenceTooLarge,
    clean,
    cut,
    decode,
    gait_energy_image,
    is_prepared,
    normalise,
    prepare,
    prepare_upload,
)
from models.silhouettes.budget import Budget
from models.silhouettes.decode import decode_within
from tests.models.silhouettes.uploads import animation, image, images, npy, video, walker, zipped

REAL = Path(__file__).parents[3] / "../shared/data/real-dev"


def specks() -> Iterator[Frame]:
    """Noise for each frame of a walk, that touches no side."""
    random = np.random.default_rng(0)
    for frame in walker():
        dots = (random.random(frame.shape) < 0.0005).astype(np.uint8)
        noise = np.asarray(cv2.dilate(dots, np.ones((3, 3))), np.uint8) * np.uint8(255)
        noise[:, :2] = noise[:, -2:] = 0
        yield noise


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
    noisy = [np.maximum(frame, noise) for frame, noise in zip(walk, specks(), strict=True)]
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
    for cleaned in (True, False):
        with pytest.raises(PoorSequence) as caught:
            prepare([speck] * 500, clean=cleaned)
        assert caught.value.quality.dropped == {"fragment": 500}


def sent() -> dict[str, list[Frame]]:
    """Walks whose first frames leave it open what they are."""
    walk = walker()
    silhouettes = list(prepare(walk).silhouettes)
    empty, dim = np.zeros_like(walk[0]), walk[0] // 3
    return {
        "frames": walk,
        "labels": [frame // 255 for frame in walk],
        "labels after nothing": [empty, empty, *(frame // 255 * 9 for frame in walk)],
        "frames after dim ones": [dim, empty, dim, *walk],
        "frames, all dim but the last": [*(frame // 3 for frame in walk), walk[-1]],
        "normalised": silhouettes,
        "normalised labels": [frame // 3 for frame in silhouettes],
        "normalised, then not": [*silhouettes, *walk],
        "normalised, then cut": [*silhouettes, *cut(np.stack(silhouettes))],
        "normalised labels, then not": [*(frame // 3 for frame in silhouettes), walk[0] // 3],
    }


def outcome(make: Callable[[], Prepared]) -> tuple[bytes, Quality]:
    try:
        silhouettes, quality = make()
    except PoorSequence as error:
        return b"", error.quality
    return silhouettes.tobytes(), quality


@pytest.mark.parametrize("cleaned", [True, False])
@pytest.mark.parametrize("name", sent())
def test_an_upload_is_prepared_as_its_decoded_frames_are(name: str, cleaned: bool) -> None:
    data = zipped(images(sent()[name]))
    ours = outcome(lambda: prepare_upload(data, DecodeLimits(), clean=cleaned))
    assert ours == outcome(lambda: prepare(decode(data), clean=cleaned))
    assert ours[0] or name != "frames"


@pytest.mark.parametrize(
    "data",
    [
        video(walker(24, height=300, size=(600, 800))),
        zipped(images(walker(24, height=300, size=(600, 800)))),
        animation(walker(24, height=300, size=(600, 800)), "GIF"),
        zipped(images([frame // 255 for frame in walker(24, height=300, size=(600, 800))])),
    ],
)
def test_an_upload_of_any_length_is_prepared_in_the_memory_of_a_few_frames(data: bytes) -> None:
    frame = 600 * 800
    limits = DecodeLimits(max_decoded_bytes=frame + 60_000)
    with pytest.raises(SequenceTooLarge):
        decode(data, limits)
    prepare_upload(data, limits)
    tracemalloc.start()
    try:
        prepare_upload(data, limits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * frame


def test_a_file_that_unpacks_to_more_than_is_left_beside_its_frame_is_refused() -> None:
    data = zipped([("0.bmp", image(walker(1)[0], "BMP"))], compression=8)
    prepare_or_poor = outcome(
        lambda: prepare_upload(data, DecodeLimits(max_decoded_bytes=3 * 240 * 320))
    )
    assert prepare_or_poor[1].frames_in == 1
    with pytest.raises(SequenceTooLarge):
        prepare_upload(data, DecodeLimits(max_decoded_bytes=3 * 240 * 320 // 2))


def test_a_walk_normalised_as_it_is_cleaned_is_the_one_normalised_afterwards() -> None:
    walk = walker()
    walk[10][130:] = 0  # no legs
    walk[20] = walker(21, height=230)[20]
    walk[30][:] = 0
    cleaned = clean(walk)
    expected = [normalise(strip) for strip in cleaned.strips]
    prepared = prepare(walk)
    np.testing.assert_array_equal(prepared.silhouettes, np.stack(expected))  # type: ignore[arg-type]
    assert prepared.quality.dropped == cleaned.dropped == {"empty": 1, "fragment": 1, "outlier": 1}


@pytest.mark.parametrize("cleaned", [True, False])
def test_one_budget_s_time_spans_decoding_and_preparing(cleaned: bool) -> None:
    data = zipped(images(walker()))
    looks = itertools.count()
    decode_within(data, Budget(DecodeLimits(), clock=lambda: next(looks) / 1e6))
    limits = DecodeLimits(max_seconds=next(looks) + 9)
    looks = itertools.count()
    budget = Budget(limits, clock=lambda: next(looks))
    frames = decode_within(data, budget)
    with pytest.raises(SequenceTooLarge, match="decoding and preparing took longer than"):
        prepare(frames, clean=cleaned, budget=budget)


def test_preparing_holds_no_second_copy_of_the_frames() -> None:
    frames = walker(24, height=700, size=(1000, 1000), speed=9)
    tracemalloc.start()
    try:
        prepare(frames)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * frames[0].nbytes


def test_labels_become_white_without_a_second_copy_of_the_frames() -> None:
    labels = np.stack(walker(24)) // 255
    data = npy(labels)
    tracemalloc.start()
    try:
        frames = decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(np.stack(frames), labels * 255)
    assert peak < 1.3 * labels.nbytes


def out_of_memory_in_opencv() -> cv2.error:
    error = cv2.error("Failed to allocate")
    error.code = cv2.Error.StsNoMem
    return error


@pytest.mark.parametrize("error", [MemoryError(), out_of_memory_in_opencv()])
def test_memory_that_runs_out_is_a_sequence_too_large(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    data = zipped(images(walker(2)))
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["models.silhouettes.prepare"], "find_people", fail)
        with pytest.raises(SequenceTooLarge, match="more memory"):
            prepare_upload(data, DecodeLimits())
    if isinstance(error, MemoryError):
        monkeypatch.setattr("models.silhouettes.archives.decode_still", fail)
        with pytest.raises(SequenceTooLarge, match="more memory"):
            prepare_upload(data, DecodeLimits())


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


@pytest.mark.slow
@pytest.mark.parametrize("view", ["00", "45", "90"])
def test_real_walks_are_accepted_almost_all_without_a_warning(view: str) -> None:
    walks = sorted(REAL.glob(f"*/{view}_[13].zip"))
    if not walks:
        pytest.skip("the real silhouettes (shared/data/real-dev) are not beside this checkout")
    warned = []
    for path in walks:
        quality = prepare(decode(path.read_bytes())).quality
        if quality.issues:
            warned.append((path.name, quality.issues))
        assert quality.score > 0.75
        assert quality.frames_used > 0.8 * quality.frames_in
    assert len(warned) <= 0.15 * len(walks), warned  # noise like somebody, a broken head


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
    assert imported - set(sys.stdlib_module_names) == {
        *("models", "numpy", "cv2", "PIL", "av", "zlib_ng")
    }
