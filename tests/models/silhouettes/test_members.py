from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable

import numpy as np
import pytest

from models.silhouettes import DecodeLimits, SequenceError, decode, members
from models.silhouettes.budget import Budget
from models.silhouettes.members import read_zip_member
from tests.models.silhouettes.uploads import images, npz, walker, zipped

WALK = walker(4, height=20, size=(24, 16))
ARCHIVES: dict[str, Callable[[], bytes]] = {
    "stored": lambda: zipped(images(WALK)),
    "deflated": lambda: zipped(images(WALK), compression=8),
    "arrays": lambda: npz(silhouettes=np.stack(WALK)),
}


def outcome(data: bytes) -> object:
    try:
        return [(frame.shape, frame.tobytes()) for frame in decode(data)]
    except SequenceError as error:
        return type(error), str(error)


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_member_that_is_what_the_archive_says_is_read_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ARCHIVES[name]()
    budget = Budget(DecodeLimits())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        contents = {member.filename: archive.read(member) for member in archive.infolist()}
        monkeypatch.setattr(archive, "open", None)
        for member in archive.infolist():
            found = read_zip_member(data, archive, member, budget)
            assert found == contents[member.filename]
    assert budget.bytes_left == DecodeLimits().max_decoded_bytes - sum(map(len, contents.values()))


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_archive_has_the_outcome_that_it_has_in_zipfile(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = random.Random(3)  # noqa: S311
    whole = ARCHIVES[name]()
    damaged = [b"before it" + whole]
    for _ in range(200):
        data = bytearray(whole)
        data[drawn.randrange(len(data))] = drawn.choice([0, 255, drawn.randrange(256)])
        damaged.append(bytes(data))
    ours = [outcome(data) for data in damaged]

    monkeypatch.setattr(members, "_read_whole", lambda _data, _member: None)
    assert ours == [outcome(data) for data in damaged]


def test_an_empty_member_that_holds_more_is_unpacked_no_further_than_a_byte() -> None:
    data = bytearray(zipped([("0.png", bytes(2**20))], compression=8))
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        begin = data.index(signature) + at
        data[begin : begin + 4] = bytes(4)  # the size that it is said to have
    budget = Budget(DecodeLimits())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (member,) = archive.infolist()
        with pytest.raises(SequenceError, match="damaged"):
            read_zip_member(bytes(data), archive, member, budget)
    assert budget.bytes_left == DecodeLimits().max_decoded_bytes
