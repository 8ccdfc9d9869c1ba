"""A cluster's words, said by servers that a test writes: redirects, refusals, nonsense, and how far each is followed.

tests/integration/test_cluster.py has a real cluster.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hiredis
import pytest
from redis.crc import key_slot

from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import cluster as cluster_module
from edgeproxy.hotstate.cluster import Cluster
from edgeproxy.hotstate.connection import CommandFailed
from tests.support.certificates import make_pair
from tests.support.raw import scripted_provider

TIMEOUT_MS = 400
SLOT = key_slot(b"k")
Answer = Callable[[list[bytes]], bytes | None]


@dataclass
class Fake:
    """A node: `slots` is what it says of the cluster, `answer` its reply to a command (None: it freezes)."""

    name: str
    port: int = 0
    slots: bytes = b"*0\r\n"
    answer: Answer = lambda _: b"+OK\r\n"
    heard: list[list[bytes]] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                reply = self.reply(command)
                if reply is None:
                    await reader.read()
                    return
                writer.write(reply)

    def reply(self, command: list[bytes]) -> bytes | None:
        if command[0] == b"INFO":
            text = f"run_id:{self.name}"
            return b"$%d\r\n%s\r\n" % (len(text), text.encode())
        if command[0] == b"CLUSTER":
            return self.slots
        self.heard.append(command)
        return self.answer(command)


@asynccontextmanager
async def fakes(*names: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[list[Fake]]:
    """Have nodes run, of which the first has all slots as far as any of them knows."""
    async with AsyncExitStack() as stack:
        made = [Fake(name) for name in names]
        for node in made:
            url = await stack.enter_async_context(scripted_provider(node.serve, tls))
            node.port = int(url.rpartition(":")[2])
        for node in made:
            node.slots = slots_of(made[0])
        yield made


def slots_of(*owners: Fake, host: bytes = b"127.0.0.1") -> bytes:
    """Write a reply of CLUSTER SLOTS: equal shares."""
    share = 16384 // len(owners)
    rows = b"".join(
        b"*3\r\n:%d\r\n:%d\r\n*3\r\n$%d\r\n%s\r\n:%d\r\n$2\r\nid\r\n"
        % (at * share, (at + 1) * share - 1, len(host), host, owner.port)
        for at, owner in enumerate(owners)
    )
    return b"*%d\r\n%s" % (len(owners), rows)


@asynccontextmanager
async def connected(
    *seeds: Fake, waiting_max: int = 100, on_connect: Callable[[], None] = lambda: None
) -> AsyncIterator[Cluster]:
    cluster = Cluster([f"redis://127.0.0.1:{seed.port}" for seed in seeds], TIMEOUT_MS, waiting_max, [], on_connect)
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.close()


async def test_moved_is_followed_and_remembered() -> None:
    async with fakes("a", "b") as (a, b):
        a.answer = lambda _: b"-MOVED %d 127.0.0.1:%d\r\n" % (SLOT, b.port)
        told: list[str] = []
        async with connected(
            a, on_connect=lambda: told.append(cluster.run_id("k")) if told or a.heard else None
        ) as cluster:
            assert cluster.run_id("k") == "a"
            assert await cluster.send("k", ("GET", "k")) == b"OK"
            assert (a.heard, b.heard) == ([[b"GET", b"k"]], [[b"GET", b"k"]])
            # Whoever trusts servers by their run ids hears of the other one before anything is sent there.
            assert told[0] == ""
            assert told[-1] == cluster.run_id("k") == "b"
            await cluster.send("k", ("GET", "k"))
            assert (len(a.heard), len(b.heard)) == (1, 2)


async def test_keys_that_another_node_has_by_now_are_told_of_without_a_redirect() -> None:
    async with fakes("a", "b") as (a, b):
        told: list[str] = []
        async with connected(a, b, on_connect=lambda: told.append(a.name)) as cluster:
            before = len(told)
            await cluster._refresh()
            assert len(told) == before
            a.slots = b.slots = slots_of(b)
            await cluster._refresh()
            assert len(told) == before + 1
            assert cluster.run_id("k") == "b"


async def test_ask_is_followed_once_and_not_remembered() -> None:
    async with fakes("a", "b") as (a, b):
        a.answer = lambda _: b"-ASK %d 127.0.0.1:%d\r\n" % (SLOT, b.port)
        async with connected(a, b) as cluster:
            for _ in range(2):
                assert await cluster.send("k", ("GET", "k")) == b"OK"
            assert len(a.heard) == 2
            assert b.heard == [[b"ASKING"], [b"GET", b"k"]] * 2
            assert cluster.run_id("k") == "a"


async def test_an_address_without_a_host_is_the_node_s_own() -> None:
    async with fakes("a", "b") as (a, b):
        a.slots = slots_of(a, host=b"")
        a.answer = lambda _: b"-MOVED %d :%d\r\n" % (SLOT, b.port)
        async with connected(a) as cluster:
            assert await cluster.send("k", ("GET", "k")) == b"OK"
            assert len(b.heard) == 1


async def test_what_is_halfway_is_tried_again_until_it_has_arrived() -> None:
    async with fakes("a") as (a,):
        a.answer = lambda _: b"+OK\r\n" if len(a.heard) > 3 else b"-TRYAGAIN Multiple keys request\r\n"
        async with connected(a) as cluster:
            assert await cluster.send("k", ("EVALSHA", "x", 2, "k", "k")) == b"OK"
            assert len(a.heard) == 4


@pytest.mark.parametrize(
    "words",
    [
        b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
        b"-MOVED 1 127.0.0.1:1\r\n",
        b"-ASK 1 127.0.0.1:1\r\n",
        b"-MOVED\r\n",
        b"-MOVED 1 127.0.0.1\r\n",
        b"-MOVED 1 127.0.0.1:99999999\r\n",
        b"-MOVED 1 [::1\r\n",
        b"-CLUSTERDOWN Hash slot not served\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
    ],
)
async def test_a_redirect_that_leads_nowhere_ends_in_time(words: bytes) -> None:
    async with fakes("a") as (a,):
        a.answer = lambda _: words
        async with connected(a) as cluster:
            started = time.monotonic()
            with pytest.raises(StoreUnavailable) as caught:
                await cluster.send("k", ("GET", "k"))
            assert time.monotonic() - started < 5
            assert len(a.heard) <= 10
            assert caught.value.may_have_run is False


async def test_nodes_that_point_to_each_other_are_left() -> None:
    async with fakes("a", "b") as (a, b):
        a.answer = lambda _: b"-MOVED %d 127.0.0.1:%d\r\n" % (SLOT, b.port)
        b.answer = lambda _: b"-MOVED %d 127.0.0.1:%d\r\n" % (SLOT, a.port)
        async with connected(a, b) as cluster:
            with pytest.raises(StoreUnavailable):
                await cluster.send("k", ("GET", "k"))
            assert len(a.heard) + len(b.heard) <= 20


async def test_an_error_that_is_the_command_s_own_comes_through() -> None:
    async with fakes("a") as (a,):
        a.answer = lambda _: b"-NOSCRIPT No matching script.\r\n"
        async with connected(a) as cluster:
            with pytest.raises(CommandFailed) as caught:
                await cluster.send("k", ("EVALSHA", "x", 1, "k"))
            assert caught.value.code == "NOSCRIPT"


async def test_a_command_that_may_have_run_is_not_sent_again() -> None:
    async with fakes("a", "b") as (a, b):
        a.answer = lambda _: b"-MOVED %d 127.0.0.1:%d\r\n" % (SLOT, b.port)
        b.answer = lambda _: None
        async with connected(a, b) as cluster:
            with pytest.raises(StoreUnavailable) as caught:
                await cluster.send("k", ("INCR", "k"))
            assert caught.value.may_have_run
            assert (len(a.heard), len(b.heard)) == (1, 1)


async def test_no_more_redirects_are_followed_at_once_than_may_wait() -> None:
    async with fakes("a") as (a,):
        a.answer = lambda _: b"-TRYAGAIN x\r\n"
        async with connected(a, waiting_max=3) as cluster:
            replies = []
            for _ in range(3):
                replies += [cluster.send("k", ("GET", "k")) for _ in range(3)]
                await asyncio.sleep(0.01)
            assert len(cluster._redirects) <= 3
            results = await asyncio.gather(*replies, return_exceptions=True)
            assert all(isinstance(result, StoreUnavailable) for result in results)


async def test_a_reply_that_nobody_waits_for_any_more_is_not_followed() -> None:
    async with fakes("a") as (a,):
        a.answer = lambda _: b"-TRYAGAIN x\r\n"
        async with connected(a) as cluster:
            cluster.send("k", ("GET", "k")).cancel()
            await asyncio.sleep(0.05)
            assert len(a.heard) == 1
            assert not cluster._redirects


async def test_what_is_being_redirected_at_the_end_is_told() -> None:
    async with fakes("a") as (a,):
        a.answer = lambda _: b"-TRYAGAIN x\r\n"
        async with connected(a) as cluster:
            reply = cluster.send("k", ("GET", "k"))
            await asyncio.sleep(0.02)
        with pytest.raises(StoreUnavailable):
            await reply


async def test_each_slot_goes_to_its_own_node_and_all_of_them_are_needed() -> None:
    async with fakes("a", "b") as (a, b):
        a.slots = b.slots = slots_of(a, b)
        async with connected(a) as cluster:
            assert cluster.is_connected
            for key in ("{p00}:x", "{p02}:x", "foo", "{}a", "a{b}{c}"):
                await cluster.send(key, ("GET", key))
                owner = (a, b)[key_slot(key.encode()) * 2 // 16384]
                assert owner.heard[-1] == [b"GET", key.encode()]
                assert cluster.flush(key)
                assert cluster.run_id(key) == owner.name
            assert a.heard
            assert b.heard


async def test_a_slot_of_nobody_is_unavailable_and_the_others_go_on() -> None:
    async with fakes("a") as (a,):
        a.slots = slots_of(a).replace(b":16383", b":%d" % (SLOT - 1))
        async with connected(a) as cluster:
            assert not cluster.is_connected
            assert cluster.run_id("k") == ""
            assert not cluster.flush("k")
            with pytest.raises(StoreUnavailable):
                cluster.send("k", ("GET", "k"))
            assert key_slot(b"{p02}") < SLOT
            assert await cluster.send("{p02}", ("GET", "{p02}")) == b"OK"


@pytest.mark.parametrize(
    "nonsense",
    [
        b"+OK\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n*3\r\n:0\r\n:99999\r\n*2\r\n$9\r\n127.0.0.1\r\n:1\r\n",
        b"*1\r\n*3\r\n:-5\r\n:9\r\n*2\r\n$9\r\n127.0.0.1\r\n:1\r\n",
        b"*1\r\n*3\r\n$1\r\na\r\n:9\r\n*2\r\n$9\r\n127.0.0.1\r\n:1\r\n",
        b"*1\r\n*3\r\n:0\r\n:9\r\n*2\r\n:4\r\n:1\r\n",
        b"*1\r\n*3\r\n:0\r\n:9\r\n*2\r\n$2\r\n\xff\xfe\r\n:1\r\n",
        b"*1\r\n*3\r\n:0\r\n:9\r\n*2\r\n$3\r\n[::\r\n:1\r\n",
        b"-ERR This instance has cluster support disabled\r\n",
    ],
)
async def test_a_view_of_the_cluster_that_makes_no_sense_changes_nothing(nonsense: bytes) -> None:
    async with fakes("a") as (a,), connected(a) as cluster:
        a.slots = nonsense
        await cluster._refresh()
        assert cluster.is_connected
        assert await cluster.send("k", ("GET", "k")) == b"OK"


async def test_no_more_nodes_are_connected_than_a_cluster_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_MAX_NODES", 1)
    async with fakes("a", "b") as (a, b):
        a.slots = slots_of(a, b)
        async with connected(a) as cluster:
            assert len(cluster._nodes) == 1
            with pytest.raises(StoreUnavailable):
                cluster.send("{p00}", ("GET", "{p00}"))


async def test_a_node_that_is_gone_from_the_cluster_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fakes("a", "b") as (a, b), connected(a, b) as cluster:
        monkeypatch.setattr(cluster_module, "_KEEP_S", 0.05)
        await asyncio.sleep(0.1)
        await cluster._refresh()
        assert [port for _, port in cluster._nodes] == [a.port]
        async with asyncio.timeout(5):
            while not all(writer.transport.is_closing() for writer in b.writers):
                await asyncio.sleep(0.01)
        assert await cluster.send("k", ("GET", "k")) == b"OK"


async def test_a_cluster_that_is_nowhere_it_was_is_found_again_where_the_configuration_says() -> None:
    async with fakes("a", "b") as (a, b):
        b.slots = slots_of(b)
        cluster = Cluster([f"redis://127.0.0.1:{node.port}" for node in (a, b)], TIMEOUT_MS, 10, [], lambda: None)
        await cluster.start()
        for node in cluster._nodes.values():
            await node.connection.close()
        cluster._nodes.clear()
        await cluster._refresh()
        assert cluster.is_connected
        await cluster.close()


async def test_the_slots_are_not_asked_for_more_often_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    async with fakes("a") as (a,):
        original = a.reply

        def counting(command: list[bytes]) -> bytes | None:
            nonlocal asked
            asked += command[0] == b"CLUSTER"
            return original(command)

        monkeypatch.setattr(a, "reply", counting)
        async with connected(a) as cluster:
            for _ in range(50):
                cluster._wanted.set()
                await asyncio.sleep(0.01)
            assert 1 <= asked <= 5


async def test_the_login_goes_to_every_node() -> None:
    async with fakes("a", "b") as (a, b):
        a.slots = slots_of(a, b)
        cluster = Cluster([f"redis://u%40:p%2F@127.0.0.1:{a.port}"], TIMEOUT_MS, 10, [("PREPARE",)], lambda: None)
        await cluster.start()
        for node in (a, b):
            assert node.heard == [[b"AUTH", b"u@", b"p/"], [b"PREPARE"]]
        await cluster.close()


async def test_nodes_are_reached_over_tls_where_the_configuration_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair(tmp_path)
    async with fakes("a", "b", tls=pair.server_context()) as (a, b):
        a.slots = b.slots = slots_of(a, b)
        for is_trusted in (False, True):
            if is_trusted:
                monkeypatch.setenv("SSL_CERT_FILE", str(pair.certificate))
            cluster = Cluster([f"rediss://localhost:{a.port}"], TIMEOUT_MS, 10, [], lambda: None)
            await cluster.start()
            assert cluster.is_connected is is_trusted
            await cluster.close()
