"""Run by Alembic on the connection that the store hands over; each migration commits with its own record."""

from alembic import context

from memalign.stores.schema import metadata

given = context.config.attributes
context.configure(connection=given["connection"], version_table_schema=given["namespace"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
