"""What is open is told to Redis: regularly, and all of it when Redis may have forgotten."""

import asyncio
from collections.abc import Awaitable, Callable

from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.leases import Leases
from tests.support.gateway import PARTITIONS, Gateway, StartGateway, chat, open_partitions

CHAT = "/v1/chat/completions"


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15):
        while not await condition():
            await asyncio.sleep(0.02)


async def forget(gateway: Gateway, secret: str, request_id: str, state: bytes) -> None:
    """Bring Redis back to where it was before the request, as an older file would, and close it."""
    record = gateway.records[secret]
    for partition in range(PARTITIONS):
        await gateway.redis.delete(keyspace.epoch(partition))
    await gateway.redis.delete(keyspace.reservation(record.partition, request_id), keyspace.leases(record.partition))
    name = keyspace.state(record.partition, record.id)
    await gateway.redis.restore(name, 0, state, replace=True)


async def is_closed(gateway: Gateway) -> bool:
    """Whether a key that nothing else is asked of is refused."""
    async with gateway.post(CHAT, await gateway.issue(), chat()) as answer:
        return bool(answer.status == 503)


async def test_what_a_redis_forgot_of_open_requests_is_told_again(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(stores={"lease_ms": 3000})
    secret = await gateway.issue("tokens=100000/1h", concurrency=1)
    record = gateway.records[secret]
    before = await gateway.redis.dump(keyspace.state(record.partition, record.id))
    async with gateway.post(CHAT, secret, chat("gpt-mock:chunks-40.interval-50", stream=True)) as answer:
        await answer.content.readany()
        reserved = (await gateway.usage(secret)).windows[0].used
        await forget(gateway, secret, answer.headers["x-request-id"], before)
        assert (await gateway.usage(secret)).open == 0
        await until(lambda: is_closed(gateway))
        await open_partitions(gateway.redis)

        async def is_announced() -> bool:
            return (await gateway.usage(secret)).open == 1

        await until(is_announced)
        assert (await gateway.usage(secret)).windows[0].used == reserved
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")
    event = await gateway.settled(secret)
    usage = await gateway.usage(secret)
    assert (usage.open, usage.windows[0].used) == (0, event.usage.input_total + event.usage.output)
    assert await gateway.redis.xlen(keyspace.corrections(record.partition)) == 0


async def test_one_that_may_have_been_reaped_is_not_told_again(start_gateway: StartGateway) -> None:
    """Its settlement is handed to the corrections instead, which know whether it was charged."""
    gateway = await start_gateway(stores={"lease_ms": 3_600_000})
    secret = await gateway.issue("tokens=100000/1h")
    record = gateway.records[secret]
    before = await gateway.redis.dump(keyspace.state(record.partition, record.id))
    async with gateway.post(CHAT, secret, chat("gpt-mock:chunks-40.interval-50", stream=True)) as answer:
        await answer.content.readany()
        (reservation,) = gateway.role._settlements.open  # type: ignore[attr-defined]
        reservation.holds[0].renewed_at -= 3_600 + 120  # longer than Redis would remember
        await forget(gateway, secret, answer.headers["x-request-id"], before)
        await until(lambda: is_closed(gateway))
        await open_partitions(gateway.redis)
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")

    async def is_late() -> bool:
        return bool(await gateway.redis.xlen(keyspace.corrections(record.partition)))

    await until(is_late)
    usage = await gateway.usage(secret)
    assert (usage.open, usage.totals.requests, usage.windows[0].used) == (0, 0, 0)


async def test_a_lease_that_is_renewed_is_never_over(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(stores={"lease_ms": 1000})
    secret = await gateway.issue()
    record = gateway.records[secret]
    leases = Leases(Caller(gateway.redis))
    async with gateway.post(CHAT, secret, chat("gpt-mock:chunks-30.interval-100", stream=True)) as answer:
        for _ in range(25):
            seconds, microseconds = await gateway.redis.time()
            assert await leases.expired(record.partition, seconds * 1000 + microseconds // 1000, 10) == []
            await asyncio.sleep(0.1)
        await answer.read()
