import asyncio

import pytest

from edgeproxy.control.keys import create_key
from edgeproxy.domain.keys import KeyId
from edgeproxy.store import keys, ledger
from edgeproxy.store.database import RowRefused
from edgeproxy.store.ledger import NO_DIFFERENCE, Credited, Difference, Entry, Kind

REQUEST = "0190a000-0000-7000-8000-00000000000a"


@pytest.fixture
async def key_id(control):
    return (await create_key(control, name="prepaid", prepaid=True)).key.id


@pytest.fixture
def add(database):
    """Add a credit as the verbs do: with the key's row held."""

    async def add(key_id, tokens, reference=None):
        async with database.transaction() as connection:
            await keys.read_to_change(connection, key_id)
            return await ledger.add_credit(connection, key_id, tokens, reference)

    return add


async def test_entries_are_numbered_per_key_and_read_in_order(database, control, key_id, add):
    other = (await create_key(control, name="other")).key.id
    assert [await add(key_id, 5), await add(other, 7), await add(key_id, 6, "invoice 1")] == [1, 1, 2]
    async with database.transaction() as connection:
        assert await ledger.add_correction(connection, key_id, REQUEST, Difference(1, -2, 3)) == 3
        assert await ledger.after(connection, key_id, 0, 10) == [
            Entry(1, Kind.CREDIT, NO_DIFFERENCE, 5),
            Entry(2, Kind.CREDIT, NO_DIFFERENCE, 6),
            Entry(3, Kind.CORRECTION, Difference(1, -2, 3), 0),
        ]
        assert [entry.seq for entry in await ledger.after(connection, key_id, 1, 1)] == [2]
        assert await ledger.credited(connection, key_id) == Credited(11, 3)
        assert await ledger.credited(connection, KeyId(REQUEST)) == Credited(0, 0)


async def test_numbers_have_no_gap_whoever_adds_at_once(database, key_id, add):
    assert sorted(await asyncio.gather(*(add(key_id, 1) for _ in range(30)))) == list(range(1, 31))


async def test_a_reference_is_taken_once_per_key(database, control, key_id, add):
    other = (await create_key(control, name="other")).key.id
    await add(key_id, 5, "invoice 1")
    with pytest.raises(RowRefused):
        await add(key_id, 6, "invoice 1")
    await add(other, 6, "invoice 1")
    async with database.transaction() as connection:
        assert await ledger.find_credit(connection, key_id, "invoice 1") == 5
        assert await ledger.find_credit(connection, key_id, "invoice 2") is None


async def test_what_waits_is_found_until_it_is_applied(database, control, key_id, add):
    other = (await create_key(control, name="other")).key.id
    for each in (key_id, key_id, key_id, other):
        await add(each, 1)
    first, second = sorted([key_id, other])
    async with database.transaction() as connection:
        assert await ledger.waiting(connection, keys.FIRST_ID, 10) == [first, second]
        assert await ledger.waiting(connection, first, 10) == [second]
        assert await ledger.waiting(connection, keys.FIRST_ID, 1) == [first]
        await ledger.mark_applied(connection, key_id, 2)
        assert await ledger.first_waiting(connection, key_id) == 3
        await ledger.mark_applied(connection, key_id, 3)
        assert await ledger.first_waiting(connection, key_id) is None
        assert await ledger.waiting(connection, keys.FIRST_ID, 10) == [other]


async def test_a_keys_entries_are_removed_and_others_stay(database, control, key_id, add, rows):
    other = (await create_key(control, name="other")).key.id
    await add(key_id, 1)
    await add(other, 1)
    async with database.transaction() as connection:
        await ledger.delete(connection, key_id)
    assert [str(row["key_id"]) for row in await rows("SELECT key_id FROM ledger")] == [other]


@pytest.mark.parametrize(("tokens", "reference"), [(0, None), (-1, None), (2**63 - 1, "x" * 201), (1, ""), (1, "\0")])
async def test_the_database_itself_refuses_what_is_no_credit(key_id, add, tokens, reference):
    with pytest.raises(RowRefused):
        await add(key_id, tokens, reference)
