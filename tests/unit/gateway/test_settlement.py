"""A reservation has one way out, and a settlement that got lost on the way is sent again."""

import asyncio
from pathlib import Path

import redis.asyncio as redis_asyncio

from edgeproxy.domain.reservations import Note, decode_note
from edgeproxy.domain.usage import decode_event
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.leases import Leases
from tests.support.gateway import Gateway, StartGateway, chat, run_gateway

CHAT = "/v1/chat/completions"


async def test_a_redis_that_lost_its_scripts_gets_them_again(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=10/1h")
    for _ in range(3):
        await gateway.redis.script_flush()
        async with gateway.post(CHAT, secret, chat()) as answer:
            assert answer.status == 200
            await answer.read()
    async with asyncio.timeout(10):
        while len(await gateway.events(secret)) < 3:
            await asyncio.sleep(0.02)
    usage = await gateway.usage(secret)
    assert (usage.totals.requests, usage.open) == (3, 0)


async def test_a_settlement_whose_connection_breaks_is_sent_again_and_counts_once(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=10/1h")
    async with gateway.post(CHAT, secret, chat("gpt-mock:chunks-3.interval-ms-100", stream=True)) as answer:
        await answer.content.readany()
        await drop_connections(gateway.redis)
        assert b"[DONE]" in await answer.read()
    async with asyncio.timeout(10):
        while not await gateway.events(secret):
            await asyncio.sleep(0.02)
    usage = await gateway.usage(secret)
    assert (len(await gateway.events(secret)), usage.totals.requests, usage.open) == (1, 1, 0)
    assert gateway.metrics.registry.get_sample_value("edgeproxy_settlements_lost_total") == 0


async def test_a_settlement_of_a_reservation_that_is_gone_is_handed_to_the_corrections(gateway: Gateway) -> None:
    secret = await gateway.issue()
    record = gateway.records[secret]
    async with gateway.post(CHAT, secret, chat("gpt-mock:chunks-3.interval-ms-50", stream=True)) as answer:
        request_id = answer.headers["x-request-id"]
        await answer.content.readany()
        await gateway.redis.delete(keyspace.reservation(record.partition, request_id))
        await answer.read()
    async with asyncio.timeout(10):
        while not (late := await gateway.redis.xrange(keyspace.corrections(record.partition))):
            await asyncio.sleep(0.02)
    ((_, fields),) = late
    assert decode_event(fields[b"e"]).id == request_id
    async with asyncio.timeout(10):
        while not gateway.metrics.registry.get_sample_value("edgeproxy_late_settlements_total", {"reason": "unknown"}):
            await asyncio.sleep(0.02)


async def test_an_open_request_renews_its_lease_and_tells_what_has_passed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(stores={"lease_ms": 1000})
    secret = await gateway.issue()
    record = gateway.records[secret]
    leases = Leases(Caller(gateway.redis))
    async with gateway.post(CHAT, secret, chat("gpt-mock:chunks-30.interval-100", stream=True)) as answer:
        request_id = answer.headers["x-request-id"]
        seen = 0
        async with asyncio.timeout(20):
            while seen < 15:  # more of the answer than passes in the time of one lease
                pending = await leases.examine(record.partition, request_id)
                assert pending is not None
                seen = pending.so_far.output_tokens
                await asyncio.sleep(0.05)
        assert pending.so_far.input_tokens > 0
        assert decode_note(pending.note) == Note(record.id, "gpt-*")
        await answer.read()


async def test_a_stop_waits_until_redis_has_confirmed(
    redis_url: str, operator_secret: Path, pepper_file: Path, tmp_path: Path, redis: redis_asyncio.Redis
) -> None:
    async with run_gateway(redis_url, operator_secret, pepper_file, tmp_path) as gateway:
        secret = await gateway.issue()
        async with gateway.post(CHAT, secret, chat("gpt-mock:chunks-3.interval-ms-50", stream=True)) as answer:
            await answer.content.readany()
            await redis.script_flush()  # so that the first try is in vain
            await redis.client_pause(500)
            await answer.read()
    gateway.redis = redis
    assert len(await gateway.events(secret)) == 1


async def test_a_stop_settles_an_answer_that_is_read_on_for_a_client_that_left(
    redis_url: str, operator_secret: Path, pepper_file: Path, tmp_path: Path, redis: redis_asyncio.Redis
) -> None:
    async with run_gateway(redis_url, operator_secret, pepper_file, tmp_path) as gateway:
        secret = await gateway.issue()
        async with gateway.post(CHAT, secret, chat("gpt-mock:stall-after-4", stream=True)) as answer:
            await answer.content.readany()
            answer.close()
        await asyncio.sleep(0.1)
    gateway.redis = redis
    (event,) = await gateway.events(secret)
    assert (event.status, event.usage.estimated, (await gateway.usage(secret)).open) == (200, True, 0)


async def drop_connections(redis: redis_asyncio.Redis) -> None:
    """Have Redis close every connection to this database but the one that asks."""
    own = await redis.client_info()
    for row in await redis.client_list():
        if row["id"] != str(own["id"]) and row["db"] == str(own["db"]):
            await redis.client_kill_filter(_id=row["id"])


async def test_a_reserve_whose_reply_did_not_come_is_given_back(start_gateway: StartGateway) -> None:
    """Redis is frozen for longer than a request waits for it, and runs the reserve when it goes on."""
    gateway = await start_gateway(stores={"redis_timeout_ms": 200})
    secret = await gateway.issue("tokens=100000/1h", concurrency=1)
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 200
    used = (await gateway.usage(secret)).windows[0].used
    freezing = asyncio.ensure_future(gateway.redis.execute_command("DEBUG", "SLEEP", "0.6"))
    await asyncio.sleep(0.05)
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    await freezing
    async with asyncio.timeout(10):
        while (usage := await gateway.usage(secret)).open:
            await asyncio.sleep(0.05)
    assert (usage.windows[0].used, usage.totals.requests) == (used, 1)
    assert len(await gateway.events(secret)) == 1
    assert gateway.mock.counts.total.requests == 1
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 200
