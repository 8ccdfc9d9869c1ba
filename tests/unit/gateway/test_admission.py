"""What a limit does to a request, and what it tells the client."""

import asyncio
import contextlib
import dataclasses
import json
from typing import Any

import aiohttp
import pytest

from edgeproxy.domain.keys import KeyRecord, KeyStatus, Mode, OnLimit, Reserve, partition_of, provider_holder
from edgeproxy.domain.limits import parse_limit, parse_limits
from edgeproxy.gateway.admission import LONGEST_WAIT_MS, RequestIds
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.ledger import HotLedger
from edgeproxy.hotstate.publishing import Publishing
from tests.support.gateway import PARTITIONS, Gateway, StartGateway, chat, message

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"


def test_ids_of_one_moment_differ() -> None:
    ids = RequestIds()
    assert len({ids.next(1_700_000_000_000) for _ in range(1000)}) == 1000


@pytest.mark.claims("OL-8a")
async def test_a_limit_admits_exactly_as_many_as_it_says(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=50/1h")

    async def one() -> int:
        async with gateway.post(CHAT, secret, chat()) as answer:
            await answer.read()
            return int(answer.status)

    statuses = await asyncio.gather(*(one() for _ in range(120)))
    assert (statuses.count(200), statuses.count(429)) == (50, 70)
    assert gateway.mock.counts.total.requests == 50
    assert (await gateway.usage(secret)).totals.requests == 50


@pytest.mark.claims("OL-3b")
async def test_a_short_window_tells_when_to_come_back(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=1/1m", "tokens=100000/1d")
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 429
        error = (await answer.json())["error"]
        assert (error["type"], error["code"]) == ("rate_limit_exceeded", "rate_limit_exceeded")
        assert "requests=1/1m" in error["message"]
        exact_ms = int(answer.headers["retry-after-ms"])
        assert 58_000 < exact_ms <= 61_000
        assert int(answer.headers["retry-after"]) == -(-exact_ms // 1000)
        assert "x-should-retry" not in answer.headers
        assert answer.headers["x-ratelimit-limit-requests"] == "1"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    async with gateway.post(MESSAGES, secret, message()) as answer:
        assert (await answer.json())["error"]["type"] == "rate_limit_error"
        assert answer.headers["anthropic-ratelimit-requests-remaining"] == "0"


@pytest.mark.claims("OL-3b")
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_a_spent_budget_makes_the_client_stop(gateway: Gateway, path: str) -> None:
    secret = await gateway.issue("requests=1/7d")
    body = chat() if path == CHAT else message()
    async with gateway.post(path, secret, body) as answer:
        assert answer.status == 200
    async with gateway.post(path, secret, body) as answer:
        assert answer.status == 429
        assert answer.headers["x-should-retry"] == "false"
        assert int(answer.headers["retry-after-ms"]) > LONGEST_WAIT_MS
        error = (await answer.json())["error"]
    assert error["type"] == ("insufficient_quota" if path == CHAT else "rate_limit_error")


async def test_a_request_that_can_never_fit_says_so(gateway: Gateway) -> None:
    secret = await gateway.issue("output_tokens=50/1m")
    async with gateway.post(CHAT, secret, chat(max_tokens=51)) as answer:
        assert answer.status == 429
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
    async with gateway.post(CHAT, secret, chat(max_tokens=50)) as answer:
        assert answer.status == 200


async def test_concurrency_is_capped_and_freed(gateway: Gateway) -> None:
    secret = await gateway.issue(concurrency=2)
    slow = chat("gpt-mock:chunks-3.interval-ms-300", stream=True)
    async with gateway.post(CHAT, secret, slow) as first, gateway.post(CHAT, secret, slow) as second:
        await first.content.readany()
        await second.content.readany()
        async with gateway.post(CHAT, secret, chat()) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert (await gateway.usage(secret)).open == 2
        first.close()
        second.close()
    async with asyncio.timeout(10):
        while (await gateway.usage(secret)).open:
            await asyncio.sleep(0.01)
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 200


async def test_another_amount_of_a_limit_holds_from_the_next_request_on(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=1/1h")
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 200
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 429
    record = dataclasses.replace(gateway.records[secret], version=2, limits=(parse_limit("requests=2/1h"),))
    await gateway.publish(secret, record)
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 429


async def test_a_small_limit_is_used_up_by_requests_that_declare_no_maximum(gateway: Gateway) -> None:
    secret = await gateway.issue("tokens=100/1h", "output_tokens=60/1h")
    statuses = []
    for _ in range(15):
        async with gateway.post(CHAT, secret, chat()) as answer:  # 3 in, 5 out
            statuses.append(answer.status)
            await answer.read()
    assert statuses[0] == 200
    assert set(statuses) == {200, 429}
    tokens, output = (await gateway.usage(secret)).windows
    assert statuses.count(200) * 8 == tokens.used
    assert tokens.used <= 100
    assert output.used <= 60
    assert tokens.remaining < 30  # what is left is less than the next request's input estimate


async def test_requests_at_once_do_not_share_what_is_left_of_a_small_limit(gateway: Gateway) -> None:
    secret = await gateway.issue("output_tokens=10/1h")
    slow = chat("gpt-mock:first-byte-ms-300")

    async def one() -> int:
        async with gateway.post(CHAT, secret, slow) as answer:
            await answer.read()
            return int(answer.status)

    statuses = await asyncio.gather(*(one() for _ in range(20)))
    assert statuses.count(200) == 1  # the first took all that was left, and gave five back
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 200


async def ask(gateway: Gateway, secret: str, body: dict[str, Any], path: str = CHAT) -> tuple[int, Any]:
    async with gateway.post(path, secret, body) as answer:
        return answer.status, json.loads(await answer.read())


async def test_a_key_that_observes_is_never_refused_and_everything_is_counted(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=2/1h", mode=Mode.OBSERVE, concurrency=1)
    statuses = [(await ask(gateway, secret, chat()))[0] for _ in range(5)]
    assert statuses == [200] * 5
    usage = await gateway.usage(secret)
    assert (usage.totals.requests, usage.windows[0].used, usage.windows[0].remaining) == (5, 5, 0)
    seen = gateway.metrics.registry.get_sample_value("edgeproxy_observed_refusals_total", {"reason": "window"})
    assert seen == 3


async def test_a_strict_key_is_never_over_its_limit_not_by_one(gateway: Gateway) -> None:
    secret = await gateway.issue("tokens=6000/1h", reserve=Reserve.STRICT)
    body = chat("gpt-mock:chunks-40", max_tokens=40)
    answers = [await ask(gateway, secret, body) for _ in range(200)]
    assert {status for status, _ in answers} == {200, 429}
    usage = await gateway.usage(secret)
    assert usage.windows[0].used == usage.totals.input_tokens + usage.totals.output_tokens <= 6000


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (chat(), "max"),  # neither the request nor the configuration has a maximum
        (
            chat(
                max_tokens=9,
                messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/a"}}]}],
            ),
            "",
        ),
    ],
)
async def test_a_strict_key_gets_400_for_what_has_no_bound(gateway: Gateway, body: dict[str, Any], part: str) -> None:
    secret = await gateway.issue("tokens=60000/1h", reserve=Reserve.STRICT)
    status, answer = await ask(gateway, secret, body)
    assert status == 400
    assert part in answer["error"]["message"]
    assert gateway.mock.counts.total.requests == 0
    assert (await gateway.usage(secret)).windows[0].used == 0


async def test_a_key_that_shrinks_asks_for_an_answer_as_long_as_is_left(gateway: Gateway) -> None:
    secret = await gateway.issue("tokens=1000/1h", on_limit=OnLimit.SHRINK)
    body = chat("gpt-mock:chunks-5", max_tokens=4000)
    assert (await ask(gateway, secret, body))[0] == 200
    sent = gateway.mock.counts.last.body_bytes
    assert sent < len(json.dumps(body).encode())  # a smaller number in it
    refusing = await gateway.issue("tokens=1000/1h")
    assert (await ask(gateway, refusing, body))[0] == 429


async def test_a_prepaid_key_stops_when_its_balance_is_used_up(gateway: Gateway) -> None:
    secret = await gateway.issue(prepaid=True, reserve=Reserve.STRICT)
    record = gateway.records[secret]
    body = chat("gpt-mock:chunks-20", max_tokens=20)
    status, answer = await ask(gateway, secret, body)
    assert (status, answer["error"]["type"]) == (429, "insufficient_quota")
    assert "balance" in answer["error"]["message"]
    await HotLedger(Caller(gateway.redis)).credit(record.partition, record.id, 1, 5000)
    while (await ask(gateway, secret, body))[0] == 200:
        pass
    usage = await gateway.usage(secret)
    assert usage.held == 0
    assert 0 <= usage.balance == 5000 - usage.totals.input_tokens - usage.totals.output_tokens


class TestLimitsOfTheProvider:
    @staticmethod
    async def publish(gateway: Gateway, *limits: str) -> KeyRecord:
        holder = provider_holder("openai")
        partition = partition_of(holder, PARTITIONS)
        record = KeyRecord(holder, 1, KeyStatus.ACTIVE, partition, parse_limits(limits), None, None, ())
        await Publishing(Caller(gateway.redis)).publish_state(record)
        return record

    async def test_all_keys_share_them_and_a_key_pays_nothing_for_a_refusal(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(limits=["requests=3/1h"])
        record = await self.publish(gateway, "requests=3/1h")
        secrets = [await gateway.issue("requests=50/1h", concurrency=5) for _ in range(2)]
        answers = [await ask(gateway, secret, chat()) for secret in secrets * 3]
        assert [status for status, _ in answers] == [200, 200, 200, 503, 503, 503]
        assert gateway.mock.counts.total.requests == 3
        async with asyncio.timeout(10):
            while [(await gateway.usage(secret)).open for secret in secrets] != [0, 0]:
                await asyncio.sleep(0.01)
        assert [(await gateway.usage(secret)).windows[0].used for secret in secrets] == [2, 1]
        shared = await Publishing(Caller(gateway.redis)).inspect(record)
        assert shared is not None
        assert (shared.totals.requests, shared.open) == (3, 0)
        assert [len(await gateway.events(secret)) for secret in secrets] == [2, 1]

    async def test_a_key_of_the_same_partition_has_both_reservations(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(limits=["requests=100/1h"])
        record = await self.publish(gateway, "requests=100/1h")
        secrets = [await gateway.issue() for _ in range(60)]
        beside = [each for each in secrets if gateway.records[each].partition == record.partition]
        assert beside
        assert [(await ask(gateway, secret, chat()))[0] for secret in beside] == [200] * len(beside)
        async with asyncio.timeout(10):
            while (shared := await Publishing(Caller(gateway.redis)).inspect(record)) is None or shared.open:
                await asyncio.sleep(0.01)
        assert shared.totals.requests == len(beside)

    async def test_nothing_is_admitted_before_they_are_published(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(limits=["requests=3/1h"])
        secret = await gateway.issue("requests=50/1h")
        assert (await ask(gateway, secret, chat()))[0] == 503
        assert (await gateway.usage(secret)).windows[0].used == 0


async def test_a_request_that_is_cancelled_while_it_is_admitted_holds_nothing(start_gateway: StartGateway) -> None:
    """A stop cancels what is open; Redis runs what it was sent all the same."""
    gateway = await start_gateway(stores={"redis_timeout_ms": 5000})
    secret = await gateway.issue("tokens=100000/1h", concurrency=1)
    await ask(gateway, secret, chat())  # its record is remembered
    used = (await gateway.usage(secret)).windows[0].used
    handler = gateway.role._handler  # type: ignore[attr-defined]
    reserve = handler._hot.reserve

    async def cancelled(*arguments: Any, **options: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0.05, task.cancel)
        return await reserve(*arguments, **options)

    handler._hot.reserve = cancelled
    await gateway.redis.client_pause(300)
    with contextlib.suppress(aiohttp.ClientError):
        await ask(gateway, secret, chat())
    handler._hot.reserve = reserve
    async with asyncio.timeout(10):
        while True:
            usage = await gateway.usage(secret)
            if not usage.open and not handler._settlements.open:
                break
            await asyncio.sleep(0.02)
    assert (usage.windows[0].used, usage.totals.requests) == (used, 1)
    assert (await ask(gateway, secret, chat()))[0] == 200
