from __future__ import annotations

import gzip
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from models.silhouettes import DecodeLimits, Frame, decode
from tests.models.silhouettes.uploads import (
    animation,
    image,
    images,
    npy,
    npz,
    tarred,
    video,
    walker,
    zipped,
)

WALK = walker(12)

EXACT: dict[str, Callable[[], bytes]] = {
    "zip of PNG": lambda: zipped(images(WALK)),
    "zip of BMP": lambda: zipped(images(WALK, "BMP")),
    "zip of TIFF": lambda: zipped(images(WALK, "TIFF", compression="tiff_lzw")),
    "zip of lossless WebP": lambda: zipped(images(WALK, "WEBP", lossless=True)),
    "deflated zip": lambda: zipped(images(WALK), compression=8),
    "tar": lambda: tarred(images(WALK)),
    "gzipped tar": lambda: tarred(images(WALK), "w:gz"),
    "gzipped zip": lambda: gzip.compress(zipped(images(WALK))),
    "npy": lambda: npy(np.stack(WALK)),
    "npy in Fortran order": lambda: npy(np.asfortranarray(np.stack(WALK))),
    "npy of bool": lambda: npy(np.stack(WALK) > 0),
    "npy of 0 and 1": lambda: npy(np.stack(WALK) // 255),
    "npz by its key": lambda: npz(other=np.zeros(3), silhouettes=np.stack(WALK)),
    "npz of one array": lambda: npz(whatever=np.stack(WALK)),
    "animated GIF": lambda: animation(WALK, "GIF"),
    "animated PNG": lambda: animation(WALK, "PNG"),
    "animated lossless WebP": lambda: animation(WALK, "WEBP", lossless=True),
    "TIFF of pages": lambda: animation(WALK, "TIFF"),
}

LOSSY: dict[str, Callable[[], bytes]] = {
    "zip of JPEG": lambda: zipped(images(WALK, "JPEG", quality=60)),
    "zip of lossy WebP": lambda: zipped(images(WALK, "WEBP", quality=60)),
    "animated lossy WebP": lambda: animation(WALK, "WEBP", quality=60),
    "MP4": lambda: video(WALK),
    "AVI": lambda: video(WALK, "avi", "mpeg4"),
    "AVI of JPEG": lambda: video(WALK, "avi", "mjpeg", "yuvj420p"),
    "WebM": lambda: video(WALK, "webm", "libvpx-vp9"),
    "WebM of VP8": lambda: video(WALK, "webm", "libvpx"),
}


def one(data: bytes) -> Frame:
    (frame,) = decode(data)
    assert frame.dtype == np.uint8
    return frame


@pytest.mark.parametrize("name", EXACT)
def test_a_lossless_format_gives_back_exactly_the_frames_sent(name: str) -> None:
    frames = decode(EXACT[name]())
    assert len(frames) == len(WALK)
    for frame, sent in zip(frames, WALK, strict=True):
        np.testing.assert_array_equal(frame, sent)


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_format_gives_frames_close_to_those_sent_on_black(name: str) -> None:
    frames = decode(LOSSY[name]())
    assert len(frames) == len(WALK)
    for frame, sent in zip(frames, WALK, strict=True):
        assert not ((frame > 0) & (frame < 32)).any()
        assert ((frame > 127) != (sent > 127)).sum() < 0.06 * (sent > 0).sum()


def test_names_are_ordered_as_people_number_them_and_never_decide_the_kind() -> None:
    frames = [np.full((8, 8), 200 + index, np.uint8) for index in range(4)]
    names = ["a2.txt", "a10.txt", "A011", "b/1"]
    shuffled = [(names[index], image(frames[index])) for index in (3, 1, 0, 2)]
    assert [int(frame[0, 0]) for frame in decode(zipped(shuffled))] == [200, 201, 202, 203]
    assert [int(frame[0, 0]) for frame in decode(tarred(shuffled))] == [200, 201, 202, 203]


@pytest.mark.parametrize(
    ("container", "codec", "sound"),
    [
        ("mp4", "libx264", "libopus"),
        ("matroska", "libx264", "libopus"),
        ("webm", "libvpx-vp9", "libopus"),
        ("avi", "mpeg4", "pcm_s16le"),
    ],
)
def test_sound_that_is_longer_than_the_pictures_changes_nothing(
    container: str, codec: str, sound: str
) -> None:
    frames = decode(video(WALK, container, codec, sound=sound))
    for frame, alone in zip(frames, decode(video(WALK, container, codec)), strict=True):
        np.testing.assert_array_equal(frame, alone)


def test_frames_may_differ_in_size() -> None:
    sizes = [(20, 10), (40, 30), (64, 44)]
    data = zipped(images([np.full(size, 255, np.uint8) for size in sizes]))
    assert [frame.shape for frame in decode(data)] == sizes


def test_what_file_managers_leave_in_an_archive_is_ignored() -> None:
    strays = [
        ("__MACOSX/walk/._0.png", b"\x00\x05\x16\x07"),
        ("walk/.DS_Store", b"\x00\x00\x00\x01Bud1"),
        ("walk/Thumbs.db", b"\xd0\xcf\x11\xe0"),
        ("walk/", b""),
    ]
    assert len(decode(zipped([*strays, *images(WALK)]))) == len(WALK)
    assert len(decode(tarred([*strays[:3], *images(WALK)]))) == len(WALK)


def test_a_still_image_is_a_sequence_of_one_frame() -> None:
    np.testing.assert_array_equal(one(image(WALK[0])), WALK[0])


def test_class_numbers_become_white_when_nothing_is_brighter() -> None:
    labels = np.zeros((6, 8), np.uint8)
    labels[2:4, 1:7] = 15
    labels[4, 3] = 2
    np.testing.assert_array_equal(one(image(labels)), np.where(labels, 255, 0))


def test_labels_are_told_from_the_whole_sequence_not_from_a_single_frame() -> None:
    dim, bright = np.full((4, 4), 3, np.uint8), np.full((4, 4), 255, np.uint8)
    first, second = decode(zipped(images([dim, bright])))
    assert first.max() == 3
    assert second.min() == 255


def test_greys_of_a_lossless_image_are_kept() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(one(image(ramp)), ramp)
    np.testing.assert_array_equal(one(image(np.stack([ramp] * 3, axis=-1))), ramp)


def test_a_palette_of_classes_counts_as_white_wherever_it_is_coloured() -> None:
    mask = np.zeros((5, 5), np.uint8)
    mask[1:4, 2] = 1
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette([0, 0, 0, 64, 0, 0])
    np.testing.assert_array_equal(one(image(picture)), mask * 255)


def test_a_sixteen_bit_image_loses_its_lower_bits_unless_it_needs_only_eight() -> None:
    wide = np.array([[0, 0, 0x8012, 0xFFFF]], np.uint16)
    np.testing.assert_array_equal(one(image(wide)), [[0, 0, 0x80, 0xFF]])
    narrow = np.array([[0, 0, 7, 255]], np.uint16)
    np.testing.assert_array_equal(one(image(narrow)), [[0, 0, 7, 255]])


def test_a_cut_out_person_of_any_colour_is_its_opacity() -> None:
    picture = np.zeros((6, 6, 4), np.uint8)
    picture[1:5, 2:4] = (20, 30, 40, 255)
    expected = np.where(picture[..., 3] > 0, 255, 0)
    np.testing.assert_array_equal(one(image(picture)), expected)


def test_a_black_and_white_silhouette_on_a_transparent_margin_stays_itself() -> None:
    picture = np.zeros((6, 6, 4), np.uint8)
    picture[1:5, 1:5] = (0, 0, 0, 255)
    picture[2:4, 2:4] = 255
    np.testing.assert_array_equal(one(image(picture)), picture[..., 0])


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    picture = np.dstack([np.repeat(WALK[0][..., None], 3, axis=2), np.full(WALK[0].shape, 255)])
    np.testing.assert_array_equal(one(image(picture.astype(np.uint8))), WALK[0])


def test_a_one_bit_image_is_black_and_white() -> None:
    picture = Image.fromarray(WALK[0] > 0)
    assert picture.mode == "1"
    np.testing.assert_array_equal(one(image(picture)), WALK[0])


def test_frames_own_their_memory_so_that_nobody_writes_into_the_upload() -> None:
    frames = decode(npy(np.stack(WALK)))
    frames[0][:] = 9
    assert frames[1].flags.writeable


def test_a_walk_of_a_thousand_frames_is_within_the_default_limits() -> None:
    started = time.monotonic()
    assert len(decode(npz(silhouettes=np.zeros((1000, 64, 44), np.uint8)))) == 1000
    assert time.monotonic() - started < DecodeLimits().max_seconds
