from __future__ import annotations

import io
import mmap
import struct
import wave
import zipfile
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from models.footage import FootageLimits, read_pictures
from models.silhouettes import (
    MalformedSequence,
    SequenceError,
    SequenceTooLarge,
    UnsupportedSequence,
)
from tests.models.footage.clips import RATE, crossing, encode, photos, scene, still


def blank(count: int, rows: int = 48, columns: int = 64) -> list[np.ndarray]:
    return [np.full((rows, columns, 3), 40 + number % 100, np.uint8) for number in range(count)]


def times(data: bytes) -> list[float]:
    return [picture.seconds for picture in read_pictures(data, FootageLimits())]


@pytest.mark.parametrize("rate", [10, 25, 30])
def test_every_picture_of_a_usual_rate_is_read(rate: int) -> None:
    assert times(encode(blank(20), rate=rate)) == pytest.approx(np.arange(20) / rate, abs=2e-3)


@pytest.mark.parametrize(("rate", "kept"), [(50, 25), (60, 30), (120, 30), (200, 33)])
def test_fast_cameras_are_thinned_out(rate: int, kept: int) -> None:
    read = times(encode(blank(rate), rate=rate))
    assert len(read) == pytest.approx(kept, abs=2)


def test_a_changing_rate_keeps_its_times() -> None:
    stamps = [0.0, 0.1, 0.14, 0.18, 0.5, 0.54, 0.9]
    assert times(encode(blank(len(stamps)), times=stamps)) == pytest.approx(stamps, abs=2e-3)


@pytest.mark.parametrize(
    ("codec", "container"), [("libx264", "mp4"), ("mpeg4", "avi"), ("libvpx", "webm")]
)
def test_colours_survive_every_container(codec: str, container: str) -> None:
    picture = np.zeros((96, 128, 3), np.uint8)
    picture[:] = (200, 60, 20)
    (first, *_) = read_pictures(
        encode([picture] * 4, codec=codec, container=container), FootageLimits()
    )
    assert first.image.shape == (96, 128, 3)
    assert np.abs(first.image.astype(int) - (200, 60, 20)).mean() < 12


@pytest.mark.parametrize("codec", ["mpeg4", "msmpeg4", "mpeg2video", "mjpeg"])
@pytest.mark.parametrize("sides", [(16, 16), (64, 64), (48, 112), (120, 160), (144, 176)])
def test_small_pictures_of_every_codec_are_read(codec: str, sides: tuple[int, int]) -> None:
    data = encode(blank(4, *sides), codec=codec, container="avi")
    assert len(times(data)) == 4


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        ("yuv420p10le", {}),
        ("yuv420p", {"flags": "+ildct+ilme", "x264-params": "interlaced=1"}),
        ("yuv444p", {}),
    ],
    ids=["ten bits", "interlaced", "colours in full"],
)
def test_what_cameras_and_phones_record_is_read_like_any_video(
    pixels: str, options: dict[str, str]
) -> None:
    shown = crossing((1, 100.0, 160.0), frames=8)
    target = io.BytesIO()
    with av.open(target, "w", format="mp4", options={"movflags": "frag_keyframe"}) as file:
        stream = file.add_stream("libx264", rate=RATE, options=options)
        stream.height, stream.width = shown[0].shape[:2]
        stream.pix_fmt = pixels
        for picture in shown:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        file.mux(stream.encode(None))
    read = list(read_pictures(target.getvalue(), FootageLimits()))
    assert [picture.seconds for picture in read] == pytest.approx([n / RATE for n in range(8)])
    for found, original in zip(read, shown, strict=True):
        assert np.abs(found.image.astype(int) - original).mean() < 6


def test_large_pictures_are_made_smaller_and_say_by_how_much() -> None:
    (first, *_) = read_pictures(encode([scene()[:90].repeat(12, 0).repeat(5, 1)] * 2),
                                FootageLimits())  # fmt: skip
    assert max(first.image.shape) == 1280
    assert first.scale == pytest.approx(2400 / 1280)


@pytest.mark.parametrize(("codec", "container"), [("libx264", "mp4"), ("libvpx", "webm")])
def test_a_clip_that_says_it_lasts_ten_hours_is_refused(codec: str, container: str) -> None:
    stamps = [0.0, 1.0, 2.0, 36_000.0]
    data = encode(blank(4), times=stamps, codec=codec, container=container)
    with pytest.raises(SequenceTooLarge, match="60 s that are read"):
        list(read_pictures(data, FootageLimits()))


def test_pictures_over_the_limit_are_refused_before_one_is_decoded() -> None:
    data = encode(blank(2, 4320, 7680))
    with pytest.raises(SequenceTooLarge, match="over the limit of 4096"):
        list(read_pictures(data, FootageLimits()))


def test_sound_alone_is_refused() -> None:
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 16_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(MalformedSequence, match="no video track"):
        list(read_pictures(target.getvalue(), FootageLimits()))


def test_one_picture_is_no_footage() -> None:
    with pytest.raises(MalformedSequence, match="one picture"):
        list(read_pictures(encode(blank(1)), FootageLimits()))


