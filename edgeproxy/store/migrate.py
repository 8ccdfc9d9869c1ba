"""Brings a database up to date, and refuses to work with one that is not.

Steps are numbered SQL in `migrations/versions`; all that are missing run in one transaction, so that no half-applied
schema is found later. Only this module and the steps know alembic.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from edgeproxy.errors import OperatorError
from edgeproxy.store.database import CONNECT_TIMEOUT_S, Connection, mapped_errors, mapped_login_errors

if TYPE_CHECKING:
    from sqlalchemy import Connection as SyncConnection

SCHEMA = "edgeproxy"
MIGRATION_LOCK = 0x65646765  # "edge": an arbitrary number that only our migrations take
LOCK_TIMEOUT_MS = 60_000  # how long a migration waits for another one, or for a table that is in use

_MAY_NOT = "the database user may not create tables; migrate as the owner of the database, or GRANT CREATE to it"
_STEP = re.compile(r"v(\d{4})_[a-z0-9_]+\.py")


async def migrate(url: str) -> list[str]:
    """Apply the steps that the database lacks and return their numbers; an empty list: it was current.

    Safe to call from several processes at once. Raises OperatorError for a newer database or one that cannot be
    logged in to, StoreUnavailable.
    """
    with mapped_errors():
        async with _connected(url) as connection:
            # Whoever comes second waits here, and then finds nothing to do. Closing the connection unlocks.
            await connection.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
            await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
            before = await _revision(connection)
            _refuse_newer(before)
            missing = [step for step in steps() if step > before]
            if missing:
                await _prepare(connection)
                await _upgrade(connection)
            return missing


async def check_current(url: str) -> None:
    """Raise OperatorError, with the remedy, unless the database has exactly the schema that this program knows."""
    with mapped_errors():
        async with _connected(url) as connection:
            revision = await _revision(connection)
    _refuse_newer(revision)
    if revision < steps()[-1]:
        raise OperatorError("the database has no schema yet or an older one; run: edgeproxy migrate")


def steps() -> list[str]:
    """Return the numbers of all steps, in order."""
    folder = resources.files("edgeproxy.store.migrations").joinpath("versions")
    return sorted(match[1] for entry in folder.iterdir() if (match := _STEP.fullmatch(entry.name)))


def _refuse_newer(revision: str) -> None:
    if revision > steps()[-1]:
        raise OperatorError(
            f"the database has schema {revision} of a newer edgeproxy; install that version or a later one"
        )


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Connection]:
    with mapped_login_errors():
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    try:
        yield connection
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)


async def _revision(connection: Connection) -> str:
    """Return the number of the last step that the database has, "" for none."""
    if await connection.fetchval("SELECT to_regclass($1)", f"{SCHEMA}.alembic_version") is None:
        return ""
    statement = f"SELECT max(version_num) FROM {SCHEMA}.alembic_version"  # noqa: S608 - our own name
    return str(await connection.fetchval(statement) or "")


async def _prepare(connection: Connection) -> None:
    try:
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    except asyncpg.InsufficientPrivilegeError:
        raise OperatorError(_MAY_NOT) from None
    await connection.execute(f"SET search_path = {SCHEMA}")


async def _upgrade(connection: Connection) -> None:
    """Let alembic run the missing steps on `connection`, in one transaction."""
    # Imported here: it takes longer to import than most commands of the command line take to run.
    from alembic import command
    from alembic.config import Config
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import StaticPool

    async def lend() -> Connection:
        return connection

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))

    def run(sync_connection: "SyncConnection") -> None:
        config.attributes["connection"] = sync_connection
        command.upgrade(config, "head")
        sync_connection.commit()

    engine = create_async_engine("postgresql+asyncpg://", async_creator=lend, poolclass=StaticPool)
    try:
        async with engine.connect() as lent:
            await lent.run_sync(run)
    except DBAPIError as error:
        cause = error.orig.__cause__ if error.orig is not None else None
        if isinstance(cause, asyncpg.InsufficientPrivilegeError):
            raise OperatorError(_MAY_NOT) from None
        raise cause or error from None  # what asyncpg raised, for our own boundary to map
    finally:
        await engine.dispose()
