from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import service.http.app  # noqa: F401 - knows every table
from service.storage.database import Table, migrate, open_database


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'new.sqlite'}")
    migrate(engine)
    migrate(engine)  # a second process that starts finds nothing to do
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Table.metadata)
    engine.dispose()
    assert differences == []
