"""A gallery goes out as one file and comes in again, whole and unchanged, or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from service.access.keys import Scope, create_key
from service.client import Client, Refused, ServiceUnreachable
from service.foundation.errors import CutOff
from service.gallery.tables import GalleryRow
from service.privacy.erasure_transactions import erase_subject
from service.storage.database import writing
from service.storage.encryption import new_secret
from service.transfer.export import stream_gallery
from tests.service.conftest import save_tiny_model
from tests.service.requests import contents, enrol, identify, problem
from tests.service.server import Serve, serving, settings_for
from tests.service.walkers import walk

Members = dict[str, bytes]


def export(client: httpx.Client, gallery: str = "default", **params: str) -> bytes:
    answer = client.get(f"/galleries/{gallery}/export", params=params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == f'attachment; filename="{gallery}.zip"'
    return answer.content


def put(client: httpx.Client, gallery: str, file: bytes) -> httpx.Response:
    return client.put(f"/galleries/{gallery}/import", content=file)


def members(file: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def packed(content: Members, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def nameless(file: bytes) -> list[tuple[str, Any]]:
    """Everything in an export but the gallery's name and the sequences' ids, in order."""
    content = members(file)
    ids = [line["sequence_id"] for line in lines(content["sequences.jsonl"])]
    found: list[tuple[str, Any]] = []
    for name, data in content.items():
        known: Any = data
        if name.endswith(".jsonl"):
            known = [{**line, "sequence_id": None} for line in lines(data)]
        elif name == "gallery.json":
            known = {**json.loads(data), "name": None}
        for position, sequence_id in enumerate(ids):
            name = name.replace(sequence_id, str(position))
        found.append((name, known))
    return found


def fill(client: httpx.Client) -> None:
    body = {"name": "lab", "metadata": {"site": "nörd", "floor": 3.0}, "max_age_days": 400}
    assert client.post("/galleries", json=body).status_code == 201
    enrol(client, "anna", walk(1), walk(1, phase=1), gallery="lab", metadata='{"view": "090"}')
    enrol(client, "bert", walk(2, frames=24), gallery="lab", metadata='{"n": 1.0, "ok": null}')


OPERATING_POINT: dict[str, Any] = {
    "threshold": 0.71, "interval": [0.7, 0.75], "confidence": 0.95, "method": "observed",
    "target_fpir": 0.01, "gallery_subjects": 2, "gallery_sequences": 3,
    "calibrated_at": "2026-11-22T12:19:08.572663Z", "digest": "", "rerun": None,
}  # fmt: skip


def test_a_gallery_comes_out_as_it_went_in(serve: Serve, engine: Engine) -> None:
    client = serve()
    fill(client)
    digest = client.get("/readyz").json()["model"]["digest"]
    with Session(writing(engine)) as session, session.begin():
        row = session.query(GalleryRow).filter_by(name="lab").one()
        row.operating_point = {**OPERATING_POINT, "digest": digest}
    before = contents(client, "lab")
    file = export(client, "lab")

    answer = put(client, "copy", file)

    assert answer.status_code == 201
    assert answer.headers["location"] == "/galleries/copy"
    made = answer.json()
    assert made["sequence_ids"] == "new"  # the old ones are taken: lab is still there
    assert made["embeddings"] == {"taken": 3, "left": 0}
    assert made["gallery"] == client.get("/galleries/copy").json()
    assert made["gallery"] == {**before[""], "name": "copy"}
    assert nameless(export(client, "copy")) == nameless(file)
    assert contents(client, "lab") == before
    found = identify(client, walk(2, frames=24), gallery="copy").json()
    assert found["candidates"][0]["subject_id"] == "bert"
    assert found["candidates"][0]["similarity"] > 0.9999
    assert found["threshold_source"] == "gallery"


def test_what_is_said_of_people_goes_out_and_comes_in_and_old_files_say_nothing(
    serve: Serve,
) -> None:
    client = serve()
    fill(client)
    said = {"display_name": "Ánna 李", "metadata": {"team": "A"}}
    client.patch("/subjects/anna?gallery=lab", json=said)
    file = export(client, "lab")
    anna, bert = lines(members(file)[SUBJECTS])
    assert {name: anna[name] for name in said} == said
    assert not set(said) & set(bert)
    assert put(client, "copy", file).status_code == 201
    assert nameless(export(client, "copy")) == nameless(file)
    copy = client.get("/subjects/anna?gallery=copy").json()
    assert {name: copy[name] for name in said} == said
    before = packed(changed_line(members(file), SUBJECTS, display_name=..., metadata=...))
    assert put(client, "before", before).status_code == 201
    old = client.get("/subjects/anna?gallery=before").json()
    assert (old["display_name"], old["metadata"]) == (None, {})


def test_an_encrypted_gallery_goes_out_plain_and_comes_in_encrypted(
    serve: Serve, engine: Engine
) -> None:
    client = serve(encryption_keys=SecretStr(new_secret()))
    fill(client)
    file = export(client, "lab")
    walks = lines(members(file)["sequences.jsonl"])
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        for line in walks:
            frames = np.load(archive.open(f"silhouettes/{line['sequence_id']}.npy"))
            assert hashlib.sha256(frames.tobytes()).hexdigest() == line["content_hash"]

    assert put(client, "copy", file).status_code == 201

    assert nameless(export(client, "copy")) == nameless(file)
    with engine.connect() as connection:
        for table in ("sequence", "embedding"):
            plain = f"SELECT count(*) FROM {table} WHERE key_id IS NULL"  # noqa: S608
            assert connection.exec_driver_sql(plain).scalar_one() == 0
    # Known again by its content, whatever key that is hashed with.
    again = enrol(client, "anna", walk(1), gallery="copy").json()
    assert again["sequences"][0]["already_enrolled"] is True


def test_the_same_gallery_makes_the_same_file_and_restored_keeps_its_ids(serve: Serve) -> None:
    client = serve()
    fill(client)
    before = contents(client, "lab")
    file = export(client, "lab")
    assert export(client, "lab") == file
    client.delete("/galleries/lab")
    assert put(client, "lab", file).json()["sequence_ids"] == "kept"
    assert contents(client, "lab") == before
    assert export(client, "lab") == file


def test_an_empty_gallery_is_exported_and_imported_too(serve: Serve) -> None:
    client = serve()
    made = put(client, "copy", export(client)).json()["gallery"]
    assert (made["subjects"], made["sequences"]) == (0, 0)


def test_a_gallery_of_more_than_a_page_is_whole(serve: Serve) -> None:
    client = serve()
    for number in range(4):
        walks = [walk(number, phase=phase / 20, frames=24) for phase in range(20)]
        assert enrol(client, f"person-{number}", *walks).status_code == 201
    file = export(client)
    made = put(client, "copy", file).json()
    assert (made["gallery"]["subjects"], made["gallery"]["sequences"]) == (4, 80)
    assert nameless(export(client, "copy")) == nameless(file)


def test_embeddings_of_a_model_that_is_not_here_are_left_and_made_anew(
    tmp_path: Path, models: Path
) -> None:
    with serving(settings_for(tmp_path / "here", models)) as client:
        fill(client)
        file = export(client, "lab")
        bare = export(client, "lab", embeddings="false")
    assert not [name for name in members(bare) if name.startswith("embeddings/")]
    save_tiny_model(tmp_path / "others" / "default", seed=5)
    with serving(settings_for(tmp_path / "there", tmp_path / "others")) as client:
        made = put(client, "lab", file).json()
        assert made["sequence_ids"] == "kept"
        assert made["embeddings"] == {"taken": 0, "left": 3}
        found = identify(client, walk(2, frames=24), gallery="lab", threshold="0.5").json()
        assert found["candidates"][0]["subject_id"] == "bert"
        assert found["candidates"][0]["similarity"] > 0.9999
        digest = client.get("/readyz").json()["model"]["digest"]
        embedded = [name for name in members(export(client, "lab")) if "embeddings/" in name]
        assert len(embedded) == 3
        assert all(digest in name for name in embedded)
        assert put(client, "bare", bare).json()["embeddings"] == {"taken": 0, "left": 0}


def test_an_export_is_of_one_moment_or_cut_off(serve: Serve, engine: Engine) -> None:
    client = serve()
    fill(client)
    late = stream_gallery(engine, "lab", embeddings=True)
    enrol(client, "carl", walk(3), gallery="lab")
    exported = members(b"".join(late))
    assert {line["subject_id"] for line in lines(exported["subjects.jsonl"])} == {"anna", "bert"}

    cut = stream_gallery(engine, "lab", embeddings=True)
    erase_subject(engine, "lab", "anna")
    with pytest.raises(CutOff):
        b"".join(cut)
    gone = stream_gallery(engine, "lab", embeddings=True)
    client.delete("/galleries/lab")
    with pytest.raises(CutOff):
        b"".join(gone)


def test_whoever_downloads_an_export_that_is_cut_off_notices(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, engine: Engine
) -> None:
    client = serve()
    fill(client)
    out = tmp_path / "out"
    out.mkdir()

    def erase_in_the_middle(_connection: object, _cursor: object, statement: str, *_: Any) -> None:
        if "FROM embedding" in statement:  # of every attempt
            with writing(engine).begin() as connection:
                connection.exec_driver_sql("UPDATE gallery SET revision = revision + 1")
                connection.exec_driver_sql(
                    "INSERT INTO erased_sequence SELECT id, revision, revision FROM gallery"
                )

    event.listen(Engine, "before_cursor_execute", erase_in_the_middle)
    with Client(str(client.base_url)) as ours, pytest.raises(ServiceUnreachable):
        ours.export_gallery("lab", out / "lab.zip")
    event.remove(Engine, "before_cursor_execute", erase_in_the_middle)
    assert list(out.iterdir()) == []
    assert any("an answer was cut off: something was erased" in one for one in caplog.messages)
    assert not any(record.exc_info for record in caplog.records)


def test_a_name_that_is_taken_or_not_a_name_is_refused(serve: Serve) -> None:
    client = serve()
    file = export(client)
    assert problem(put(client, "default", file), 409)["type"] == "/problems/gallery-exists"
    # Also when the file is refused before it has arrived.
    problem(put(client, "default", bytes(2**23)), 409)
    assert problem(put(client, "-x", file), 422)["errors"][0]["where"] == "gallery"
    problem(client.get("/galleries/nope/export"), 404)
    problem(client.get("/galleries/default/export", params={"embeddings": "perhaps"}), 422)


def test_only_an_admin_takes_galleries_out_or_in(serve: Serve, engine: Engine) -> None:
    client = serve()
    _, token = create_key(engine, [Scope.ENROLL, Scope.IDENTIFY, Scope.JOBS], "camera")
    headers = {"Authorization": f"Bearer {token}"}
    problem(client.get("/galleries/default/export", headers=headers), 403)
    problem(client.put("/galleries/x/import", content=b"", headers=headers), 403)


def test_an_import_has_a_limit_of_its_own(serve: Serve) -> None:
    client = serve(max_json_bytes=1000, max_request_bytes=1000, max_import_bytes=100_000)
    with_nothing = export(client)
    assert 1000 < len(with_nothing + bytes(1000)) < 100_000
    assert put(client, "copy", with_nothing).status_code == 201
    too_large = put(client, "other", bytes(100_001))
    assert problem(too_large, 413)["type"] == "/problems/request-too-large"

    def pieces() -> Any:
        for _ in range(200):
            yield bytes(1000)

    problem(client.put("/galleries/other/import", content=pieces()), 413)


@pytest.fixture(scope="module")
def exported(shared: httpx.Client) -> Members:
    body = {"name": "lab", "metadata": {"site": "north"}}
    shared.post("/galleries", json=body)
    enrol(shared, "anna", walk(1, frames=24), walk(1, phase=1, frames=24), gallery="lab")
    enrol(shared, "bert", walk(2, frames=24), gallery="lab")
    return members(export(shared, "lab"))


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def first(content: Members, folder: str) -> str:
    return next(name for name in content if name.startswith(folder))


def changed_line(content: Members, name: str, **change: Any) -> Members:
    rest = content[name].splitlines()
    line = {**json.loads(rest[0]), **change}
    line = {key: value for key, value in line.items() if value is not ...}
    return {**content, name: b"\n".join([json.dumps(line).encode(), *rest[1:]]) + b"\n"}


def about(content: Members, **change: Any) -> Members:
    changed = {**json.loads(content["gallery.json"]), **change}
    return {**content, "gallery.json": json.dumps(changed).encode()}


def without(content: Members, name: str) -> Members:
    return {key: data for key, data in content.items() if key != name}


WALK = "silhouettes/"
EMBEDDING = "embeddings/"
SEQUENCES, SUBJECTS = "sequences.jsonl", "subjects.jsonl"
STRANGE: dict[str, tuple[Callable[[Members], Members], str]] = {
    "a member that points outside": (lambda c: {**c, "../../etc/cron.d/x": b""}, "../../etc"),
    "an absolute member": (lambda c: {**c, "/etc/passwd": b""}, "/etc/passwd"),
    "a member of no export": (lambda c: {**c, "README.md": b""}, "README.md"),
    "no description": (lambda c: without(c, "gallery.json"), "gallery.json"),
    "no list of sequences": (lambda c: without(c, SEQUENCES), SEQUENCES),
    "another format": (lambda c: about(c, format=2), "gallery.json"),
    "an unknown field of the gallery": (lambda c: about(c, colour="red"), "gallery.json"),
    "an age of nought": (lambda c: about(c, max_age_days=0), "gallery.json"),
    "metadata of metadata": (lambda c: about(c, metadata={"a": {"b": 1}}), "gallery.json"),
    "half an operating point": (
        lambda c: about(c, operating_point={"threshold": 0.5}), "gallery.json",
    ),
    "a gallery of tomorrow": (
        lambda c: about(c, created_at="2999-01-01T00:00:00Z"), "gallery.json",
    ),
    "a time without a zone": (
        lambda c: changed_line(c, SEQUENCES, created_at="2026-01-01T00:00:00"),
        "sequences.jsonl line 1",
    ),
    "a sequence of tomorrow": (
        lambda c: changed_line(c, SEQUENCES, created_at="2999-01-01T00:00:00Z"),
        "sequences.jsonl line 1",
    ),
    "a time before all time": (
        lambda c: changed_line(c, SEQUENCES, created_at="0001-01-01T00:00:00+14:00"),
        "sequences.jsonl line 1",
    ),
    "an operating point of more subjects than can be counted": (
        lambda c: about(c, operating_point={**OPERATING_POINT, "gallery_subjects": 10**400}),
        "gallery.json",
    ),
    "a line that is no JSON": (lambda c: {**c, SEQUENCES: b"{\n"}, "sequences.jsonl line 1"),
    "a list that is cut off": (
        lambda c: {**c, SEQUENCES: c[SEQUENCES].rstrip(b"\n")}, "sequences.jsonl line 3",
    ),
    "a line without an end": (
        lambda c: {**c, SUBJECTS: b"[" * 300_000 + b"\n"}, "subjects.jsonl line 1",
    ),
    "an id with a path": (
        lambda c: changed_line(c, SEQUENCES, sequence_id="../x"), "sequences.jsonl line 1",
    ),
    "a subject id with a slash": (
        lambda c: changed_line(c, SUBJECTS, subject_id="a/b"), "subjects.jsonl line 1",
    ),
    "a display name of two lines": (
        lambda c: changed_line(c, SUBJECTS, display_name="two\nlines"), "subjects.jsonl line 1",
    ),
    "metadata of a subject in a list": (
        lambda c: changed_line(c, SUBJECTS, metadata={"view": []}), "subjects.jsonl line 1",
    ),
    "a field too few": (
        lambda c: changed_line(c, SEQUENCES, quality=...), "sequences.jsonl line 1",
    ),
    "a score over one": (
        lambda c: changed_line(
            c, SEQUENCES, quality={"score": 7, "issues": [], "frames_in": 1, "dropped": {}}
        ),
        "sequences.jsonl line 1",
    ),
    "a sequence twice": (
        lambda c: {**c, SEQUENCES: c[SEQUENCES].splitlines(keepends=True)[0] + c[SEQUENCES]},
        "sequences.jsonl line 2",
    ),
    "a subject twice": (
        lambda c: {**c, SUBJECTS: c[SUBJECTS].splitlines(keepends=True)[0] + c[SUBJECTS]},
        "subjects.jsonl line 2",
    ),
    "a sequence of nobody": (
        lambda c: changed_line(c, SUBJECTS, subject_id="carl"), "sequences.jsonl line 1",
    ),
    "a subject without sequences": (
        lambda c: {
            **c,
            SUBJECTS: c[SUBJECTS]
            + b'{"subject_id": "carl", "created_at": "2026-01-01T00:00:00Z"}\n',
        },
        SUBJECTS,
    ),
    "a sequence without its walk": (lambda c: without(c, first(c, WALK)), WALK),
    "a walk of no sequence": (
        lambda c: {
            **c, f"{WALK}00000000-0000-7000-8000-000000000000.npy": c[first(c, WALK)]
        },
        "00000000-0000-7000-8000-000000000000",
    ),
    "another walk than was enrolled": (
        lambda c: {**c, first(c, WALK): npy(np.zeros((24, 64, 64), np.uint8))}, WALK,
    ),
    "a walk of another shape": (
        lambda c: {**c, first(c, WALK): npy(np.zeros((24, 64, 44), np.uint8))}, WALK,
    ),
    "a walk of other numbers": (
        lambda c: {**c, first(c, WALK): npy(np.zeros((6, 64, 64), np.float32))}, WALK,
    ),
    "a pickled walk": (
        lambda c: {**c, first(c, WALK): npy(np.array([{}], object))}, WALK,
    ),
    "a walk longer than it says": (
        lambda c: changed_line(c, SEQUENCES, frames=23), WALK,
    ),
    "an embedding of another shape": (
        lambda c: {**c, first(c, EMBEDDING): npy(np.zeros((4, 15), np.float32))}, EMBEDDING,
    ),
    "an embedding that is not finite": (
        lambda c: {**c, first(c, EMBEDDING): npy(np.full((4, 16), np.nan, np.float32))}, EMBEDDING,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", STRANGE)
def test_an_export_that_somebody_changed_is_refused_with_the_place(
    shared: httpx.Client, exported: Members, what: str
) -> None:
    change, where = STRANGE[what]
    body = problem(put(shared, "copy", packed(change(exported))), 400)
    assert body["type"] == "/problems/malformed-export"
    (error,) = body["errors"]
    assert error["where"].startswith(where)
    problem(shared.get("/galleries/copy"), 404)


def encrypted(file: bytes) -> bytes:
    """The first entry of the directory says that its member is encrypted."""
    start = file.index(b"PK\x01\x02")
    return file[: start + 8] + b"\x01\x00" + file[start + 10 :]


def doubled(content: Members) -> bytes:
    file = io.BytesIO(packed(content))
    with (
        zipfile.ZipFile(file, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("gallery.json", content["gallery.json"])
    return file.getvalue()


def renamed(file: bytes) -> bytes:
    """The list of sequences has another name in its own header than in the directory."""
    start = file.index(b"sequences.jsonl")
    return file[:start] + b"S" + file[start + 1 :]


NO_EXPORT: dict[str, Callable[[Members], bytes]] = {
    "nothing": lambda _: b"",
    "text": lambda _: b"not a zip at all",
    "a zip's end": lambda _: struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 9, 9, 9, 9, 0),
    "a zip of walks": lambda _: packed({"0001.png": b"\x89PNG"}),
    "a part of an export": lambda c: packed(c)[:-100],
    "an export with a comment": lambda c: packed(c)[:-2] + b"\x02\x00hi",
    "an encrypted export": lambda c: encrypted(packed(c)),
    "an export packed otherwise": lambda c: packed(c, zipfile.ZIP_LZMA),
    "a member twice": doubled,
    "a member under two names": lambda c: renamed(packed(c)),
    "damage in the middle": lambda c: (
        (file := packed(c))[: len(file) // 2] + bytes(64) + file[len(file) // 2 + 64 :]
    ),
}


@pytest.mark.parametrize("what", NO_EXPORT)
def test_what_is_no_export_is_refused(shared: httpx.Client, exported: Members, what: str) -> None:
    body = problem(put(shared, "copy", NO_EXPORT[what](exported)), 400)
    assert body["type"] == "/problems/malformed-export"
    problem(shared.get("/galleries/copy"), 404)


def test_bombs_are_refused_before_they_are_unpacked(
    shared: httpx.Client, exported: Members
) -> None:
    name = first(exported, WALK)
    within = {**exported, name: npy(np.zeros((1000, 64, 64), np.uint8))}
    assert problem(put(shared, "copy", packed(within)), 400)["errors"][0]["where"] == name
    beyond = {**exported, SUBJECTS: bytes(32 * 2**20)}
    body = problem(put(shared, "copy", packed(beyond)), 413)
    assert body["errors"][0]["reason"] == "unpacks_to_too_much"
    # A directory that would take more memory than there is, were it read.
    file = bytearray(packed(exported))
    struct.pack_into("<I", file, len(file) - 10, 2**31)
    body = problem(put(shared, "copy", bytes(file)), 413)
    assert body["errors"][0]["reason"] == "too_many_sequences"


def test_a_directory_of_more_members_than_an_export_has_is_not_parsed(
    shared: httpx.Client, exported: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = packed({**exported, **{f"{number:x}": b"" for number in range(500)}})
    monkeypatch.setattr(zipfile, "ZipFile", lambda _: pytest.fail("it was parsed"))
    body = problem(put(shared, "copy", file), 400)
    assert body["errors"][0]["reason"] == "not_an_export"


def test_one_gallery_is_imported_at_a_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()
    file = export(client)
    begun, go_on = threading.Event(), threading.Event()

    def announced(**where: Any) -> Any:
        begun.set()
        return TemporaryFile(**where)

    def slowly() -> Iterator[bytes]:
        yield file[:100]
        go_on.wait(20)
        yield file[100:]

    monkeypatch.setattr("service.transfer.portability.TemporaryFile", announced)
    with ThreadPoolExecutor(1) as other, httpx.Client(base_url=client.base_url) as slow:
        first_import = other.submit(
            lambda: slow.put("/galleries/first/import", content=slowly(), timeout=30)
        )
        assert begun.wait(20)
        refused = put(client, "second", file)
        go_on.set()
        assert problem(refused, 503)["type"] == "/problems/overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        assert first_import.result().status_code == 201
    assert put(client, "second", file).status_code == 201


def test_asking_for_the_head_of_an_export_makes_none(serve: Serve) -> None:
    client = serve()
    fill(client)
    answer = client.head("/galleries/lab/export")
    assert (answer.status_code, answer.content) == (200, b"")
    assert client.get("/healthz").status_code == 200


def test_a_walk_longer_than_this_service_takes_is_413(tmp_path: Path, models: Path) -> None:
    with serving(settings_for(tmp_path / "here", models)) as client:
        fill(client)
        file = export(client, "lab")
    with serving(settings_for(tmp_path / "there", models, max_frames=30)) as client:
        body = problem(put(client, "lab", file), 413)
        assert "GAITID_MAX_FRAMES" in body["detail"]
        problem(client.get("/galleries/lab"), 404)


def test_the_client_exports_and_imports(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    fill(client)
    file = tmp_path / "lab.zip"
    seen: list[int] = []
    with Client(str(client.base_url)) as ours:
        ours.export_gallery("lab", file, transferred=seen.append)
        assert seen[-1] == file.stat().st_size
        assert file.stat().st_mode & 0o077 == 0
        seen.clear()
        made = ours.import_gallery(file, "copy", transferred=seen.append)
        assert seen[-1] == file.stat().st_size
        assert (made.gallery.name, made.gallery.sequences) == ("copy", 3)
        with pytest.raises(Refused, match="exists already"):
            ours.import_gallery(file, "copy")
        with pytest.raises(Refused, match="no gallery"):
            ours.export_gallery("nope", file)
    assert nameless(file.read_bytes()) == nameless(export(client, "copy"))
