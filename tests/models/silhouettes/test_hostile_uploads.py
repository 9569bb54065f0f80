from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import pickle
import re
import stat
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.silhouettes import (
    DecodeLimits,
    MalformedSequence,
    SequenceError,
    SequenceTooLarge,
    UnsupportedSequence,
    decode,
)
from models.silhouettes.archives import decode_tar
from models.silhouettes.budget import Budget
from models.silhouettes.members import natural_key
from models.silhouettes.mp4 import check_tables
from models.silhouettes.references import pictures_kept
from models.silhouettes.sniff import Kind
from models.silhouettes.video import decode_video
from tests.models.silhouettes.hostile import (
    directory,
    gif_of_many_blocks,
    header,
    jpeg_of_many_exif,
    png_of_many_chunks,
    png_of_many_profiles,
    references,
    says,
    sparse_in_a_list,
    sparse_in_many_parts,
    striped_tiff,
    tiff,
    tiled_tiff,
    told_of_all,
)
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

WALK = walker(6)
FRAME = WALK[0]


def huge_png() -> bytes:
    """A few hundred bytes that claim 100,000 x 100,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def bomb() -> bytes:
    return zipped([("0.png", bytes(600 * 2**20))], compression=zipfile.ZIP_DEFLATED)


def lying_bomb() -> bytes:
    """A zip whose directory says ten bytes and whose member unpacks to twenty million."""
    data = bytearray(zipped([("0.png", bytes(20 * 2**20))], compression=zipfile.ZIP_DEFLATED))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(signature) + offset, 10)
    return bytes(data)


def encrypted_zip() -> bytes:
    data = bytearray(zipped([("0.png", image(FRAME))]))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    return bytes(data)


def link_in_zip() -> bytes:
    link = zipfile.ZipInfo("0.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zipped([(link, b"/etc/passwd"), *images(WALK)])


def link_in_tar(kind: bytes = tarfile.SYMTYPE) -> bytes:
    link = tarfile.TarInfo("0.png")
    link.type = kind
    link.linkname = "/etc/passwd"
    return tarred([(link, b""), *images(WALK)])


def huge_gif() -> bytes:
    data = bytearray(animation(WALK, "GIF"))
    data[6:10] = b"\x40\x00\x40\x00"  # a small screen ...
    struct.pack_into("<HH", data, data.index(b"\x2c", 13) + 5, 60_000, 60_000)  # ... a large frame
    return bytes(data)


def huge_webp() -> bytes:
    data = bytearray(animation(WALK, "WEBP", lossless=True))
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\x00\x30\x00\x00\x30\x00"
    return bytes(data)


def objects_npz() -> bytes:
    return npz(silhouettes=np.array([{"a": 1}, None], dtype=object))


def lying_npy() -> bytes:
    return npy(np.zeros((1, 2, 3), np.uint8)).replace(b"(1, 2, 3)", b"(9, 9, 9)")


def oversized_npy() -> bytes:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (900, 4096, 4096), }"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


MALFORMED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "empty"),
    "empty zip": (lambda: zipped([]), "no images"),
    "sparse file in a tar": (sparse_in_many_parts, "no plain file"),
    "sparse file of the new kind": (sparse_in_a_list, "no plain file"),
    "TIFF of odd tiles": (lambda: tiled_tiff(kind=16), "damaged"),
    "zip of strays": (lambda: zipped([(".DS_Store", b"x"), ("a/", b"")]), "no images"),
    "array of no frames": (lambda: npy(np.zeros((0, 64, 44), np.uint8)), "no frames"),
    "array of no rows": (lambda: npy(np.zeros((5, 0, 44), np.uint8)), "empty"),
    "array of no columns": (lambda: npz(a=np.zeros((5, 64, 0), np.uint8)), "empty"),
    "array of two dimensions": (lambda: npy(FRAME), "2 dimensions"),
    "array of four dimensions": (lambda: npy(np.zeros((2, 5, 6, 7), np.uint8)), "4 dimensions"),
    "array of large fractions": (lambda: npy(np.full((3, 4, 4), 255.5)), "1 or 255"),
    "array of numbers below 0": (lambda: npy(np.full((3, 4, 4), -1, np.int8)), "1 or 255"),
    "array of logits": (lambda: npy(np.full((3, 4, 4), -2.5, np.float16)), "1 or 255"),
    "NaN array": (lambda: npz(silhouettes=np.full((3, 4, 4), np.nan)), "1 or 255"),
    "infinite array": (lambda: npz(silhouettes=np.full((3, 4, 4), np.inf)), "1 or 255"),
    "array of wide numbers": (lambda: npy(np.full((3, 4, 4), 2**16, np.int64)), "1 or 255"),
    "array of fractions of 8 bits": (lambda: npy(FRAME).replace(b"|u1", b"|f1"), "uint8 or bool"),
    "npz of two walks": (lambda: npz(a=np.stack(WALK), b=np.stack(WALK)), "'silhouettes'"),
    "array of several frames among images": (
        lambda: zipped([("0.npy", npy(np.stack(WALK))), *images(WALK)]),
        "several frames",
    ),
    "complex array": (lambda: npy(np.zeros((3, 4, 4), np.complex64)), "uint8 or bool"),
    "array of dates": (lambda: npy(np.zeros((3, 4, 4), "M8[s]")), "uint8 or bool"),
    "structured array": (lambda: npy(np.zeros((3, 4), [("a", "u1")])), "uint8 or bool"),
    "array shorter than its header": (lying_npy, "cut short"),
    "array cut in its header": (lambda: npy(np.stack(WALK))[:40], "header"),
    "npz of two arrays": (lambda: npz(a=np.zeros(3), b=np.zeros(3)), "'silhouettes'"),
    "cut npz": (lambda: npz(a=np.stack(WALK))[:-40], "damaged"),
    "name with dots": (lambda: zipped([("a/../../b.png", image(FRAME))]), "outside"),
    "absolute name": (lambda: zipped([("/tmp/b.png", image(FRAME))]), "outside"),  # noqa: S108
    "name with a drive": (lambda: zipped([("C:/b.png", image(FRAME))]), "outside"),
    "name with backslashes": (lambda: zipped([("..\\b.png", image(FRAME))]), "outside"),
    "tar name with dots": (lambda: tarred([("../b.png", image(FRAME))]), "outside"),
    "link in a zip": (link_in_zip, "link"),
    "link in a tar": (link_in_tar, "link"),
    "hard link in a tar": (lambda: link_in_tar(tarfile.LNKTYPE), "link"),
    "device in a tar": (lambda: link_in_tar(tarfile.CHRTYPE), "no plain file"),
    "cut zip": (lambda: zipped(images(WALK))[:-30], "damaged"),
    "cut tar": (lambda: tarred(images(WALK))[:2000], "damaged"),
    "cut gzip": (lambda: tarred(images(WALK), "w:gz")[:-20], "damaged"),
    "cut PNG": (lambda: image(FRAME)[:-30], "damaged"),
    "cut JPEG": (lambda: image(FRAME, "JPEG")[:-300], "damaged"),
    "cut GIF": (lambda: animation(WALK, "GIF")[:-200], "damaged"),
    "cut MP4": (lambda: video(WALK)[:-500], "cut short"),
    "half an MP4": (lambda: (data := video(WALK))[: len(data) // 2], "cut short"),
    "cut AVI": (lambda: video(walker(30), "avi", "mpeg4")[:-9000], "cut short"),
    "cut WebM": (lambda: video(walker(30), "webm", "libvpx-vp9")[:-3000], "cut short"),
    "animation in a zip": (lambda: zipped([("0.png", animation(WALK, "PNG"))]), "animation"),
    "float TIFF": (lambda: image(np.zeros((4, 4), np.float32), "TIFF"), "fractions"),
}


def promising(table: bytes, at: int, *numbers: int) -> bytes:
    """A video with one of its tables changed, so that it promises what the file does not hold."""
    data = bytearray(video(WALK))
    place = data.find(table) + at
    data[place : place + 4 * len(numbers)] = struct.pack(f">{len(numbers)}I", *numbers)
    return bytes(data)


def many_in_fragments() -> bytes:
    """A video whose second table of samples is that of a fragment, with no byte for a sample."""
    fragment = struct.pack(">I4sIIII4sIIi", 36, b"moof", 28, 0, 0, 20, b"trun", 1, 10_000_000, 0)
    return video(WALK) + fragment


def extended(length: int) -> bytes:
    """A tar whose first file has an extended header of digits, which have to be told apart."""
    header = tarfile.TarInfo("0.png")
    header.type, header.size = tarfile.XHDTYPE, length
    digits = b"1" * length + bytes(-length % tarfile.BLOCKSIZE)
    return header.tobuf(tarfile.USTAR_FORMAT) + digits + tarred(images(WALK))


UNSUPPORTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"hello, I am a PNG", "not a sequence"),
    "text named .png": (lambda: zipped([("0.png", b"hello")]), "not an image"),
    "pickle": (lambda: pickle.dumps(np.stack(WALK)), "python -m training pack"),
    "pickle of Python 2": (lambda: pickle.dumps(np.stack(WALK), 0), "python -m training pack"),
    "pickled list of Python 2": (lambda: pickle.dumps(WALK, 1), "python -m training pack"),
    "pickled mapping of Python 2": (lambda: pickle.dumps({"s": 1}, 0), "python -m training pack"),
    "pickle in a zip": (lambda: zipped([("0.pkl", pickle.dumps(WALK))]), "import-opengait"),
    "pickle in a gzip": (lambda: gzip.compress(pickle.dumps(WALK)), "training pack"),
    "checkpoint": (lambda: zipped([("net/data.pkl", b"\x80\x02.")]), "import-opengait"),
    "npz of objects": (objects_npz, "pickle"),
    "npy of objects": (lambda: npy(np.array([None]), allow_pickle=True), "pickle"),
    "zip in a zip": (lambda: zipped([("0.zip", zipped(images(WALK)))]), "inside an archive"),
    "GIF in a tar": (lambda: tarred([("0.gif", animation(WALK, "GIF"))]), "GIF"),
    "text in a gzip": (lambda: gzip.compress(b"hello"), "no tar"),
    "encrypted zip": (encrypted_zip, "encrypted"),
    "bzip2 in a zip": (lambda: zipped(images(WALK), compression=zipfile.ZIP_BZIP2), "deflate"),
    "lzma in a zip": (lambda: zipped(images(WALK), compression=zipfile.ZIP_LZMA), "deflate"),
    "TIFF compressed with LZMA": (lambda: tiff((259, 3, 1, 34925)), "LZMA"),
    "unusual codec": (lambda: video(WALK, "avi", "wmv2"), "codec"),
    "compressed tables": (lambda: video(WALK).replace(b"mvhd", b"cmov"), "compressed"),
    "playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a sequence"),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a sequence"),
}

TOO_LARGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip bomb": (bomb, "512 MiB"),
    "gzip bomb": (lambda: gzip.compress(bytes(600 * 2**20), 1), "512 MiB"),
    "100,000 x 100,000 PNG": (huge_png, "4096 pixels"),
    "the same in a zip": (lambda: zipped([("0.png", huge_png())]), "4096 pixels"),
    "zip bomb in a gzip": (
        lambda: gzip.compress(zipped([("0.png", bytes(600 * 2**20))], compression=8)),
        "512 MiB",
    ),
    "GIF frame beyond its screen": (huge_gif, "4096 pixels"),
    "WebP canvas": (huge_webp, "4096 pixels"),
    "wide array": (lambda: npy(np.zeros((1, 1, 4097), np.uint8)), "4096 pixels"),
    "long array": (lambda: npy(np.zeros((1001, 1, 1), np.uint8)), "1000 frames"),
    "many files": (lambda: zipped([(f"{i}.png", b"") for i in range(1001)]), "1000 frames"),
    "very many files": (lambda: zipped([(f"{i}", b"") for i in range(4001)]), "too many files"),
    "very many strays in a tar": (
        lambda: tarred([(f".{i}", b"") for i in range(4001)]),
        "too many",
    ),
    "MP4 of many samples": (lambda: promising(b"stsz", 8, 1, 10_000_000), "promises more"),
    "MP4 of long chunks": (lambda: promising(b"stsc", 16, 2**32 - 1), "promises more"),
    "MP4 of many edits": (lambda: promising(b"elst", 8, 10_000_000), "promises more"),
    "MP4 of many samples in a fragment": (many_in_fragments, "promises more"),
    "tar of a long extended header": (lambda: extended(20_000), "says too much"),
    "JPEG of many scans": (lambda: image(FRAME, "JPEG") + b"\xff\xda" * 99, "scans"),
    "JPEG of many segments": (jpeg_of_many_exif, "too much of itself"),
    "PNG of many chunks": (png_of_many_chunks, "too many pieces"),
    "PNG of many profiles": (png_of_many_profiles, "too much of itself"),
    "GIF of many blocks": (gif_of_many_blocks, "too many pieces"),
    "TIFF in a huge tile": (tiled_tiff, "4096 pixels"),
    "TIFF in very many strips": (striped_tiff, "too much of itself"),
    "TIFF of very many tags": (
        lambda: tiff(*((n, 3, 1, 1) for n in range(30_000, 32_000))),
        "too much of itself",
    ),
    "zip of long names": (lambda: directory(b"1a" * 30_000), "directory is too long"),
    "zip of long comments": (lambda: directory(b"0.png", b"-" * 60_000), "directory is too long"),
    "zip of a long name": (lambda: zipped([("a" * 300, b"")]), "name that is too long"),
    "zip of a deep name": (lambda: zipped([("a/" * 3000, b"")]), "name that is too long"),
    "tar of a long name": (lambda: tarred([("a" * 300, b"")]), "name that is too long"),
    "very many folders in a tar": (
        lambda: header(tarfile.DIRTYPE, name="a/") * 4001,
        "too many files",
    ),
    "very many headers in a tar": (
        lambda: (header(tarfile.XHDTYPE, says(("path", "a"))) * 99 + header(tarfile.DIRTYPE)) * 200,
        "too many files",
    ),
    "tar that says much of all files": (lambda: told_of_all(3), "says too much"),
    "gzip of many parts": (lambda: gzip.compress(b"") * 20_000, "too many parts"),
    "video of many references": (references, "reference frames"),
}


def refusal(data: bytes, limits: DecodeLimits | None = None) -> SequenceError:
    with pytest.raises(SequenceError) as caught:
        decode(data, limits)
    return caught.value


CASES: dict[type[SequenceError], dict[str, tuple[Callable[[], bytes], str]]] = {
    MalformedSequence: MALFORMED,
    UnsupportedSequence: UNSUPPORTED,
    SequenceTooLarge: TOO_LARGE,
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[pytest.mark.slow] if "bomb" in name else [])
        for kind, cases in CASES.items()
        for name in cases
    ],
)
def test_a_hostile_upload_is_refused_by_its_kind_with_a_sentence(
    kind: type[SequenceError], name: str
) -> None:
    make, words = CASES[kind][name]
    error = refusal(make())
    assert type(error) is kind, error
    assert words in error.reason


def peak_of(action: Callable[[], object]) -> int:
    """Most bytes that Python allocated meanwhile."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", [huge_png, huge_gif, huge_webp, oversized_npy])
