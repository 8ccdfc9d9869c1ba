"""The bounded pool of PostgreSQL connections, and the boundary at which the library's errors become ours.

Nothing above this floor sees an exception of asyncpg: its texts quote rows, statements and addresses.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

from edgeproxy.errors import OperatorError, StoreUnavailable

STORE = "postgresql"
POOL_SIZE = 8  # connections of one process: its statements are short, and a server has about a hundred
CONNECT_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_MS = 15_000  # a batch of a thousand events takes about 30 ms; more than this is a server in trouble
IDLE_TRANSACTION_TIMEOUT_MS = 30_000  # a process that froze inside a transaction must not hold its locks
_ANSWER_TIMEOUT_S = STATEMENT_TIMEOUT_MS / 1000 + 2  # the server's own limit speaks first, unless it is frozen

# SQLSTATE classes: what a statement can be refused for although the server is well.
_DATA = ("22", "23")  # a value that no column holds, a constraint
_MISTAKE = "42"  # a statement that does not fit the schema: a mistake in the program, to be seen as one
_REFUSED_LOGIN = ("28", "3D")  # wrong user or password, no such database


class RowRefused(Exception):
    """A value that no column holds or that a constraint forbids: trying again does not help."""


Connection = Any  # asyncpg ships no types


class Database:
    """A pool of connections to one database. Whoever made it with `connect` closes it."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Give a connection inside one transaction: committed when the block ends, undone when it raises.

        Raises StoreUnavailable when the server is away or too slow, RowRefused for what it will never take.
        """
        with mapped_errors():
            async with self._pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection, connection.transaction():
                yield connection

    async def ping(self) -> None:
        """Return when the server has answered. Raises StoreUnavailable."""
        async with self.transaction():
            return

    async def close(self) -> None:
        """Close all connections; what still runs on them is given up."""
        self._pool.terminate()


async def connect(url: str) -> Database:
    """Open a pool at `postgresql://...`, with one connection made at once.

    Raises OperatorError for an address, login or database name that will not come right by waiting, StoreUnavailable
    when nothing answers there.
    """
    with mapped_errors(), mapped_login_errors():
        pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=POOL_SIZE,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=_ANSWER_TIMEOUT_S,
            server_settings={
                "application_name": "edgeproxy",
                "search_path": "edgeproxy",
                "statement_timeout": str(STATEMENT_TIMEOUT_MS),
                "idle_in_transaction_session_timeout": str(IDLE_TRANSACTION_TIMEOUT_MS),
            },
        )
    return Database(pool)


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn errors of the library into ours, without their text."""
    try:
        yield
    except asyncpg.PostgresError as error:
        sqlstate = error.sqlstate or ""
        if sqlstate.startswith(_DATA):
            raise RowRefused from None
        if sqlstate.startswith(_MISTAKE):
            raise
        raise StoreUnavailable(STORE) from None
    # OSError: refused, reset, and TimeoutError. InternalClientError: a connection that broke while it was made.
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
        raise StoreUnavailable(STORE) from None


@contextmanager
def mapped_login_errors() -> Iterator[None]:
    """Tell a connection that can never be made from one that cannot be made now."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "").startswith(_REFUSED_LOGIN):
            raise OperatorError(
                "PostgreSQL refused the login or knows no such database; check stores.postgres"
            ) from None
        raise
    except ValueError:  # asyncpg's ClientConfigurationError is one
        raise OperatorError(
            "stores.postgres is not a usable address; write postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None
