"""What `reconcile` says and ends with, on stores that run."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis as redis_sync
from click.testing import CliRunner

from edgeproxy.app import open_control
from edgeproxy.commands.reconcile import reconcile
from edgeproxy.config import environment, load
from edgeproxy.control.keys import create_key
from edgeproxy.errors import OperatorError
from edgeproxy.hotstate import keyspace

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def named_stores(redis_url: str, migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pepper").write_text("ab" * 32)
    (tmp_path / "pepper").chmod(0o600)
    monkeypatch.setenv("EDGEPROXY_STORES_REDIS", redis_url)
    monkeypatch.setenv("EDGEPROXY_STORES_POSTGRES", migrated_url)
    monkeypatch.setenv("EDGEPROXY_SECRETS_PEPPER_FILE", str(tmp_path / "pepper"))


@pytest.fixture
def key(named_stores: None) -> Any:
    async def create() -> Any:
        settings = load(None, environment())
        async with open_control(settings) as control:
            key = (await create_key(control, name="ann")).key
            return key, key.record(control.partitions).partition

    return asyncio.run(create())


@pytest.fixture
def run() -> Run:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(reconcile, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout

    return run


def test_stores_that_agree_end_with_0(key: Any, run: Run) -> None:
    assert run() == (0, "keys compared: 1, different: 0\n")
    assert run("ann", "--repair") == (0, "keys compared: 1, different: 0\n")
    status, told = run("--json")
    assert (status, json.loads(told)) == (0, {"compared": 1, "found": [], "left": []})


def test_a_difference_is_told_and_repaired_when_asked(key: Any, run: Run, redis_url: str) -> None:
    stored, partition = key
    with redis_sync.Redis.from_url(redis_url) as redis:
        redis.delete(keyspace.state(partition, stored.id))
    line = f"{stored.id}  state         nothing in Redis, 1 by PostgreSQL\n"
    assert run("ann") == (1, f"{line}keys compared: 1, different: 1\n")
    assert run("--repair") == (0, f"{line}keys compared: 1, different: 1, 1 of them repaired\n")
    assert run() == (0, "keys compared: 1, different: 0\n")


def test_what_cannot_be_repaired_is_left(key: Any, run: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, partition = key
    with redis_sync.Redis.from_url(redis_url) as redis:
        redis.delete(keyspace.state(partition, stored.id))

    async def unable(*_: object) -> list[object]:
        return []

    monkeypatch.setattr("edgeproxy.control.reconciliation.rebuild", unable)
    status, told = run("--repair", "--json")
    row = {"key_id": stored.id, "what": "state", "redis": None, "postgresql": 1}
    assert (status, json.loads(told)) == (1, {"compared": 1, "found": [row], "left": [row]})


def test_a_key_that_there_is_not_is_an_error(key: Any, run: Run) -> None:
    with pytest.raises(OperatorError, match="no key has this id"):
        run("bob")