def test_a_small_file_that_claims_much_costs_no_memory(make: Callable[[], bytes]) -> None:
    data = make()
    assert peak_of(lambda: refusal(data)) < 4 * 2**20


def test_what_looks_like_a_table_among_the_pictures_of_an_mp4_is_none() -> None:
    data = bytearray(video(WALK))
    media = data.find(b"mdat") - 4
    data[media:media] = struct.pack(">I4s", 32, b"mdat") + b"stsz" + b"\xff" * 20
    check_tables(bytes(data), Budget(DecodeLimits()))


def test_time_is_told_for_every_packet_of_a_video_whether_or_not_a_picture_comes_of_it() -> None:
    looks = itertools.count()
    budget = Budget(DecodeLimits(), clock=lambda: next(looks) / 1e6)
    assert len(list(decode_video(video(WALK), Kind.MP4, budget))) == len(WALK)
    assert next(looks) > 2 * len(WALK)


def test_a_zip_that_lies_about_its_sizes_is_read_no_further_than_it_says() -> None:
    data, errors = lying_bomb(), list[SequenceError]()
    assert peak_of(lambda: errors.append(refusal(data))) < 8 * 2**20
    assert type(errors[0]) is MalformedSequence


def test_the_error_names_the_member_at_fault() -> None:
    assert refusal(zipped([*images(WALK), ("walk/3b.png", b"hello")])).where == "walk/3b.png"
    assert refusal(tarred([*images(WALK), ("walk/cut.png", image(FRAME)[:-30])])).where == (
        "walk/cut.png"
    )


