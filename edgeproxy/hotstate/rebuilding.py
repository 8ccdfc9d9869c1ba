"""The counters of keys as Redis has them, to be compared, and written anew from what is known for certain.

A system that runs never stands still. So nothing is compared that changed while it was read, and a state is replaced
only if it is still the one that was looked at: whatever is settled in between makes the rebuilding start over. It knows
no PostgreSQL: what a state should be is the caller's.
"""

import math
import re
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from edgeproxy.domain.keys import KeyId, KeyRecord, decode_record, encode_record
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.reservations import Pending, RebuildStatus, RebuiltState, decode_note
from edgeproxy.domain.usage import UsageEvent, decode_event
from edgeproxy.errors import OperatorError
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.events import PAYLOAD
from edgeproxy.hotstate.leases import Leases

LAYOUT = 2  # LAYOUT_VERSION of lua/ring.lua
_EVENTS = 1000  # read in one round trip
_LEASES = 1000
_ANY_STATE = "{p??}:state:*"  # patterns of names, as Redis has them
_ANY_RECORD = keyspace.key_record("*")
_STATE = re.compile(r"\{p([0-9]{2})\}:state:(.*)", re.DOTALL)
_NAMES = 1000  # about half a millisecond of Redis
_HEADER = 14  # numbers of a state before its windows that are read here, in the order of lua/ring.lua

# How the cmsgpack of Redis writes numbers that do not fit into one byte: a first byte from here on for each of these
# forms (of `struct`), and then the number, big-endian.
_FIRST_FORM = 0xCA
_FORMS = "fdBHIQbhiq"
_NEWER = "Redis holds counters of a newer version of edgeproxy: run that version"


@dataclass(frozen=True, slots=True)
class HotSums:
    """What a key's state says of it. `ledger` is the number of the last ledger entry that was applied."""

    version: int
    totals: Amounts
    balance: int
    ledger: int
    last_used_ms: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """States of keys of one partition, packed, b"" where there is none, and the last usage event that they contain.

    Keys that changed while they were read are left out. `last_event` is "" when no event waited.
    """

    states: dict[KeyId, bytes]
    last_event: str


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A request that is open, and what is reserved for it. `model` is "" where it will have no event."""

    id: str
    holder: str
    model: str
    pending: Pending


@dataclass(frozen=True, slots=True)
class Known:
    """Holders of limits that have a state, each with its partition, and digests of keys that have a record."""

    holders: list[tuple[int, str]]
    digests: list[str]


class Rebuilding:
    """Reads and replaces the states of keys. Every method raises StoreUnavailable."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def read(self, partition: int, ids: Sequence[KeyId]) -> Snapshot:
        """Return the states of these keys, of which there is at least one."""
        read = ("MGET", *(keyspace.state(partition, key_id) for key_id in ids))
        last = ("XREVRANGE", keyspace.events(partition), "+", "-", "COUNT", 1)
        before, entries, after = await self._caller.commands([read, last, read])
        states = {key_id: raw or b"" for key_id, raw, again in zip(ids, before, after, strict=True) if raw == again}
        return Snapshot(states, entries[0][0].decode() if entries else "")

    async def waiting(self, partition: int, last: str = "+") -> list[UsageEvent]:
        """Return the usage events that wait for the flush, up to the one with the entry id `last`.

        What is not an event is left out: the flush sees to it.
        """
        events: list[UsageEvent] = []
        begin = "-"
        while last:  # ends: each turn begins after the one before, and entries are added more slowly than they are read
            entries = await self._caller.command("XRANGE", keyspace.events(partition), begin, last, "COUNT", _EVENTS)
            for _, fields in entries:
                try:
                    events.append(decode_event(fields.get(PAYLOAD, b"")))
                except ValueError:
                    continue
            if len(entries) < _EVENTS:
                break
            begin = f"({entries[-1][0].decode()}"
        return events

    async def opened(self, partition: int) -> list[OpenRequest]:
        """Return the requests that are open now. What is not readable as one of ours is left out."""
        ids: set[str] = set()
        after = 0
        while True:  # ends: the cursor is 0 again when all was seen
            after, page = await Leases(self._caller).all(partition, after, _LEASES)
            ids.update(page)
            if not after:
                break
        asked = sorted(ids)
        replies = await self._caller.run_each("examine", [scripts.examine_args(partition, each) for each in asked])
        found = [_open_request(each, scripts.decode_examine(reply)) for each, reply in zip(asked, replies, strict=True)]
        return [each for each in found if each is not None]

    async def versions(self, digests: Sequence[str]) -> list[int | None]:
        """Return the versions of the records that workers read, None where there is none that they could read."""
        raws = await self._caller.commands([("GET", keyspace.key_record(digest)) for digest in digests])
        return [_version(raw) for raw in raws]

    async def known(self, partition: int) -> AsyncIterator[Known]:
        """Yield what the server that has a partition holds of keys, of whatever partition, some at a time."""
        epoch = keyspace.epoch(partition)
        for pattern in (_ANY_STATE, _ANY_RECORD):
            cursor = b"0"
            while True:  # ends: the cursor is 0 again when all was seen
                cursor, *names = await self._caller.run("names", (1, epoch, cursor, pattern, _NAMES))
                texts = [name.decode(errors="replace") for name in names]
                holders = [holder for holder in map(_holder, texts) if holder is not None]
                digests = [text.removeprefix(keyspace.key_record("")) for text in texts]
                yield Known(holders, []) if pattern == _ANY_STATE else Known([], digests)
                if cursor == b"0":
                    break

    async def forget(self, known: Known) -> None:
        """Remove these states and records."""
        erased = [scripts.erase_args(partition, KeyId(holder)) for partition, holder in known.holders]
        await self._caller.run_each("erase", erased)
        await self._caller.commands([("DEL", keyspace.key_record(digest)) for digest in known.digests])

    async def rebuild(self, states: Sequence[tuple[bytes, RebuiltState]]) -> list[RebuildStatus]:
        """Put each state in the place of the packed one beside it, if that is still there (b"": none)."""
        arguments = [scripts.rebuild_args(state.record.partition, old, state) for old, state in states]
        return [scripts.decode_rebuild(reply) for reply in await self._caller.run_each("rebuild", arguments)]

    async def replace_records(self, records: Sequence[tuple[KeyRecord, str]]) -> None:
        """Write what workers read of keys, each with the digest of its key, whatever is there."""
        await self._caller.commands(
            [("SET", keyspace.key_record(digest), encode_record(record)) for record, digest in records]
        )

    async def publish_records(self, records: Sequence[tuple[KeyRecord, str]]) -> None:
        """Write what workers read of keys, each with the digest of its key; newer versions stay."""
        await self._caller.run_each("record", [scripts.record_args(record, digest) for record, digest in records])


