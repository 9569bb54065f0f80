"""What becomes of uploads that are not quite silhouettes: right, warned of, refused, or wrong.

The people of the demo are enrolled with two clean walks; each case makes something that people send
of the third: greys, colours, several people, other orientations, rates and layouts. An answer is
right if it names the person at the checkpoint's threshold, and wrong if it names another, or none
without an issue.

    python -m benchmarks.uploads [--person N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import av
import cv2
import numpy as np
from PIL import Image

from benchmarks import machine
from benchmarks.embedding import SHIPPED
from models.comparison.similarity import similarity
from models.encoder.encoder import Encoder
from models.silhouettes import (
    DecodeLimits,
    Frame,
    PoorSequence,
    SequenceError,
    decode,
    prepare_upload,
)
from service.cli.demo_walks import WALKS

PEOPLE: Final = 6
_FPS: Final = 25


def walk_of(person: int, number: int) -> list[Frame]:
    """Frames of a demo walk, the person white."""
    return decode((Path(WALKS) / f"person-{person}" / f"walk-{number}.zip").read_bytes())


# Files


def zipped(contents: Iterable[bytes], suffix: str, name: str = "{1:03}") -> bytes:
    """Contents as numbered members of a zip."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        for number, content in enumerate(contents):
            target.writestr(f"{name.format(divmod(number, 2), number)}.{suffix}", content)
    return archive.getvalue()


def images(frames: Iterable[Any], kind: str = "PNG", **options: Any) -> bytes:
    """Frames as images of a kind in a zip."""
    return zipped((_image(frame, kind, **options) for frame in frames), kind.lower())


def _image(frame: Any, kind: str, **options: Any) -> bytes:
    picture = frame if isinstance(frame, Image.Image) else Image.fromarray(frame)
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def npy(array: Any) -> bytes:
    """An array as `.npy`."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def npz(*arrays: Any, **named: Any) -> bytes:
    """Arrays as `.npz`."""
    content = io.BytesIO()
    np.savez_compressed(content, *arrays, **named)
    return content.getvalue()


def video(frames: Sequence[Frame], rate: int = _FPS) -> bytes:
    """Frames as MP4."""
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as output:
        stream: Any = output.add_stream("libx264", rate=rate)
        rows, columns = frames[0].shape
        stream.height, stream.width = rows // 2 * 2, columns // 2 * 2
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            even = np.ascontiguousarray(frame[: stream.height, : stream.width])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="gray")))
        output.mux(stream.encode(None))
    return content.getvalue()


# Frames


def scaled(frame: Frame, times: float, how: int = cv2.INTER_AREA) -> Frame:
    """A frame larger or smaller."""
    return np.asarray(cv2.resize(frame, None, fx=times, fy=times, interpolation=how), np.uint8)


def soft(frame: Frame, pixels: float) -> Frame:
    """A frame with blurred edges."""
    return np.asarray(cv2.GaussianBlur(frame, (0, 0), pixels), np.uint8)


def hard(frame: Frame) -> Frame:
    """A frame cut at half."""
    return np.where(frame > 127, np.uint8(255), np.uint8(0))


def box_of(frame: Frame) -> tuple[int, int, int, int]:
    """Left, top, width and height of a person."""
    left, top, width, height = cv2.boundingRect(frame)
    return left, top, width, height


def cropped(frame: Frame, margin: int = 0) -> Frame:
    """Only the person, with a margin."""
    left, top, width, height = box_of(frame)
    return np.pad(frame[top : top + height, left : left + width], margin)


def coloured(frame: Frame, background: tuple[int, int, int], *, textured: bool) -> Any:
    """A person in a light shirt and dark trousers, `[h, w, 3]`."""
    _, top, _, height = box_of(frame)
    rgb = np.full((*frame.shape, 3), background, np.uint8)
    noise = np.random.default_rng(0).integers(0, 40 if textured else 1, (*frame.shape, 1), np.uint8)
    person = np.zeros_like(rgb)
    person[: top + height // 2] = (180, 60, 40)
    person[top + height // 2 :] = (24, 22, 26)
    rgb[frame > 0] = (person + noise)[frame > 0]
    return rgb


def with_alpha(frame: Frame, opacity: Frame) -> Image.Image:
    """The same cut out, transparent around."""
    return Image.fromarray(np.dstack([coloured(frame, (0, 0, 0), textured=True), opacity]))


def side_by_side(frame: Frame, other: Frame, times: float = 1.0) -> Frame:
    """Two people in one frame."""
    other = scaled(other, times, cv2.INTER_NEAREST)
    rows = max(len(frame), len(other))
    return np.hstack([np.pad(one, ((rows - len(one), 0), (0, 0))) for one in (frame, other)])


def umbrella(frame: Frame) -> Frame:
    """Somebody under an umbrella."""
    left, top, width, height = box_of(frame)
    wide = np.pad(frame, ((height // 2, 0), (height // 2, height // 2)))
    middle = (left + width // 2 + height // 2, top + height // 2 - round(0.06 * height))
    axes = (round(0.26 * height), round(0.14 * height))
    cv2.ellipse(wide, middle, axes, 0, 180, 360, 255, -1)
    cv2.line(wide, middle, (middle[0], middle[1] + height // 2), 255, 3)
    return wide


def box_on_head(frame: Frame) -> Frame:
    """Somebody who carries a box on the head."""
    _, top, _, height = box_of(frame)
    head = np.flatnonzero(frame[top + 3])
    middle, half = int(head.mean()), round(0.13 * height)
    high = np.pad(frame, ((height // 2, 0), (0, 0)))
    high[
        top + height // 2 - round(0.15 * height) : top + height // 2 + 2,
        middle - half : middle + half,
    ] = 255
    return high


def beside(frame: Frame, rows: tuple[float, float], reach: float) -> Frame:
    """Somebody with a thing beside them, from and to such heights, so wide."""
    left, top, width, height = box_of(frame)
    wide = np.pad(frame, ((0, 0), (height, height)))
    end = left + width // 2 + height + round(reach * height)
    wide[
        top + round(rows[0] * height) : top + round(rows[1] * height),
        left + width // 2 + height : end,
    ] = 255
    return wide


class Walks(NamedTuple):
    """The walk that is asked with, and another person's."""

    own: list[Frame]
    other: list[Frame]


