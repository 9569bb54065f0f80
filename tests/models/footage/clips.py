"""Clips of rendered people over a drawn background: the demo's walkers in clothes of one colour."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from models.silhouettes import decode
from service.cli.demo_walks import WALKS

Pixels = NDArray[np.uint8]
RATE = 25
ROWS, COLUMNS = 300, 480
GROUND = 265  # the row that feet stand on
TALL = 160
CLOTHES = ((40, 40, 120), (30, 90, 40), (120, 60, 30))  # red, green, blue


@cache
def poses(person: int) -> list[Pixels]:
    """One walk of a demo walker, each pose cut out, `TALL` rows high, going to the right."""
    archive = sorted((Path(WALKS) / f"person-{person}").glob("*.zip"))[0]
    frames = decode(archive.read_bytes())
    columns = [float(np.nonzero(frame)[1].mean()) for frame in frames if frame.any()]
    mirrored = columns[-1] < columns[0]
    tallest = max(cv2.boundingRect(frame)[3] for frame in frames)
    cut = []
    for frame in frames:
        left, top, wide, high = cv2.boundingRect(frame)
        if high < 0.9 * tallest:
            continue
        pose = frame[top : top + high, left : left + wide]
        size = round(wide * TALL / tallest), round(high * TALL / tallest)
        pose = np.asarray(cv2.resize(pose, size, interpolation=cv2.INTER_CUBIC), np.uint8)
        cut.append(pose[:, ::-1] if mirrored else pose)
    return cut


def scene(seed: int = 0) -> Pixels:
    """An empty place: a wall, a floor, and their texture, uint8 `[h, w, 3]`."""
    random = np.random.default_rng(seed)
    image = np.full((ROWS, COLUMNS, 3), 190, np.float32)
    image[GROUND - 30 :] = 150
    image += cv2.resize(
        random.normal(0, 6, (12, 24, 1)).repeat(3, 2).astype(np.float32), (COLUMNS, ROWS)
    )
    image += random.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def mask_of(person: int, frame: int, column: float) -> Pixels:
    """A demo walker's silhouette in an empty picture, its middle at a column.

    The frame's number chooses the pose. After the last pose the walk is taken backwards, and so
    on: no legs jump.
    """
    walk = poses(person)
    turn = frame % (2 * len(walk) - 2)
    pose = walk[min(turn, 2 * len(walk) - 2 - turn)]
    whole = np.zeros((ROWS, COLUMNS + 400), np.uint8)
    left = round(column - pose.shape[1] / 2) + 200
    left = min(max(left, 0), whole.shape[1] - pose.shape[1])
    whole[GROUND - pose.shape[0] : GROUND, left : left + pose.shape[1]] = pose
    return whole[:, 200:-200]


def draw(picture: Pixels, mask: Pixels, clothes: Sequence[int]) -> Pixels:
    """A picture with somebody in it: hair, skin, clothes, all round and lit from the upper left."""
    left, top, wide, high = cv2.boundingRect(mask)
    paint = np.empty(picture.shape, np.float32)
    paint[:] = clothes
    paint[top + high // 2 :] = (95, 75, 60)
    paint[top + high * 94 // 100 :] = (30, 30, 30)
    paint[: top + high * 14 // 100] = (120, 150, 205)
    paint[: top + high * 5 // 100] = (30, 40, 50)
    depth = cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 5)
    depth = cv2.GaussianBlur(np.sqrt(np.minimum(depth, 12) * 24), (0, 0), 2)
    light = (
        0.85 + 0.35 * (cv2.Sobel(depth, cv2.CV_32F, 1, 0) + cv2.Sobel(depth, cv2.CV_32F, 0, 1)) / 8
    )
    folds = np.random.default_rng(high).normal(1, 0.5, (wide // 4 + 2, 12)).astype(np.float32)
    light[top : top + high, left : left + wide] *= 0.9 + 0.1 * cv2.resize(folds, (wide, high))
    shaded = np.clip(paint * np.clip(light, 0.3, 1.5)[..., None], 0, 255)
    share = (cv2.GaussianBlur(mask, (3, 3), 0).astype(np.float32) / 255)[..., None]
    return np.asarray(picture * (1 - share) + shaded * share, np.uint8)


def crossing(
    *ways: tuple[int, float, float], frames: int = 60, masks: bool = False, seed: int = 0
) -> list[Pixels]:
    """Pictures of people who walk: `(person, first column, last column)` each, later ones nearer.

    With `masks`, white people on black.
    """
    empty = np.zeros((ROWS, COLUMNS, 3), np.uint8) if masks else scene(seed)
    random = np.random.default_rng(seed)
    pictures = []
    for frame in range(frames):
        noise = 0 if masks else random.normal(0, 2, empty.shape)
        picture = np.clip(empty + noise, 0, 255).astype(np.uint8)
        for number, (person, first, last) in enumerate(ways):
            mask = mask_of(person, frame, first + (last - first) * frame / (frames - 1))
            if last < first:
                middle = first + (last - first) * frame / (frames - 1)
                mask = mask_of(person, frame, COLUMNS - middle)[:, ::-1]
            clothes = (255, 255, 255) if masks else CLOTHES[number % len(CLOTHES)]
            if mask.any():
                picture = (
                    np.maximum(picture, mask[..., None])
                    if masks
                    else draw(picture, np.ascontiguousarray(mask), clothes)
                )
        pictures.append(picture)
    return pictures


def encode(
    pictures: Iterable[Pixels],
    *,
    rate: int = RATE,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    container: str = "mp4",
) -> bytes:
    """A video of pictures, at a rate or at times in seconds."""
    target = io.BytesIO()
    with av.open(target, "w", format=container) as file:
        stream = cast("av.VideoStream", file.add_stream(codec, rate=rate))
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec == "libx264":
            # x264's macroblock tree reads memory that nobody wrote: other bytes in each process.
            stream.options = {"crf": "20", "preset": "veryfast", "x264-params": "mbtree=0"}
        base = Fraction(1, rate) if times is None else Fraction(1, 1000)
        stream.codec_context.time_base = base
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="bgr24")
            seconds = number / rate if times is None else times[number]
            frame.pts, frame.time_base = round(seconds / base), base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return target.getvalue()


def still(picture: Pixels, suffix: str = ".jpg") -> bytes:
    """One picture as the bytes of an image."""
    return cv2.imencode(suffix, picture)[1].tobytes()


def photos(pictures: Iterable[Pixels], suffix: str = ".jpg", *, as_tar: bool = False) -> bytes:
    """Pictures as images in a zip, or a tar."""
    target = io.BytesIO()
    images = [still(picture, suffix) for picture in pictures]
    if as_tar:
        with tarfile.open(fileobj=target, mode="w:gz") as tar:
            for number, image in enumerate(images):
                member = tarfile.TarInfo(f"{number}{suffix}")
                member.size = len(image)
                tar.addfile(member, io.BytesIO(image))
        return target.getvalue()
    with zipfile.ZipFile(target, "w") as archive:
        for number, image in enumerate(images):
            archive.writestr(f"{number}{suffix}", image)
    return target.getvalue()