def test_the_error_names_the_frame_at_fault_in_an_animation() -> None:
    assert re.fullmatch(r"frame \d+", refusal(animation(WALK, "GIF")[:-200]).where)


def test_a_name_is_shown_without_control_characters_and_cut() -> None:
    where = refusal(zipped([("a\x1b[31m" + "b" * 500, b"hello")])).where
    assert where.isprintable()
    assert len(where) <= 120


def test_nothing_of_a_library_s_own_text_is_shown() -> None:
    for make, _ in (*MALFORMED.values(), *UNSUPPORTED.values()):
        text = str(refusal(make()))
        assert not re.search(r"Errno|0x[0-9a-f]+|Traceback|PIL|object at|cannot identify", text)


def test_decoding_stops_at_its_deadline() -> None:
    for data in (zipped(images(WALK)), animation(WALK, "GIF"), video(WALK), npy(np.stack(WALK))):
        error = refusal(data, DecodeLimits(max_seconds=-1))
        assert type(error) is SequenceTooLarge
        assert "longer than" in error.reason


@pytest.mark.parametrize(
    "make",
    [
        lambda: zipped(images(WALK)),
        lambda: tarred(images(WALK), "w:gz"),
        lambda: animation(WALK, "GIF"),
        lambda: animation(WALK, "PNG"),
        lambda: animation(WALK, "WEBP"),
        lambda: npy(np.stack(WALK)),
        lambda: video(WALK),
        lambda: video(WALK, "webm", "libvpx-vp9"),
    ],
)
def test_every_format_keeps_to_every_limit(make: Callable[[], bytes]) -> None:
    data = make()
    fits = DecodeLimits(max_frames=6, max_side=320)
    assert len(decode(data, fits)) == 6
    for limits in (
        DecodeLimits(max_frames=5),
        DecodeLimits(max_side=319),
        DecodeLimits(max_decoded_bytes=5 * FRAME.size),
    ):
        assert type(refusal(data, limits)) is SequenceTooLarge


