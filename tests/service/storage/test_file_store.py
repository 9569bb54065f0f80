"""A store holds what was put, whole or not at all: a folder and S3, under the same tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.foundation.settings import Settings
from service.storage.database import now
from service.storage.file_store import FileStore, StoreDamaged, open_store
from service.storage.objects import NotStored, Objects, StoreUnavailable
from tests.service.storage.stores import SECRET, Wire, new_bucket, opened, s3_server, variables

LARGE = 20 << 20  # more than two parts of an upload


@dataclass(frozen=True)
class Place:
    """A store, its objects, and the setting that names it."""

    store: FileStore
    objects: Objects
    setting: str


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "folder":
        root = tmp_path / "shared"
        root.mkdir()
        return placed(str(root))
    port: int = request.getfixturevalue("s3_port")
    for name, value in variables(port).items():
        monkeypatch.setenv(name, value)
    return placed(f"s3://{new_bucket(port)}/of-tests")


def placed(setting: str) -> Place:
    store = opened(setting)
    return Place(store, store._objects, setting)


def folder_of(path: Path, **files: bytes) -> Path:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name.replace("_", ".")).write_bytes(content)
    return path


def content_of(path: Path) -> dict[str, bytes]:
    return {
        one.relative_to(path).as_posix(): one.read_bytes()
        for one in path.rglob("*")
        if one.is_file()
    }


def all_keys(objects: Objects, prefix: str) -> list[str]:
    return sorted(listed.key for listed in objects.list(prefix))


def test_a_folder_comes_back_as_it_was_put(place: Place, tmp_path: Path) -> None:
    source = folder_of(
        tmp_path / "source", weights_bin=os.urandom(LARGE), card_json=b"{}", empty=b""
    )
    folder_of(source / "below", deep_txt=b"deep")
    manifest = place.store.put("models/m/abc", source)
    assert place.store.find("models/m/abc") == manifest
    place.store.fetch("models/m/abc", tmp_path / "cache" / "abc")
    assert content_of(tmp_path / "cache" / "abc") == content_of(source)
    assert (tmp_path / "cache" / "abc").stat().st_mode & 0o077 == 0
    assert [one.name for one in (tmp_path / "cache").iterdir()] == ["abc"]


def test_a_file_comes_back_in_the_place_of_another(place: Place, tmp_path: Path) -> None:
    clip, to = tmp_path / "clip", tmp_path / "to"
    clip.write_bytes(b"frames")
    to.write_bytes(b"old")
    place.store.put("jobs/1/clip", clip)
    place.store.fetch("jobs/1/clip", to)
    assert to.read_bytes() == b"frames"


def test_what_is_put_anew_replaces_what_was_there(place: Place, tmp_path: Path) -> None:
    place.store.put("datasets/d", folder_of(tmp_path / "a", old_bin=b"old", both=b"1"))
    place.store.put("datasets/d", folder_of(tmp_path / "b", both=b"2"))
    place.store.fetch("datasets/d", tmp_path / "to")
    assert content_of(tmp_path / "to") == {"both": b"2"}
    assert len(all_keys(place.objects, "datasets/d")) == 2  # a file and its manifest


def test_keys_are_listed_and_deleted_by_their_beginning(place: Place, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", x=b"x")
    for key in ("jobs/1/a", "jobs/1/b", "jobs/10/a"):
        place.store.put(key, source)
    assert set(place.store.keys("jobs/1")) == {"jobs/1/a", "jobs/1/b"}
    place.store.delete("jobs/1")
    place.store.delete("jobs/1")  # again is fine
    assert set(place.store.keys("jobs")) == {"jobs/10/a"}
    assert all_keys(place.objects, "jobs/1") == []


def test_what_is_not_there_is_said_to_be_missing(place: Place, tmp_path: Path) -> None:
    assert place.store.find("models/none") is None
    with pytest.raises(NotStored):
        place.store.fetch("models/none", tmp_path / "to")
    assert list(place.store.keys("models")) == []
    assert list(tmp_path.glob("to*")) == []


@pytest.mark.parametrize(
    "cut", [b"frames, and mor", b"", b"frames, and more", b"framed, and more."]
)
def test_a_truncated_longer_or_swapped_object_is_refused(
    place: Place, tmp_path: Path, cut: bytes
) -> None:
    manifest = place.store.put("datasets/d", folder_of(tmp_path / "a", x=b"frames, and more."))
    place.objects.write(f"datasets/d/.{manifest.part}/x", [cut])
    with pytest.raises(StoreDamaged):
        place.store.fetch("datasets/d", tmp_path / "to")
    assert not (tmp_path / "to").exists()
    assert list(tmp_path.glob(".incoming-*")) == []


def test_what_is_wrong_once_is_fetched_again(place: Place, tmp_path: Path) -> None:
    manifest = place.store.put("datasets/d", folder_of(tmp_path / "a", x=b"frames"))
    key = f"datasets/d/.{manifest.part}/x"
    place.objects.write(key, [b"framed"])

    class MendedAfterTheFirstRead:
        def __getattr__(self, name: str) -> object:
            return getattr(place.objects, name)

        def read(self, asked: str) -> Iterator[bytes]:
            yield from place.objects.read(asked)
            place.objects.write(key, [b"frames"])

    objects = MendedAfterTheFirstRead()
    FileStore(objects).fetch("datasets/d", tmp_path / "to")  # type: ignore[arg-type]
    assert content_of(tmp_path / "to") == {"x": b"frames"}


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"not json",
        b"[" * 5000,
        b"x" * (2 << 20),
        json.dumps({"part": "p", "folder": True, "files": [], "more": 1}).encode(),
        *(
            json.dumps(
                {"part": "p", "folder": True, "files": [{"name": n, "size": 0, "sha256": "0" * 64}]}
            ).encode()
            for n in ("../up", "/etc/passwd", "a/../b", ".hidden", "a//b", "a\0b", "a\nb", "")
        ),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(place: Place, tmp_path: Path, wrong: bytes) -> None:
    place.objects.write("models/m/manifest.json", [wrong])
    with pytest.raises(StoreDamaged):
        place.store.fetch("models/m", tmp_path / "in" / "to")
    assert content_of(tmp_path / "in") == {}


@pytest.mark.parametrize(
    "key", ["../up", "models/../../up", "/models", "models/", "", ".x", "a/.b/c"]
)
def test_keys_that_lead_elsewhere_are_refused(place: Place, tmp_path: Path, key: str) -> None:
    source = folder_of(tmp_path / "a", x=b"x")
    for use in (
        lambda: place.store.put(key, source),
        lambda: place.store.find(key),
        lambda: place.store.fetch(key, tmp_path / "to"),
        lambda: list(place.store.keys(key)),
        lambda: place.store.delete(key),
        lambda: place.store.sweep(key, now()),
        lambda: place.store.keep_first(key, b""),
    ):
        with pytest.raises(ValueError, match="is no name that is stored"):
            use()


def test_a_folder_with_links_or_hidden_files_is_refused(place: Place, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", x=b"x")
    (source / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        place.store.put("models/m", source)
    (source / "link").rename(source / ".hidden")
    (source / ".hidden").unlink()
    (source / ".hidden").touch()
    with pytest.raises(ValueError, match="is no name"):
        place.store.put("models/m", source)
    assert place.store.find("models/m") is None


def test_of_two_writers_at_once_one_is_found_whole(place: Place, tmp_path: Path) -> None:
    sources = [
        folder_of(tmp_path / f"s{number}", a=bytes([number]) * 100, b=bytes([number]) * 100)
        for number in range(4)
    ]
    failed: list[BaseException] = []

    def write(source: Path) -> None:
        try:
            for _ in range(5):
                place.store.put("datasets/d", source)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    place.store.fetch("datasets/d", tmp_path / "to")
    assert content_of(tmp_path / "to") in [content_of(source) for source in sources]
    place.store.sweep("datasets", now() + timedelta(minutes=1))
    assert len(all_keys(place.objects, "datasets")) == 3  # what the others left is gone
    place.store.fetch("datasets/d", tmp_path / "again")


def test_a_few_bytes_are_kept_by_who_is_first(place: Place) -> None:
    kept: list[bytes] = []
    offers = [os.urandom(32) for _ in range(6)]
    threads = [
        threading.Thread(
            target=lambda mine: kept.append(place.store.keep_first("k/x", mine)), args=(o,)
        )
        for o in offers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 6
    assert len(set(kept)) == 1
    assert kept[0] in offers


def test_work_that_is_given_up_leaves_what_was_there_before(place: Place, tmp_path: Path) -> None:
    place.store.put("datasets/d", folder_of(tmp_path / "old", a=b"1"))
    source = folder_of(tmp_path / "new", a=os.urandom(LARGE))
    begun: list[int] = []

    def give_up() -> None:
        begun.append(1)
        if len(begun) > 10:
            raise KeyError("given up")

    with pytest.raises(Exception, match="given up"):
        place.store.put("datasets/d", source, give_up)
    place.store.fetch("datasets/d", tmp_path / "to")
    assert content_of(tmp_path / "to") == {"a": b"1"}
    place.store.put("datasets/d", source)
    begun.clear()
    with pytest.raises(KeyError):
        place.store.fetch("datasets/d", tmp_path / "again", give_up)
    assert not (tmp_path / "again").exists()
    assert list(tmp_path.glob(".incoming-*")) == []


def test_strange_objects_are_neither_keys_nor_in_the_way(place: Place, tmp_path: Path) -> None:
    for key in (
        "jobs/.x/y",
        "jobs/a b/manifest.json",
        "jobs/manifest.json",
        "jobs/.x/manifest.json",
    ):
        place.objects.write(key, [b"{}"])
    place.store.put("jobs/1/a", folder_of(tmp_path / "a", x=b"x"))
    assert set(place.store.keys("jobs")) == {"jobs", "jobs/1/a"}
    assert set(place.store.beginnings("jobs")) == {"1", "manifest.json"}
    place.store.sweep("jobs", now() + timedelta(minutes=1))
    place.store.delete("jobs")
    assert all_keys(place.objects, "jobs") == []


KILLED = """
import sys
from pathlib import Path
from service.foundation.settings import Settings
from service.storage.file_store import open_store
store = open_store(Settings(store=sys.argv[1]))
write = store._objects.write
def slow(key, content):
    print(key, flush=True)
    if key.endswith(sys.argv[3]):
        def never():
            yield b"x" * (9 << 20)
            sys.stdin.read()
        content = never()
    write(key, content)
