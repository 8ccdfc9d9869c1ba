import asyncio
from dataclasses import replace

import pytest

from edgeproxy.control import ledger as module
from edgeproxy.control.keys import create_key, delete_key, revoke_key
from edgeproxy.control.ledger import apply_entries, apply_pending, credit
from edgeproxy.control.publish import publish_key
from edgeproxy.domain.reservations import LimitReason, ReserveStatus
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.hotstate import keyspace
from edgeproxy.store.database import connect


@pytest.fixture
async def issued(control):
    return await create_key(control, name="prepaid", prepaid=True)


@pytest.fixture
def balance(control, issued):
    """Return the balance in Redis and the number of the last entry that Redis has."""

    async def balance():
        counted = await control.publishing.inspect(issued.key.record(control.partitions))
        return counted.balance, counted.ledger

    return balance


@pytest.fixture
def waiting(rows):
    async def waiting():
        return (await rows("SELECT count(*) AS n FROM ledger WHERE NOT applied"))[0]["n"]

    return waiting


async def test_a_key_can_use_what_it_was_credited_and_no_more(control, issued, request_with, balance):
    refused = await request_with(issued.key)
    assert (refused.status, refused.reason) == (ReserveStatus.REFUSED, LimitReason.BALANCE)
    credited = await credit(control, "prepaid", 25, "invoice 1")
    assert credited.to_json() == {
        "id": issued.key.id,
        "tokens": 25,
        "reference": "invoice 1",
        "repeated": False,
        "applied": True,
        "balance": {"left": 25, "held": 0},
    }
    await request_with(issued.key)  # 20 tokens
    assert await balance() == (5, 1)
    assert (await request_with(issued.key)).status is ReserveStatus.REFUSED


async def test_a_reference_is_credited_once(control, issued, balance, rows):
    for repeated in (False, True, True):
        credited = await credit(control, issued.key.id, 25, "invoice 1")
        assert (credited.repeated, credited.applied, credited.row.balance_json()["left"]) == (repeated, True, 25)
    with pytest.raises(OperatorError, match="this reference was used for 25 tokens"):
        await credit(control, issued.key.id, 26, "invoice 1")
    await credit(control, issued.key.id, 25)
    await credit(control, issued.key.id, 25)  # without one, each is another
    assert await balance() == (75, 3)
    assert len(await rows("SELECT * FROM ledger")) == 3


async def test_the_same_payment_told_by_many_at_once_is_credited_once(control, issued, balance, waiting):
    done = await asyncio.gather(*(credit(control, "prepaid", 10, f"invoice {n % 3}") for n in range(12)))
    assert sum(not each.repeated for each in done) == 3
    assert await balance() == (30, 3)
    assert await waiting() == 0


async def test_a_key_that_is_not_prepaid_is_refused_with_the_remedy(control, rows):
    await create_key(control, name="plain")
    with pytest.raises(OperatorError, match=r"not prepaid, so it has no balance; .* keys create --prepaid"):
        await credit(control, "plain", 5)
    assert await rows("SELECT * FROM ledger") == []


async def test_a_revoked_key_is_credited_nothing(control, issued):
    await revoke_key(control, "prepaid")
    with pytest.raises(OperatorError, match="revoked, for good"):
        await credit(control, "prepaid", 5)


@pytest.mark.parametrize(
    ("tokens", "reference", "line"),
    [
        (0, None, "1 to 9007199254740992 tokens"),
        (-5, None, "1 to 9007199254740992 tokens"),
        (2**53 + 1, None, "1 to 9007199254740992 tokens"),
        (5, "", "1 to 200 printable characters"),
        (5, "x" * 201, "1 to 200 printable characters"),
        (5, "two\nlines", "1 to 200 printable characters"),
        (5, " x", "1 to 200 printable characters"),
    ],
)
async def test_what_is_no_credit_is_refused_in_one_line(control, issued, rows, tokens, reference, line):
    with pytest.raises(OperatorError, match=line):
        await credit(control, "prepaid", tokens, reference)
    assert await rows("SELECT * FROM ledger") == []


