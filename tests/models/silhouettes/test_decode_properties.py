from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.silhouettes import DecodeLimits, Frame, SequenceError, decode
from models.silhouettes.sniff import _PREFIXES
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

LIMITS = DecodeLimits(max_frames=50, max_side=256, max_decoded_bytes=8 * 2**20, max_seconds=5)
SMALL = walker(4, height=30, size=(40, 48))

MAKERS: list[Callable[[], bytes]] = [
    lambda: zipped(images(SMALL)),
    lambda: zipped(images(SMALL, "JPEG")),
    lambda: zipped(images(SMALL, "BMP")),
    lambda: zipped(images(SMALL, "TIFF", compression="tiff_lzw"), compression=8),
    lambda: tarred(images(SMALL)),
    lambda: tarred(images(SMALL), "w:gz"),
    lambda: npy(np.stack(SMALL)),
    lambda: npz(silhouettes=np.stack(SMALL)),
    lambda: animation(SMALL, "GIF"),
    lambda: animation(SMALL, "PNG"),
    lambda: animation(SMALL, "WEBP"),
    lambda: animation(SMALL, "TIFF"),
    lambda: image(SMALL[0], "BMP"),
    lambda: image(SMALL[0], "JPEG", progressive=True),
    lambda: video(SMALL),
    lambda: video(SMALL, "avi", "mpeg4"),
    lambda: video(SMALL, "webm", "libvpx"),
]
VALID = [make() for make in MAKERS]


def decode_or_refuse(data: bytes) -> None:
    """Decode; a refusal must be ours and say something."""
    frames: list[Frame] | None = None
    reason = ""
    try:
        frames = decode(data, LIMITS)
    except SequenceError as error:
        reason = error.reason
    if frames is None:
        assert reason
        return
    assert 1 <= len(frames) <= LIMITS.max_frames
    for frame in frames:
        assert frame.dtype == np.uint8
        assert frame.ndim == 2
        assert max(frame.shape) <= LIMITS.max_side


@settings(max_examples=150, deadline=None, derandomize=True)
@given(prefix=st.sampled_from([b"", *(prefix for prefix, _ in _PREFIXES)]), rest=st.binary())
def test_any_bytes_decode_or_are_refused(prefix: bytes, rest: bytes) -> None:
    decode_or_refuse(prefix + rest)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(data=st.data(), base=st.sampled_from(range(len(VALID))))
def test_a_mutated_file_decodes_or_is_refused(data: st.DataObject, base: int) -> None:
    content = bytearray(VALID[base])
    edits = data.draw(
        st.lists(
            st.tuples(st.integers(0, len(content) - 1), st.binary(min_size=1, max_size=6)),
            min_size=1,
            max_size=8,
        )
    )
    for position, replacement in edits:
        content[position : position + len(replacement)] = replacement
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(1, len(content))))
    decode_or_refuse(bytes(content[:cut]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    frames=hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 20)),
        elements=st.sampled_from([0, 255]),
    )
)
def test_arrays_and_archives_of_images_bring_back_what_was_packed(frames: Frame) -> None:
    frames = np.pad(frames, ((0, 0), (21, 21), (21, 21)))  # black around, as silhouettes are
    for data in (
        npy(frames),
        npz(x=frames),
        zipped(images(list(frames))),
        tarred(images(list(frames))),
    ):
        np.testing.assert_array_equal(np.stack(decode(data, LIMITS)), frames)