store._objects.write = slow
store.put("datasets/d", Path(sys.argv[2]))
"""


@pytest.mark.parametrize("at", ["/b", "/manifest.json"])
def test_a_put_that_is_killed_leaves_what_was_there_before(
    place: Place, tmp_path: Path, at: str
) -> None:
    place.store.put("datasets/d", folder_of(tmp_path / "old", a=b"1"))
    source = folder_of(tmp_path / "new", a=b"2", b=b"2")
    child = subprocess.Popen(
        (sys.executable, "-c", KILLED, place.setting, str(source), at),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    while not child.stdout.readline().rstrip().endswith(at.encode()):
        assert child.poll() is None
    time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdin.close()
    child.stdout.close()
    place.store.fetch("datasets/d", tmp_path / "to")
    assert content_of(tmp_path / "to") == {"a": b"1"}
    left = all_keys(place.objects, "datasets")
    assert len(left) > 2
    place.store.sweep("datasets", now() - timedelta(days=1))  # it may still be under way
    assert all_keys(place.objects, "datasets") == left
    place.store.sweep("datasets", now() + timedelta(minutes=1))
    assert len(all_keys(place.objects, "datasets")) == 2
    place.store.put("datasets/d", source)


def test_a_store_that_is_away_for_a_moment_is_waited_for(
    s3_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire(s3_port)
    for name, value in variables(wire.port).items():
        monkeypatch.setenv(name, value)
    store = opened(f"s3://{new_bucket(s3_port)}")
    source = folder_of(tmp_path / "a", x=os.urandom(LARGE))
    wire.cut()
    threading.Timer(0.4, wire.mend).start()
    store.put("models/m", source)
    wire.cut()
    threading.Timer(0.4, wire.mend).start()
    store.fetch("models/m", tmp_path / "to")
    assert content_of(tmp_path / "to") == content_of(source)
    wire.cut()


def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    del tmp_path
    for name, value in variables(9).items():
        monkeypatch.setenv(name, value)
    return "s3://bucket/prefix"


def unmounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    del monkeypatch
    return str(tmp_path / "missing")


@pytest.mark.parametrize("where", [away, unmounted])
def test_a_store_that_stays_away_is_unavailable_and_says_no_secret(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: Callable[[Path, pytest.MonkeyPatch], str],
) -> None:
    monkeypatch.setattr("service.storage.s3._RETRIES", 1)
    store = opened(where(tmp_path, monkeypatch))
    source = folder_of(tmp_path / "a", x=b"x")
    for use in (
        lambda: store.put("models/m", source),
        lambda: store.find("models/m"),
        lambda: store.fetch("models/m", tmp_path / "to"),
        lambda: list(store.keys("models")),
        lambda: store.delete("models/m"),
        lambda: store.keep_first("k", b""),
    ):
        with pytest.raises(StoreUnavailable) as raised:
            use()
        assert (raised.value.status, raised.value.problem_slug) == (503, "store-unavailable")
        assert raised.value.retry_after
        assert SECRET not in repr(raised.value.__cause__)
    assert SECRET not in caplog.text
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    "setting",
    [
        "s3://",
        "s3://Bucket",
        "s3://b/../c",
        "s3://user:pass@b/c",
        "s3://b?x=1",
        "http://h/b",
        "here",
        "",
    ],
)
def test_a_store_that_is_none_is_no_setting(setting: str) -> None:
    with pytest.raises(ValidationError, match="absolute path of a folder"):
        Settings(store=setting)


def test_without_the_setting_there_is_no_store() -> None:
    assert open_store(Settings()) is None
