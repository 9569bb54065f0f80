import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.__main__ import main
from service.settings import Settings
from tests.service.walkers import walk

Gaitid = Callable[..., tuple[int, str, str]]


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
        "enroll", "identify", "verify", "subjects", "calibrate", "jobs", "models", "keys", "audit",
        "encryption", "export", "import",
    ):  # fmt: skip
        assert command in out


def test_a_taken_port_is_said_at_once_with_what_to_do(gaitid: Gaitid, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = gaitid("serve", "--port", port, "--data-dir", tmp_path / "data")
    assert status == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in err
    assert "--port" in err
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


def test_a_wrong_setting_in_the_environment_is_named(
    gaitid: Gaitid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAITID_LEASE_SECONDS", "soon")
    status, _, err = gaitid("worker")
    assert status == 1
    assert "GAITID_LEASE_SECONDS" in err


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("GAITID_PROT", "GAITID_PROT is not a setting; did you mean GAITID_PORT?"),
        ("GAITID_MAX_FRAME", "GAITID_MAX_FRAME is not a setting; did you mean GAITID_MAX_FRAMES?"),
        ("GAITID_XYZZY", "gaitid: GAITID_XYZZY is not a setting\n"),
    ],
)
def test_a_misspelt_setting_stops_the_start(
    gaitid: Gaitid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, complaint: str
) -> None:
    monkeypatch.setenv("GAITID_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("GAITID_API_KEY", "gid_x")
    listing = ("keys", "list", "--data-dir", tmp_path / "data")
    assert gaitid(*listing)[0] == 0
    monkeypatch.setenv(name, "1")
    status, _, err = gaitid(*listing)
    assert status == 1
    assert complaint in err


@pytest.mark.parametrize(
    "text", ["gait.example, other.example", '["gait.example", "other.example"]']
)
def test_host_names_are_listed_with_commas_or_as_json(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("GAITID_ALLOWED_HOSTS", text)
    assert Settings().allowed_hosts == ("gait.example", "other.example")


def test_a_broken_list_of_host_names_is_named_in_one_line(
    gaitid: Gaitid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAITID_ALLOWED_HOSTS", '["gait.example"')
    status, _, err = gaitid("worker")
    assert status == 1
    assert err.startswith("gaitid: GAITID_ALLOWED_HOSTS: ")
    assert err.count("\n") == 1


def test_a_key_is_shown_once_and_can_be_revoked(gaitid: Gaitid, tmp_path: Path) -> None:
    folder = ("--data-dir", tmp_path / "data")
    status, token, err = gaitid("keys", "add", "--scope", "enroll", "--name", "gate", *folder)
    assert status == 0
    assert token.startswith("gid_")
    key_id = err.split()[1].rstrip(";")
    _, listed, _ = gaitid("keys", "list", *folder)
    assert "active  enroll  gate" in listed
    assert token.strip() not in listed
    assert gaitid("keys", "revoke", key_id, *folder)[0] == 0
    assert "revoked" in gaitid("keys", "list", *folder)[1]
    assert gaitid("keys", "revoke", "nope", *folder)[0] == 1
    status, _, err = gaitid("keys", "add", "--scope", "everything", *folder)
    assert (status, "enroll" in err) == (1, True)


def test_a_key_may_have_a_rate_of_its_own(gaitid: Gaitid, tmp_path: Path) -> None:
    folder = ("--data-dir", tmp_path / "data")
    assert gaitid("keys", "add", "--scope", "enroll", "--rate", "120/minute", *folder)[0] == 0
    assert "active  enroll  120/minute" in gaitid("keys", "list", *folder)[1]
    status, _, err = gaitid("keys", "add", "--scope", "enroll", "--rate", "fast", *folder)
    assert (status, "such as 120/minute" in err) == (1, True)


def test_the_record_is_written_as_json_lines_and_checked(
    gaitid: Gaitid, serve: Callable[..., httpx.Client], tmp_path: Path
) -> None:
    service = serve()
    service.post("/galleries", json={"name": "lab"})
    folder = ("--data-dir", tmp_path / "data")
    _, token, _ = gaitid("keys", "add", "--scope", "admin", "--name", "boss", *folder)
    key_id = gaitid("keys", "list", *folder)[1].split()[0]
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
    status, _, err = gaitid("audit", "--since", "yesterday", *at)
    assert (status, "since" in err) == (1, True)
    assert gaitid("audit", "--check", "--gallery", "lab", *at)[0] == 1


def test_a_gallery_is_encrypted_and_its_key_replaced(
    gaitid: Gaitid, serve: Callable[..., httpx.Client], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    serve().post("/enroll", data={"subject_id": "a"}, files={"sequence": ("a", walk(1))})
    folder = ("--data-dir", tmp_path / "data")
    status, out, _ = gaitid("encryption", "status", *folder)
    assert (status, out) == (0, "not encrypted: 1 walks, 1 embeddings  (written with)\n")
    status, _, err = gaitid("encryption", "rotate", *folder)
    assert (status, "no key in GAITID_ENCRYPTION_KEYS" in err) == (1, True)
    old, new = (gaitid("encryption", "new-key")[1].strip() for _ in range(2))
    for keys in (old, f"{new},{old}"):
        monkeypatch.setenv("GAITID_ENCRYPTION_KEYS", keys)
        status, out, err = gaitid("encryption", "rotate", *folder)
        assert (status, out) == (0, "2 silhouettes and embeddings encrypted\n")
        assert keys not in err
        (line,) = gaitid("encryption", "status", *folder)[1].splitlines()
        assert line.endswith(": 1 walks, 1 embeddings  (written with)")
    monkeypatch.setenv("GAITID_ENCRYPTION_KEYS", new)
    assert gaitid("export-gallery", "default", tmp_path / "out.zip", *folder)[0] == 0
    monkeypatch.setenv("GAITID_ENCRYPTION_KEYS", old)
    for command in (("worker",), ("export-gallery", "default", tmp_path / "other.zip")):
        status, _, err = gaitid(*command, *folder)
        assert (status, "the galleries are encrypted with the key" in err) == (1, True)
        assert err.count("\n") == 1


def test_people_are_enrolled_identified_and_verified(
    at: Gaitid, walks: Callable[..., Path]
) -> None:
    for person in (1, 2):
        status, out, err = at("enroll", f"cli-{person}", walks(person), walks(person, 0.7))
        assert (status, err) == (0, "")
        assert out.count("40 frames") == 2
    status, out, _ = at("identify", walks(1, 0.3))
    assert (status, out.split()[0]) == (0, "match")
    assert out.splitlines()[1].split()[2] == "cli-1"
    assert "cli-2  2 sequences" in at("subjects")[1]
    assert at("verify", "cli-1", walks(1, 0.3))[0] == 0
    status, _, err = at("verify", "nobody", walks(1))
    assert status == 1
    assert "nobody" in err


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
    status, _, err = at("import", out, "--gallery", "home")
    assert status == 1
    assert "exists already" in err
    assert at("export", "nope", tmp_path / "nope.zip")[0] == 1
    assert not (tmp_path / "nope.zip").exists()
    assert at("export", "lab", tmp_path / "no" / "folder.zip")[0] == 1


def test_models_and_jobs_are_shown(at: Gaitid) -> None:
    assert at("models", "list")[1].startswith("default  shipped  ")
    assert json.loads(at("models", "show", "default")[1])["card"]["name"] == "tiny"
    assert at("jobs", "list")[:2] == (0, "")
    for command in ("show", "cancel", "follow"):
        status, _, err = at("jobs", command, "nope")
        assert status == 1
        assert "There is no job 'nope'" in err
    status, _, err = at(
        "jobs", "distill", "nope", "--name", "m", "--teacher", "default", "--gallery", "default"
    )
    assert status == 1
    assert "recipe: not_found" in err
    assert at("jobs", "distill", "demo", "--name", "m", "--teacher", "default")[0] == 1


def test_a_service_that_is_not_there_is_said_plainly(
    gaitid: Gaitid, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    status, _, err = gaitid("subjects", "--url", f"http://127.0.0.1:{port}")
    assert status == 1
    assert f"http://127.0.0.1:{port}" in err
    assert "Traceback" not in err


def test_walks_are_embedded_in_any_upload_format(
    gaitid: Gaitid, models: Path, walks: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    checkpoint = ("--checkpoint", models / "default", "--out", out)
    status, _, err = gaitid("embed", *checkpoint, walks(1), walks(2))
    assert (status, err) == (0, "")
    with np.load(out) as arrays:
        assert arrays["embeddings"].shape == (2, 16, 4)
    status, _, err = gaitid("embed", *checkpoint)
    assert status == 1
    assert "--normalised" in err
    (tmp_path / "text.npz").write_text("no walk")
    status, _, err = gaitid("embed", *checkpoint, tmp_path / "text.npz")
    assert status == 1
    assert "text.npz" in err


def test_a_file_that_is_no_opengait_checkpoint_is_refused(gaitid: Gaitid, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"nothing of the sort")
    status, _, err = gaitid(
        "import-opengait", tmp_path / "model.pt", tmp_path / "out", "--architecture", "gaitbase"
    )
    assert status == 1
    assert "model.pt" in err
    assert not (tmp_path / "out").exists()