async def test_all_credits_together_stay_countable(control, issued, balance):
    await credit(control, "prepaid", 2**53 - 1)
    with pytest.raises(OperatorError, match="altogether"):
        await credit(control, "prepaid", 2)
    await credit(control, "prepaid", 1)
    assert await balance() == (2**53, 2)


async def test_without_redis_it_is_stored_and_jobs_apply_it(control, control_without_redis, issued, balance, waiting):
    credited = await credit(control_without_redis, "prepaid", 25)
    assert not credited.applied
    assert credited.to_json()["balance"] is None
    with pytest.raises(StoreUnavailable, match=r"^redis$"):
        await apply_pending(control_without_redis)
    assert await waiting() == 1
    await credit(control, "prepaid", 5)  # applies what came before as well, and first
    assert await balance() == (30, 2)
    assert await apply_pending(control) == 0
    assert await waiting() == 0


async def test_without_postgresql_nothing_is_credited(control, issued, migrated_url, balance):
    away = await connect(migrated_url)
    await away.close()
    with pytest.raises(StoreUnavailable, match=r"^postgresql$"):
        await credit(replace(control, database=away), issued.key.id, 5)
    assert await balance() == (0, 0)


async def test_a_key_that_is_not_published_yet_gets_its_credit_after(control, control_without_redis, request_with):
    issued = await create_key(control_without_redis, name="late", prepaid=True)
    assert not (await credit(control, "late", 20)).applied
    assert await apply_pending(control) == 0
    await publish_key(control, issued.key.id)
    assert await apply_pending(control) == 1
    await request_with(issued.key)


async def test_a_redis_that_was_set_back_is_given_again_what_it_lost(control, issued, redis, balance, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 2)
    record = issued.key.record(control.partitions)
    name = keyspace.state(record.partition, record.id)
    await credit(control, "prepaid", 1)
    older = await redis.get(name)
    for tokens in (10, 100, 1000, 10_000):
        await credit(control, "prepaid", tokens)
    await redis.set(name, older)
    assert (await credit(control, "prepaid", 100_000)).applied
    assert await balance() == (111_111, 6)


async def test_a_redis_that_goes_on_losing_entries_does_not_hold_a_round_up(control, issued, redis, monkeypatch):
    record = issued.key.record(control.partitions)
    name = keyspace.state(record.partition, record.id)
    empty = await redis.get(name)
    await credit(control, "prepaid", 1)
    apply = module._apply

    async def lose(*arguments):
        await redis.set(name, empty)
        status, _ = await apply(*arguments)
        return status, 1

    monkeypatch.setattr(module, "_apply", lose)
    assert not (await credit(control, "prepaid", 2)).applied


async def test_many_keys_are_applied_in_one_round(control, control_without_redis, monkeypatch, waiting):
    monkeypatch.setattr(module, "_BATCH", 2)
    unpublished = await create_key(control_without_redis, name="unpublished", prepaid=True)
    names = [f"k{n}" for n in range(5)]
    for name in names:
        await create_key(control, name=name, prepaid=True)
    for name in [unpublished.key.id, *names * 3]:
        await credit(control_without_redis, name, 5)
    assert await apply_pending(control) == 5
    assert await waiting() == 1


async def test_appliers_at_once_apply_each_entry_once(control, control_without_redis, issued, balance, waiting):
    for _ in range(40):
        await credit(control_without_redis, "prepaid", 1)
    results = await asyncio.gather(*(apply_entries(control, issued.key.id) for _ in range(6)))
    assert all(results)
    assert await balance() == (40, 40)
    assert await waiting() == 0


async def test_whoever_dies_before_it_is_noted_applies_nothing_twice(control, issued, balance, waiting, monkeypatch):
    async def die(*_):
        raise StoreUnavailable("postgresql")

    with monkeypatch.context() as patch:
        patch.setattr(module.ledger, "mark_applied", die)
        with pytest.raises(StoreUnavailable):
            await credit(control, "prepaid", 5)
    assert await waiting() == 1
    assert await apply_pending(control) == 1
    assert await balance() == (5, 1)


async def test_a_deleted_key_leaves_no_entry(control, issued, rows):
    await credit(control, "prepaid", 5)
    await delete_key(control, "prepaid")
    assert await rows("SELECT * FROM ledger") == []
    assert await apply_entries(control, issued.key.id)
