"""A drawn walker, and the files a client might put one in."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from PIL import Image

from models.silhouettes import Frame
from service.cli.demo_walks import WALKS


def walker(
    frames: int = 48, *, height: int = 150, size: tuple[int, int] = (240, 320), speed: float = 3.0
) -> list[Frame]:
    """A side view crossing the frame: 24 frames a gait cycle, 255 on 0."""
    return [draw_walker(index, height, size, speed) for index in range(frames)]


def draw_walker(index: float, height: int, size: tuple[int, int], speed: float) -> Frame:
    frame = np.zeros(size, np.uint8)
    phase = 2 * np.pi * index / 24
    top = (size[0] - height) // 2
    x = size[1] // 4 + speed * index

    def point(across: float, down: float) -> tuple[int, int]:
        return round(x + across * height), round(top + down * height)

    def limb(start: tuple[float, float], end: tuple[float, float], thickness: float) -> None:
        cv2.line(frame, point(*start), point(*end), 255, max(1, round(thickness * height)))

    for side in (1, -1):
        swing = side * np.sin(phase)
        limb((0, 0.5), (0.02 + 0.1 * swing, 0.73), 0.1)
        limb((0.02 + 0.1 * swing, 0.73), (0.2 * swing - 0.02, 0.96), 0.07)
        limb((0, 0.24), (-0.14 * swing, 0.52), 0.05)
    cv2.ellipse(
        frame, point(0, 0.36), (round(0.1 * height), round(0.2 * height)), 0, 0, 360, 255, -1
    )
    cv2.circle(frame, point(0.01, 0.08), round(0.075 * height), 255, -1)
    return frame


def image(frame: Any, kind: str = "PNG", **options: Any) -> bytes:
    """One frame, or a Pillow image, as an image file."""
    picture = frame if isinstance(frame, Image.Image) else Image.fromarray(frame)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def animation(frames: Sequence[Frame], kind: str, **options: Any) -> bytes:
    """Frames as an animated GIF, PNG or WebP, or as a TIFF of several pages."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    return image(first, kind, save_all=True, append_images=rest, **options)


def zipped(members: Iterable[tuple[str | zipfile.ZipInfo, bytes]], **options: Any) -> bytes:
    """A zip of named contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(members: Iterable[tuple[str | tarfile.TarInfo, bytes]], mode: str = "w") -> bytes:
    """A tar of named contents; mode `w:gz` compresses it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def images(frames: Sequence[Frame], kind: str = "PNG", **options: Any) -> list[tuple[str, bytes]]:
    """Named image files, numbered without leading zeros."""
    return [
        (f"walk/{index}.{kind.lower()}", image(frame, kind, **options))
        for index, frame in enumerate(frames)
    ]


def npy(array: Any, **options: Any) -> bytes:
    """An array as an `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, np.asanyarray(array), **options)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    """Arrays as a compressed `.npz` file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def video(
    frames: Sequence[Frame],
    container: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    *,
    sound: str = "",
    **options: str,
) -> bytes:
    """Frames as a video of 25 a second, with two seconds of silence by the codec named `sound`.

    The options are the encoder's.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames[0].shape
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        if sound:
            track: Any = output.add_stream(sound, rate=48000, layout="stereo")
            silence = np.zeros((1, 2 * 960), np.int16)
            for _ in range(100):
                block = av.AudioFrame.from_ndarray(silence, format="s16", layout="stereo")
                block.sample_rate = 48000
                output.mux(track.encode(block))
            output.mux(track.encode(None))
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def demo_walk(person: int, number: int = 3) -> list[Frame]:
    """A rendered walk of `gaitid demo`: a person of 120 rows who crosses 200 x 352 pixels."""
    path = Path(WALKS) / f"person-{person}" / f"walk-{number}.zip"
    with zipfile.ZipFile(path) as archive:
        return [
            np.array(Image.open(io.BytesIO(archive.read(name))).convert("L"))
            for name in sorted(archive.namelist())
        ]