def test_a_decoder_s_memory_is_bounded_by_its_budget_not_by_the_file() -> None:
    budget = Budget(DecodeLimits(max_decoded_bytes=100))
    budget.take_bytes(100)
    with pytest.raises(SequenceTooLarge):
        budget.take_bytes(1)


def test_a_tar_of_nothing_but_extended_headers_stops_at_the_deadline() -> None:
    looks = itertools.count()
    headers = extended(512)[:1024] * 200 + tarred(images(WALK))
    budget = Budget(DecodeLimits(max_seconds=100), clock=lambda: next(looks))
    with pytest.raises(SequenceTooLarge, match="longer than"):
        list(decode_tar(headers, budget))


def test_a_tar_that_says_more_of_its_files_than_their_names_is_read() -> None:
    members = [(tarfile.TarInfo(f"{'walk/' * 30}{i}.png"), image(FRAME)) for i in range(3)]
    for member, _ in members:
        member.pax_headers = {"LIBARCHIVE.xattr.com.apple.provenance": "AQIA" * 500}
    assert len(decode(tarred(members))) == 3


def test_parts_of_a_gzip_and_the_padding_after_them_are_read_as_one() -> None:
    data = tarred(images(WALK))
    parts = [gzip.compress(data[start : start + 3000]) for start in range(0, len(data), 3000)]
    assert len(parts) > 3
    assert len(decode(b"".join(parts) + bytes(99))) == len(WALK)
    assert len(decode(bytes(100).join(parts))) == len(WALK)


