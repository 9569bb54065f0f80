import io
import zipfile

import pytest
from pydantic import BaseModel

from models.files.gallery_file import (
    ABOUT,
    LONGEST_LINE,
    SEQUENCES,
    SUBJECTS,
    BrokenGalleryFile,
    GalleryFile,
    embedding_member,
    silhouettes_member,
)


class Sequence(BaseModel):
    sequence_id: str


def exported(**changes: str) -> io.BytesIO:
    file = io.BytesIO()
    members = {ABOUT: "{}", SEQUENCES: '{"sequence_id": "a"}\n\n{"sequence_id": "b"}\n'} | changes
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def test_records_come_with_their_lines_and_an_opened_file_stays_open() -> None:
    file = exported(**{silhouettes_member("a"): "A", embedding_member("d", "a"): "E"})
    with GalleryFile(file) as gallery:
        found = [
            (where, record.sequence_id) for where, record in gallery.lines(SEQUENCES, Sequence)
        ]
        assert found == [("sequences.jsonl line 1", "a"), ("sequences.jsonl line 3", "b")]
        assert gallery.read("silhouettes/a.npy", 1) == b"A"
        assert gallery.read("embeddings/d/a.npy", 1) == b"E"
    assert not file.closed


@pytest.mark.parametrize(
    ("line", "where", "reason"),
    [
        ("{", "sequences.jsonl line 1", "Invalid JSON"),
        ("{}", "sequences.jsonl line 1", "sequence_id Field required"),
        (" " * LONGEST_LINE, "sequences.jsonl line 1", "too long"),
    ],
)
def test_a_wrong_line_is_named(line: str, where: str, reason: str) -> None:
    with (
        GalleryFile(exported(**{SEQUENCES: line})) as gallery,
        pytest.raises(BrokenGalleryFile, match=reason) as caught,
    ):
        list(gallery.lines(SEQUENCES, Sequence))
    assert caught.value.where == where


def test_members_that_are_missing_too_large_or_damaged_are_named() -> None:
    file = exported(**{SUBJECTS: "secret"})
    file.getbuffer()[file.getvalue().index(b"secret")] ^= 1
    with GalleryFile(file) as gallery:
        for name, most, reason in (
            ("silhouettes/a.npy", 1, "it has no silhouettes/a.npy"),
            (SUBJECTS, 5, "6 bytes, at most 5"),
            (SUBJECTS, 6, "cannot be unpacked"),
        ):
            with pytest.raises(BrokenGalleryFile, match=reason):
                gallery.read(name, most)
        with pytest.raises(BrokenGalleryFile, match="cannot be unpacked"):
            list(gallery.lines(SUBJECTS, Sequence))


def test_what_is_no_exported_gallery_is_refused() -> None:
    for file, reason in (
        (io.BytesIO(b"text"), "not a zip"),
        (io.BytesIO(b"PK\x05\x06" + bytes(18)), "it has no gallery.json"),
    ):
        with pytest.raises(BrokenGalleryFile, match=reason):
            GalleryFile(file)
