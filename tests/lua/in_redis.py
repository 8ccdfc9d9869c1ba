"""The scripts in a real Redis, called exactly as their pure reference is, so that one test can play both."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus, Mode
from edgeproxy.domain.limits import Amounts, Limit, parse_limits
from edgeproxy.domain.partition import LEASE_MS
from edgeproxy.domain.reservations import (
    HeartbeatStatus,
    KeyUsage,
    KeyVersion,
    LedgerStatus,
    Outcome,
    Pending,
    PublishStatus,
    ReapStatus,
    RebuildStatus,
    RebuiltState,
    ReserveReply,
    ReserveStatus,
    SettleReply,
)
from edgeproxy.hotstate import keyspace, scripts

ADMITTED = (ReserveStatus.ADMITTED, ReserveStatus.OBSERVED)


def record_of(
    key: KeyVersion,
    *limits: str | Limit,
    cap: int | None = None,
    status: KeyStatus = KeyStatus.ACTIVE,
    mode: Mode = Mode.ENFORCE,
    prepaid: bool = False,
) -> KeyRecord:
    """A version of a key with these limits."""
    parsed = tuple(limit if isinstance(limit, Limit) else parse_limits([limit])[0] for limit in limits)
    return KeyRecord(key.key_id, key.version, status, 7, parsed, cap, None, (), mode=mode, prepaid=prepaid)


class PartitionInRedis:
    """Has the methods of `Partition`; what they do is done by the scripts."""

    def __init__(self, client: Redis, number: int, loaded: dict[str, scripts.Script] | None = None) -> None:
        self.client = client
        self.number = number
        self._reserved: dict[str, Sequence[KeyVersion]] = {}  # a gateway remembers this, too
        self.scripts = scripts.load() if loaded is None else loaded
        for script in self.scripts.values():
            assert client.script_load(script.source) == script.sha1

    def run(self, name: str, arguments: scripts.Arguments) -> list[Any]:
        return self.client.execute_command(*self.scripts[name].command(arguments))

    def scope(self, key: KeyVersion) -> scripts.Scope:
        state, ring = keyspace.state(self.number, key.key_id), keyspace.ring(self.number, key.key_id)
        return scripts.Scope(key.key_id, state, ring, key.version)

    def publish(self, record: KeyRecord, now_ms: int | None = None) -> PublishStatus:
        number, _, _, *arguments = scripts.publish_args(record, now_ms=now_ms)
        scope = self.scope(KeyVersion(record.id, record.version))
        return scripts.decode_publish(self.run("publish", (number, scope.state, scope.ring, *arguments)))

    def erase(self, key_id: KeyId) -> None:
        self.run("erase", scripts.erase_args(self.number, key_id))

    def rebuild(self, known: RebuiltState) -> None:
        expected = self.client.get(keyspace.state(self.number, known.record.id)) or b""
        reply = self.run("rebuild", scripts.rebuild_args(self.number, expected, known))
        assert scripts.decode_rebuild(reply) is RebuildStatus.REBUILT

    def reserve(
        self,
        request_id: str,
        scopes: Sequence[KeyVersion],
        amounts: Amounts,
        now_ms: int | None = None,
        note: bytes = b"",
        *,
        announce: bool = False,
    ) -> ReserveReply:
        known = [self.scope(scope) for scope in scopes]
        arguments = scripts.reserve_args(
            self.number, request_id, known, amounts, LEASE_MS, note, announce=announce, now_ms=now_ms
        )
        reply = scripts.decode_reserve(self.run("reserve", arguments))
        if reply.status in ADMITTED:
            self._reserved[request_id] = scopes
        return reply

    def settle(
        self, request_id: str, outcome: Outcome, actual: Amounts, event: bytes, now_ms: int | None = None
    ) -> SettleReply:
        known = self._scopes(request_id)
        arguments = scripts.settle_args(self.number, request_id, known, outcome, actual, event, now_ms=now_ms)
        return scripts.decode_settle(self.run("settle", arguments))

    def heartbeat(self, request_id: str, so_far: Amounts, now_ms: int | None = None) -> HeartbeatStatus:
        beats = [scripts.Beat(request_id, so_far.input_tokens, so_far.output_tokens)]
        reply = self.run("heartbeat", scripts.heartbeat_args(self.number, LEASE_MS, beats, now_ms=now_ms))
        (status,) = scripts.decode_heartbeat(reply)
        return status

    def examine(self, request_id: str) -> Pending | None:
        return scripts.decode_examine(self.run("examine", scripts.examine_args(self.number, request_id)))

    def reap(self, request_id: str, actual: Amounts, event: bytes, now_ms: int | None = None) -> ReapStatus:
        known = self._scopes(request_id)
        arguments = scripts.reap_args(self.number, request_id, known, actual, event, now_ms=now_ms)
        return scripts.decode_reap(self.run("reap", arguments))

    def credit(self, key_id: KeyId, seq: int, tokens: int) -> tuple[LedgerStatus, int]:
        return scripts.decode_ledger(self.run("credit", scripts.credit_args(self.number, key_id, seq, tokens)))

    def adjust(
        self, key_id: KeyId, seq: int, differences: tuple[int, int, int], now_ms: int | None = None
    ) -> tuple[LedgerStatus, int]:
        arguments = scripts.adjust_args(self.number, key_id, seq, *differences, now_ms=now_ms)
        return scripts.decode_ledger(self.run("adjust", arguments))

    def inspect(self, key_id: KeyId, now_ms: int | None = None) -> KeyUsage | None:
        return scripts.decode_inspect(self.run("inspect", scripts.inspect_args(self.number, key_id, now_ms=now_ms)))

    def pending(self) -> int:
        return self.client.zcard(keyspace.leases(self.number))

    @property
    def events(self) -> list[bytes]:
        return self._told(keyspace.events(self.number))

    @property
    def corrections(self) -> list[bytes]:
        return self._told(keyspace.corrections(self.number))

    def everything(self) -> dict[bytes, bytes]:
        """What is stored, byte for byte."""
        return {name: self.client.dump(name) for name in self.client.scan_iter(match=f"{{p{self.number:02d}}}:*")}

    def _scopes(self, request_id: str) -> list[scripts.Scope]:
        return [self.scope(scope) for scope in self._reserved.get(request_id, ())]

    def _told(self, stream: str) -> list[bytes]:
        return [entry[b"e"] for _, entry in self.client.xrange(stream)]


class OwnRedis:
    """A Redis of the test's own in a folder: it can be stopped, started again, and left without memory."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.binary = binary
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> Redis:
        """Start the server and return a client, once it has read its data."""
        socket = self.folder / "redis.sock"
        self._process = subprocess.Popen(
            [
                *(self.binary, "--port", "0", "--unixsocket", str(socket), "--dir", str(self.folder)),
                *("--save", "", "--loglevel", "warning", *options),
            ],
            stdout=subprocess.DEVNULL,
        )
        client = Redis(unix_socket_path=str(socket))
        deadline = time.monotonic() + 30
        while True:
            try:
                client.ping()
            except (RedisConnectionError, OSError):  # not there yet, or still reading its data
                assert self._process.poll() is None, "the server ended"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            else:
                return client

    def stop(self) -> None:
        """End the server; what it held is in its append-only file, if it has one."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