def test_a_large_gzip_costs_no_copy_of_what_is_left_of_it() -> None:
    """Of 8 MiB that hardly compress, zlib is shown a part at a time."""
    content = np.random.default_rng(0).integers(0, 256, 2**23, np.uint8).tobytes()
    data = gzip.compress(content, 1)
    errors = list[SequenceError]()
    assert peak_of(lambda: errors.append(refusal(data))) < 1.5 * len(content)
    assert "no tar" in errors[0].reason


@settings(max_examples=300, deadline=None, derandomize=True)
@given(names=st.lists(st.text("aB19 0/._-é", max_size=12), max_size=8))
def test_names_are_ordered_as_their_texts_and_numbers_compare(names: list[str]) -> None:
    def by_the_letter(name: str) -> list[tuple[int, str]]:
        texts = re.split(r"([0-9]+)", name.casefold())
        return [(int(text), "") if index % 2 else (-1, text) for index, text in enumerate(texts)]

    assert sorted(names, key=natural_key) == sorted(names, key=by_the_letter)


def test_a_number_of_any_length_in_a_name_is_ordered() -> None:
    nines, ones = "9" * 5000, "1" + "0" * 5000
    assert sorted(["a", ones, nines, "10", "2"], key=natural_key) == ["2", "10", nines, ones, "a"]


