"""What a limit does to a request, and what it tells the client."""

import asyncio
import dataclasses

import pytest

from edgeproxy.config import Model
from edgeproxy.domain.limits import Amounts, parse_limit
from edgeproxy.domain.reservations import ReserveReply, ReserveStatus, WindowLevel
from edgeproxy.gateway.admission import LONGEST_WAIT_MS, RequestIds, Wish, estimate, with_smaller_guess
from edgeproxy.providers.base import RequestFacts
from tests.support.gateway import Gateway, chat, message

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"


@pytest.mark.parametrize(
    ("declared", "model_maximum", "setting", "reserved"),
    [(None, 0, 4096, 4096), (100, 0, 4096, 100), (64_000, 0, 4096, 4096), (64_000, 500, 4096, 500), (0, 0, 4096, 0)],
)
def test_what_is_reserved_of_the_output(declared: int | None, model_maximum: int, setting: int, reserved: int) -> None:
    facts = RequestFacts("m", stream=False, input_estimate=10, output_max=declared)
    assert estimate(facts, Model(max_output_tokens=model_maximum), setting) == Amounts(1, 10, reserved)


def test_ids_of_one_moment_differ() -> None:
    ids = RequestIds()
    assert len({ids.next(1_700_000_000_000) for _ in range(1000)}) == 1000


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


def test_a_guess_is_made_smaller_only_where_that_helps() -> None:
    limits = (parse_limit("requests=1/1m"), parse_limit("tokens=100/1m"), parse_limit("output_tokens=70/1m"))
    guess = Wish("r", "m", Amounts(1, 40, 4096), 1000, guesses_output=True)

    def shrunk(wish: Wish, *remaining: int) -> Wish | None:
        windows = tuple(WindowLevel(each, 0) for each in remaining)
        return with_smaller_guess(wish, ReserveReply(ReserveStatus.REFUSED, 0, 1, 5, windows), limits)

    def output_of(wish: Wish | None) -> int | None:
        return None if wish is None else wish.amounts.output_tokens

    assert output_of(shrunk(guess, 1, 100, 70)) == 60
    assert output_of(shrunk(guess, 1, 100, 7)) == 7
    assert output_of(shrunk(guess, 1, 40, 70)) is None  # not even the input fits beside one token
    assert output_of(shrunk(guess, 0, 9999, 9999)) is None  # another limit refuses
    assert output_of(shrunk(dataclasses.replace(guess, guesses_output=False), 1, 100, 70)) is None
    admitted = ReserveReply(ReserveStatus.ADMITTED, 0, 0, 0, (WindowLevel(1, 0),) * 3)
    assert with_smaller_guess(guess, admitted, limits) is None