Case = Callable[[Walks], bytes]

CASES: Final[dict[str, Case]] = {
    "clean": lambda w: images(w.own),
    # greys and few rows
    "matte, 0.7 px": lambda w: images(soft(one, 0.7) for one in w.own),
    "matte, 1.6 px": lambda w: images(soft(one, 1.6) for one in w.own),
    "matte, 3 px": lambda w: images(soft(one, 3) for one in w.own),
    "matte, JPEG": lambda w: images((soft(one, 1.6) for one in w.own), "JPEG", quality=80),
    "matte, video": lambda w: video([soft(one, 1.6) for one in w.own]),
    "matte, fractions": lambda w: npy(
        np.stack([soft(one, 1.6) for one in w.own]) / np.float32(255)
    ),
    "matte, 16 bits": lambda w: images(soft(one, 1.6).astype(np.uint16) * 257 for one in w.own),
    "48 rows": lambda w: images(scaled(one, 0.4) for one in w.own),
    "36 rows": lambda w: images(scaled(one, 0.3) for one in w.own),
    "36 rows, hard": lambda w: images(hard(scaled(one, 0.3)) for one in w.own),
    "36 rows, JPEG": lambda w: images((scaled(one, 0.3) for one in w.own), "JPEG", quality=80),
    "36 rows, video": lambda w: video([scaled(one, 0.3) for one in w.own]),
    "24 rows": lambda w: images(scaled(one, 0.2) for one in w.own),
    "24 rows, hard": lambda w: images(hard(scaled(one, 0.2)) for one in w.own),
    "15 rows": lambda w: images(scaled(one, 0.125) for one in w.own),
    # colours
    "colour with alpha": lambda w: images(with_alpha(one, one) for one in w.own),
    "colour with soft alpha": lambda w: images(with_alpha(one, soft(one, 1)) for one in w.own),
    "colour with alpha, WebP": lambda w: images((with_alpha(one, one) for one in w.own), "WEBP"),
    "white shirt, alpha": lambda w: images(
        Image.fromarray(
            np.dstack(
                [
                    np.where(np.arange(len(one))[:, None, None] < 100, 250, 5)
                    + np.zeros((*one.shape, 3)),
                    one,
                ]
            ).astype(np.uint8)
        )
        for one in w.own
    ),
    "colour on black": lambda w: images(coloured(one, (0, 0, 0), textured=True) for one in w.own),
    "colour on black, JPEG": lambda w: images(
        (coloured(one, (0, 0, 0), textured=True) for one in w.own), "JPEG", quality=90
    ),
    "colour on white": lambda w: images(
        coloured(one, (255, 255, 255), textured=True) for one in w.own
    ),
    "colour on green": lambda w: images(
        coloured(one, (0, 177, 64), textured=True) for one in w.own
    ),
    # several people and walks
    "two people": lambda w: images(map(side_by_side, w.own, w.other)),
    "two people, one half as tall": lambda w: images(
        side_by_side(a, b, 0.6) for a, b in zip(w.own, w.other, strict=False)
    ),
    "somebody stands there": lambda w: images(side_by_side(one, w.other[5]) for one in w.own),
    "two walks, one after the other": lambda w: images([*w.own, *w.other]),
    "two walks in two folders": lambda w: zipped(
        (_image(one, "PNG") for walk in zip(w.own, w.other, strict=False) for one in walk),
        "png",
        "{0[1]}/{0[0]}",
    ),
    "label map of two people": lambda w: images(
        np.maximum(a[:, : a.shape[1]] // 255, np.roll(b, 150, 1) // 255 * 2)
        for a, b in zip(w.own, w.other, strict=False)
    ),
    "label map of parts": lambda w: images(
        (one > 0) * np.where(np.arange(len(one)) < 100, 3, 7)[:, None].astype(np.uint8)
        for one in w.own
    ),
    # polarity and orientation
    "inverted": lambda w: images(255 - one for one in w.own),
    "inverted crops": lambda w: images(255 - cropped(one, 6) for one in w.own),
    "inverted, JPEG": lambda w: images((255 - one for one in w.own), "JPEG"),
    "inverted, video": lambda w: video([255 - one for one in w.own]),
    "inverted, 0 and 1": lambda w: npy(1 - np.stack(w.own) // 255),
    "heads down": lambda w: images(one[::-1, ::-1] for one in w.own),
    "lying": lambda w: images(np.ascontiguousarray(np.rot90(one)) for one in w.own),
    "lying, the other way": lambda w: images(
        np.ascontiguousarray(np.rot90(one, -1)) for one in w.own
    ),
    "turned, says Exif": lambda w: _with_exif(w.own, 8, 1),
    "heads down, says Exif": lambda w: _with_exif(w.own, 3, 2),
    # borders
    "cut below": lambda w: images(one[: _bottom(w.own) - 12] for one in w.own),
    "cut above": lambda w: images(one[_top(w.own) + 14 :] for one in w.own),
    "cut at the knees": lambda w: images(one[: _bottom(w.own) - 35] for one in w.own),
    "cropped": lambda w: images(map(cropped, w.own)),
    # rhythm
    "each frame 2 times": lambda w: images(one for one in w.own for _ in range(2)),
    "each frame 8 times": lambda w: images(one for one in w.own for _ in range(8)),
    "each frame 3 times, video": lambda w: video([one for one in w.own for _ in range(3)], 75),
    "3 : 2 pulldown": lambda w: images(
        one for at, one in enumerate(w.own) for _ in range(2 + at % 2)
    ),
    "stands first": lambda w: images([*[w.own[0]] * 40, *w.own]),
    "stands, flickering": lambda w: images([*_flickering(w.own[0], 40), *w.own]),
    "sits at the end": lambda w: images([*w.own, *[_sitting(w.own[-1])] * 50]),
    "a loop of three": lambda w: images(w.own * 3),
    # things
    "umbrella": lambda w: images(map(umbrella, w.own)),
    "box on the head": lambda w: images(map(box_on_head, w.own)),
    "suitcase": lambda w: images(beside(one, (0.65, 0.97), 0.35) for one in w.own),
    "ladder": lambda w: images(beside(one, (0.25, 0.32), 0.8) for one in w.own),
    # arrays
    "[h, w, s]": lambda w: npy(np.stack(w.own, axis=-1)),
    "[s, h, w, 1]": lambda w: npy(np.stack(w.own)[..., None]),
    "[s, 1, h, w]": lambda w: npy(np.stack(w.own)[:, None]),
    "[s, h, w, 3]": lambda w: npy(np.stack(w.own)[..., None].repeat(3, -1)),
    "bool [h, w, s]": lambda w: npy(np.stack(w.own, axis=-1) > 0),
    "float64 of 0 and 1": lambda w: npy((np.stack(w.own) > 0).astype(np.float64)),
    "float32 of 0 and 255": lambda w: npy(np.stack(w.own).astype(np.float32)),
    "int64 of 0 and 1": lambda w: npy((np.stack(w.own) > 0).astype(np.int64)),
    "npz of an array a frame": lambda w: npz(*w.own),
    "npz with numbers beside": lambda w: npz(masks=np.stack(w.own), fps=np.float64(20)),
    "zip of an npy a frame": lambda w: zipped(map(npy, w.own), "npy"),
}


def _with_exif(frames: Sequence[Frame], orientation: int, turns: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = (np.ascontiguousarray(np.rot90(one, -turns)) for one in frames)
    return images(turned, "JPEG", exif=exif, quality=95)


def _bottom(frames: Sequence[Frame]) -> int:
    return max(top + height for _, top, _, height in map(box_of, frames))


def _top(frames: Sequence[Frame]) -> int:
    return min(top for _, top, _, _ in map(box_of, frames))


def _flickering(frame: Frame, count: int) -> list[Frame]:
    random = np.random.default_rng(0)
    thick = np.asarray(cv2.dilate(frame, np.ones((3, 3), np.uint8)), np.uint8)
    return [np.where(random.random(frame.shape) < 0.5, frame, thick) for _ in range(count)]


def _sitting(frame: Frame) -> Frame:
    left, top, width, height = box_of(frame)
    person = cropped(frame)
    low = np.asarray(cv2.resize(person, (width + 20, round(0.7 * height))), np.uint8)
    seat = np.zeros_like(frame)
    start = min(left, frame.shape[1] - low.shape[1])
    seat[top + height - len(low) : top + height, start : start + low.shape[1]] = hard(low)
    return seat


class Gallery:
    """The demo's people, each with two clean walks."""

    def __init__(self) -> None:
        self._encoder = Encoder.open(SHIPPED)
        walks = [
            self._prepared(images(walk_of(person, number)))
            for person in range(1, PEOPLE + 1)
            for number in (1, 2)
        ]
        self._embeddings = self._encoder.encode(walks)

    @staticmethod
    def _prepared(data: bytes) -> Any:
        return prepare_upload(data, DecodeLimits()).silhouettes

    def answer(self, data: bytes, person: int, threshold: float) -> tuple[str, str]:
        """What becomes of an upload of a person, in a word and in figures."""
        try:
            prepared = prepare_upload(data, DecodeLimits())
        except PoorSequence as error:
            return "refused", ", ".join(error.reasons)
        except SequenceError as error:
            return "refused", error.reason
        probe = self._encoder.encode([prepared.silhouettes])[0]
        found = similarity(probe, self._embeddings, self._encoder.card.metric)
        best = int(found.argmax())
        issues = ", ".join(prepared.quality.issues)
        figures = f"{found[best]:.3f} {prepared.quality.score:.2f} {issues}".rstrip()
        if found[best] >= threshold and best // 2 + 1 == person:
            return "right", figures
        if found[best] >= threshold:
            return "another", figures
        return "warned" if issues else "wrong", figures


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--person", type=int, help="1 to 6; all of them if not given")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    gallery = Gallery()
    people = [options.person] if options.person else range(1, PEOPLE + 1)
    rows: dict[str, list[str]] = {}
    for name, make in CASES.items():
        for person in people:
            data = make(Walks(walk_of(person, 3), walk_of(person % PEOPLE + 1, 3)))
            rows.setdefault(name, []).append(": ".join(gallery.answer(data, person, 0.7721)))
    machine.publish(
        {
            "benchmark": "uploads that are not quite silhouettes",
            "machine": machine.describe(),
            "rows": rows,
        },
        options.out,
    )


if __name__ == "__main__":
    main()
