"""A folder of walks is enrolled once, whatever happens on the way."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import httpx
import pytest

from service.cli.bulk_enrolment import (
    Outcome,
    UnusableFolder,
    UnusableWalk,
    WalkOnDisk,
    content_of,
    enrol_all,
    metadata_of,
    walks_in,
)
from service.client import Client, Enrolment, NotFound, ServiceUnreachable, Upload
from tests.service.client.answering import AT_ONCE, Script, problem
from tests.service.requests import contents
from tests.service.walkers import npz, walk, walker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three people with four walks, two of them as frames and one with a side file."""
    people = tmp_path / "people"
    for person in (1, 2, 3):
        (people / f"p{person}").mkdir(parents=True)
        (people / f"p{person}" / "090_nm-01.npz").write_bytes(walk(person))
    save_frames(people / "p1" / "000_nm-02", 1)
    (people / "p3" / "090_nm-01.json").write_text('{"camera": "north", "indoors": true}')
    (people / ".hidden").mkdir()
    (people / "p1" / ".DS_Store").write_bytes(b"x")
    return people


@pytest.fixture
def gallery(shared: httpx.Client) -> Iterator[str]:
    """An empty gallery of the running service."""
    name = "bulk"
    shared.post("/galleries", json={"name": name}).raise_for_status()
    yield name
    shared.delete(f"/galleries/{name}").raise_for_status()


@pytest.fixture
def client(shared: httpx.Client) -> Iterator[Client]:
    with Client(str(shared.base_url)) as client:
        yield client


def enrol(client: Client, folder: Path, gallery: str) -> list[Outcome]:
    """All of it; to the untrained network of these tests all people are one, so they may be."""
    walks = walks_in(folder).walks
    return list(enrol_all(client, walks, gallery, in_flight=3, accept_conflict=True))


def save_frames(folder: Path, person: int, phase: float = 0.5) -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(walker(person, phase=phase)):
        assert cv2.imwrite(str(folder / f"{number}.png"), frame)


def enrolled(shared: httpx.Client, gallery: str) -> dict[str, list[object]]:
    """Metadata of every sequence by subject."""
    found = contents(shared, gallery)
    return {
        subject: sorted((item["metadata"] for item in found[subject]["sequences"]), key=str)
        for subject in found
        if subject
    }


EXPECTED = {
    "p1": [{"view": "000", "condition": "nm-02"}, {"view": "090", "condition": "nm-01"}],
    "p2": [{"view": "090", "condition": "nm-01"}],
    "p3": [{"camera": "north", "indoors": True}],
}


def test_every_walk_is_enrolled_with_its_metadata(
    shared: httpx.Client, client: Client, folder: Path, gallery: str
) -> None:
    outcomes = enrol(client, folder, gallery)
    assert [(item.refused, item.known) for item in outcomes] == [(None, False)] * 4
    assert enrolled(shared, gallery) == EXPECTED


def test_a_tree_of_conditions_and_views_is_enrolled_with_both(
    shared: httpx.Client, client: Client, tmp_path: Path, gallery: str
) -> None:
    person = tmp_path / "001"
    for number, name in enumerate(("nm-01/090.npz", "bg-01/090.npz", "045_cl-01.npz")):
        path = person / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(walk(1, phase=0.1 * number))
    (person / "bg-01" / "090.json").write_text('{"camera": "north"}')
    save_frames(person / "nm-01" / "000", 1)
    (person / "nm-01" / "180").mkdir()
    outcomes = enrol(client, tmp_path, gallery)
    assert {
        str(item.walk.path.relative_to(person)): item.refused
        for item in outcomes
        if item.refused is not None
    } == {"nm-01/180": "there are no images in it"}
    assert enrolled(shared, gallery) == {
        "001": [
            {"camera": "north"},
            {"view": "000", "condition": "nm-01"},
            {"view": "045", "condition": "cl-01"},
            {"view": "090", "condition": "nm-01"},
        ]
    }