def decode_state(raw: bytes) -> HotSums | None:
    """Return what a packed state says; None when there is none, or one of an older layout.

    Raises OperatorError for one of a newer version of this program, which is not ours to replace.
    """
    try:
        (layout,) = _numbers(raw, 1)
        if layout > LAYOUT:
            raise OperatorError(_NEWER)
        _, version, _, _, _, last_used_ms, *totals, _, _, balance, _, ledger = _numbers(raw, _HEADER)
    except ValueError:
        return None
    return HotSums(version, Amounts(*totals), balance, ledger, last_used_ms) if layout == LAYOUT else None


def _numbers(raw: bytes, count: int) -> list[int]:
    """Return the first numbers of a flat cmsgpack list. Raises ValueError when there are fewer, or others."""
    numbers: list[int] = []
    at = 0
    while len(numbers) < count:
        if at >= len(raw):
            raise ValueError("the list is shorter")
        first = raw[at]
        at += 1
        if first <= 0x7F or first >= 0xE0:
            numbers.append(first if first <= 0x7F else first - 0x100)
            continue
        form = f">{_FORMS[first - _FIRST_FORM : first - _FIRST_FORM + 1]}" if first >= _FIRST_FORM else ">"
        size = struct.calcsize(form)
        if not size or at + size > len(raw):
            raise ValueError("not a number")
        (value,) = struct.unpack_from(form, raw, at)
        if not math.isfinite(value):
            raise ValueError("not an integer")
        numbers.append(int(value))
        at += size
    return numbers


def _open_request(request_id: str, pending: Pending | None) -> OpenRequest | None:
    if pending is None or not pending.scopes:
        return None
    try:
        note = decode_note(pending.note)
    except ValueError:
        return None
    return OpenRequest(request_id, note.holder, note.model, pending)


def _holder(name: str) -> tuple[int, str] | None:
    """Return the partition and the holder in the name of a state."""
    match = _STATE.fullmatch(name)
    return None if match is None else (int(match[1]), match[2])


def _version(raw: bytes | None) -> int | None:
    try:
        return None if raw is None else decode_record(raw).version
    except ValueError:
        return None
