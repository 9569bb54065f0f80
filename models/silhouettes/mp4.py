"""What an MP4 would have libav keep in memory, told before it is opened.

libav builds its index at once, with an entry for every sample that the file's tables promise,
whether the file holds it or not: a kilobyte can ask for gigabytes.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator

import numpy as np

from models.silhouettes.budget import Budget
from models.silhouettes.errors import SequenceTooLarge, UnsupportedSequence

_TABLES = re.compile(rb"stsz|stz2|stco|co64|stsc|elst|trun|cmov")
_ENTRY_BYTES = 72  # for a sample, as measured
_LEAST_IN_ONE_ENTRY = 160  # samples of sound that share one


def check_tables(data: bytes | mmap.mmap, budget: Budget) -> None:
    """Refuse a file whose index would not fit into what a decoder may keep.

    Tables are found by their names wherever they are outside of the pictures themselves, so that
    no nesting hides one.

    Raises:
        SequenceTooLarge: more samples than that, in samples, fragments, chunks or edits.
        UnsupportedSequence: the tables are compressed.
    """
    samples = fragments = chunks = longest_chunk = 0
    edits = 1
    for start, end in _outside_media(data):
        for found in _TABLES.finditer(data, start, end):
            budget.check_time()
            table, counts = found[0], found.end() + 4  # after version and flags
            match table:
                case b"stsz" | b"stz2":
                    samples += _number(data, counts + 4)
                case b"trun":
                    fragments += _number(data, counts)
                case b"stco" | b"co64":
                    chunks += _number(data, counts)
                case b"stsc":
                    longest_chunk = max(longest_chunk, _longest_chunk(data, counts))
                case b"elst":  # every edit may repeat every sample
                    edits = max(edits, _number(data, counts))
                case _:
                    raise UnsupportedSequence(
                        "a video whose header is compressed; export it again as MP4"
                    )
    entries = samples * edits + fragments + chunks * longest_chunk // _LEAST_IN_ONE_ENTRY
    if entries * _ENTRY_BYTES > budget.limits.max_decoder_bytes:
        raise SequenceTooLarge(
            "the video's header promises more pictures or sounds than can be read; export it again"
        )


def _outside_media(data: bytes | mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where in the file everything but the content of its outermost `mdat` boxes is."""
    start = position = 0
    while position + 8 <= len(data):
        size, header = _number(data, position), 8
        if size == 1:
            size, header = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        elif size == 0:
            size = len(data) - position
        if size < header:
            break  # from here on libav looks for no more boxes
        if data[position + 4 : position + 8] == b"mdat":
            yield start, min(position + header, len(data))
            start = min(position + size, len(data))
        position += size
    yield start, len(data)


def _longest_chunk(data: bytes | mmap.mmap, at: int) -> int:
    """The most samples in one chunk, of a table whose entries are three numbers."""
    most = max(len(data) - at - 4, 0) // 12
    entries = np.frombuffer(data, ">u4", 3 * min(_number(data, at), most), at + 4)
    return int(entries[1::3].max(initial=0))


def _number(data: bytes | mmap.mmap, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")
