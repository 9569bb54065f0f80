"""Limits on decoding and preparing, and what is left of them while that runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from models.silhouettes.errors import MalformedSequence, SequenceTooLarge

MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one sequence may cost to decode and prepare.

    Attributes:
        max_frames: frames in the sequence.
        max_side: rows or columns of a frame, in pixels.
        max_decoded_bytes: bytes of what is unpacked and held at once, archives and frames together.
            `prepare_upload` holds a few frames at a time, `decode` all.
        max_decoder_bytes: bytes that a video's decoder keeps beside those: of pictures, of the
            file's index.
        max_seconds: wall-clock seconds of decoding and preparing.
    """

    max_frames: int = 1000
    max_side: int = 4096
    max_decoded_bytes: int = 512 * MEBIBYTE
    max_decoder_bytes: int = 320 * MEBIBYTE
    max_seconds: float = 20.0


class Budget:
    """What is left of the limits for one sequence; decoders spend from it before they allocate."""

    def __init__(self, limits: DecodeLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._deadline = clock() + limits.max_seconds
        self._bytes_left = limits.max_decoded_bytes
        self._frames = 0

    @property
    def bytes_left(self) -> int:
        """Bytes that may still be decoded."""
        return self._bytes_left

    def check_time(self) -> None:
        """Raise SequenceTooLarge once the seconds are spent."""
        if self._clock() > self._deadline:
            raise SequenceTooLarge(
                "decoding and preparing took longer than "
                f"{self.limits.max_seconds:g} s; send a shorter sequence"
            )

    def take_bytes(self, count: int) -> None:
        """Spend `count` bytes, or raise SequenceTooLarge."""
        if count > self._bytes_left:
            raise SequenceTooLarge(
                "it decodes to more than "
                f"{self.limits.max_decoded_bytes / MEBIBYTE:g} MiB; send fewer or smaller frames"
            )
        self._bytes_left -= count

    def give_back(self, count: int) -> None:
        """Have `count` bytes again that were spent on what is no longer held."""
        self._bytes_left += count

    def check_frame_count(self, count: int) -> None:
        """Raise SequenceTooLarge if a sequence of `count` frames is too long."""
        if count > self.limits.max_frames:
            raise SequenceTooLarge(
                f"it has more than {self.limits.max_frames} frames; send a part of the walk"
            )

    def check_sides(self, rows: int, columns: int, *, where: str = "") -> None:
        """Raise MalformedSequence for an empty frame, SequenceTooLarge for one over the limit."""
        if rows < 1 or columns < 1:
            raise MalformedSequence(f"a frame of {rows} x {columns} pixels is empty", where=where)
        if max(rows, columns) > self.limits.max_side:
            raise SequenceTooLarge(
                f"a frame of {rows} x {columns} pixels is over the limit of "
                f"{self.limits.max_side} pixels a side; send smaller frames",
                where=where,
            )

    def check_decoder(self, count: int) -> None:
        """Raise SequenceTooLarge if a decoder may not keep `count` bytes of pictures."""
        if count > self.limits.max_decoder_bytes:
            raise SequenceTooLarge(
                "the video's decoder would keep more than "
                f"{self.limits.max_decoder_bytes / MEBIBYTE:g} MiB of pictures; export it again "
                "with 8 bits, fewer reference frames, or smaller"
            )

    def take_frame(self, rows: int, columns: int, *, where: str) -> None:
        """Spend one frame of uint8 `[rows, columns]`, before it is decoded."""
        self.check_time()
        self.check_sides(rows, columns, where=where)
        self._frames += 1
        self.check_frame_count(self._frames)
        self.take_bytes(rows * columns)
