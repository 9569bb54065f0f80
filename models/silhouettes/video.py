"""MP4, AVI and WebM through PyAV; the container is named, the decoders are listed."""

from __future__ import annotations

import io
import math
import mmap
from collections.abc import Iterator
from fractions import Fraction
from typing import NoReturn, cast

import av
import av.video
import numpy as np
from av.container import InputContainer

from models.silhouettes.budget import Budget
from models.silhouettes.errors import MalformedSequence, SequenceTooLarge, UnsupportedSequence
from models.silhouettes.images import without_noise
from models.silhouettes.members import refusing
from models.silhouettes.mp4 import check_tables
from models.silhouettes.references import pictures_kept
from models.silhouettes.sniff import Kind
from models.silhouettes.types import Frame

# A playlist format would let a file name others to open; these three cannot.
_CONTAINERS = {Kind.MP4: "mp4", Kind.AVI: "avi", Kind.MATROSKA: "matroska"}

DECODERS = frozenset(
    {
        *("h264", "hevc", "mpeg4", "mpeg2video", "msmpeg4", "mjpeg"),
        *("vp8", "libvpx", "vp9", "libvpx-vp9", "av1", "libdav1d"),
        *("ffv1", "huffyuv", "png", "rawvideo"),
    }
)
"""What cameras and ffmpeg write; libav's hundreds of others stay closed to hostile bytes."""

_MOST_STREAMS = 32  # libav looks into each of them
_MOST_PROBED = 32  # bytes of packets, which libav keeps and may decode, for every stream at once
_LARGEST_BLOCK = 64  # pixels a side, which pictures are padded to multiples of
_EDGES = 128  # pixels that libav adds to a side, at most, when it checks sides
_ROOM = (256, 288)  # the same for the columns, and rows at least, of what MPEG-4's decoder works in
_BYTES_BESIDE = 0.75  # a pixel: the motion that a decoder keeps with a picture, at most

_CUT_SHORT = "the video is cut short or damaged; export it again"


def decode_video(data: bytes, kind: Kind, budget: Budget) -> Iterator[Frame]:
    """Every frame of the first video track, upright, without what the codec smears on black.

    Raises:
        MalformedSequence: the file is cut short or damaged, or has no video track.
        UnsupportedSequence: the track was written by a codec that is not accepted.
        SequenceTooLarge: over a limit.
    """
    for picture in decode_pictures(data, kind, budget):
        brightness = picture.to_ndarray(format="gray")
        # The display matrix says how a player turns the picture, anticlockwise.
        upright = np.rot90(brightness, round(picture.rotation / 90))
        yield without_noise(np.asarray(upright, np.uint8))


def decode_pictures(
    data: bytes | mmap.mmap,
    kind: Kind,
    budget: Budget,
    longest_s: float = math.inf,
    *,
    from_s: float | None = None,
) -> Iterator[av.VideoFrame]:
    """Every picture of the first video track as libav has it, each taken from the budget.

    Args:
        data: the file's bytes; of a large file, mapped.
        kind: one of `VIDEOS`.
        budget: what it may cost; `rows * columns` bytes of each picture may be given back.
        longest_s: seconds that the file may say it lasts.
        from_s: a time of the track; reading begins at the key frame before it.

    Raises:
        SequenceError: as `decode_video`.
    """
    if kind is Kind.MP4:
        check_tables(data, budget)
    if not isinstance(data, bytes):
        data.seek(0)
    most_pixels = str(budget.limits.max_side**2)
    options = {
        "codec_whitelist": ",".join(sorted(DECODERS)),
        "max_pixels": most_pixels,
        "max_streams": str(_MOST_STREAMS),
        "probesize": str(_MOST_PROBED),
    }
    with (
        refusing(_CUT_SHORT),
        av.open(
            io.BytesIO(data) if isinstance(data, bytes) else data,
            format=_CONTAINERS[kind],
            options=options,
            io_open=_refuse_other_files,
            timeout=None if math.isinf(budget.limits.max_seconds) else budget.limits.max_seconds,
        ) as opened,
    ):
        container = cast("InputContainer", opened)
        if not container.streams.video:
            raise MalformedSequence("the file holds no video track")
        stream = container.streams.video[0]
        codec = stream.codec_context
        if codec.codec.name not in DECODERS:
            raise UnsupportedSequence(
                "the video's codec is not accepted; export it as H.264 or VP9"
            )
        lasts = (container.duration or 0) / av.time_base
        if lasts > longest_s:
            raise SequenceTooLarge(
                f"the video lasts longer than the {longest_s:g} s that are read; cut it"
            )
        budget.check_sides(codec.height, codec.width)
        _check_memory(codec, budget)
        # No later picture may be larger than those the memory was told for.
        sides = codec.width + _ROOM[0], max(codec.height + _EDGES, _ROOM[1])
        most_pixels = str(sides[0] * sides[1])
        codec.options = {"max_pixels": most_pixels}
        codec.thread_count = 1
        if from_s is not None and stream.time_base is not None:
            container.seek(math.floor(from_s / stream.time_base), stream=stream)
        yield from _decode_track(container, stream, budget, whole=from_s is None)


def _check_memory(codec: av.VideoCodecContext, budget: Budget) -> None:
    """Refuse a stream whose decoder would hold more in pictures than it may.

    It is asked before any is decoded, and again with each packet: some tell their format only then,
    and what a stream says of itself may change within.
    """
    form = codec.format
    if form is None:
        return
    pixels = _padded(codec.width) * _padded(codec.height)
    size = pixels * (form.padded_bits_per_pixel / 8 + _BYTES_BESIDE)
    pictures = pictures_kept(codec.name, codec.extradata or b"", codec.reorder_depth)
    budget.check_decoder(round(pictures * size))


def _padded(side: int) -> int:
    return -(-side // _LARGEST_BLOCK) * _LARGEST_BLOCK


def _decode_track(
    container: InputContainer, stream: av.video.VideoStream, budget: Budget, *, whole: bool
) -> Iterator[av.VideoFrame]:
    frames = packets = end = 0
    for packet in container.demux(stream):
        budget.check_time()  # also of packets that no picture comes of
        if packet.is_corrupt:
            raise MalformedSequence(_CUT_SHORT, where=f"frame {packets + 1}")
        if packet.size:
            packets += 1
            end = max(end, (packet.pts or 0) + (packet.duration or 0))
        pictures = packet.decode()
        _check_memory(stream.codec_context, budget)
        for picture in pictures:
            frames += 1
            budget.take_frame(picture.height, picture.width, where=f"frame {frames}")
            yield picture
    if (whole and packets < stream.frames) or _ends_early(container, stream, end):
        raise MalformedSequence(_CUT_SHORT)


def _ends_early(container: InputContainer, stream: av.video.VideoStream, end: int) -> bool:
    """Whether the last packet ends well before the track should; WebM counts no frames.

    What libav gives a WebM's track for its own duration is the file's, sound and all.
    """
    if stream.time_base is None:
        return False
    if stream.duration is not None and "matroska" not in container.format.name:
        promised = stream.duration * stream.time_base
    elif container.duration is not None and len(container.streams) == 1:
        promised = Fraction(container.duration, av.time_base)
    else:
        return False
    frame = 1 / stream.average_rate if stream.average_rate else Fraction(1, 10)
    start = (stream.start_time or 0) * stream.time_base
    return end * stream.time_base < promised + min(start, Fraction(0)) - 2 * frame


def _refuse_other_files(_url: str, _flags: int, _options: dict[str, str]) -> NoReturn:
    raise MalformedSequence("the video refers to other files; send one that holds everything")