def test_a_second_time_nothing_is_added(
    shared: httpx.Client, client: Client, folder: Path, gallery: str
) -> None:
    first = enrol(client, folder, gallery)
    again = enrol(client, folder, gallery)
    assert [item.sequence_id for item in again] == [item.sequence_id for item in first]
    assert all(item.known for item in again)
    assert enrolled(shared, gallery) == EXPECTED


def test_a_walk_that_lies_there_twice_is_enrolled_once(
    shared: httpx.Client, client: Client, folder: Path, gallery: str
) -> None:
    shutil.copy(folder / "p2" / "090_nm-01.npz", folder / "p2" / "090_nm-01.copy")
    enrol(client, folder, gallery)
    assert enrolled(shared, gallery) == EXPECTED


def test_what_was_erased_is_enrolled_again(
    shared: httpx.Client, client: Client, folder: Path, gallery: str
) -> None:
    first = enrol(client, folder, gallery)
    assert first[0].sequence_id is not None
    client.erase_sequence(first[0].sequence_id)
    client.erase_subject("p2", gallery=gallery)
    again = enrol(client, folder, gallery)
    assert [item.known for item in again] == [False, True, False, True]
    assert enrolled(shared, gallery) == EXPECTED


def test_a_walk_that_may_be_another_persons_is_refused_unless_that_is_accepted(
    client: Client, folder: Path, gallery: str
) -> None:
    shutil.copytree(folder / "p2", folder / "p2-again")
    walks = [walk for walk in walks_in(folder).walks if walk.subject_id.startswith("p2")]
    first, again = enrol_all(client, walks, gallery, in_flight=1)
    assert first.refused is None
    assert "p2" in str(again.refused)
    assert again.sequence_id is None
    first, again = enrol_all(client, walks, gallery, in_flight=1, accept_conflict=True)
    assert (first.known, again.known, again.refused) == (True, False, None)


def test_a_refused_walk_keeps_no_other_from_being_enrolled(
    shared: httpx.Client, client: Client, folder: Path, gallery: str
) -> None:
    bad = folder / "p1" / "broken.zip"
    bad.write_bytes(b"no walk at all")
    (folder / "p2" / "short.npz").write_bytes(walk(2, frames=3))
    (folder / "p2" / "empty").mkdir()
    refused = {
        item.walk.path.name: item.refused
        for item in enrol(client, folder, gallery)
        if item.refused is not None
    }
    assert set(refused) == {"broken.zip", "short.npz", "empty"}
    assert "too_few_frames" in str(refused["short.npz"])
    assert "no images" in str(refused["empty"])
    assert enrolled(shared, gallery) == EXPECTED
    bad.write_bytes(walk(1, phase=1.0))
    again = [item for item in enrol(client, folder, gallery) if item.refused is None]
    assert [item.walk.path.name for item in again if not item.known] == ["broken.zip"]


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Ten walks of one person without metadata, and one of another."""
    for number in range(10):
        path = tmp_path / "several" / "p1" / f"{number}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(walk(1, phase=0.1 * number))
    (tmp_path / "several" / "p2").mkdir()
    (tmp_path / "several" / "p2" / "0.npz").write_bytes(walk(2))
    return tmp_path / "several"


@pytest.fixture
def sizes_of_requests(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many walks each request has from now on."""
    send, sizes = client.enroll, []

    def counted(subject_id: str, walks: Sequence[Upload] = (), **kwargs: Any) -> Enrolment:
        sizes.append(len(walks))
        return send(subject_id, walks, **kwargs)

    monkeypatch.setattr(client, "enroll", counted)
    return sizes


def test_walks_of_one_person_with_the_same_metadata_go_together(
    shared: httpx.Client,
    client: Client,
    several: Path,
    gallery: str,
    sizes_of_requests: list[int],
) -> None:
    outcomes = enrol(client, several, gallery)
    assert sorted(sizes_of_requests) == [1, 2, 8]
    assert [item.walk.path.name for item in outcomes] == [f"{at}.npz" for at in (*range(10), 0)]
    assert [(item.refused, item.known) for item in outcomes] == [(None, False)] * 11
    assert enrolled(shared, gallery) == {"p1": [{}] * 10, "p2": [{}]}


