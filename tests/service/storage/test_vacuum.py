"""What SQLite leaves of deleted rows in unused parts of its file, and that it does not stay."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from service.storage.database import open_database, writing
from service.storage.vacuum import clear_traces, mark_for_vacuum, vacuum


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path}/t.sqlite")
    with writing(engine).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT)")
    yield engine
    engine.dispose()


def pragma(engine: Engine, name: str) -> int:
    with engine.connect() as connection:
        value: int = connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
    return value


def erasures(engine: Engine) -> int:
    return pragma(engine, "user_version")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])  # in which secure_delete alone leaves some
def test_nothing_that_was_deleted_is_left_in_a_file_that_was_rewritten(
    database: Engine, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)  # noqa: S311
    there: list[str] = []
    gone: list[str] = []
    with writing(database).begin() as connection:
        for _ in range(3000):
            if there and rng.random() < 0.4:
                gone.append(there.pop(rng.randrange(len(there))))
                connection.exec_driver_sql("DELETE FROM t WHERE k = ?", (gone[-1],))
            there.append(f"subject-{rng.random():.12f}")
            row = (there[-1], "x" * rng.randint(10, 1500))
            connection.exec_driver_sql("INSERT INTO t VALUES (?, ?)", row)
        mark_for_vacuum(connection)
    vacuum(database)
    clear_traces(database)
    content = (tmp_path / "t.sqlite").read_bytes()
    assert [name for name in gone if name.encode() in content] == []
    assert all(name.encode() in content for name in there)
    assert erasures(database) == 0


def test_a_file_is_rewritten_only_after_an_erasure_and_while_it_is_small(
    database: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with writing(database).begin() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES ('k', ?)", ("x" * 100_000,))
        connection.exec_driver_sql("DELETE FROM t")
    before = pragma(database, "page_count")
    vacuum(database)
    assert pragma(database, "page_count") == before
    with writing(database).begin() as connection:
        mark_for_vacuum(connection)
    with caplog.at_level(logging.WARNING):
        vacuum(database, largest=10_000)
    assert (pragma(database, "page_count"), erasures(database)) == (before, 1)
    assert "too large to be rewritten" in caplog.text
    vacuum(database)
    assert pragma(database, "page_count") < before


def test_a_file_that_is_written_to_is_rewritten_the_next_time(
    database: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    impatient = open_database(str(database.url), lock_wait_ms=50)
    with writing(database).begin() as connection:
        mark_for_vacuum(connection)
    with writing(database).begin() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES ('k', 'v')")
        vacuum(impatient)
    impatient.dispose()
    assert "traces of what was erased are left" in caplog.text
    assert erasures(database) == 1
    vacuum(database)
    assert erasures(database) == 0
