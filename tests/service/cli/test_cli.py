import io
import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer
from rich.text import Text
from typer.main import get_command

import service.__main__
import training.cli.commands
from service.__main__ import main
from service.foundation.errors import Unavailable
from service.foundation.settings import Settings
from service.job_types.requests import EvaluateRequest
from tests.service.client.answering import Script, a_job
from tests.service.requests import enrol
from tests.service.server import Serve
from tests.service.walkers import walk

Gaitid = Callable[..., tuple[int, str, str]]
Scripted = Callable[[Script], Gaitid]


ADD_KEY = ("keys", "add", "--scope", "admin")


def refused(ended: tuple[int, str, str], *said: str, status: int = 1) -> str:
    """Stderr of a command that printed nothing, and said why not."""
    assert ended[:2] == (status, "")
    assert [words for words in said if words not in ended[2]] == []
    return ended[2]


@pytest.fixture
def gaitid(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Gaitid:
    """Runs the command in this process: its status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gaitid", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        out, err = capfd.readouterr()
        return int(leaving.value.code or 0), out, err

    return run


@pytest.fixture
def at(gaitid: Gaitid, shared: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> Gaitid:
    """The same, against a running service."""
    monkeypatch.setenv("GAITID_URL", str(shared.base_url))
    return gaitid


@pytest.fixture
def here(gaitid: Gaitid, tmp_path: Path) -> Gaitid:
    """The same, on the deployment in `tmp_path / "data"`."""
    return lambda *arguments: gaitid(*arguments, "--data-dir", tmp_path / "data")


@pytest.fixture
def scripted(gaitid: Gaitid, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """The same, against a service that answers as told."""

    def against(script: Script) -> Gaitid:
        monkeypatch.setattr(httpx.HTTPTransport, "handle_request", script.handle)
        monkeypatch.setenv("GAITID_URL", "http://gait.test")
        return gaitid

    return against


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what a person answers to a question."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(f"{text}\n"))


@pytest.fixture
def walks(tmp_path: Path) -> Callable[..., Path]:
    def save(person: int, phase: float = 0.0) -> Path:
        path = tmp_path / f"{person}-{phase}.npz"
        path.write_bytes(walk(person, phase=phase))
        return path

    return save


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys, service.__main__;"
        "heavy = {'torch', 'fastapi', 'sqlalchemy', 'numpy', 'httpx', 'pydantic'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, b"")


def test_help_names_every_command(gaitid: Gaitid) -> None:
    status, out, _ = gaitid("--help")
    assert status == 0
    for command in (
        "serve", "worker", "demo", "import-opengait", "embed", "export-gallery",
        "enroll", "identify", "verify", "watch", "calibrate", "check-gallery", "status",
        "galleries", "subjects", "sequences", "jobs", "models", "keys", "audit", "encryption",
        "export", "import", "footage",
    ):  # fmt: skip
        assert command in out


@pytest.mark.parametrize("program", [service.__main__.app, training.cli.commands.app])
def test_nothing_of_a_help_text_is_taken_for_markup(program: typer.Typer) -> None:
    for text in help_texts(get_command(program)):
        assert Text.from_markup(text).plain == text


def help_texts(command: Any) -> Iterator[str]:
    yield command.help or ""
    for parameter in command.params:
        yield getattr(parameter, "help", None) or ""
    for inner in getattr(command, "commands", {}).values():
        yield from help_texts(inner)


def test_output_that_finds_no_space_is_said_in_a_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "service", "encryption", "new-key"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 1
    assert ended.stderr == b"gaitid: [Errno 28] No space left on device\n"


def test_a_taken_port_is_said_at_once_with_what_to_do(here: Gaitid, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        taken_port = f"cannot listen on 127.0.0.1 port {port}: Address already in use"
        refused(here("serve", "--port", port), taken_port, "--port")
    assert not (tmp_path / "data").exists()


def test_a_service_open_to_strangers_does_not_start(tmp_path: Path, models: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--host", "0.0.0.0", "--port", "0"],  # noqa: S104
        env={
            **os.environ,
            "GAITID_SHIPPED_MODELS_DIR": str(models),
            "GAITID_DATA_DIR": str(tmp_path / "data"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 1
    assert "gaitid keys add" in answer.stderr
    assert answer.stdout == ""


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("GAITID_PROT", "GAITID_PROT is not a setting; did you mean GAITID_PORT?"),
        ("GAITID_MAX_FRAME", "GAITID_MAX_FRAME is not a setting; did you mean GAITID_MAX_FRAMES?"),
        ("GAITID_XYZZY", "gaitid: GAITID_XYZZY is not a setting\n"),
    ],
)
def test_a_misspelt_setting_stops_the_start(
    here: Gaitid, monkeypatch: pytest.MonkeyPatch, name: str, complaint: str
) -> None:
    monkeypatch.setenv("GAITID_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("GAITID_API_KEY", "gid_x")
    monkeypatch.setenv("GAITID_SOURCE", "rtsp://camera/")
    monkeypatch.setenv("GAITID_WEBHOOK_SECRET", "a secret of some length")
    assert here(*ADD_KEY)[0] == 0
    monkeypatch.setenv(name, "1")
    refused(here(*ADD_KEY), complaint)


@pytest.mark.parametrize(
    "text", ["gait.example, other.example", '["gait.example", "other.example"]']
)
def test_host_names_are_listed_with_commas_or_as_json(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("GAITID_ALLOWED_HOSTS", text)
    assert Settings().allowed_hosts == ("gait.example", "other.example")


@pytest.mark.parametrize("text", ["10.0.0.1, 192.168.0.0/16", '["10.0.0.1", "192.168.0.0/16"]'])
def test_proxies_are_addresses_and_networks(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("GAITID_TRUSTED_PROXIES", text)
    assert [str(network) for network in Settings().trusted_proxies] == [
        "10.0.0.1/32",
        "192.168.0.0/16",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("GAITID_LEASE_SECONDS", "soon"),
        ("GAITID_TRUSTED_PROXIES", "*"),
        ("GAITID_TRUSTED_PROXIES", "proxy.example"),
        ("GAITID_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("GAITID_ALLOWED_HOSTS", '["gait.example"'),
    ],
)
def test_a_wrong_setting_in_the_environment_is_named_in_one_line(
    gaitid: Gaitid, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(name, text)
    err = refused(gaitid("worker"))
    assert err.startswith(f"gaitid: {name}")
    assert err.count("\n") == 1


def test_a_key_is_shown_once_and_can_be_revoked(here: Gaitid) -> None:
    status, token, err = here("keys", "add", "--scope", "enroll", "--name", "gate")
    assert status == 0
    assert token.startswith("gid_")
    key_id = err.split()[1].rstrip(";")
    _, listed, _ = here("keys", "list")
    assert "active  enroll  gate" in listed
    assert token.strip() not in listed
    assert here("keys", "revoke", key_id)[0] == 0
    assert "revoked" in here("keys", "list")[1]
    assert here("keys", "revoke", "nope")[0] == 1
    refused(here("keys", "add", "--scope", "everything"), "enroll", status=2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("command", [ADD_KEY, ("export-gallery", "default", "out.zip")])
def test_a_database_that_is_busy_is_said_in_a_sentence(
    here: Gaitid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert here(*ADD_KEY)[0] == 0  # makes the database
    file = tmp_path / "data" / "gaitid.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        err = refused(here(*command), status=75)
    assert err == "gaitid: The database is busy with other work. Try again in a moment.\n"


@pytest.mark.parametrize(
    "command",
    [
        ("keys", "list"),
        ("keys", "revoke", "x"),
        ("encryption", "status"),
        ("encryption", "rotate"),
        ("encryption", "reconcile"),
        ("export-gallery", "default", "out.zip"),
    ],
    ids=" ".join,
)
def test_a_mistyped_data_folder_is_no_deployment_and_becomes_none(
    gaitid: Gaitid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("GAITID_ENCRYPTION_KEYS", gaitid("encryption", "new-key")[1].strip())
    refused(
        gaitid(*command, "--data-dir", tmp_path / "daat"),
        f"there is no deployment in {tmp_path / 'daat'}: ",
    )
    assert not (tmp_path / "daat").exists()


def test_a_database_that_cannot_be_opened_is_said_with_the_cause(
    gaitid: Gaitid, tmp_path: Path
) -> None:
    (tmp_path / "gaitid.sqlite").mkdir()
    refused(
        gaitid("keys", "list", "--data-dir", tmp_path),
        f"the database in {tmp_path} cannot be written or reached: unable to open",
        status=75,
    )


def test_files_and_folders_that_cannot_be_made_are_said_in_a_sentence(
    gaitid: Gaitid, here: Gaitid, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    err = refused(gaitid(*ADD_KEY, "--data-dir", tmp_path / "file" / "data"))
    assert err.startswith("gaitid: the data folder cannot be made: ")
    assert here(*ADD_KEY)[0] == 0
    with closing(sqlite3.connect(tmp_path / "data" / "gaitid.sqlite")) as database, database:
        database.execute(
            "INSERT INTO gallery (id, name, revision, metadata, created_at) "
            "VALUES ('1', 'default', 0, '{}', '2026-01-01 00:00:00')"
        )
    target = tmp_path / "file" / "out.zip"
    err = refused(here("export-gallery", "default", target), str(target))
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE alembic_version SET version_num = '9999'", "written by a newer version of GaitID"),
        ("DELETE FROM alembic_version", "cannot be opened: table gallery already exists"),
    ],
)
@pytest.mark.parametrize("command", [("keys", "list"), ("serve", "--port", "0"), ("worker",)])
def test_a_database_that_this_version_cannot_use_is_said_in_a_sentence(
    gaitid: Gaitid, settings: Settings, command: tuple[str, ...], change: str, said: str
) -> None:
    folder = ("--data-dir", settings.data_dir)
    assert gaitid(*ADD_KEY, *folder)[0] == 0  # makes the database
    with closing(sqlite3.connect(settings.database_file)) as database, database:
        database.execute(change)
    err = refused(gaitid(*command, *folder))
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_key_may_have_a_rate_of_its_own(here: Gaitid) -> None:
    assert here("keys", "add", "--scope", "enroll", "--rate", "120/minute")[0] == 0
    assert "active  enroll  120/minute" in here("keys", "list")[1]
    refused(
        here("keys", "add", "--scope", "enroll", "--rate", "fast"), "such as 120/minute", status=2
    )


def test_a_key_may_expire_and_the_list_says_when(
    here: Gaitid, monkeypatch: pytest.MonkeyPatch
) -> None:
    adding = ("keys", "add", "--scope", "enroll")
    status, _, err = here(*adding, "--expires", "2100-01-31")
    assert status == 0
    assert " is good until 2100-01-31T00:00:00Z; it is not shown again:" in err
    assert here(*adding, "--expires", "90d")[0] == 0
    assert here(*adding)[0] == 0
    first, second, third = here("keys", "list")[1].splitlines()
    assert "  active until 2100-01-31T00:00:00Z  enroll" in first
    assert "  active until 2" in second
    assert "until" not in third
    monkeypatch.setattr("service.storage.database.now", lambda: datetime(2100, 1, 31, tzinfo=UTC))
    states = [line.split()[1] for line in here("keys", "list")[1].splitlines()]
    assert states == ["expired", "expired", "active"]
    for expiry in ("soon", "2026-01-31"):
        refused(here(*adding, "--expires", expiry), "--expires", status=2)


def forget_everybody(audit: Path) -> None:
    with closing(sqlite3.connect(audit)) as connection, connection:
        connection.execute("UPDATE audit SET subject_id = NULL, salt = NULL")


def test_the_record_is_written_as_json_lines_and_checked(
    gaitid: Gaitid, here: Gaitid, serve: Serve, tmp_path: Path
) -> None:
    service = serve()
    service.post("/galleries", json={"name": "lab"})
    _, token, _ = here("keys", "add", "--scope", "admin", "--name", "boss")
    key_id = here("keys", "list")[1].split()[0]
    at = ("--url", service.base_url, "--api-key", token.strip())
    status, out, err = gaitid("audit", *at)
    assert (status, err) == (0, "")
    created, added, read = map(json.loads, out.splitlines())
    assert (created["action"], created["actor"], created["gallery"]) == (
        "create_gallery", "anyone", "lab",
    )  # fmt: skip
    assert (added["action"], added["actor"]) == ("add_key", "command")
    assert added["details"] == {"key_id": key_id, "name": "boss", "scopes": ["admin"]}
    assert (read["action"], read["key_id"]) == ("read_audit", key_id)
    assert token.strip() not in out
    assert len(gaitid("audit", "--after", 3, *at)[1].splitlines()) == 1
    assert gaitid("audit", "--gallery", "lab", *at)[1].count("\n") == 2
    status, out, _ = gaitid("audit", "--check", *at)
    assert (status, out[:25]) == (0, "6 lines, 1 to 6, unchange")
    refused(gaitid("audit", "--since", "yesterday", *at), "since")
    for part in (("--gallery", "lab"), ("--until", "2100-01-01T00:00:00Z")):
        assert gaitid("audit", "--check", *part, *at)[0] == 2
    forget_everybody(tmp_path / "data" / "audit.sqlite")
    assert gaitid("audit", "--check", *at)[0] == 0  # nobody was named
    service.headers["Authorization"] = f"Bearer {token.strip()}"
    assert enrol(service, "anna", walk(1)).status_code == 201
    forget_everybody(tmp_path / "data" / "audit.sqlite")
    refused(gaitid("audit", "--check", *at), "than erasures account for")


def test_a_gallery_is_encrypted_and_its_key_replaced(
    gaitid: Gaitid, here: Gaitid, serve: Serve, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    serve().post("/enroll", data={"subject_id": "a"}, files={"sequence": ("a", walk(1))})
    status, out, _ = here("encryption", "status")
    assert (status, out) == (0, "not encrypted: 1 walks, 1 embeddings  (written with)\n")
    refused(here("encryption", "rotate"), "no key in GAITID_ENCRYPTION_KEYS")
    old, new = (gaitid("encryption", "new-key")[1].strip() for _ in range(2))
    for keys in (old, f"{new},{old}"):
        monkeypatch.setenv("GAITID_ENCRYPTION_KEYS", keys)
        status, out, err = here("encryption", "rotate")
        assert (status, out) == (0, "2 silhouettes and embeddings encrypted\n")
        assert keys not in err
        (line,) = here("encryption", "status")[1].splitlines()
        assert line.endswith(": 1 walks, 1 embeddings  (written with)")
    monkeypatch.setenv("GAITID_ENCRYPTION_KEYS", new)
    assert here("export-gallery", "default", tmp_path / "out.zip")[0] == 0
    monkeypatch.setenv("GAITID_ENCRYPTION_KEYS", old)
    for command in (("worker",), ("export-gallery", "default", tmp_path / "other.zip")):
        err = refused(here(*command), "the galleries are encrypted with the key")
        assert err.count("\n") == 1


def test_walks_get_keys_of_their_own_and_what_has_none_is_reconciled(
    gaitid: Gaitid, here: Gaitid, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve().post("/enroll", data={"subject_id": "a"}, files={"sequence": ("a", walk(1))})
    monkeypatch.setenv("GAITID_ENCRYPTION_KEYS", gaitid("encryption", "new-key")[1].strip())
    refused(here("encryption", "reconcile"), "GAITID_WALK_KEYS_URL names one")
    keys = tmp_path / "keys.sqlite"
    monkeypatch.setenv("GAITID_WALK_KEYS_URL", f"sqlite:///{keys}")
    assert here("encryption", "rotate")[1] == "2 silhouettes and embeddings encrypted\n"
    status = here("encryption", "status")[1]
    assert "keys of their own in walks-" in status
    assert ": 1 walks, 1 embeddings  (written with)" in status
    for lost in (0, 1):
        with closing(sqlite3.connect(keys, isolation_level=None)) as opened:
            if lost:
                opened.execute("DELETE FROM walk_key")
        said = here("encryption", "reconcile")[1]
        assert said == f"{lost} walks erased that had no key, 0 keys ended that had no walk\n"
    monkeypatch.delenv("GAITID_WALK_KEYS_URL")
    refused(here("encryption", "status"), "say where it is in GAITID_WALK_KEYS_URL")


def test_a_rotation_that_another_one_overtakes_ends_in_a_sentence(
    here: Gaitid, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(*_: object) -> int:
        raise Unavailable("This process has not got the encryption key.", retry_after=1.0)

    monkeypatch.setattr("service.gallery.reencryption.reencrypt", overtaken)
    here(*ADD_KEY)  # makes the database
    err = refused(here("encryption", "rotate"), status=75)  # to be tried again
    assert err.endswith("gaitid: This process has not got the encryption key.\n")


def test_people_are_enrolled_identified_and_verified(
    at: Gaitid, walks: Callable[..., Path]
) -> None:
    for person in (1, 2):
        both = (walks(person), walks(person, 0.7))
        status, out, _ = at("enroll", f"cli-{person}", *both, "--accept-conflict")
        assert status == 0
        assert [row.split()[1] for row in out.splitlines()[1:]] == ["40", "40"]
    status, out, _ = at("identify", walks(1, 0.3), "--explain")
    assert (status, out.split()[0]) == (0, "match")
    best = out.splitlines()[2].split()
    assert best[2] == "cli-1"
    assert len(best) == 4 + 4  # a similarity for each of the tiny model's parts
    out = at("identify", walks(1, 0.3), "--galleries", "default", "--top-k", "1")[1]
    assert out.splitlines()[2].split()[:2] == ["1", "default"]
    refused(
        at("identify", walks(1), "--gallery", "lab", "--galleries", "default"), "not both", status=2
    )
    assert ["cli-2", "2"] in [row.split()[:2] for row in at("subjects", "list")[1].splitlines()]
    assert at("verify", "cli-1", walks(1, 0.3))[0] == 0
    refused(at("verify", "nobody", walks(1)), "nobody")


def test_a_walk_that_is_enrolled_already_is_said_to_be(
    at: Gaitid, walks: Callable[..., Path]
) -> None:
    assert at("galleries", "create", "cli-twice")[0] == 0
    enroll = ("--gallery", "cli-twice", "--metadata", '{"view": "090"}')
    assert "already enrolled" not in at("enroll", "anna", walks(1), *enroll)[1]
    assert "already enrolled" in at("enroll", "anna", walks(1), *enroll)[1]
    refused(at("enroll", "bert", walks(1), *enroll), "anna", "409 enrolment-conflict")
    status, _, err = at("enroll", "bert", walks(1), *enroll, "--accept-conflict")
    assert (status, "may be anna" in err) == (0, True)


def test_a_gallery_keeps_what_it_gets_as_long_as_it_is_told(
    at: Gaitid, answering: Callable[[str], None]
) -> None:
    made = json.loads(at("galleries", "create", "cli-kept", "--max-age-days", 30)[1])
    assert made["max_age_days"] == 30
    keep = ("galleries", "keep", "cli-kept")
    answering("n")
    assert at(*keep, "--max-age-days", 7)[0] == 1
    assert json.loads(at("galleries", "show", "cli-kept")[1])["max_age_days"] == 30
    assert json.loads(at(*keep, "--max-age-days", 7, "--yes")[1])["max_age_days"] == 7
    assert json.loads(at(*keep)[1])["max_age_days"] is None


def test_a_gallery_is_brought_home_and_put_in_again(
    at: Gaitid, shared: httpx.Client, tmp_path: Path
) -> None:
    shared.post("/galleries", json={"name": "lab"})
    files = {"sequence": ("w.npz", walk(5))}
    shared.post("/enroll", data={"subject_id": "cli-5", "gallery": "lab"}, files=files)
    out = tmp_path / "lab.zip"
    status, said, _ = at("export", "lab", out)
    assert (status, said) == (0, f"{out}: {out.stat().st_size} bytes\n")
    bare = tmp_path / "bare.zip"
    assert at("export", "lab", bare, "--no-embeddings")[0] == 0
    assert bare.stat().st_size < out.stat().st_size
    status, said, _ = at("import", out, "--gallery", "home")
    assert (status, said) == (
        0, "home: 1 subjects, 1 sequences, new ids, 1 embeddings taken over\n",
    )  # fmt: skip
    refused(at("import", out, "--gallery", "home"), "exists already")
    assert at("export", "nope", tmp_path / "nope.zip")[0] == 1
    assert not (tmp_path / "nope.zip").exists()
    assert at("export", "lab", tmp_path / "no" / "folder.zip")[0] == 1


def test_models_and_jobs_are_shown(at: Gaitid) -> None:
    assert at("models", "list")[1].splitlines()[1].split()[:2] == ["default", "shipped"]
    assert json.loads(at("models", "show", "default")[1])["card"]["name"] == "tiny"
    assert at("jobs", "list", "--status", "running", "--json")[:2] == (0, "")
    for command in ("show", "cancel", "follow"):
        refused(at("jobs", command, "nope"), "There is no job 'nope'")
    options = ("--name", "m", "--teacher", "default")
    there = at("jobs", "submit", "distill", "nope", *options, "--gallery", "default")
    refused(there, "recipe: not_found")
    refused(at("jobs", "submit", "distill", "demo", *options), "--dataset or --gallery", status=2)


def test_a_distillation_is_submitted_with_changes_of_its_recipe(scripted: Scripted) -> None:
    script = Script(a_job(status="queued"))
    gaitid = scripted(script)
    submit = ["jobs", "submit", "distill", "demo", "--name", "m", "--teacher", "default"]
    submit += ["--gallery", "default"]
    changes = (
        "steps=500", "schedule.warm_up = 1", "optimiser.kind=adamw", "milestones=[1, 2]", "x=NaN",
    )  # fmt: skip
    options = [word for change in changes for word in ("--set", change)]
    assert gaitid(*submit, *options)[:2] == (0, "j1\n")
    assert json.loads(script.requests[0].content)["overrides"] == {
        "steps": 500, "schedule.warm_up": 1, "optimiser.kind": "adamw", "milestones": [1, 2],
        "x": "NaN",
    }  # fmt: skip
    for wrong in ("steps", "=500"):
        refused(gaitid(*submit, "--set", wrong), "KEY=VALUE", status=2)


def test_an_evaluation_is_submitted_by_a_protocol_or_by_conditions(scripted: Scripted) -> None:
    script = Script(a_job(status="queued"), a_job(status="queued"), a_job(status="queued"))
    gaitid = scripted(script)
    submit = ["jobs", "submit", "evaluate", "default", "--dataset", "walks"]
    assert gaitid(*submit)[:2] == (0, "j1\n")
    assert gaitid(*submit, "--protocol", "casia-b")[:2] == (0, "j1\n")
    own = ("--enrolled", "nm-0[1-4], nm-00", "--enrolled", "old", "--apart", "15")
    asked = ("--asked", "NM=nm-05,nm-06", "--asked", "coat", "--asked", "NM=nm-07")
    assert gaitid(*submit, *own, *asked)[:2] == (0, "j1\n")
    request = {"model": "default", "dataset": "walks"}
    conditions = {
        "enrolled": ["nm-0[1-4]", "nm-00", "old"],
        "asked": {"NM": ["nm-05", "nm-06", "nm-07"], "coat": ["coat"]},
        "apart": 15,
    }
    assert [json.loads(sent.content) for sent in script.requests] == [
        request,
        {**request, "protocol": "casia-b"},
        {**request, "conditions": conditions},
    ]
    EvaluateRequest.model_validate(json.loads(script.requests[-1].content))
    for wrong, said in [
        (("--protocol", "hid", "--enrolled", "a", "--asked", "b"), "not both"),
        (("--enrolled", "a"), "each name a condition"),
        (("--asked", "a"), "each name a condition"),
        (("--enrolled", " , ", "--asked", "a"), "each name a condition"),
        (("--enrolled", "a", "--asked", "NAME="), "each name a condition"),
        (("--enrolled", "a", "--asked", "b-*"), "NAME=b-*"),
        (("--apart", "3"), "belongs to"),
        (("--enrolled", "a", "--asked", "b", "--apart", "181"), "180"),
    ]:
        refused(gaitid(*submit, *wrong), said, status=2)
    assert len(script.requests) == 3


def test_answers_are_json_for_programs(at: Gaitid, walks: Callable[..., Path]) -> None:
    metadata = ("--metadata", '{"view": "090"}')
    enrolled = json.loads(
        at("enroll", "cli-json", walks(5), *metadata, "--accept-conflict", "--json")[1]
    )
    (sequence,) = enrolled["sequences"]
    found = json.loads(
        at("identify", walks(5, 0.3), "--json", "--filter", '{"view": "090"}', "--top-k", "100")[1]
    )
    assert [item["subject_id"] for item in found["candidates"]] == ["cli-json"]
    assert json.loads(at("verify", "cli-json", walks(5), "--json")[1])["verified"] is True
    lines = at("subjects", "list", "--json")[1].splitlines()
    assert "cli-json" in [json.loads(line)["subject_id"] for line in lines]
    shown = json.loads(at("sequences", "show", sequence["sequence_id"])[1])
    assert shown["metadata"] == {"view": "090"}
    assert json.loads(at("status", "--json")[1])["model"]["name"] == "default"
    refused(at("identify", walks(5), "--filter", "view=090"), "--filter is not JSON", status=2)


def test_silhouettes_are_written_to_files(
    at: Gaitid, walks: Callable[..., Path], tmp_path: Path
) -> None:
    enrolled = json.loads(at("enroll", "cli-film", walks(6), "--accept-conflict", "--json")[1])
    sequence = enrolled["sequences"][0]["sequence_id"]
    for name, magic in (("a.npz", b"PK"), ("a.gif", b"GIF8"), ("a.PNG", b"\x89PNG")):
        assert at("sequences", "download", sequence, tmp_path / name)[0] == 0
        assert (tmp_path / name).read_bytes().startswith(magic)
    refused(
        at("sequences", "download", sequence, tmp_path / "a.mp4"), ".npz, .gif or .png?", status=2
    )


def test_what_is_enrolled_is_corrected(
    at: Gaitid, walks: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert at("galleries", "create", "cli-fix")[0] == 0
    where = ("--gallery", "cli-fix")
    for person in (1, 2):
        assert at("enroll", f"p{person}", walks(person), *where, "--accept-conflict")[0] == 0
    named = json.loads(at("subjects", "edit", "p1", "--name", "Änna", *where)[1])
    assert named["display_name"] == "Änna"
    assert "Änna" in at("subjects", "list", *where)[1]
    assert json.loads(at("subjects", "rename", "p1", "p9", *where)[1])["subject_id"] == "p9"
    row = json.loads(at("subjects", "show", "p9", *where, "--json")[1])
    edit = ("sequences", "edit", row["sequence_id"])
    edited = json.loads(at(*edit, "--metadata", '{"view": "090"}', "--subject", "p2")[1])
    assert (edited["metadata"], edited["subject_id"]) == ({"view": "090"}, "p2")
    assert at(*edit)[0] == 2
    assert at("enroll", "p3", walks(3), *where, "--accept-conflict")[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert at("subjects", "merge", "p3", "p2", *where)[0] == 1
    merged = json.loads(at("subjects", "merge", "p3", "p2", *where, "--yes")[1])
    assert (merged["sequences"], merged["display_name"]) == (3, None)
    describe = ("subjects", "edit", "p2", *where)
    said = json.loads(at(*describe, "--name", "Bö", "--metadata", '{"team": "B"}')[1])
    assert (said["display_name"], said["metadata"]) == ("Bö", {"team": "B"})
    assert "Bö" in at("identify", walks(2), *where)[1]
    assert json.loads(at(*describe, "--name", "")[1])["display_name"] is None
    assert at(*describe)[0] == 2
    assert at("galleries", "delete", "cli-fix", "-y")[0] == 0


def test_what_is_erased_is_asked_about_and_gone(
    at: Gaitid, walks: Callable[..., Path], answering: Callable[[str], None]
) -> None:
    assert at("galleries", "create", "cli-lab")[0] == 0
    for person in ("a", "b"):
        both = (walks(1), walks(1, 0.5), "--gallery", "cli-lab", "--accept-conflict")
        assert at("enroll", person, *both)[0] == 0
    rows = at("subjects", "show", "a", "--gallery", "cli-lab", "--json")[1].splitlines()
    sequence = json.loads(rows[0])["sequence_id"]
    assert at("sequences", "delete", sequence, "--yes")[0] == 0
    answering("n")
    assert at("subjects", "delete", "a", "--gallery", "cli-lab")[0] == 1
    table = at("galleries", "list")[1].splitlines()
    assert ["cli-lab", "2", "3"] in [row.split()[:3] for row in table]
    answering("y")
    receipt = json.loads(at("subjects", "delete", "a", "--gallery", "cli-lab")[1])
    assert receipt["erased"]["sequences"] == 1
    assert json.loads(at("galleries", "delete", "cli-lab", "-y")[1])["gallery"] == "cli-lab"
    refused(at("galleries", "show", "cli-lab"), "404 gallery-not-found", "request ")


def test_jobs_are_submitted_listed_and_cancelled(at: Gaitid) -> None:
    status, out, err = at("jobs", "submit", "calibrate", "--target-fpir", "0.1")
    assert (status, err) == (0, "")
    job = out.strip()
    assert json.loads(at("jobs", "show", job)[1])["status"] == "queued"
    assert job in at("jobs", "list", "--status", "queued")[1]
    assert at("jobs", "cancel", job)[:2] == (0, "cancelled\n")
    status, out, err = at("jobs", "follow", job, "--json")
    assert [json.loads(line)["data"]["status"] for line in out.splitlines()] == [
        "queued",
        "cancelled",
    ]
    assert (status, f"the job {job} cancelled" in err) == (1, True)


def test_a_service_that_is_not_there_is_said_plainly(gaitid: Gaitid) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    refused(
        gaitid("subjects", "list", "--url", f"http://127.0.0.1:{port}"), f"http://127.0.0.1:{port}"
    )


@pytest.mark.parametrize(
    "command",
    [("jobs", "show"), ("jobs", "follow", "--json"), ("galleries", "delete", "--yes")],
)
def test_a_name_that_is_empty_is_said_plainly(gaitid: Gaitid, command: tuple[str, ...]) -> None:
    assert refused(gaitid(*command, "")) == "gaitid: '' cannot be part of an address\n"


def test_walks_are_embedded_in_any_upload_format(
    gaitid: Gaitid, models: Path, walks: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    checkpoint = ("--checkpoint", models / "default", "--out", out)
    status, _, err = gaitid("embed", *checkpoint, walks(1), walks(2))
    assert (status, err) == (0, "")
    with np.load(out) as arrays:
        assert arrays["embeddings"].shape == (2, 16, 4)
    refused(gaitid("embed", *checkpoint), "--normalised", status=2)
    (tmp_path / "text.npz").write_text("no walk")
    refused(gaitid("embed", *checkpoint, tmp_path / "text.npz"), "text.npz")


def test_a_file_that_is_no_opengait_checkpoint_is_refused(gaitid: Gaitid, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"nothing of the sort")
    refused(
        gaitid(
            "import-opengait", tmp_path / "model.pt", tmp_path / "out", "--architecture", "gaitbase"
        ),
        "model.pt",
    )
    assert not (tmp_path / "out").exists()


def test_a_word_of_the_service_cannot_rule_the_terminal(scripted: Scripted) -> None:
    evil = {"name": "\x1b[2J[bold]m", "source": "s", "digest": "d", "metrics": {}, "card": {}}
    page = {"items": [{**evil, "job_id": None, "created_at": None}], "next_cursor": None}
    status, out, _ = scripted(Script(httpx.Response(200, json=page)))("models", "list")
    assert status == 0
    assert "\x1b" not in out
    assert "[2J[bold]m" in out


@pytest.mark.parametrize("command", [("activate", "m"), ("rollback",)])
def test_a_model_is_activated_by_a_job(scripted: Scripted, command: tuple[str, ...]) -> None:
    script = Script(a_job(status="queued"))
    status, out, _ = scripted(script)("models", *command, "--gallery", "lab", "--no-wait")
    assert (status, json.loads(out)["status"]) == (0, "queued")
    assert script.requests[0].url.path == f"/models/{'/'.join(reversed(command))}"
    assert json.loads(script.requests[0].content) == {"gallery": "lab"}


def test_a_model_is_removed_when_that_is_confirmed(
    scripted: Scripted, answering: Callable[[str], None]
) -> None:
    script = Script(httpx.Response(204))
    gaitid = scripted(script)
    answering("n")
    assert gaitid("models", "delete", "mine")[0] == 1
    assert script.requests == []
    status, out, _ = gaitid("models", "delete", "mine", "--yes")
    assert (status, out) == (0, "mine removed\n")
    (request,) = script.requests
    assert (request.method, request.url.path) == ("DELETE", "/models/mine")


def test_a_checkpoint_is_uploaded_as_a_model(scripted: Scripted, models: Path) -> None:
    model = {"name": "mine", "source": "imported", "digest": "d", "metrics": {}, "card": {}}
    answer = httpx.Response(201, json={**model, "job_id": None, "created_at": None})
    script = Script(answer)
    status, out, _ = scripted(script)("models", "upload", "mine", models / "default")
    assert (status, json.loads(out)["name"]) == (0, "mine")
    body = script.requests[0].content
    for file in ("weights.safetensors", "card.json"):
        assert (models / "default" / file).read_bytes() in body
