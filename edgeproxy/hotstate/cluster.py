"""A Redis Cluster as a request uses it: who has which slot, one connection to each node, redirects followed.

Nodes say where a key is (MOVED: it has moved for good; ASK: its slot is on the way, this once), as
https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/ has it. A command that was redirected has not
run, so sending it again is no repetition. Where that does not lead to its end in the time that a reply may take, it is
given up; nothing waits for a failover.

Many keys may move at once, so order is kept for commands that are sent to a slot at rest, and not over a redirect.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from redis.asyncio.connection import parse_url
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from edgeproxy import logs, tasks
from edgeproxy.domain.redis_addresses import node_address
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate.connection import Argument, CommandFailed, Redirected, RedisConnection, fail

_PORT = 6379
_MAX_NODES = 256
_ASKED_MAX = 3  # nodes asked for the slots before the next turn
_HOPS_MAX = 16
_PAUSE_MIN_S = 0.005
_PAUSE_MAX_S = 0.1

_REFRESH_MIN_S = 0.2  # between two askings for the slots, however much is redirected
_REFRESH_AWAY_S = 1.0
_REFRESH_S = 15.0
_KEEP_S = 20.0  # a node that no server names any more; longer than any reply may take

# The keys of one command are being moved: some are here, some there. None of it has run.
_HALFWAY = "TRYAGAIN"
# The node does not serve this slot now: a failover, a start, a part of the network that lost the majority.
_AWAY = {"CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY"}


@dataclass(slots=True, eq=False)
class _Node:
    host: str
    connection: RedisConnection
    named_s: float  # when a server, or the configuration, last named it


class Cluster:
    """The nodes of one cluster, for one worker. `seeds` are URLs of some of them; all take the same login.

    `timeout_ms`, `waiting_max` and `preamble` hold for each node. `on_connect` is called when keys have become
    reachable, or go to another node than before.
    """

    def __init__(
        self,
        seeds: list[str],
        timeout_ms: int,
        waiting_max: int,
        preamble: list[tuple[Argument, ...]],
        on_connect: Callable[[], None],
    ) -> None:
        self._address = seeds[0]
        self._seeds = [(target["host"], target.get("port", _PORT)) for target in map(parse_url, seeds)]
        self._timeout_s = timeout_ms / 1000
        self._waiting_max = waiting_max
        self._connection = partial(RedisConnection, timeout_ms=timeout_ms, waiting_max=waiting_max, preamble=preamble)
        self._on_connect = on_connect
        self._nodes: dict[tuple[str, int], _Node] = {}
        self._table: list[_Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._owners: frozenset[_Node | None] = frozenset((None,))
        self._wanted = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._redirects: set[asyncio.Task[None]] = set()

    @property
    def is_connected(self) -> bool:
        """Whether every slot has a node that can be asked."""
        return all(owner is not None and owner.connection.is_connected for owner in self._owners)

    async def start(self) -> None:
        """Find the nodes and connect to them, then follow the cluster in the background."""
        await self._refresh()
        await asyncio.gather(*(node.connection.first_try() for node in self._nodes.values()))
        self._keeper = tasks.spawn("redis cluster", self._follow_cluster())

    async def close(self) -> None:
        """Give all connections up; what waits gets StoreUnavailable."""
        ending = [*self._redirects, *([] if self._keeper is None else [self._keeper])]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        await asyncio.gather(*(node.connection.close() for node in self._nodes.values()))

    def send(self, key: str, command: tuple[Argument, ...]) -> "asyncio.Future[Any]":
        """Queue one command for the node that has `key`, and return the future of its reply."""
        slot = key_slot(key.encode())
        loop = asyncio.get_running_loop()
        reply = self._send(slot, command)
        outcome: asyncio.Future[Any] = loop.create_future()
        deadline_s = loop.time() + self._timeout_s
        reply.add_done_callback(partial(self._answered, slot, command, deadline_s, outcome))
        return outcome

    def flush(self, key: str) -> bool:
        """Write what is queued for the node of `key` now. Returns whether the system has all of it."""
        owner = self._table[key_slot(key.encode())]
        return owner is not None and owner.connection.flush()

    def run_id(self, key: str) -> str:
        """Return what the server that `key`'s commands go to now calls itself; "" while it is away."""
        owner = self._table[key_slot(key.encode())]
        return "" if owner is None else owner.connection.run_id

    def _send(self, slot: int, command: tuple[Argument, ...]) -> "asyncio.Future[Any]":
        owner = self._table[slot]
        if owner is None or not owner.connection.is_connected:
            self._wanted.set()
            raise StoreUnavailable("redis")
        return owner.connection.send(*command)

    def _answered(
        self,
        slot: int,
        command: tuple[Argument, ...],
        deadline_s: float,
        outcome: "asyncio.Future[Any]",
        reply: "asyncio.Future[Any]",
    ) -> None:
        if outcome.done():  # nobody waits any more
            return
        failure = cast("StoreUnavailable | CommandFailed | None", reply.exception())
        if failure is None:
            outcome.set_result(reply.result())
        elif isinstance(failure, CommandFailed) and _leads_on(failure) and len(self._redirects) < self._waiting_max:
            work = self._redirect(slot, command, deadline_s, outcome, failure)
            task = tasks.spawn("redis redirect", work)
            self._redirects.add(task)
            task.add_done_callback(self._redirects.discard)
        else:
            fail(outcome, self._final(failure))

    async def _redirect(
        self,
        slot: int,
        command: tuple[Argument, ...],
        deadline_s: float,
        outcome: "asyncio.Future[Any]",
        failure: CommandFailed,
    ) -> None:
        try:
            found = await self._ask_others(slot, command, deadline_s, failure)
            if not outcome.done():
                outcome.set_result(found)
        except (StoreUnavailable, CommandFailed) as error:
            fail(outcome, self._final(error))
        finally:  # this ends with the program
            fail(outcome, StoreUnavailable("redis", may_have_run=True))

    async def _ask_others(
        self, slot: int, command: tuple[Argument, ...], deadline_s: float, failure: CommandFailed
    ) -> Any:
        """Go where the nodes point to. Raises the failure that is none of theirs, StoreUnavailable at the end."""
        loop = asyncio.get_running_loop()
        pause_s = _PAUSE_MIN_S
        for _ in range(_HOPS_MAX):
            other = self._redirected(slot, failure) if isinstance(failure, Redirected) else None
            if other is None:
                if loop.time() + pause_s > deadline_s:
                    break
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _PAUSE_MAX_S)
            try:
                if other is None:
                    return await self._send(slot, command)
                if failure.code == "ASK":
                    other.send("ASKING")
                return await other.send(*command)
            except StoreUnavailable as error:
                if error.may_have_run:
                    raise
            except CommandFailed as error:
                if not _leads_on(error):
                    raise
                failure = error
        raise StoreUnavailable("redis")

    def _redirected(self, slot: int, failure: Redirected) -> RedisConnection | None:
        """Return the connection to where a redirect points, None while there is none."""
        owner = self._table[slot]
        host, _, port = failure.address.rpartition(":")
        try:
            node = self._node(host.strip("[]") or ("" if owner is None else owner.host), int(port))
        except ValueError:  # no address
            return None
        if failure.code == "MOVED":
            self._wanted.set()
            if node is not None and node is not owner:
                self._table[slot] = node
                self._owners |= {node}
                self._on_connect()
        return node.connection if node is not None and node.connection.is_connected else None

    def _final(self, failure: StoreUnavailable | CommandFailed) -> StoreUnavailable | CommandFailed:
        if isinstance(failure, CommandFailed) and (failure.code in _AWAY or _leads_on(failure)):
            failure = StoreUnavailable("redis")
        if isinstance(failure, StoreUnavailable):
            self._wanted.set()
        return failure

    def _node(self, host: str, port: int) -> _Node | None:
        """Return this node, a new one where it is not known yet, None where there are too many.

        Raises ValueError when that is no address.
        """
        now_s = asyncio.get_running_loop().time()
        node = self._nodes.get((host, port))
        if node is None:
            if len(self._nodes) >= _MAX_NODES:
                return None
            url = node_address(self._address, host, port)
            node = _Node(host, self._connection(url, on_connect=self._on_connect), now_s)
            self._nodes[host, port] = node
            node.connection.begin()
        node.named_s = now_s
        return node

    async def _follow_cluster(self) -> None:
        while True:  # until cancelled; each turn waits
            self._wanted.clear()
            await asyncio.sleep(_REFRESH_MIN_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_S if self.is_connected else _REFRESH_AWAY_S):
                    await self._wanted.wait()
            await self._refresh()

    async def _refresh(self) -> None:
        """Ask for the slots: the nodes in turn, so that one with a view of its own does not keep us there."""
        asked = [node for node in self._nodes.values() if node.connection.is_connected]
        if not asked:
            nodes = [node for seed in self._seeds if (node := self._node(*seed)) is not None]
            await asyncio.gather(*(node.connection.first_try() for node in nodes))
            asked = [node for node in nodes if node.connection.is_connected]
        random.shuffle(asked)
        for node in asked[:_ASKED_MAX]:
            try:
                reply = await node.connection.send("CLUSTER", "SLOTS")
                self._learn(node, _ranges(reply))
            except (StoreUnavailable, CommandFailed, ValueError) as error:
                logs.event("store_unreachable", store="redis", error=type(error).__name__)
            else:
                await self._forget()
                return

    def _learn(self, asked: _Node, ranges: list[tuple[int, int, str, int]]) -> None:
        table: list[_Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, host, port in ranges:
            table[first : last + 1] = [self._node(host or asked.host, port)] * (last + 1 - first)
        before, self._table = self._table, table
        self._owners = frozenset(table)
        if any(old is not new for old, new in zip(before, table, strict=True)):
            self._on_connect()

    async def _forget(self) -> None:
        """Close what is not part of the cluster any more: replaced, demoted, or known by another name."""
        oldest_s = asyncio.get_running_loop().time() - _KEEP_S
        for name, node in list(self._nodes.items()):
            if node.named_s < oldest_s:
                del self._nodes[name]
                await node.connection.close()


def _leads_on(failure: CommandFailed) -> bool:
    return isinstance(failure, Redirected) or failure.code == _HALFWAY


def _ranges(reply: Any) -> list[tuple[int, int, str, int]]:
    """Read the reply of CLUSTER SLOTS: first slot, last slot, host and port of the master. Raises ValueError."""
    try:
        return [
            (_slot(first), _slot(last), (host or b"").decode(), int(port))
            for first, last, (host, port, *_), *_ in reply
        ]
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None


def _slot(number: Any) -> int:
    if not 0 <= number < REDIS_CLUSTER_HASH_SLOTS:
        raise ValueError("no slot has this number")
    return int(number)
