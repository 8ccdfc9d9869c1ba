"""An append-only file that ends anywhere: what is left is a state that there was. Debit and event are lost together.

Redis writes what a script did as one transaction, and one that is cut off is left out when the file is read.
EDGEPROXY_TEST_EVIDENCE=1 cuts at many more places.
"""

import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.limits import Amounts, Dimension
from edgeproxy.domain.reservations import KeyVersion, Outcome, Pending, ReapStatus, SettleStatus
from edgeproxy.hotstate import keyspace
from tests.lua.in_redis import ADMITTED, OwnRedis, PartitionInRedis, record_of

EVIDENCE = bool(os.environ.get("EDGEPROXY_TEST_EVIDENCE"))
CUTS = 300 if EVIDENCE else 6

NOW = 1_700_000_000_000
KEYS = [KeyVersion(KeyId(name), 1) for name in ("a", "b", "prepaid")]
LIMITS = ("requests=100000/1h", "tokens=1000000/1h", "output_tokens=1000000/1h")
CREDIT = 700
OPERATIONS = 400


def event_of(request_id: str, keys: list[str], used: Amounts) -> bytes:
    amounts = [used.requests, used.input_tokens, used.output_tokens]
    return json.dumps({"id": request_id, "keys": keys, "used": amounts}).encode()


def traffic(partition: PartitionInRedis, chance: random.Random) -> None:
    """Requests of three keys, some of two at once, over 20 minutes: within the windows, over many buckets."""
    for key in KEYS:
        partition.publish(record_of(key, *LIMITS, prepaid=key.key_id == "prepaid"), NOW)
    open_requests: dict[str, list[KeyVersion]] = {}
    credits_given = 0
    for number in range(OPERATIONS):
        now_ms = NOW + 3_000 * number
        name = chance.choices(["reserve", "settle", "reap", "credit", "late"], [10, 9, 1, 0.3, 0.3])[0]
        if name == "reserve" or not open_requests:
            scopes = chance.choice([KEYS[:1], KEYS[1:2], KEYS[2:], KEYS[:2]])
            amounts = Amounts(1, chance.randrange(20), chance.randrange(20))
            if partition.reserve(f"r{number}", scopes, amounts, now_ms).status in ADMITTED:
                open_requests[f"r{number}"] = scopes
        elif name == "credit":
            credits_given += 1
            partition.credit(KEYS[2].key_id, credits_given, CREDIT)
        elif name == "late":
            partition.settle(f"never{number}", Outcome.POST, Amounts(1, 1, 1), b"{}", now_ms)
        else:
            resolve(partition, chance, name, open_requests, now_ms)


def resolve(partition, chance, name, open_requests, now_ms) -> None:
    request_id = chance.choice([*open_requests])
    used = Amounts(1, chance.randrange(25), chance.randrange(25))
    keys = [key.key_id for key in open_requests[request_id]]
    if name == "reap":
        if partition.reap(request_id, used, event_of(request_id, keys, used), now_ms) is ReapStatus.RESOLVED:
            del open_requests[request_id]
        return
    outcome = chance.choice([Outcome.POST, Outcome.POST, Outcome.POST, Outcome.VOID, Outcome.CANCEL])
    counted = used if outcome is Outcome.POST else Amounts(requests=1)
    event = event_of(request_id, keys, counted)
    assert partition.settle(request_id, outcome, used, event, now_ms).status is SettleStatus.RESOLVED
    del open_requests[request_id]


def check(partition: PartitionInRedis) -> int:
    """Hold counters, reservations and events against each other; return how many events there are."""
    events = [json.loads(event) for event in partition.events]
    settled = {event["id"] for event in events}
    assert len(settled) == len(events)
    client = partition.client
    pending: dict[str, Pending] = {}
    for name in client.scan_iter(match=keyspace.reservation(partition.number, "*")):
        request_id = name.decode().rpartition(":")[2]
        if (found := partition.examine(request_id)) is not None:
            pending[request_id] = found
    assert {name.decode() for name in client.zrange(keyspace.leases(partition.number), 0, -1)} == set(pending)
    assert not settled & set(pending)
    for key in KEYS:
        check_key(partition, key, events, pending)
    return len(events)


