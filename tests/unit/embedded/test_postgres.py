"""The embedded PostgreSQL: one role without rights over the server, a socket, and a log without statements."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from edgeproxy.embedded import postgres as module
from edgeproxy.embedded.placement import Placement, place
from edgeproxy.embedded.postgres import EmbeddedPostgres
from edgeproxy.embedded.server import listener_pid
from edgeproxy.errors import OperatorError


@pytest.fixture
def placed(data_dir: Path) -> Iterator[Placement]:
    placed = place(data_dir)
    placed.make_runtime()
    yield placed
    placed.remove_runtime()


@pytest.fixture
def server(data_dir: Path, placed: Placement) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(data_dir, placed)
    yield server
    server.stop()


async def value(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_it_keeps_what_it_was_told_over_a_restart_and_a_kill(server: EmbeddedPostgres, placed: Placement):
    await value(server.start(), "CREATE TABLE kept AS SELECT 1 AS one")
    server.stop()
    assert await value(server.start(), "SELECT one FROM kept") == 1
    pid = listener_pid(placed.sockets / ".s.PGSQL.5432")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while server.is_alive():
        pass
    assert await value(server.start(), "SELECT one FROM kept") == 1


@pytest.mark.claims("OL-8b")
async def test_our_role_has_its_database_and_no_rights_over_the_server(server: EmbeddedPostgres):
    url = server.start()
    assert await value(url, "SELECT current_user || ' in ' || current_database()") == "edgeproxy in edgeproxy"
    rights = "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls FROM pg_roles"
    assert await value(url, f"{rights} WHERE rolname = current_user") is False
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await value(url, "SELECT pg_read_file('/etc/passwd')")


async def test_nobody_gets_in_without_the_password_not_even_the_superuser(server: EmbeddedPostgres):
    parts = urlsplit(server.start())
    for login in ("edgeproxy", "edgeproxy:wrong", "postgres", "postgres:wrong"):
        with pytest.raises(asyncpg.PostgresError):
            await value(parts._replace(netloc=f"{login}@").geturl(), "SELECT 1")


async def test_it_listens_on_the_socket_alone_checks_its_pages_and_logs_no_statement(server: EmbeddedPostgres):
    url = server.start()
    wanted = {
        "listen_addresses": "",
        "data_checksums": "on",
        "fsync": "on",
        "log_statement": "none",
        "log_min_duration_statement": "-1",
        "log_min_error_statement": "panic",
        "log_parameter_max_length_on_error": "0",
        "password_encryption": "scram-sha-256",
        "unix_socket_permissions": "0700",
    }
    assert {name: await value(url, f"SHOW {name}") for name in wanted} == wanted


@pytest.mark.claims("OL-4d")
async def test_what_an_error_quotes_does_not_reach_the_log(server: EmbeddedPostgres, data_dir: Path):
    url = server.start()
    for statement in ("SELECT 'canary-1'::int", "SELECT canary_2", "SYNTAX canary-3"):
        with pytest.raises(asyncpg.PostgresError):
            await value(url, statement)
    server.stop()
    assert "canary" not in (data_dir / "postgres.log").read_text()


async def test_the_password_file_is_right_at_every_start(server: EmbeddedPostgres, data_dir: Path):
    first = server.start()
    server.stop()
    (data_dir / "secrets" / "postgres_password").unlink()
    second = server.start()
    assert second != first
    assert await value(second, "SELECT 1") == 1
    command_lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    password = urlsplit(second).password
    assert password is not None
    assert not [each for each in command_lines if password.encode() in each]


async def test_an_interrupted_first_start_is_begun_anew(
    server: EmbeddedPostgres, data_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    administer = EmbeddedPostgres._administer

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(EmbeddedPostgres, "_administer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert not (data_dir / "postgres").exists()
    monkeypatch.setattr(EmbeddedPostgres, "_administer", administer)
    assert await value(server.start(), "SELECT 1") == 1
    assert not (data_dir / "postgres.new").exists()


def test_statements_that_fail_are_one_line_without_their_text(server: EmbeddedPostgres, data_dir: Path):
    server.start()
    server.stop()
    with pytest.raises(OperatorError, match="cannot prepare") as refused:
        server._administer(data_dir / "postgres", "CREATE ROLE edgeproxy PASSWORD 'canary'")
    assert "canary" not in str(refused.value)


def test_a_preparation_that_hangs_is_one_line(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_INITDB_TIMEOUT_S", 0.001)
    with pytest.raises(OperatorError, match="too long"):
        server.start()
