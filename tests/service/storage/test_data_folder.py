"""What is kept of people is for nobody else on the machine to read."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from service.foundation.settings import Settings
from service.gallery.store import GalleryStore
from service.http.resources import open_engine
from service.http.serve import CannotServe, _preflight
from service.storage.data_folder import NotPrivate, open_data_folder
from service.transfer.export import export_gallery

OPEN = {"gaitid.sqlite": 0o644, "audit.sqlite": 0o664, "receipts.key": 0o640, "notes": 0o604}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def wide(settings: Settings) -> Settings:
    """A data folder that others may enter, with files that they may read."""
    folder = settings.data_dir
    folder.mkdir()
    folder.chmod(0o755)
    for name, bits in OPEN.items():
        (folder / name).touch()
        (folder / name).chmod(bits)
    (folder / "jobs").mkdir()
    (folder / "jobs").chmod(0o755)
    return settings


def test_others_are_kept_out_of_an_older_folder_and_a_log_line_says_so(
    wide: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = wide.data_dir.parent / "elsewhere"
    elsewhere.mkdir()
    elsewhere.chmod(0o755)
    (elsewhere / "file").touch()
    (elsewhere / "file").chmod(0o644)
    (wide.data_dir / "datasets").symlink_to(elsewhere)
    (wide.data_dir / "linked.sqlite").symlink_to(elsewhere / "file")
    (wide.data_dir / "broken").symlink_to(elsewhere / "missing")
    open_data_folder(wide)
    assert mode(wide.data_dir) == mode(wide.data_dir / "jobs") == 0o700
    assert {mode(wide.data_dir / name) for name in OPEN} == {0o600}
    assert mode(elsewhere) == 0o755  # whoever made the link decides
    assert mode(elsewhere / "file") == 0o600
    assert len(caplog.records) == 1
    assert all(name in caplog.text for name in (*OPEN, "jobs", wide.data_dir.name))
    open_data_folder(wide)
    assert len(caplog.records) == 1


def test_a_database_in_another_folder_is_kept_from_others_too(settings: Settings) -> None:
    path = settings.data_dir.parent / "elsewhere.sqlite"
    path.touch()
    path.chmod(0o644)
    moved = settings.model_copy(update={"database_url": f"sqlite:///{path}"})
    open_engine(moved).dispose()
    assert mode(path) == 0o600


def refusing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let a file be somebody else's."""
    chmod = Path.chmod

    def refuse(self: Path, bits: int, *, follow_symlinks: bool = True) -> None:
        if self.name == name:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(self))
        chmod(self, bits, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "chmod", refuse)


@pytest.mark.parametrize("name", ["gaitid.sqlite", "audit.sqlite", "receipts.key", "jobs"])
def test_what_others_may_read_and_this_user_cannot_change_is_one_sentence_at_the_start(
    wide: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    refusing(monkeypatch, name)
    with pytest.raises(NotPrivate, match=f"may read .*{name}"):
        open_data_folder(wide)
    with pytest.raises(CannotServe, match="chmod go-rwx"):
        _preflight(wide)


def test_a_mounted_folder_of_somebody_elses_is_served_from_and_warned_of(
    wide: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusing(monkeypatch, wide.data_dir.name)
    open_data_folder(wide)
    assert f"belongs to somebody else: ['{wide.data_dir.name}']" in caplog.text
    assert {mode(wide.data_dir / name) for name in OPEN} == {0o600}  # they are this user's


def test_what_a_command_makes_is_its_users_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "keys", "add", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(
        [*command, "--scope", "admin"], umask=0o022, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    made = [tmp_path / "data", *(tmp_path / "data").iterdir()]
    assert len(made) > 1
    assert [path.name for path in made if mode(path) & 0o077] == []


def test_an_export_over_a_file_that_others_may_read_is_not_for_them(settings: Settings) -> None:
    engine = open_engine(settings)
    GalleryStore(engine).ensure("default")
    path = settings.data_dir / "lab.zip"
    path.touch()
    path.chmod(0o644)
    export_gallery(engine, "default", path)
    assert mode(path) == 0o600
    engine.dispose()
