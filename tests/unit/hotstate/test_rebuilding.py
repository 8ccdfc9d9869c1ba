import math
import re
import struct
from importlib import resources

import pytest

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus, partition_of
from edgeproxy.domain.limits import Amounts, Dimension, Limit
from edgeproxy.domain.reservations import RebuildStatus, RebuiltState, encode_note
from edgeproxy.domain.usage import encode_event
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.hotstate import keyspace, rebuilding, scripts
from edgeproxy.hotstate.rebuilding import LAYOUT, HotSums, Known, Rebuilding, decode_state

KEY = KeyId("0190a000-0000-7000-8000-000000000001")
HOME = partition_of(KEY, 4)
LIMIT = Limit(Dimension.TOKENS, 1000, 60_000)
RECORD = KeyRecord(KEY, 3, KeyStatus.ACTIVE, HOME, (LIMIT,), 5, None, ())
DIGEST = "d" * 64
STATE = RebuiltState(
    record=RECORD,
    open=1,
    held=0,
    last_used_ms=1_795_000_000_123,
    totals=Amounts(200, 70_000, 5_000_000_000),
    balance=-5_000_070_000,
    ledger=300,
    windows=(((28_750_000, 30), (28_750_010, 12)),),
)


@pytest.fixture
def hot(control):
    return Rebuilding(control.caller)


def test_the_layout_is_that_of_the_scripts():
    text = (resources.files("edgeproxy.hotstate") / "lua" / "ring.lua").read_text()
    assert int(re.search(r"LAYOUT_VERSION = (\d+)", text)[1]) == LAYOUT
    read = ("LAYOUT", "VERSION", "STATUS", "CONCURRENCY", "OPEN", "LAST_USED_MS", "REQUESTS", "INPUT_TOKENS")
    read += ("OUTPUT_TOKENS", "MODE", "PREPAID", "BALANCE", "HELD", "LEDGER")
    places = {name: int(place) for name, place in re.findall(r"^local ([A-Z_]+) = (\d+)", text, re.MULTILINE)}
    order = re.search(r"-- Header of a state.*?FIRST_WINDOW = (\d+)", text, re.DOTALL)
    assert tuple(re.findall(r"^local ([A-Z_]+) =", order[0], re.MULTILINE))[: len(read)] == read
    assert places["LEDGER"] == len(read) == rebuilding._HEADER


async def test_a_state_that_was_rebuilt_is_read_as_it_was_meant(hot, redis):
    assert await hot.rebuild([(b"", STATE)]) == [RebuildStatus.REBUILT]
    read = await hot.read(HOME, [KEY])
    assert decode_state(read.states[KEY]) == HotSums(3, STATE.totals, STATE.balance, 300, STATE.last_used_ms)
    assert read.last_event == ""


async def test_only_the_state_that_was_seen_is_replaced(hot, redis):
    assert await hot.rebuild([(b"another", STATE)]) == [RebuildStatus.CHANGED]
    assert await hot.rebuild([(b"", STATE)]) == [RebuildStatus.REBUILT]
    assert await hot.rebuild([(b"", STATE)]) == [RebuildStatus.CHANGED]
    raw = await redis.get(keyspace.state(HOME, KEY))
    assert await hot.rebuild([(raw, STATE)]) == [RebuildStatus.REBUILT]


async def test_what_changes_while_it_is_read_is_left_out(hot, redis, monkeypatch):
    await hot.rebuild([(b"", STATE)])
    commands = hot._caller.commands

    async def changed(sent):
        before, entries, after = await commands(sent)
        return [before, entries, [b"changed", *after[1:]]]

    other = KeyId("0190a000-0000-7000-8000-000000000002")
    monkeypatch.setattr(hot._caller, "commands", changed)
    assert (await hot.read(HOME, [KEY, other])).states == {other: b""}


async def test_events_that_wait_are_read_up_to_the_one_that_was_seen(hot, redis, make_event, monkeypatch):
    monkeypatch.setattr(rebuilding, "_EVENTS", 2)
    events = [make_event(KEY) for _ in range(5)]
    for number, event in enumerate(events, start=1):
        await redis.xadd(keyspace.events(HOME), {"e": encode_event(event)}, id=f"{number}-0")
    await redis.xadd(keyspace.events(HOME), {"e": b"junk"}, id="6-0")
    await redis.xadd(keyspace.events(HOME), {"other": b""}, id="7-0")
    assert (await hot.read(HOME, [KEY])).last_event == "7-0"
    assert await hot.waiting(HOME) == events
    assert await hot.waiting(HOME, "3-0") == events[:3]
    assert await hot.waiting((HOME + 1) % 4) == []


async def test_open_requests_are_told_with_whose_they_are(control, hot, redis, monkeypatch):
    monkeypatch.setattr(rebuilding, "_LEASES", 2)
    await hot.rebuild([(b"", STATE)])
    notes = [encode_note(KEY, "gpt-*")] * 3 + [encode_note(KeyId("x"), ""), b"junk", b""]
    for number, note in enumerate(notes):
        arguments = scripts.reserve_args(
            HOME, f"request{number}", [scripts.scope_of(RECORD)], Amounts(1, 2, 3), 1000, note, announce=True
        )
        await control.caller.run("reserve", arguments)
    await redis.zadd(keyspace.leases(HOME), {"nothing behind it": 1})
    found = await hot.opened(HOME)
    assert [(each.id, each.holder, each.model) for each in found] == [
        *((f"request{number}", KEY, "gpt-*") for number in range(3)),
        ("request3", "x", ""),
    ]
    assert found[0].pending.reserved == Amounts(1, 2, 3)
    assert await hot.opened((HOME + 1) % 4) == []


