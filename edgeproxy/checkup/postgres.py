"""PostgreSQL: whether it is there, has our schema, keeps what it was told, and keeps it to itself."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import asyncpg

from edgeproxy.addresses import is_loopback
from edgeproxy.checkup.findings import Clock, Finding, error, of_error, ok, warning
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.store.database import Connection, connect
from edgeproxy.store.migrate import steps

_OLDEST = 150_000  # server_version_num of PostgreSQL 15

_POWERS = {"rolsuper": "SUPERUSER", "rolcreatedb": "CREATEDB", "rolcreaterole": "CREATEROLE"} | {
    "rolreplication": "REPLICATION",
    "rolbypassrls": "BYPASSRLS",
}
_ABOUT_US = f"""
SELECT current_user AS role, pg_is_in_recovery() AS is_standby, inet_server_addr() IS NULL AS is_socket,
       coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS is_encrypted,
       {", ".join(_POWERS)}
FROM pg_roles WHERE rolname = current_user
"""  # noqa: S608 - our own names
_SETTINGS = "SELECT name, setting FROM pg_settings WHERE name = ANY($1)"
_SETTING_NAMES = (
    *("server_version_num", "server_version", "fsync", "synchronous_commit", "full_page_writes"),
    *("log_statement", "log_min_duration_statement", "log_min_duration_sample", "log_transaction_sample_rate"),
    *("log_parameter_max_length", "log_parameter_max_length_on_error"),
)
_REVISION = "SELECT max(version_num) FROM edgeproxy.alembic_version"
_INSTALL = "SELECT partitions, pepper_fingerprint FROM edgeproxy.install"


@dataclass(frozen=True, slots=True)
class PostgresFacts:
    """What PostgreSQL said. `host` is "" behind a Unix socket; `verifies` says that TLS checks who answers.

    `revision` is the number of the schema, "" for none, None where our role may not look. `install` is what was fixed
    at the first start (partitions, fingerprint of the pepper), None before that.
    """

    is_embedded: bool
    host: str
    is_encrypted: bool
    verifies: bool
    is_standby: bool
    role: str
    powers: tuple[str, ...]
    clock: Clock
    settings: Mapping[str, str]
    revision: str | None
    install: tuple[int, str] | None


async def read_postgres(url: str, *, is_embedded: bool) -> PostgresFacts | Finding:
    """Return the facts, or why there are none. `store.database` bounds how long each step takes."""
    try:
        database = await connect(url)
    except (OperatorError, StoreUnavailable) as raised:
        return of_error(raised)
    try:
        async with database.transaction() as connection:
            began, began_at = time.perf_counter(), time.time()
            now_s = float(await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())"))
            took_s = time.perf_counter() - began
            us = await connection.fetchrow(_ABOUT_US)
            settings = dict(await connection.fetch(_SETTINGS, _SETTING_NAMES))
            revision, install = await _installed(connection)
    except (OperatorError, StoreUnavailable) as raised:
        return of_error(raised)
    finally:
        await database.close()
    return PostgresFacts(
        is_embedded=is_embedded,
        host="" if us["is_socket"] else _host(url),
        is_encrypted=us["is_encrypted"],
        verifies=parse_qs(urlsplit(url).query).get("sslmode", [""])[0] in ("verify-ca", "verify-full"),
        is_standby=us["is_standby"],
        role=us["role"],
        powers=tuple(power for column, power in _POWERS.items() if us[column]),
        clock=Clock(round((now_s - began_at - took_s / 2) * 1000), round(took_s * 500)),
        settings=settings,
        revision=revision,
        install=install,
    )


async def _installed(connection: Connection) -> tuple[str | None, tuple[int, str] | None]:
    """Return the number of the schema and what was fixed at the first start. Last in its transaction: it may fail."""
    try:
        if await connection.fetchval("SELECT to_regclass('edgeproxy.alembic_version')") is None:
            return "", None
        revision = await connection.fetchval(_REVISION)
        row = await connection.fetchrow(_INSTALL)
    except asyncpg.InsufficientPrivilegeError:
        return None, None
    return str(revision or ""), None if row is None else (row["partitions"], row["pepper_fingerprint"])


def _host(url: str) -> str:
    parts = urlsplit(url)
    return parts.hostname or parse_qs(parts.query).get("host", ["localhost"])[0]


def version(facts: PostgresFacts) -> Iterator[Finding]:
    """It is new enough, and takes writes."""
    name = f"PostgreSQL {facts.settings['server_version']}"
    if int(facts.settings["server_version_num"]) < _OLDEST:
        yield error(f"{name} is too old", "install PostgreSQL 15 or newer")
    elif facts.is_standby:
        yield error(f"{name} is a standby and takes no writes", "name the primary in stores.postgres")
    else:
        yield ok(name)


def schema(facts: PostgresFacts) -> Iterator[Finding]:
    """Its tables are those that this program knows. Embedded ones are brought up to date by `serve`."""
    newest = steps()[-1]
    if facts.revision is None:
        yield error(f"role {facts.role} may not read the schema", "name the role that migrated it")
    elif facts.revision > newest:
        yield error(f"schema {facts.revision} is of a newer edgeproxy", "install that version or a later one")
    elif facts.revision == newest:
        yield ok(f"schema {newest} is current")
    elif facts.is_embedded:
        yield ok("the schema is brought up to date at the next start")
    else:
        yield error(f"schema {facts.revision or 'none'}, wanted {newest}", "run: edgeproxy migrate")


def durability(facts: PostgresFacts) -> Iterator[Finding]:
    """What it confirmed outlives a crash: usage is removed from Redis as soon as it is confirmed here."""
    off = [name for name in ("fsync", "full_page_writes") if facts.settings[name] == "off"]
    if off:
        yield error(f"{' and '.join(off)} off: a crash can destroy the database", "set it to on")
    elif facts.settings["synchronous_commit"] == "off":
        yield warning("synchronous_commit is off: a crash loses usage that was confirmed", "set it to on")
    else:
        yield ok("what it confirms is on disk")


def parameter_log(facts: PostgresFacts) -> Iterator[Finding]:
    """Its log keeps no values of ours: names and ids of keys, which an erasure does not reach there."""
    found = list(_logged(facts))
    yield from found or [ok("its log keeps no parameters")]


def _logged(facts: PostgresFacts) -> Iterator[Finding]:
    settings = facts.settings
    logging = [
        f"{name} = {settings[name]}"
        for name, quiet in (
            ("log_statement", ("none", "ddl")),
            ("log_min_duration_statement", ("-1",)),
            ("log_min_duration_sample", ("-1",)),
            ("log_transaction_sample_rate", ("0",)),
        )
        if settings[name] not in quiet
    ]
    remedy = f"as superuser: ALTER ROLE {facts.role} SET %s = 0"
    if logging and settings["log_parameter_max_length"] != "0":
        found = f"statements are logged with their parameters ({', '.join(logging)})"
        yield warning(found, remedy % "log_parameter_max_length")
    if settings["log_parameter_max_length_on_error"] != "0":
        yield warning("parameters are logged with errors", remedy % "log_parameter_max_length_on_error")


def rights(facts: PostgresFacts) -> Iterator[Finding]:
    """Our role may do what it needs, and no more."""
    if facts.powers:
        remedy = f"ALTER ROLE {facts.role} {' '.join(f'NO{power}' for power in facts.powers)}"
        yield warning(f"role {facts.role} has {', '.join(facts.powers)}, which are not needed", remedy)
    else:
        yield ok(f"role {facts.role} has no right over others")


def encryption(facts: PostgresFacts) -> Iterator[Finding]:
    """Who listens on the way learns nothing, and nobody else can answer."""
    if not facts.host or is_loopback(facts.host):
        yield ok("on this machine")
    elif not facts.is_encrypted:
        yield warning("what is sent to it is not encrypted", "add ?sslmode=verify-full to stores.postgres")
    elif not facts.verifies:
        yield warning("over TLS, but whoever answers is believed", "add ?sslmode=verify-full to stores.postgres")
    else:
        yield ok("over TLS")
