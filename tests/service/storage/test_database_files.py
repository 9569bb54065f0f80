"""A database's files are removed, replaced, cut off or damaged: nothing is lost in silence."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError

from service.storage.database import check_sound, open_database, writing
from service.storage.database_files import DatabaseDamaged, DatabaseGone, is_damage
from service.storage.failures import storage_trouble
from service.storage.vacuum import clear_traces, mark_for_vacuum, vacuum


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.sqlite"


@pytest.fixture
def database(path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{path}")
    with writing(engine).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT)")
    yield engine
    engine.dispose()


def add(engine: Engine, *keys: int) -> None:
    for key in keys:
        with writing(engine).begin() as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (?, ?)", (key, "x" * 100))


def after_a_kill(path: Path, folder: Path) -> list[int]:
    """What a process finds that opens the files as a killed one has left them."""
    folder.mkdir()
    for file in path.parent.glob("t.sqlite*"):
        if file.suffix != ".sqlite-shm":
            shutil.copy(file, folder)
    with closing(sqlite3.connect(folder / "t.sqlite")) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [key for (key,) in copy.execute("SELECT k FROM t ORDER BY k")]


def beside(path: Path, *endings: str) -> list[Path]:
    return [path.with_name(path.name + ending) for ending in endings]


@pytest.mark.parametrize("endings", [("-wal",), ("-shm",), ("-wal", "-shm")])
def test_what_was_acknowledged_survives_its_log_and_no_more_is_acknowledged(
    database: Engine, path: Path, tmp_path: Path, endings: tuple[str, ...]
) -> None:
    add(database, 1, 2)
    for file in beside(path, *endings):
        file.unlink()
    for _ in range(3):
        with pytest.raises(DatabaseGone) as refusal:
            add(database, 3)
        trouble = storage_trouble(refusal.value)
        assert trouble is not None
        assert (trouble.status, trouble.problem_slug) == (503, "database-unavailable")
        with pytest.raises(DatabaseGone):
            check_sound(database)
    assert not any(file.exists() for file in beside(path, *endings))  # nothing in their place
    assert after_a_kill(path, tmp_path / "copy") == [1, 2]


def test_a_commit_whose_log_was_removed_in_the_middle_is_saved_before_it_is_acknowledged(
    database: Engine, path: Path, tmp_path: Path
) -> None:
    add(database, 1)
    with writing(database).begin() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (2, 'x')")
        beside(path, "-wal")[0].unlink()
    assert after_a_kill(path, tmp_path / "copy") == [1, 2]
    with pytest.raises(DatabaseGone):
        add(database, 3)


def test_a_commit_that_nothing_can_save_is_not_acknowledged(database: Engine, path: Path) -> None:
    add(database, 1)

    def commit_into_nothing() -> None:
        with writing(database).begin() as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (2, 'x')")
            log = beside(path, "-wal")[0]
            content = log.read_bytes()
            log.unlink()
            log.write_bytes(content)  # somebody else's by now

    with pytest.raises(DatabaseGone) as refusal:
        commit_into_nothing()
    assert refusal.value.committed
    trouble = storage_trouble(refusal.value)
    assert trouble is not None
    assert "not known whether it was kept" in trouble.detail
    assert trouble.problem_slug == "database-unavailable"


@pytest.mark.parametrize("replace", [False, True])
def test_a_commit_into_a_database_that_was_removed_is_not_acknowledged(
    database: Engine, path: Path, replace: bool
) -> None:
    def commit_into_nothing() -> None:
        with writing(database).begin() as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (2, 'x')")
            content = path.read_bytes()
            path.unlink()
            if replace:
                path.write_bytes(content)

    with pytest.raises(DatabaseGone) as refusal:
        commit_into_nothing()
    assert refusal.value.committed


def test_a_log_that_was_cut_off_is_not_written_on(database: Engine, path: Path) -> None:
    add(database, 1)
    log = beside(path, "-wal")[0]

    def write_behind_the_hole() -> None:  # what is in memory lets SQLite do so
        for key in range(2, 9):
            with log.open("r+b") as file:
                file.truncate(0)
            add(database, key)

    with pytest.raises((DatabaseGone, DatabaseError)):
        write_behind_the_hole()
    with pytest.raises((DatabaseGone, DatabaseDamaged)):
        check_sound(database)


def test_a_new_connection_is_not_opened_beside_those_whose_log_is_gone(
    database: Engine, path: Path
) -> None:
    add(database, 1)
    with database.connect() as busy:
        assert busy.exec_driver_sql("SELECT count(*) FROM t").scalar_one() == 1
        beside(path, "-wal")[0].unlink()
        other = open_database(f"sqlite:///{path}")
        for engine in (database, other):
            with pytest.raises(DatabaseGone):
                add(engine, 2)
        other.dispose()
    assert not beside(path, "-wal")[0].exists()


def test_a_database_behind_a_link_is_watched_where_it_is(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "real.sqlite"
    real.parent.mkdir()
    real.touch()
    (tmp_path / "t.sqlite").symlink_to(real)
    engine = open_database(f"sqlite:///{tmp_path / 't.sqlite'}")
    with writing(engine).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT)")
    add(engine, 1)
    beside(real, "-wal")[0].unlink()
    with pytest.raises(DatabaseGone):
        add(engine, 2)
    engine.dispose()


def _nothing(_database: Engine, _path: Path) -> None:
    pass


def _checkpoint(database: Engine, _path: Path) -> None:
    clear_traces(database)


def _vacuum(database: Engine, _path: Path) -> None:
    with writing(database).begin() as connection:
        mark_for_vacuum(connection)
    vacuum(database)


def _close_all(database: Engine, path: Path) -> None:
    database.dispose()
    assert not beside(path, "-wal")[0].exists()  # SQLite's own doing


def _another_process(_database: Engine, path: Path) -> None:
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "c.execute('INSERT INTO t VALUES (99, 1)'); c.commit();"
        "c.execute('PRAGMA wal_checkpoint(TRUNCATE)'); c.close()"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=30)


def _another_first_and_last(database: Engine, path: Path) -> None:
    database.dispose()
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT count(*) FROM t").fetchone()
        add(database, 50)
    database.dispose()


@pytest.mark.parametrize(
    "happening",
    [_nothing, _checkpoint, _vacuum, _close_all, _another_process, _another_first_and_last],
)
def test_what_sqlite_does_with_its_files_by_itself_is_no_reason_to_refuse(
    database: Engine, path: Path, tmp_path: Path, happening: Callable[[Engine, Path], None]
) -> None:
    add(database, 1)
    happening(database, path)
    add(database, 2)
    add(database, 3)
    check_sound(database)
    assert {1, 2, 3} <= set(after_a_kill(path, tmp_path / "copy"))


def smash(path: Path, table: str) -> None:
    """Overwrite the first page of a table, which nobody has in memory."""
    with closing(sqlite3.connect(path)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)
        ).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\x55" * size)


def test_a_smashed_page_is_found_when_it_is_read_and_nothing_is_written_from_then_on(
    database: Engine, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with writing(database).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE other (k INTEGER)")
    add(database, 1)
    database.dispose()
    smash(path, "t")
    check_sound(database)  # nobody knows yet
    with pytest.raises(DatabaseError) as error, database.connect() as connection:
        connection.exec_driver_sql("SELECT * FROM t").fetchall()
    trouble = storage_trouble(error.value)
    assert trouble is not None
    assert (trouble.status, trouble.problem_slug) == (503, "database-damaged")
    with pytest.raises(DatabaseDamaged) as refusal, writing(database).begin():
        pytest.fail("a transaction that writes began")
    assert storage_trouble(refusal.value) is not None
    with pytest.raises(DatabaseDamaged):
        check_sound(database)
    with database.connect() as connection:  # what can be read still is
        assert connection.exec_driver_sql("SELECT count(*) FROM other").scalar_one() == 0
    assert caplog.text.count("t.sqlite is damaged") == 1
    assert "restore a backup" in caplog.text


def test_what_empties_the_log_and_rewrites_the_file_survives_damage_and_tells_of_it(
    database: Engine, path: Path
) -> None:
    add(database, 1)
    with writing(database).begin() as connection:
        mark_for_vacuum(connection)
    database.dispose()
    smash(path, "t")
    vacuum(database)
    clear_traces(database)
    with pytest.raises(DatabaseDamaged):
        check_sound(database)


def test_text_that_is_none_is_damage() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        with pytest.raises(sqlite3.OperationalError) as error:
            connection.execute("SELECT CAST(x'ff' AS TEXT)").fetchall()
        assert is_damage(error.value)
        with pytest.raises(sqlite3.OperationalError) as error:
            connection.execute("SELECT * FROM missing")
        assert not is_damage(error.value)
