import pytest

from edgeproxy.domain.keys import KeyId
from edgeproxy.store import outbox
from edgeproxy.store.outbox import Action, Change


def change(version, action=Action.PUBLISH, key=1):
    return Change(KeyId(f"0190a000-0000-7000-8000-{key:012x}"), version, action, f"{key:064x}")


@pytest.fixture
async def connection(database):
    async with database.transaction() as opened:
        yield opened


async def test_the_latest_change_of_a_key_waits_alone(connection):
    for version in (1, 3, 2):
        await outbox.add(connection, change(version))
    assert await outbox.waiting(connection, 10) == [change(3)]


async def test_changes_wait_in_order_and_within_the_bound(database):
    for key in (3, 1, 2):
        async with database.transaction() as connection:
            await outbox.add(connection, change(1, key=key))
    async with database.transaction() as connection:
        assert await outbox.waiting(connection, 2) == [change(1, key=3), change(1, key=1)]


async def test_a_publication_takes_away_what_it_covers_and_nothing_newer(connection):
    await outbox.add(connection, change(5))
    await outbox.remove_published(connection, change(5).key_id, 4)
    assert await outbox.waiting(connection, 10) == [change(5)]
    await outbox.remove_published(connection, change(5).key_id, 5)
    assert await outbox.waiting(connection, 10) == []


async def test_an_erasure_replaces_a_publication_and_is_replaced_by_none(connection):
    erasure = change(2, Action.ERASE)
    await outbox.add(connection, change(2))
    await outbox.add(connection, erasure)
    await outbox.add(connection, change(9))
    await outbox.remove_published(connection, erasure.key_id, 9)
    assert await outbox.waiting(connection, 10) == [erasure]
    await outbox.remove_erased(connection, erasure.key_id)
    assert await outbox.waiting(connection, 10) == []
