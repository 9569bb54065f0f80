"""Uploads that are not quite silhouettes: put right, warned of, or refused with what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from models.silhouettes import (
    DecodeLimits,
    Frame,
    PoorSequence,
    Prepared,
    cut,
    decode,
    prepare,
    prepare_upload,
)
from tests.models.silhouettes.uploads import (
    demo_walk,
    draw_walker,
    image,
    images,
    npy,
    npz,
    video,
    zipped,
)

WALK, OTHER = demo_walk(1), demo_walk(2)
CLEAN = prepare(WALK)
UMBRELLA = 0.26  # of the height, to either side


def prepared(data: bytes) -> Prepared:
    return prepare_upload(data, DecodeLimits())


def difference(ours: Prepared) -> float:
    """Mean difference to the clean walk, of 255."""
    assert ours.silhouettes.shape == CLEAN.silhouettes.shape
    return float(np.abs(ours.silhouettes.astype(int) - CLEAN.silhouettes).mean())


def refusal(data: bytes) -> PoorSequence:
    with pytest.raises(PoorSequence) as caught:
        prepared(data)
    return caught.value


def soft(frame: Frame, pixels: float = 1.6) -> Frame:
    return np.asarray(cv2.GaussianBlur(frame, (0, 0), pixels), np.uint8)


def scaled(frame: Frame, times: float) -> Frame:
    small = cv2.resize(frame, None, fx=times, fy=times, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def hard(frame: Frame) -> Frame:
    return np.where(frame > 127, np.uint8(255), np.uint8(0))


def tinted(frame: Frame, background: tuple[int, int, int] = (0, 0, 0)) -> Any:
    """Red shirt, black trousers."""
    rows = np.flatnonzero(frame.any(axis=1))
    middle = (rows[0] + rows[-1]) // 2
    colours = np.where(np.arange(len(frame))[:, None, None] < middle, (200, 30, 40), (24, 20, 22))
    texture = np.random.default_rng(0).integers(0, 30, (*frame.shape, 1))
    return np.where(frame[..., None] > 0, colours + texture, background).astype(np.uint8)


def beside(frame: Frame, other: Frame) -> Frame:
    return np.hstack([frame, other])


def with_umbrella(frame: Frame) -> Frame:
    left, top, width, height = cv2.boundingRect(frame)
    wide = np.pad(frame, ((height // 2, 0), (height // 2, height // 2)))
    middle = (left + width // 2 + height // 2, top + height // 2 - round(0.06 * height))
    axes = (round(UMBRELLA * height), round(0.14 * height))
    cv2.ellipse(wide, middle, axes, 0, 180, 360, 255, -1)
    cv2.line(wide, middle, (middle[0], middle[1] + height // 2), 255, 3)
    return wide


def turned(frames: Sequence[Frame], orientation: int, turns: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = [np.ascontiguousarray(np.rot90(frame, turns)) for frame in frames]
    return zipped(images(stored, "JPEG", exif=exif, quality=95))


RESTORED: dict[str, tuple[Callable[[], bytes], tuple[str, ...], float]] = {
    "a matte": (lambda: zipped(images(list(map(soft, WALK)))), (), 6),
    "a matte as JPEG": (lambda: zipped(images(list(map(soft, WALK)), "JPEG")), (), 6),
    "a dim matte": (lambda: zipped(images([soft(one) // 3 for one in WALK])), (), 6),
    "a matte of fractions": (lambda: npy(np.stack(list(map(soft, WALK))) / 255), (), 6),
    "36 rows": (
        lambda: zipped(images([scaled(one, 0.3) for one in WALK])),
        ("low_resolution",),
        6,
    ),
    "36 rows without greys": (
        lambda: zipped(images([hard(scaled(one, 0.3)) for one in WALK])),
        ("low_resolution",),
        9,
    ),
    "48 rows as video": (lambda: video([scaled(one, 0.5)[:, :176] for one in WALK]), (), 6),
    "a cutout with opacity": (
        lambda: zipped(images([np.dstack([tinted(f), f]) for f in WALK])),
        (),
        0,
    ),
    "a cutout on black": (lambda: zipped(images(list(map(tinted, WALK)))), (), 0),
    "a cutout on green": (
        lambda: zipped(images([tinted(one, (0, 177, 64)) for one in WALK])),
        (),
        0,
    ),
    "a map of parts": (
        lambda: zipped(
            images(
                [one // 255 * (1 + (np.arange(200) > 100)[:, None].astype("u1")) for one in WALK]
            )
        ),
        (),
        0,
    ),
    "black on white": (lambda: zipped(images([255 - one for one in WALK])), ("inverted",), 0),
    "1 behind, 0 the person": (lambda: npy(1 - np.stack(WALK) // 255), ("inverted",), 0),
    "turned, says Exif": (lambda: turned(WALK, 6, 1), (), 6),
    "turned the other way, says Exif": (lambda: turned(WALK, 8, -1), (), 6),
    "upside down, says Exif": (lambda: turned(WALK, 3, 2), (), 6),
    "upside down": (
        lambda: zipped(images([one[::-1, ::-1] for one in WALK])),
        ("upside_down",),
        12,
    ),
    "each frame 8 times": (
        lambda: zipped(images([one for one in WALK for _ in range(8)])),
        ("frame_rate",),
        0,
    ),
    "standing first": (
        lambda: zipped(images([WALK[0]] * 39 + WALK)),
        ("stands",),
        0,
    ),
    "one walk, then another": (
        lambda: zipped(images([*WALK, *OTHER[:20]])),
        ("several_walks",),
        0,
    ),
    "somebody who stands": (
        lambda: zipped(images([beside(one, OTHER[5]) for one in WALK])),
        ("several_people",),
        5,
    ),
    "an umbrella": (
        lambda: zipped(images(list(map(with_umbrella, WALK)))),
        ("not_a_person_shape",),
        9,
    ),
    "an array a frame": (
        lambda: zipped((f"{i:03}.npy", npy(f)) for i, f in enumerate(WALK)),
        (),
        0,
    ),
    "an npz of frames": (lambda: npz(**{f"arr_{i}": one for i, one in enumerate(WALK)}), (), 0),
    "an npz with a number": (lambda: npz(masks=np.stack(WALK), fps=np.float64(25)), (), 0),
    "frames last": (lambda: npy(np.stack(WALK, axis=-1)), (), 0),
    "a channel last": (lambda: npy(np.stack(WALK)[..., None]), (), 0),
    "a channel second": (lambda: npy(np.stack(WALK)[:, None] > 0), (), 0),
    "colours last": (lambda: npy(np.stack(WALK)[..., None].repeat(3, axis=3)), (), 0),
    "fractions to 255": (lambda: npy(np.stack(WALK).astype(np.float32)), (), 0),
    "big-endian 0 and 1": (lambda: npy((np.stack(WALK) > 0).astype(">i4")), (), 0),
}


@pytest.mark.parametrize("name", RESTORED)
def test_what_can_be_put_right_becomes_the_clean_walk_and_says_so(name: str) -> None:
    make, issues, most = RESTORED[name]
    ours = prepared(make())
    assert ours.quality.issues == issues
    assert difference(ours) <= most
    assert (ours.quality.score < 0.9) == bool(issues)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (zipped(images(list(map(beside, WALK, OTHER)))), "several_people"),
        (
            zipped(
                images(
                    [
                        a // 255 | np.roll(b, 40, axis=1) // 255 * 2
                        for a, b in zip(WALK, OTHER, strict=True)
                    ]
                )
            ),
            "several_people",
        ),
        (
            zipped((f"{walk}/{i}.png", image(one)) for walk in "ab" for i, one in enumerate(WALK)),
            "several_walks",
        ),
    ],
)
def test_where_nobody_can_know_who_is_meant_it_is_refused(data: bytes, code: str) -> None:
    error = refusal(data)
    assert error.reasons == (code,)
    assert "send" in error.reason


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([one[:148] for one in WALK], "cut_off"),
        ([one[55:] for one in WALK], "cut_off"),
        ([one[75:150] for one in WALK], "cut_off"),
    ],
)
def test_what_cannot_be_put_right_is_warned_of(frames: list[Frame], code: str) -> None:
    try:
        issues = prepared(zipped(images(frames))).quality.issues
    except PoorSequence as error:
        issues = error.reasons
    assert code in issues


def test_frames_cut_to_the_person_s_rows_are_no_person_cut_off() -> None:
    boxes = [cv2.boundingRect(one) for one in WALK]
    crops = [f[y : y + h, x : x + w] for f, (x, y, w, h) in zip(WALK, boxes, strict=True)]
    assert prepared(zipped(images(crops))).quality.issues == ()


def test_many_frames_a_second_are_thinned_to_a_camera_s() -> None:
    fast = [draw_walker(index / 8, 150, (240, 320), 3.0) for index in range(320)]
    ours = prepare(fast)
    assert ours.quality.issues == ("frame_rate",)
    assert 30 < len(ours.silhouettes) < 80
    usual = [draw_walker(index, 150, (240, 320), 3.0) for index in range(40)]
    assert prepare(usual).quality.issues == ()


def test_clean_walks_keep_every_frame_and_get_no_code() -> None:
    for person in range(1, 7):
        for number in (1, 2, 3):
            walk = demo_walk(person, number)
            quality = prepare(walk).quality
            assert quality.issues == ()
            assert quality.frames_used == len(walk)


def test_prepared_walks_that_stand_on_their_heads_are_turned() -> None:
    upside_down = npy(cut(CLEAN.silhouettes)[:, ::-1, ::-1])
    ours = prepared(upside_down)
    assert ours.quality.issues == ("upside_down",)
    np.testing.assert_array_equal(cut(ours.silhouettes), cut(CLEAN.silhouettes))


def test_inverted_prepared_walks_are_turned_round() -> None:
    ours = prepared(npy(255 - CLEAN.silhouettes))
    assert ours.quality.issues == ("inverted",)
    np.testing.assert_array_equal(ours.silhouettes, CLEAN.silhouettes)


def test_a_video_is_turned_as_its_display_matrix_says() -> None:
    frames = [one[:, :352] for one in WALK]
    stored = [np.ascontiguousarray(np.rot90(one)) for one in frames]  # a quarter anticlockwise
    data = bytearray(video(stored))
    at = data.index(b"tkhd") + 4 + 4 + 36  # version 0: the matrix, nine numbers of 32 bits
    clockwise = (0, 1, 0, -1, 0, 0, 0, 0, 0x40000000)
    for place, value in enumerate(clockwise):
        number = value if place == 8 else value * 0x10000
        data[at + 4 * place : at + 4 * place + 4] = number.to_bytes(4, "big", signed=True)
    for shown, sent in zip(decode(bytes(data)), frames, strict=True):
        assert shown.shape == sent.shape
        assert ((shown > 127) != (sent > 127)).mean() < 0.01


def test_a_gap_between_walks_is_none_in_a_walk() -> None:
    gone = [np.zeros_like(WALK[0])] * 30
    assert "several_walks" in prepare([*WALK[:20], *gone, *WALK[20:]]).quality.issues
    assert "several_walks" not in prepare([*WALK[:20], *gone[:8], *WALK[20:]]).quality.issues


def test_a_walk_alone_in_a_folder_beside_other_files_is_one_walk() -> None:
    members = images(WALK)
    assert prepared(zipped([("about/cover.png", image(WALK[0])), *members])).quality.frames_in == 41