def test_a_tar_that_leads_round_in_circles_ends() -> None:
    data = bytearray(tarred(images(WALK)))
    data[124:136] = b"\xff" * 11 + b"\x00"  # a negative size, in base 256
    header = bytes(data[:148]) + b" " * 8 + bytes(data[156:512])
    data[148:156] = f"{sum(header):06o}\0 ".encode()
    assert isinstance(refusal(bytes(data)), SequenceError)


def test_a_video_that_grows_is_not_followed() -> None:
    """Once the decoder's memory is told, no later picture may be larger."""
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (240, 320), np.uint8) for _ in range(4)]
    data = bytearray(video(noise, "avi", "mjpeg", "yuvj420p"))
    large = image(np.zeros((1024, 1024), np.uint8), "JPEG", quality=20)
    pictures = [found.start() for found in re.finditer(rb"00dc", data)]
    size = int.from_bytes(data[pictures[2] + 4 : pictures[2] + 8], "little")
    assert len(large) < size
    data[pictures[2] + 8 : pictures[2] + 8 + size] = large.ljust(size, b"\0")
    assert isinstance(refusal(bytes(data)), MalformedSequence)


@pytest.mark.parametrize(
    ("container", "codec", "option", "references"),
    [
        ("mp4", "libx264", "ref=5:bframes=0", 5),
        ("matroska", "libx264", "ref=3:bframes=0:cqm=jvt", 3),
        ("avi", "libx264", "ref=16:bframes=0", 16),
        ("mp4", "libx265", "ref=2:bframes=0:log-level=none:pools=none", 3),
        ("matroska", "libx265", "ref=4:bframes=0:log-level=none:pools=none", 5),
    ],
)
def test_how_many_pictures_a_decoder_keeps_is_read_from_the_stream(
    container: str, codec: str, option: str, references: int
) -> None:
    options = {f"{codec.removeprefix('lib')}-params": option}
    data = video(walker(3), container, codec, "yuv420p", **options)
    with av.open(io.BytesIO(data)) as opened:
        context = opened.streams.video[0].codec_context
        parameters = context.extradata or b""
        assert pictures_kept(context.name, parameters, 0) == references + 2
    # What cannot be read may ask for anything.
    assert pictures_kept(context.name, b"", 0) == 18
    for cut in range(len(parameters)):
        assert pictures_kept(context.name, parameters[:cut], 0) <= 18


def test_a_decoder_keeps_to_its_own_limit() -> None:
    data = video(WALK)
    assert len(decode(data, DecodeLimits(max_decoder_bytes=10 * 2**20))) == len(WALK)
    error = refusal(data, DecodeLimits(max_decoder_bytes=2**19))
    assert type(error) is SequenceTooLarge
    assert "decoder" in error.reason


_WITHIN_LIMITS = """
import resource, sys
from pathlib import Path
from models.silhouettes import DecodeLimits, SequenceError, prepare_upload
now = next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]
most = int(now) * 1024 + 350 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for path in sys.argv[1:]:
    try:
        prepare_upload(Path(path).read_bytes(), DecodeLimits(max_decoded_bytes=128 * 2**20))
    except SequenceError as error:
        print(type(error).__name__, error.__cause__ is None)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the size of a process is read from /proc")
def test_hostile_uploads_are_refused_before_memory_runs_out(tmp_path: Path) -> None:
    """Each by a count: no refusal has an error of a library behind it."""
    makers: list[Callable[[], bytes]] = [
        lambda: directory(b"1a" * 30_000),
        lambda: gzip.compress(header(tarfile.DIRTYPE, name="a/") * 100_000, 1),
        references,
        tiled_tiff,
        striped_tiff,
        lambda: zipped([("0.png", png_of_many_chunks())], compression=8),
    ]
    paths = [tmp_path / str(index) for index in range(len(makers))]
    for path, make in zip(paths, makers, strict=True):
        path.write_bytes(make())
    child = subprocess.run(
        [sys.executable, "-c", _WITHIN_LIMITS, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert child.stdout.splitlines() == ["SequenceTooLarge True"] * len(makers), child.stderr


def test_nothing_is_written_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    for make, _ in MALFORMED.values():
        refusal(make())
    damaged = bytearray(video(walker(30), "avi", "mpeg4"))
    for position in range(3000, len(damaged) - 3000, 97):
        damaged[position] ^= 0x55
    with contextlib.suppress(SequenceError):
        decode(bytes(damaged))
    assert capfd.readouterr().err == ""