def test_a_clip_whose_key_frames_are_gone_is_refused() -> None:
    data = encode(blank(30), container="avi", codec="mpeg4")
    key = data.index(b"00dc", data.index(b"movi"))
    (size,) = struct.unpack_from("<I", data, key + 4)
    broken = data[: key + 8] + bytes(size) + data[key + 8 + size :]
    with pytest.raises(SequenceError):
        list(read_pictures(broken, FootageLimits()))


def test_other_files_are_told_by_what_they_are() -> None:
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16_000))
    with pytest.raises(UnsupportedSequence, match="send an MP4, AVI or WebM"):
        list(read_pictures(sound.getvalue(), FootageLimits()))


def test_a_clip_of_more_pictures_than_are_read_is_refused() -> None:
    with pytest.raises(SequenceTooLarge):
        list(read_pictures(encode(blank(40)), FootageLimits(max_pictures=20)))


def test_the_time_that_reading_takes_is_bounded() -> None:
    with pytest.raises(SequenceTooLarge, match="took longer"):
        list(read_pictures(encode(blank(40)), FootageLimits(max_seconds=0.0)))


@pytest.mark.parametrize(
    ("codec", "container"),
    [("libx264", "mp4"), ("mjpeg", "mp4"), ("mpeg4", "avi"), ("mjpeg", "avi"), ("libvpx", "webm")],
)
def test_reading_goes_on_from_any_picture_as_if_it_had_not_ended(
    codec: str, container: str, tmp_path: Path
) -> None:
    file = tmp_path / "clip"
    # More than are kept of 60 a second: which ones stay must not change, either.
    file.write_bytes(encode(blank(240), rate=60, codec=codec, container=container))
    with file.open("rb") as clip, mmap.mmap(clip.fileno(), 0, access=mmap.ACCESS_READ) as data:
        whole = list(read_pictures(data, FootageLimits()))
        for begin in (1, 45, 77, len(whole) - 1):
            passed: list[None] = []
            tell = partial(passed.append, None)
            rest = list(read_pictures(data, FootageLimits(), from_s=whole[begin].seconds,
                                      passed=tell))  # fmt: skip
            assert [one.seconds for one in rest] == [one.seconds for one in whole[begin:]]
            assert all((one.image == other.image).all()
                       for one, other in zip(rest, whole[begin:], strict=True))  # fmt: skip
            if codec == "mjpeg" and begin == len(whole) - 1:
                assert len(passed) < 70  # a second's, and the very first


def test_a_file_that_is_damaged_says_so_also_when_reading_goes_on() -> None:
    data = encode(blank(100))
    with pytest.raises(MalformedSequence, match="cut short or damaged"):
        list(read_pictures(data[: len(data) // 2], FootageLimits(), from_s=3.0))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
@pytest.mark.parametrize("as_tar", [False, True])
def test_a_camera_s_frames_in_an_archive_are_read_in_colour(suffix: str, as_tar: bool) -> None:
    picture = np.full((48, 64, 3), (200, 60, 20), np.uint8)
    read = list(read_pictures(photos([picture] * 8, suffix, as_tar=as_tar), FootageLimits()))
    assert [picture.seconds for picture in read] == pytest.approx(np.arange(8) / 25)
    assert np.abs(read[0].image.astype(int) - picture).mean() < 6


@pytest.mark.parametrize(("rate", "kept"), [(10.0, 40), (50.0, 20), (None, 40)])
def test_the_rate_of_images_is_what_is_said(rate: float | None, kept: int) -> None:
    read = list(read_pictures(photos(blank(40)), FootageLimits(), rate))
    assert len(read) == pytest.approx(kept, abs=1)
    assert read[-1].seconds == pytest.approx(39 / (rate or 25), abs=2 / (rate or 25))


def test_large_photos_are_made_smaller_and_turned_as_a_viewer_would() -> None:
    from PIL import Image

    target = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((1500, 2000, 3), np.uint8)
    picture[:, :200] = 255
    Image.fromarray(picture).save(target, "JPEG", exif=exif)
    eight = io.BytesIO()
    with zipfile.ZipFile(eight, "w") as archive:
        for number in range(8):
            archive.writestr(f"{number}.jpg", target.getvalue())
    (first, *_) = read_pictures(eight.getvalue(), FootageLimits())
    assert first.image.shape == (1280, 960, 3)
    assert first.scale == pytest.approx(2000 / 1280)
    assert first.image[:100].mean() > 240  # what was at the left is at the top
    assert first.image[200:].mean() < 5


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (still(scene()), "one photo shows no gait; send a video"),
        (photos([scene()]), "one photo shows no gait"),
        (photos([scene()] * 5), "5 photos show no gait"),
        (photos([*[scene()] * 8, scene()[:-10]]), "image 9 is not as large as those before"),
        (photos([scene()] * 8)[:-400], "damaged or cut short"),
        (photos(blank(8, 8, 4200)), "over the limit of 4096"),
    ],
)
def test_images_that_are_no_footage_are_refused_with_what_to_send(data: bytes, reason: str) -> None:
    with pytest.raises(SequenceError, match=reason):
        list(read_pictures(data, FootageLimits()))


def test_images_may_not_last_longer_than_a_video() -> None:
    with pytest.raises(SequenceTooLarge, match="2 s that are read"):
        list(read_pictures(photos(blank(30)), FootageLimits(max_seconds_long=2.0), 10.0))
