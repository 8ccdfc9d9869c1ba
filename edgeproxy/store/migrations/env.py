"""What alembic runs around the steps: one transaction on the connection that was handed over.

Alembic executes this file under the name `env_py`; importing it as a module does nothing.
"""

from alembic import context

from edgeproxy.store.migrate import SCHEMA


def run() -> None:
    """Run the steps that are missing; the caller holds the lock and has set the search path."""
    context.configure(connection=context.config.attributes["connection"], version_table_schema=SCHEMA)
    with context.begin_transaction():
        context.run_migrations()


if __name__ == "env_py":
    run()
