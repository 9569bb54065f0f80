"""Alembic's entry: runs on the connection that `service.storage.database.migrate` hands over."""

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    transactional_ddl=True,
    version_table=attributes.get("version_table", "alembic_version"),
)
context.run_migrations()
