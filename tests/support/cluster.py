"""A real Redis Cluster of this machine: masters that share the slots, replicas where a test needs a failover."""

import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError

from edgeproxy.embedded.binaries import redis_server

_BUS = 10_000  # how far the port of the nodes' own talk lies from the other; older servers know no other way
_READY_TIMEOUT_S = 60
_MIGRATE_TIMEOUT_MS = 5000
PASSWORD = secrets.token_hex(8)


@dataclass
class Node:
    """One server of the cluster."""

    port: int
    binary: Path
    folder: Path
    client: Redis = field(repr=False)
    id: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def run_id(self) -> str:
        return str(self.client.info("server")["run_id"])

    def command(self, *words: object) -> Any:
        """Ask this node, not the cluster."""
        return self.client.execute_command(*words)

    def start(self) -> None:
        """Start it, also again: it knows its cluster then, and nothing else."""
        with (self.folder / "log").open("ab") as log:
            command = [self.binary, self.folder / "redis.conf"]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(lambda: bool(self.client.ping()))

    def kill(self) -> None:
        """End it as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Cluster:
    """All of its nodes: masters first, then replicas, each of the master in its place."""

    masters: list[Node]
    replicas: list[Node]

    @property
    def nodes(self) -> list[Node]:
        return self.masters + self.replicas

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.masters)
        return f"redis+cluster://:{PASSWORD}@{hosts}"

    def owner(self, key: str) -> Node:
        """Return the node that has a key, as the first one that answers knows it."""
        slot = key_slot(key.encode())
        alive = next(node for node in self.nodes if node.process is not None)
        for first, last, (_, port, *_rest), *_replicas in alive.command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(slot)

    def begin_move(self, slot: int, source: Node, target: Node) -> None:
        """Let a slot be on its way: what is not at the source is at the target."""
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def move_keys(self, slot: int, source: Node, target: Node, count: int) -> int:
        """Move up to so many keys of a slot, and return how many it were."""
        found = source.command("CLUSTER", "GETKEYSINSLOT", slot, count)
        if found:
            address = ("127.0.0.1", target.port, "", 0, _MIGRATE_TIMEOUT_MS)
            source.command("MIGRATE", *address, "AUTH", PASSWORD, "KEYS", *found)
        return len(found)

    def end_move(self, slot: int, source: Node, target: Node) -> None:
        """Give a slot that is empty at the source to the target."""
        others = [node for node in self.masters if node not in (source, target)]
        for node in (target, source, *others):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def move(self, slot: int, source: Node, target: Node, pause_s: float = 0.0) -> None:
        """Move a slot with its keys, one after the other."""
        self.begin_move(slot, source, target)
        while self.move_keys(slot, source, target, 1):
            time.sleep(pause_s)
        self.end_move(slot, source, target)


@contextmanager
def running_cluster(*, replicas: bool = False, node_timeout_ms: int = 1000, masters: int = 3) -> Iterator[Cluster]:
    """Have a cluster run while the block does."""
    folder = Path(tempfile.mkdtemp(prefix="edgeproxy-cluster-"))
    binary = redis_server(None, folder).path
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        started = [
            stack.enter_context(_running_node(binary, folder / str(number), node_timeout_ms))
            for number in range(masters * (2 if replicas else 1))
        ]
        cluster = Cluster(started[:masters], started[masters:])
        _form(cluster)
        yield cluster


def until(condition: Callable[[], bool], timeout_s: float = _READY_TIMEOUT_S) -> None:
    """Return once it is so; fail when it does not become so."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (RedisError, OSError):
            pass  # not yet
        time.sleep(0.05)
    raise TimeoutError(condition)


@contextmanager
def _running_node(binary: Path, folder: Path, node_timeout_ms: int) -> Iterator[Node]:
    folder.mkdir()
    port = _free_port()
    settings = {
        "port": port,
        "bind": "127.0.0.1",
        "dir": folder,
        "requirepass": PASSWORD,
        "masterauth": PASSWORD,
        "appendonly": "no",
        "save": '""',
        "cluster-enabled": "yes",
        "cluster-config-file": "nodes.conf",
        "cluster-node-timeout": node_timeout_ms,
        "cluster-require-full-coverage": "no",
        "repl-diskless-sync": "yes",
        "repl-diskless-sync-delay": 0,
    }
    text = "".join(f"{name} {value}\n" for name, value in settings.items())
    (folder / "redis.conf").write_text(text, encoding="utf-8")
    with Redis(host="127.0.0.1", port=port, password=PASSWORD, socket_timeout=10) as client:
        node = Node(port, binary, folder, client)
        try:
            node.start()
            node.id = node.command("CLUSTER", "MYID").decode()
            yield node
        finally:
            node.kill()


def _form(cluster: Cluster) -> None:
    share = -(-REDIS_CLUSTER_HASH_SLOTS // len(cluster.masters))
    for number, node in enumerate(cluster.masters):
        slots = range(share * number, min(share * (number + 1), REDIS_CLUSTER_HASH_SLOTS))
        node.command("CLUSTER", "ADDSLOTS", *slots)
    for number, node in enumerate(cluster.nodes, 1):
        node.command("CLUSTER", "SET-CONFIG-EPOCH", number)
        cluster.nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.port)
    count = len(cluster.nodes)
    until(lambda: all(_known(node) == count for node in cluster.nodes))
    for master, replica in zip(cluster.masters, cluster.replicas, strict=False):
        replica.command("CLUSTER", "REPLICATE", master.id)
    until(lambda: all(_is_whole(node, len(cluster.masters)) for node in cluster.nodes))
    until(lambda: all(node.client.info("replication")["master_link_status"] == "up" for node in cluster.replicas))


def _known(node: Node) -> int:
    rows = [row.split() for row in node.command("CLUSTER", "NODES").splitlines()]
    return len([row for row in rows if row[7] == b"connected" and b"handshake" not in row[2]])


def _is_whole(node: Node, masters: int) -> bool:
    state = node.command("CLUSTER", "INFO")
    return b"cluster_state:ok" in state and len({slots[2][1] for slots in node.command("CLUSTER", "SLOTS")}) == masters


def _free_port() -> int:
    """Return a port that is free, and so is the one for the nodes' own talk."""
    for _ in range(100):
        port = 20_000 + secrets.randbelow(20_000)
        try:
            for each in (port, port + _BUS):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
        except OSError:
            continue
        return port
    raise OSError("no two free ports")