def check_key(partition, key: KeyVersion, events, pending: dict[str, Pending]) -> None:
    usage = partition.inspect(key.key_id, NOW + 3_000 * OPERATIONS)
    if usage is None:  # cut before it was published
        assert not any(key.key_id in event["keys"] for event in events)
        return
    used = [Amounts(*event["used"]) for event in events if key.key_id in event["keys"]]
    totals = Amounts(*(sum(part) for part in zip((0, 0, 0), *map(parts, used), strict=True)))
    assert usage.totals == totals
    assert usage.balance == usage.ledger * CREDIT - totals.of(Dimension.TOKENS)
    reserved = [found.reserved for name, found in pending.items() if key in partition._reserved[name]]
    assert usage.open == len(reserved)
    assert usage.held == (sum(each.of(Dimension.TOKENS) for each in reserved) if usage.prepaid else 0)
    for window in usage.windows:
        assert window.used == sum(each.of(window.limit.dimension) for each in (*used, *reserved))


def parts(amounts: Amounts) -> tuple[int, int, int]:
    return amounts.requests, amounts.input_tokens, amounts.output_tokens


def append_only_file(folder: Path) -> Path:
    """Redis 7 has a folder with a file for what came since it was written anew; before, it is one file."""
    incremental = sorted((folder / "appendonlydir").glob("*.incr.aof"))
    return incremental[-1] if incremental else folder / "appendonly.aof"


def with_reserved_of(written: PartitionInRedis, partition: PartitionInRedis) -> PartitionInRedis:
    partition._reserved = written._reserved
    return partition


@pytest.mark.timeout(1_800 if EVIDENCE else 120)
def test_debit_and_event_are_lost_together_or_not_at_all(own_redis):
    chance = random.Random(5)
    written = PartitionInRedis(own_redis.start("--appendonly", "yes"), 7)
    traffic(written, chance)
    all_events = check(written)
    own_redis.stop()  # which writes out what it has

    size = append_only_file(own_redis.folder).stat().st_size
    kept: Counter[int] = Counter()
    for number, offset in enumerate([size, *(chance.randrange(size // 10, size) for _ in range(CUTS))]):
        folder = own_redis.folder / f"cut{number}"
        shutil.copytree(own_redis.folder, folder, ignore=shutil.ignore_patterns("cut*", "*.sock"))
        os.truncate(append_only_file(folder), offset)
        server = OwnRedis(own_redis.binary, folder)
        try:
            client = server.start("--appendonly", "yes", "--aof-load-truncated", "yes")
            kept[check(with_reserved_of(written, PartitionInRedis(client, 7)))] += 1
        finally:
            server.stop()
        shutil.rmtree(folder)
    assert max(kept) == all_events > 100
    assert len(kept) > min(CUTS, 100) // 2  # they were different states


@pytest.mark.parametrize("command", ["XDEL", "SET", "DEL"])
def test_a_loss_would_be_seen(in_redis, command):
    """An event without its debit, a debit without its event, an open request without its reservation."""
    for key in KEYS:
        in_redis.publish(record_of(key, *LIMITS), NOW)
    for name in "rs":
        in_redis.reserve(name, KEYS[:2], Amounts(1, 2, 3), NOW)
    state = in_redis.client.get(keyspace.state(7, KEYS[0].key_id))
    in_redis.settle("r", Outcome.POST, Amounts(1, 2, 3), event_of("r", ["a", "b"], Amounts(1, 2, 3)), NOW)
    assert check(in_redis) == 1
    stream = keyspace.events(7)
    lost = {
        "XDEL": ("XDEL", stream, in_redis.client.xrange(stream)[0][0]),
        "SET": ("SET", keyspace.state(7, KEYS[0].key_id), state),
        "DEL": ("DEL", keyspace.reservation(7, "s")),
    }
    in_redis.client.execute_command(*lost[command])
    with pytest.raises(AssertionError):
        check(in_redis)
