"""A reservation has one way out, and a settlement that got lost on the way is sent again."""

import asyncio
from pathlib import Path

import pytest
import redis.asyncio as redis_asyncio

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


async def test_a_settlement_of_a_reservation_that_is_gone_is_reported(
    gateway: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = await gateway.issue()
    async with gateway.post(CHAT, secret, chat("gpt-mock:chunks-3.interval-ms-50", stream=True)) as answer:
        await answer.content.readany()
        await gateway.redis.flushdb()
        await answer.read()
    async with asyncio.timeout(10):
        while not gateway.metrics.registry.get_sample_value("edgeproxy_settlements_lost_total"):
            await asyncio.sleep(0.02)
    assert '"settlement_lost"' in capfd.readouterr().err


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
        while len(events := await gateway.events(secret)) < 2:
            await asyncio.sleep(0.05)
    usage = await gateway.usage(secret)
    assert (usage.open, usage.windows[0].used) == (0, used)
    assert (events[1].status, events[1].usage.input_total) == (503, 0)
    assert gateway.mock.counts.total.requests == 1
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 200
