"""Large files and long texts: piece by piece, whole or not at all."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.client import Conflict, NotFound, ServiceUnreachable
from tests.service.client.answering import Script, client, problem

PIECES = [b"one", b"two", b"three"]
MADE = {
    "gallery": {
        "name": "copy",
        "subjects": 1,
        "sequences": 2,
        "model": {"name": "m", "digest": "d"},
        "operating_point": None,
        "metadata": {},
        "created_at": "2026-11-22T10:55:57Z",
    },
    "sequence_ids": "new",
    "embeddings": {"taken": 2, "left": 0},
}


def breaking() -> Iterator[bytes]:
    yield b"half"
    raise httpx.ReadError("Connection reset by peer")


def test_a_file_appears_when_it_is_whole_and_for_this_user_only(tmp_path: Path) -> None:
    seen: list[int] = []
    script = Script(lambda _: httpx.Response(200, content=iter(PIECES)))
    out = tmp_path / "lab.zip"
    client(script).export_gallery("lab", out, embeddings=False, transferred=seen.append)
    assert out.read_bytes() == b"onetwothree"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert seen == [3, 6, 11]
    assert script.requests[0].url.params["embeddings"] == "false"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda _: httpx.Response(200, content=breaking()), ServiceUnreachable),
        (problem(404, "gallery-not-found"), NotFound),
    ],
)
def test_of_a_file_that_breaks_off_nothing_is_left(
    tmp_path: Path, answer: httpx.Response, kind: type[Exception]
) -> None:
    (tmp_path / "lab.zip").write_bytes(b"an older export")
    with pytest.raises(kind):
        client(Script(answer)).export_gallery("lab", tmp_path / "lab.zip")
    assert [file.name for file in tmp_path.iterdir()] == ["lab.zip"]
    assert (tmp_path / "lab.zip").read_bytes() == b"an older export"


def test_a_file_that_broke_off_is_fetched_again_from_its_start(tmp_path: Path) -> None:
    seen: list[int] = []
    script = Script(
        lambda _: httpx.Response(200, content=breaking()),
        problem(503, "busy"),
        lambda _: httpx.Response(200, content=b"".join(PIECES)),
    )
    client(script).export_gallery("lab", tmp_path / "one.zip", transferred=seen.append)
    assert seen == [4, 11]
    (file,) = tmp_path.iterdir()
    assert (file.name, file.read_bytes()) == ("one.zip", b"onetwothree")


def test_a_file_is_sent_again_only_when_it_never_arrived(tmp_path: Path) -> None:
    (tmp_path / "lab.zip").write_bytes(b"x" * 600_000)
    seen: list[int] = []
    never = Script(httpx.ConnectError("Connection refused"), httpx.Response(201, json=MADE))
    made = client(never).import_gallery(tmp_path / "lab.zip", "copy", transferred=seen.append)
    assert made.sequence_ids == "new"
    assert never.requests[1].content == b"x" * 600_000
    assert never.requests[1].headers["content-type"] == "application/zip"
    assert never.requests[1].headers["content-length"] == "600000"
    assert seen[-1] == 600_000
    perhaps = Script(httpx.ReadError("Connection reset by peer"))
    with pytest.raises(ServiceUnreachable):
        client(perhaps).import_gallery(tmp_path / "lab.zip", "copy")
    taken = Script(problem(409, "gallery-exists"))
    with pytest.raises(Conflict):
        client(taken).import_gallery(tmp_path / "lab.zip", "copy")
    assert (len(perhaps.requests), len(taken.requests)) == (1, 1)


def test_a_long_text_is_read_line_by_line() -> None:
    script = Script(lambda _: httpx.Response(200, content=iter([b'{"a":', b" 1}\n{", b"}\n"])))
    assert list(client(script).audit(after=7)) == ['{"a": 1}', "{}"]
    assert dict(script.requests[0].url.params) == {"cursor": "7"}