async def test_records_are_published_and_told_by_version(hot, redis):
    newer = "e" * 64
    await redis.set(keyspace.key_record("f" * 64), b"junk")
    assert await hot.versions([DIGEST, "f" * 64]) == [None, None]
    await hot.publish_records([(RECORD, DIGEST), (RECORD, newer)])
    assert await hot.versions([newer, DIGEST]) == [3, 3]
    older = KeyRecord(KEY, 2, KeyStatus.ACTIVE, HOME, (), None, None, ())
    await hot.publish_records([(older, DIGEST)])
    assert await hot.versions([DIGEST]) == [3]
    await hot.replace_records([(older, DIGEST)])
    assert await hot.versions([DIGEST]) == [2]


async def test_everything_of_keys_is_told_and_only_what_is_named_is_forgotten(control, hot, redis, monkeypatch):
    monkeypatch.setattr(rebuilding, "_NAMES", 2)
    holders = [(number % 64, f"0190a000-0000-7000-8000-{number:012x}") for number in range(70)] + [(3, "provider:p")]
    for partition, holder in holders:
        await redis.set(keyspace.state(partition, holder), b"x")
        await redis.hset(keyspace.ring(partition, holder), "a", b"x")
    for stranger in ("another", "{pxx}:state:a", "p01:state:a", "x{p01}:state:a"):
        await redis.set(stranger, b"x")
    await hot.publish_records([(RECORD, DIGEST), (RECORD, "e" * 64)])
    found = [known async for known in hot.known(0)]
    assert len(found) > 10
    assert sorted({holder for known in found for holder in known.holders}) == sorted(holders)
    assert {digest for known in found for digest in known.digests} == {DIGEST, "e" * 64}
    await hot.forget(Known(holders[:69], [DIGEST]))
    left = [known async for known in hot.known(0)]
    assert {holder for known in left for holder in known.holders} == set(holders[69:])
    assert await redis.exists(keyspace.ring(*holders[0])) == 0
    assert await hot.versions([DIGEST, "e" * 64]) == [None, 3]


def packed(*numbers):
    """Numbers as cmsgpack writes them: one byte where that is enough, a double where it is none."""
    forms = [(n.to_bytes() if 0 <= n < 128 else b"\xd3" + n.to_bytes(8, signed=True)) for n in numbers]
    return b"".join(forms)


HEADER = (LAYOUT, 3, 1, 5, 1, 99, 1, 2, 3, 1, 0, -7, 0, 4)


@pytest.mark.parametrize(
    ("number", "raw"),
    [
        *((5, b"\x05"), (127, b"\x7f"), (-1, b"\xff"), (-32, b"\xe0"), (200, b"\xcc\xc8"), (300, b"\xcd\x01\x2c")),
        *((70_000, b"\xce\x00\x01\x11\x70"), (2**40, b"\xcf" + (2**40).to_bytes(8)), (-100, b"\xd0\x9c")),
        *(
            (-300, b"\xd1\xfe\xd4"),
            (-70_000, b"\xd2\xff\xfe\xee\x90"),
            (-(2**40), b"\xd3" + struct.pack(">q", -(2**40))),
        ),
        *((2, b"\xca" + struct.pack(">f", 2)), (2**53, b"\xcb" + struct.pack(">d", 2**53))),
    ],
)
def test_numbers_are_read_in_every_form(number, raw):
    state = decode_state(packed(*HEADER[:11]) + raw + packed(*HEADER[12:]))
    assert state == HotSums(3, Amounts(1, 2, 3), number, 4, 99)


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"\x00", b"\x01" + packed(*HEADER[1:]), packed(*HEADER[:13]), packed(*HEADER[:13]) + b"\xd3\x00"),
        *(packed(*HEADER[:13]) + b"\xa1x", packed(*HEADER[:13]) + b"\xc0", b"\xcb" + struct.pack(">d", math.nan)),
        *(packed(*HEADER[:13]) + b"\xcb" + struct.pack(">d", math.inf), b"\xdb", b"\x80"),
        packed(1, 3, 1, 5, 1, 99, 1, 2, 3) + b"\xa8tokens/1",  # as the layout before this one was
    ],
)
def test_what_is_no_state_of_ours_is_none(raw):
    assert decode_state(raw) is None


@pytest.mark.parametrize("raw", [packed(LAYOUT + 1), packed(LAYOUT + 1, *HEADER[1:]), packed(LAYOUT + 1) + b"\xa1x"])
def test_a_state_of_a_newer_version_is_refused(raw):
    with pytest.raises(OperatorError, match="newer version"):
        decode_state(raw)


async def test_a_redis_that_is_away_is_unavailable(control_without_redis):
    away = Rebuilding(control_without_redis.caller)
    calls = (
        away.read(0, [KEY]),
        away.waiting(0),
        away.opened(0),
        away.versions([DIGEST]),
        away.rebuild([(b"", STATE)]),
    )
    for call in (*calls, away.publish_records([(RECORD, DIGEST)]), away.replace_records([(RECORD, DIGEST)])):
        with pytest.raises(StoreUnavailable):
            await call
