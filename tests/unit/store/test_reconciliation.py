from dataclasses import replace

import pytest

from edgeproxy.control.keys import create_key
from edgeproxy.domain.identifiers import uuid7_ms
from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.limits import Amounts
from edgeproxy.store import reconciliation, usage
from edgeproxy.store.keys import FIRST_ID
from edgeproxy.store.reconciliation import StoredSums, WindowAsked, snapshot

UNKNOWN = KeyId("0190a000-0000-7000-8000-000000000009")
T = 1_795_000_000_000 // 60_000 * 60_000


@pytest.fixture
async def key(control):
    return (await create_key(control, name="k", prepaid=True)).key


@pytest.fixture
def store(database, flusher, add_events):
    """Store events whatever their time is."""

    async def store(*events):
        await add_events(*events)
        assert (await flusher.flush_once()).stored == len(events)

    return store


async def test_ids_come_in_pages_in_order(control, database):
    made = [(await create_key(control, name=f"k{n}")).key.id for n in range(5)]
    async with snapshot(database) as connection:
        first = await reconciliation.key_ids(connection, FIRST_ID, 3)
        rest = await reconciliation.key_ids(connection, first[-1], 3)
    assert [*first, *rest] == sorted(made)


async def test_sums_are_totals_and_the_ledger_as_far_as_redis_has_it(key, database, store, make_event, rows):
    await store(*(make_event(key.id) for _ in range(3)))
    await rows(
        "INSERT INTO ledger (key_id, seq, kind, tokens, request_id, requests, input_tokens, output_tokens, applied)"
        " VALUES ($1, 1, 'credit', 100, NULL, 0, 0, 0, true), ($1, 2, 'correction', 0, $1, 0, 5, -2, true),"
        " ($1, 3, 'correction', 0, $1, 1, 7, 4, false), ($1, 4, 'credit', 30, NULL, 0, 0, 0, false)",
        key.id,
    )
    async with snapshot(database) as connection:
        by_ledger = {n: (await reconciliation.sums(connection, {key.id: n, UNKNOWN: 0})) for n in (0, 1, 2, 4)}
    all_entries = StoredSums(
        version=1,
        digest=key.digest,
        is_prepaid=True,
        totals=Amounts(3, 39, 21),
        corrected=(0, 0, 0),
        ledger=4,
        confirmed_ledger=2,
        credits=130,
        applied_credits=130,
    )
    assert by_ledger[4] == {key.id: all_entries}
    assert by_ledger[2] == {key.id: replace(all_entries, corrected=(1, 7, 4), applied_credits=100)}
    assert by_ledger[1] == {key.id: replace(all_entries, corrected=(1, 12, 2), applied_credits=100)}
    assert by_ledger[0] == {key.id: replace(all_entries, corrected=(1, 12, 2), applied_credits=0)}


async def test_a_key_of_which_nothing_is_stored_has_nothing(key, database):
    async with snapshot(database) as connection:
        (found,) = (await reconciliation.sums(connection, {key.id: 0})).values()
        assert await reconciliation.last_used(connection, [key.id]) == {}
        assert await reconciliation.sums(connection, {}) == {}
        assert await reconciliation.buckets(connection, []) == []
    assert (found.totals, found.ledger, found.credits) == (Amounts(), 0, 0)


async def test_which_ids_and_digests_are_those_of_keys_is_told(control, key, database):
    other = (await create_key(control, name="other")).key
    async with snapshot(database) as connection:
        found = await reconciliation.known(connection, [key.id, UNKNOWN], [other.digest, "f" * 64])
        assert await reconciliation.known(connection, [], []) == set()
    assert found == {key.id, other.digest}


async def test_which_requests_are_stored_is_told(key, database, store, make_event):
    events = [make_event(key.id) for _ in range(2)]
    await store(events[0])
    async with snapshot(database) as connection:
        assert await reconciliation.stored_ids(connection, [event.id for event in events]) == {events[0].id}
        assert await reconciliation.stored_ids(connection, []) == set()


async def test_a_window_is_cut_into_its_buckets(control, key, database, store, make_event):
    other = (await create_key(control, name="other")).key
    times = (T - 60_001, T - 60_000, T - 1, T, T + 59_999)
    await store(*(make_event(key.id, at_ms=at, output=n) for n, at in enumerate(times)), make_event(other.id, at_ms=T))
    asked = [WindowAsked(key.id, 60_000, T - 60_000), WindowAsked(other.id, 1000, 0), WindowAsked(UNKNOWN, 1000, 0)]
    async with snapshot(database) as connection:
        minutes, seconds, nothing = await reconciliation.buckets(connection, asked)
    minute = T // 60_000
    assert minutes == [(minute - 1, Amounts(2, 26, 3)), (minute, Amounts(2, 26, 7))]
    assert seconds == [(T // 1000, Amounts(1, 13, 7))]
    assert nothing == []


async def test_the_last_use_is_when_the_latest_request_was_over(key, database, store, make_event):
    first, last = make_event(key.id, at_ms=T, latency_ms=90_000), make_event(key.id, at_ms=T + 5, latency_ms=40)
    await store(first, last)
    async with snapshot(database) as connection:
        assert await reconciliation.last_used(connection, [key.id, UNKNOWN]) == {key.id: uuid7_ms(last.id) + 40}


async def test_a_snapshot_sees_one_moment_and_changes_nothing(key, database, store, make_event):
    async with snapshot(database) as connection:
        assert (await reconciliation.sums(connection, {key.id: 0}))[key.id].totals == Amounts()
        await store(make_event(key.id))
        assert (await reconciliation.sums(connection, {key.id: 0}))[key.id].totals == Amounts()
    async with database.transaction() as connection:
        assert (await usage.totals(connection, key.id)).requests == 1