def test_one_that_is_refused_or_cannot_be_read_leaves_those_beside_it_in(
    shared: httpx.Client,
    client: Client,
    several: Path,
    gallery: str,
    sizes_of_requests: list[int],
) -> None:
    (several / "p1" / "3.npz").write_bytes(walk(1, frames=3))
    (several / "p1" / "9.npz").unlink()
    (several / "p1" / "9").mkdir()
    outcomes = enrol(client, several, gallery)
    assert sorted(sizes_of_requests) == [1] * 10 + [8]
    assert {item.walk.path.name for item in outcomes if item.refused} == {"3.npz", "9"}
    assert enrolled(shared, gallery) == {"p1": [{}] * 8, "p2": [{}]}


def test_of_walks_that_went_together_what_was_erased_is_enrolled_again(
    shared: httpx.Client, client: Client, several: Path, gallery: str
) -> None:
    first = enrol(client, several, gallery)
    assert first[4].sequence_id is not None
    client.erase_sequence(first[4].sequence_id)
    again = enrol(client, several, gallery)
    assert [item.known for item in again] == [at != 4 for at in range(11)]
    assert enrolled(shared, gallery) == {"p1": [{}] * 10, "p2": [{}]}


def test_two_at_once_double_nothing(
    shared: httpx.Client, client: Client, folder: Path, gallery: str
) -> None:
    results: list[list[Outcome]] = []
    threads = [
        threading.Thread(target=lambda: results.append(enrol(client, folder, gallery)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [item.sequence_id for item in results[0]] == [item.sequence_id for item in results[1]]
    assert enrolled(shared, gallery) == EXPECTED


def gaitid(shared: httpx.Client, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "service", *map(str, arguments)],
        env={**os.environ, "GAITID_URL": str(shared.base_url)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_kill_in_the_middle_loses_and_doubles_nothing(
    shared: httpx.Client, tmp_path: Path, gallery: str
) -> None:
    people = tmp_path / "many"
    for person in range(24):
        (people / f"p{person:02}").mkdir(parents=True)
        (people / f"p{person:02}" / "090_1.npz").write_bytes(walk(person))
    command = ("enroll", people, "--gallery", gallery, "--accept-conflict", "--json")
    for least in (1, 8):
        killed = gaitid(shared, *command)
        assert killed.stdout is not None
        for _ in range(least):
            assert json.loads(killed.stdout.readline())["refused"] is None
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert 8 <= shared.get(f"/galleries/{gallery}").json()["sequences"] < 24
    status, out, err = ended(gaitid(shared, *command))
    assert status == 0, err
    told = [json.loads(line) for line in out.splitlines()]
    assert [item["walk"] for item in told] == [f"p{person:02}/090_1.npz" for person in range(24)]
    assert any(item["already_enrolled"] for item in told)
    found = contents(shared, gallery)
    assert {
        subject: [item["sequence_id"] for item in found[subject]["sequences"]]
        for subject in found
        if subject
    } == {item["subject_id"]: [item["sequence_id"]] for item in told}


def test_the_command_lists_what_was_refused_and_skipped_and_why(
    shared: httpx.Client, folder: Path, gallery: str
) -> None:
    command = ("enroll", folder, "--gallery", gallery, "--accept-conflict")
    (folder / "p2" / "short.npz").write_bytes(walk(2, frames=3))
    (folder / "Anna Blume").mkdir()
    (folder / "Anna Blume" / "090_nm-01.npz").write_bytes(walk(4))
    status, out, _ = ended(gaitid(shared, *command))
    assert status == 1
    summary, _, refused, skipped = out.splitlines()
    assert summary == "4 walks enrolled, 0 were already, 1 refused, 1 folders skipped"
    assert refused.startswith("p2/short.npz")
    assert "too_few_frames" in refused
    assert skipped.startswith("Anna Blume")
    assert "the folder's name is not 1 to 128 of" in skipped
    (folder / "p2" / "short.npz").unlink()
    status, out, _ = ended(gaitid(shared, *command, "--json"))
    told = [json.loads(line) for line in out.splitlines()]
    assert (status, [item["refused"] is None for item in told]) == (1, [True] * 4 + [False])
    assert (told[-1]["walk"], told[-1]["sequence_id"]) == ("Anna Blume", None)
    (folder / "Anna Blume").rename(folder / "p4")
    assert ended(gaitid(shared, *command))[:2] == (
        0, "1 walks enrolled, 4 were already, 0 refused\n",
    )  # fmt: skip
    status, _, err = ended(gaitid(shared, "enroll", folder, "--gallery", "nowhere"))
    assert status == 1
    assert "404 gallery-not-found" in err


@pytest.mark.parametrize(
    ("failure", "kind"),
    [(problem(404, "gallery-not-found"), NotFound), (httpx.ConnectError("no"), ServiceUnreachable)],
)
def test_what_would_befall_every_walk_ends_it(
    folder: Path, failure: httpx.Response | Exception, kind: type[Exception]
) -> None:
    with (
        Client("http://gait.test", transport=Script(failure), retries=AT_ONCE) as client,
        pytest.raises(kind),
    ):
        enrol(client, folder, "default")


def test_the_same_frames_make_the_same_upload(tmp_path: Path) -> None:
    for name, now in (("a", 1_000_000_000), ("b", 1_500_000_000)):
        (tmp_path / name).mkdir()
        for number in (10, 2, 1):
            frame = tmp_path / name / f"{number}.png"
            frame.write_bytes(bytes([number]))
            os.utime(frame, (now, now))
        (tmp_path / name / "notes.txt").write_text(name)
    one, other = (content_of(WalkOnDisk("s", tmp_path / name)) for name in ("a", "b"))
    assert one == other
    with zipfile.ZipFile(io.BytesIO(one)) as archive:
        assert sorted(archive.namelist()) == ["1.png", "10.png", "2.png"]


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("090_nm-01.zip", {"view": "090", "condition": "nm-01"}),
        ("090_nm-01.tar.gz", {"view": "090", "condition": "nm-01"}),
        ("45_1", {"view": "45", "condition": "1"}),
        ("walk.mp4", {}),
        ("a_b_c.zip", {}),
    ],
)
def test_a_name_may_say_view_and_condition(
    tmp_path: Path, name: str, metadata: dict[str, str]
) -> None:
    (tmp_path / name).touch()
    assert metadata_of(WalkOnDisk("s", tmp_path / name)) == metadata


@pytest.mark.parametrize(
    "text", ["[1]", "no json", '"text"', "[" * 50_000, '{"a": ' + "1" * 70_000]
)
def test_a_side_file_that_is_none_refuses_its_walk(tmp_path: Path, text: str) -> None:
    (tmp_path / "walk.zip").touch()
    (tmp_path / "walk.json").write_text(text)
    with pytest.raises(UnusableWalk, match=r"walk\.json"):
        metadata_of(WalkOnDisk("s", tmp_path / "walk.zip"))


def test_a_folder_that_is_not_laid_out_so_is_refused_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    with pytest.raises(UnusableFolder, match="no walks"):
        walks_in(tmp_path)
    (tmp_path / "walk.npz").write_bytes(npz(walker(1)))
    with pytest.raises(UnusableFolder, match="FOLDER/SUBJECT/WALK"):
        walks_in(tmp_path)
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "walk.json").write_text("{}")
    with pytest.raises(UnusableFolder, match=r"walk\.json: there is no walk"):
        walks_in(tmp_path)
    (tmp_path / "anna" / "walk.zip").touch()
    (tmp_path / "anna" / "nm-01").mkdir()
    (tmp_path / "anna" / "nm-01" / "090.json").write_text("{}")
    with pytest.raises(UnusableFolder, match=r"090\.json: there is no walk"):
        walks_in(tmp_path)
