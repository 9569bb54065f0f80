"""The format of a gallery's export: its members, and how its lists are read.

A zip, in this order (an object a line in `.jsonl`; times are RFC 3339, UTC):

gallery.json                       format (1), name, metadata, max_age_days, operating_point,
                                   created_at
subjects.jsonl                     subject_id, created_at; display_name and metadata if it has them
sequences.jsonl                    subject_id, sequence_id, metadata, frames, quality, content_hash,
                                   created_at; in order of ids, which is that of enrolment
silhouettes/<sequence_id>.npy      uint8 [s, 64, 64]
embeddings/<digest>/<sequence_id>.npy   float32 [p, c] of that checkpoint; may be left out
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FORMAT: Final = 1
ABOUT, SUBJECTS, SEQUENCES = "gallery.json", "subjects.jsonl", "sequences.jsonl"
LONGEST_LINE: Final = 256 * 2**10


def silhouettes_member(sequence_id: str) -> str:
    """The member with a sequence's silhouettes."""
    return f"silhouettes/{sequence_id}.npy"


def embedding_member(digest: str, sequence_id: str) -> str:
    """The member with what a checkpoint made of a sequence."""
    return f"embeddings/{digest}/{sequence_id}.npy"


def lines(file: zipfile.ZipFile, member: str) -> Iterator[bytes]:
    """A list's lines; one that is cut off or longer than `LONGEST_LINE` ends without a newline.

    Raises whatever zipfile and zlib raise for a member that cannot be unpacked.
    """
    with file.open(member) as opened:
        while line := opened.readline(LONGEST_LINE):
            yield line


def exported_subjects(path: Path) -> dict[str, str]:
    """The subject of each sequence, by the sequence's id, in an export of this deployment."""
    with zipfile.ZipFile(path) as file:
        records = map(json.loads, lines(file, SEQUENCES))
        return {record["sequence_id"]: record["subject_id"] for record in records}
