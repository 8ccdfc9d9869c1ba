"""Traps that cost other gateways money, transport or privacy, each seen in real traffic, numbered.

1 to 15 are about money, 16 to 25 about transport, 26 about privacy. Each test says its trap first, then what has to
come of it. Requests go through a running gateway, and bytes are compared on both sides of it. There are no prices yet:
what a price will need to be right is looked at where it is read (`billed`), before it is reduced to what is recorded.
"""

import asyncio
import gzip
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from edgeproxy.config import Provider
from edgeproxy.domain.usage import Usage, UsageEvent
from edgeproxy.gateway.settlement import Settlements
from tests.support.gateway import OPERATOR_SECRET, Gateway, StartGateway, chat, generate, message
from tests.support.raw import Client, read_request, scripted_provider

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
GEMINI = "/v1beta/models/gemini-mock"
GEMINI_STREAM = f"{GEMINI}:streamGenerateContent?alt=sse"
BROKEN = (aiohttp.ClientPayloadError, aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)
STREAM = "text/event-stream"
JSON = "application/json"


def respond(**fields: Any) -> dict[str, Any]:
    """A Responses request of three words."""
    return {"model": "gpt-mock", "input": "one two three", **fields}


REQUESTS: dict[str, dict[str, Any]] = {
    CHAT: chat(),
    RESPONSES: respond(),
    MESSAGES: message(),
    f"{GEMINI}:generateContent": generate(),
    GEMINI_STREAM: generate(),
}
ORDINARY = [CHAT, MESSAGES, f"{GEMINI}:generateContent"]  # one operation of each dialect


def events(*values: Any, newline: str = "\n", named: bool = False) -> bytes:
    """A stream of these values; `named` with an `event:` line before each."""
    whole = ""
    for value in values:
        name = f"event: {value['type']}{newline}" if named and isinstance(value, dict) else ""
        text = value if isinstance(value, str) else json.dumps(value)
        whole += f"{name}data: {text}{newline}{newline}"
    return whole.encode()


def whole_answer(body: bytes, kind: str, *headers: str, status: int = 200, size: int = 100) -> bytes:
    """An HTTP answer in chunks of `size` bytes."""
    lines = [f"HTTP/1.1 {status} Fine", f"content-type: {kind}", "transfer-encoding: chunked", *headers, "", ""]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return "\r\n".join(lines).encode() + framed + b"0\r\n\r\n"


@dataclass
class Scene:
    """A gateway before a provider that gives the answers of a script, and what arrived there: heads and bodies."""

    gateway: Gateway
    secret: str
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def ask(self, path: str, body: Any = None, **options: Any) -> tuple[int, bytes]:
        """Send a request that may be answered as a stream; return status and body of what came."""
        body = REQUESTS[path] if body is None else body
        async with self.gateway.post(path, self.secret, body, **options) as answer:
            return answer.status, await answer.read()

    async def event(self) -> UsageEvent:
        """The record of the latest request."""
        return (await self.gateway.events(self.secret))[-1]


Play = Callable[..., Any]


@pytest.fixture
async def play(start_gateway: StartGateway) -> Play:
    """Make scenes: `async with play(answer, answer, ..., limits=..., SETTING=...) as scene`."""

    @asynccontextmanager
    async def scene(*answers: bytes, limits: tuple[str, ...] = (), **settings: Any) -> AsyncIterator[Scene]:
        waiting = list(answers)
        heads: list[str] = []
        bodies: list[bytes] = []

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while waiting:
                head, body = await read_request(reader)
                heads.append(head.decode("latin-1"))
                bodies.append(body)
                writer.write(waiting.pop(0))
                await writer.drain()

        async with scripted_provider(script) as url:
            gateway = await start_gateway(base_url=url, **settings)
            yield Scene(gateway, await gateway.issue(*limits), heads, bodies)

    return scene


@pytest.fixture
def billed(monkeypatch: pytest.MonkeyPatch) -> list[Usage]:
    """Everything that was read of each answer, in order: a part of it is recorded before there are prices."""
    found: list[Usage] = []
    count = Settlements.count

    def note(self: Settlements, provider: str, usage: Usage) -> None:
        found.append(usage)
        count(self, provider, usage)

    monkeypatch.setattr(Settlements, "count", note)
    return found


async def settled(gateway: Gateway, secret: str) -> UsageEvent:
    """The record of the only request, once it is there."""
    async with asyncio.timeout(10):
        while not (found := await gateway.events(secret)):
            await asyncio.sleep(0.01)
    (event,) = found
    return event


def figures(usage: Usage) -> tuple[int, int, int, int, int, bool]:
    """What is counted: input (not cached, read, written), output, reasoning, and whether it is incomplete."""
    return (
        *(usage.input_uncached, usage.cache_read, usage.cache_write, usage.output, usage.reasoning),
        usage.estimated,
    )


def messages_stream(start: dict[str, Any], *deltas: dict[str, Any]) -> bytes:
    """A Messages stream that begins with some usage and goes on with other."""
    first = {"type": "message_start", "message": {"model": "claude-mock", "usage": start}}
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}
    last = [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage} for usage in deltas]
    return events(first, text, *last, {"type": "message_stop"}, named=True)


# --- Money ----------------------------------------------------------------------------------------------------------


async def test_trap_01_the_top_level_usage_is_not_the_bill(play: Play, billed: list[Usage]) -> None:
    """A compaction and an advisor, which is another model, stand in the iterations only: hundreds of times as much."""
    rows = [
        {"type": "compaction", "input_tokens": 50_000, "output_tokens": 700},
        {"type": "message", "input_tokens": 162, "output_tokens": 11},
        {"type": "advisor_message", "model": "claude-advisor", "input_tokens": 49_195, "output_tokens": 81},
    ]
    body = messages_stream({"input_tokens": 162, "output_tokens": 1}, {"output_tokens": 11, "iterations": rows})
    async with play(whole_answer(body, STREAM)) as scene:
        assert await scene.ask(MESSAGES, message(stream=True)) == (200, body)
        assert figures((await scene.event()).usage) == (99_357, 0, 0, 792, 0, False)
    parts = {part.model: (part.input_total, part.output) for part in billed[0].parts}
    assert parts == {"claude-mock": (50_162, 711), "claude-advisor": (49_195, 81)}


async def test_trap_02_later_figures_replace_earlier_ones_and_may_be_lower(play: Play) -> None:
    """Input grows while tools of the provider run, and what came from a cache can vanish: never added, never kept."""
    start = {"input_tokens": 2225, "cache_read_input_tokens": 55_096, "output_tokens": 1}
    middle = {"input_tokens": 5000, "cache_read_input_tokens": 20_000, "output_tokens": 90}
    end = {"input_tokens": 9447, "cache_read_input_tokens": 0, "output_tokens": 80}
    body = messages_stream(start, middle, end)
    async with play(whole_answer(body, STREAM)) as scene:
        assert await scene.ask(MESSAGES, message(stream=True)) == (200, body)
        assert figures((await scene.event()).usage) == (9447, 0, 0, 80, 0, False)


async def test_trap_03_a_declared_maximum_is_none_where_the_provider_asks_itself_again(play: Play) -> None:
    """A short prompt with web search billed 404,500 tokens: all are charged, and hold up the next request."""
    used = {"input_tokens": 404_500, "output_tokens": 90, "server_tool_use": {"web_search_requests": 14}}
    body = json.dumps({"model": "claude-mock", "usage": used}).encode()
    tools = [{"type": "web_search_20260209", "name": "web_search", "max_uses": 50}]
    async with play(whole_answer(body, JSON), limits=("tokens=10000/1h",)) as scene:
        assert await scene.ask(MESSAGES, message(max_tokens=100, tools=tools)) == (200, body)
        (window,) = (await scene.gateway.usage(scene.secret)).windows
        assert (window.used, window.remaining) == (404_590, 0)
        status, refusal = await scene.ask(MESSAGES, message(max_tokens=1))
        assert (status, json.loads(refusal)["error"]["type"]) == (429, "rate_limit_error")
        assert len(scene.heads) == 1


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        (RESPONSES, {"previous_response_id": "resp_1"}),
        (RESPONSES, {"conversation": "conv_1"}),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "msg_1"}]}),
        (MESSAGES, {"thread": {"id": "thread_1"}}),
        (f"{GEMINI}:generateContent", {"cachedContent": "cachedContents/1"}),
        (f"{GEMINI}:generateContent", {"cached_content": "cachedContents/1"}),
        ("/v1beta/interactions", {"previous_interaction_id": "1"}),
        ("/v1/conversations", {}),
    ],
)
async def test_trap_04_context_that_is_stored_at_the_provider_hides_its_input(
    play: Play, path: str, hidden: dict[str, Any]
) -> None:
    """A request of 200 bytes can bill 500,000 tokens. It is refused by name, and nothing is sent."""
    async with play() as scene:
        status, refusal = await scene.ask(path, REQUESTS.get(path, {}) | hidden)
        assert status == 400
        assert b"'stored_context'" in refusal
        assert scene.heads == []
        assert await scene.gateway.events(scene.secret) == []


async def test_trap_04_stored_context_that_is_allowed_reserves_more_and_is_charged_what_it_was(
    start_gateway: StartGateway,
) -> None:
    """Where the operator allows it, so much is reserved as he says; in the end the real figures count."""
    gateway = await start_gateway(unmetered=["stored_context=1000"])
    for fields, least in (({}, 0), ({"previous_response_id": "resp_1"}, 1000)):
        secret = await gateway.issue("input_tokens=10000/1h")
        body = respond(model="gpt-mock:stall-after-2", stream=True, **fields)
        async with gateway.post(RESPONSES, secret, body) as answer:
            await answer.content.readany()
            (window,) = (await gateway.usage(secret)).windows
            assert least <= window.used < least + 100
    secret = await gateway.issue("input_tokens=2000/1h")
    body = respond(model="gpt-mock:input-500000", previous_response_id="resp_1")
    async with gateway.post(RESPONSES, secret, body) as answer:
        assert answer.status == 200
    assert (await settled(gateway, secret)).usage.input_total == 500_000
    async with gateway.post(RESPONSES, secret, respond()) as answer:
        assert answer.status == 429


@pytest.mark.parametrize(
    ("path", "usage", "output", "reasoning"),
    [
        (CHAT, (12, 2, 334, 320), 322, 320),  # xAI's chat leaves reasoning out
        (RESPONSES, (12, 322, 334, 320), 322, 320),  # its responses do not
        (CHAT, (35, 12, 109, 0), 74, 0),  # thinking that nothing but the total tells of
    ],
)
async def test_trap_05_output_may_leave_reasoning_out_and_the_total_tells(
    play: Play, path: str, usage: tuple[int, int, int, int], output: int, reasoning: int
) -> None:
    """One provider counts reasoning within the output in one API and beside it in another: it is counted once."""
    names = ("prompt_tokens", "completion_tokens", "total_tokens") if path == CHAT else ()
    names = names or ("input_tokens", "output_tokens", "total_tokens")
    row: dict[str, Any] = dict(zip(names, usage, strict=False))
    row[names[1] + "_details"] = {"reasoning_tokens": usage[3]}
    async with play(whole_answer(json.dumps({"usage": row}).encode(), JSON)) as scene:
        await scene.ask(path)
        assert figures((await scene.event()).usage) == (usage[0], 0, 0, output, reasoning, False)


async def test_trap_06_more_can_be_cached_than_there_was(play: Play) -> None:
    """161 cached tokens of a prompt of 7: a subtraction would pay the client."""
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 161}}
    async with play(whole_answer(json.dumps({"usage": usage}).encode(), JSON), limits=("tokens=100/1h",)) as scene:
        await scene.ask(CHAT)
        assert figures((await scene.event()).usage) == (0, 7, 0, 5, 0, False)
        assert (await scene.gateway.usage(scene.secret)).windows[0].used == 12


def generated(text: str, **usage: Any) -> dict[str, Any]:
    """One object of a Gemini stream; the last one has a reason to finish."""
    more = {"finishReason": "STOP"} if text == "end" else {}
    return {"candidates": [{"content": {"parts": [{"text": text}]}, **more}], "usageMetadata": usage}


async def test_trap_07_counters_start_again_in_the_middle_of_a_stream(play: Play) -> None:
    """Each hop counts from nothing, some objects have no counts, and only the last one has the whole request's."""
    body = events(
        generated("a", promptTokenCount=169, candidatesTokenCount=300, totalTokenCount=469),
        generated("b", promptTokenCount=79, candidatesTokenCount=4, totalTokenCount=83),
        {"usageMetadata": {"trafficType": "ON_DEMAND"}},
        generated("end", promptTokenCount=248, candidatesTokenCount=30, totalTokenCount=278),
        {"usageMetadata": {"trafficType": "ON_DEMAND"}},
        newline="\r\n",
    )
    async with play(whole_answer(body, STREAM)) as scene:
        assert await scene.ask(GEMINI_STREAM) == (200, body)
        assert figures((await scene.event()).usage) == (248, 0, 0, 30, 0, False)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ((10, 3, 4, 5), (15, 0, 0, 7, 4, False)),
        ((10, None, 4, 0), (10, 0, 0, 4, 4, False)),  # nothing but thoughts: the candidates' count is absent
    ],
)
async def test_trap_08_thoughts_and_what_tools_read_stand_beside_the_other_counts(
    play: Play, usage: tuple[Any, ...], expected: tuple[Any, ...]
) -> None:
    """The total is prompt, tools, candidates and thoughts: tools are billed as input, thoughts as output."""
    names = ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount")
    row = {name: number for name, number in zip(names, usage, strict=True) if number is not None}
    body = json.dumps(generated("end", **row, totalTokenCount=sum(row.values()))).encode()
    async with play(whole_answer(body, JSON)) as scene:
        await scene.ask(f"{GEMINI}:generateContent")
        assert figures((await scene.event()).usage) == expected


async def test_trap_09_usage_need_not_come_last_nor_once(play: Play) -> None:
    """Another chunk can follow the one with the usage; and usage can come in every chunk, each the whole so far."""
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}], "usage": None}
    last = chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}}
    after = {"choices": [], "usage": None, "moderation": {"flagged": False}}
    growing = [row | {"usage": {"prompt_tokens": 9, "completion_tokens": n}} for n, row in enumerate([chunk, last], 1)]
    async with play(
        whole_answer(events(chunk, last, usage, after, "[DONE]"), STREAM), whole_answer(events(*growing), STREAM)
    ) as scene:
        assert await scene.ask(CHAT, chat(stream=True)) == (200, events(chunk, last, after, "[DONE]"))
        assert figures((await scene.event()).usage) == (5, 0, 0, 1, 0, False)
        await scene.ask(CHAT, chat(stream=True))
        assert figures((await scene.event()).usage)[:4] == (9, 0, 0, 2)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES, GEMINI])
async def test_trap_10_the_model_that_served_is_not_always_the_one_that_was_asked(
    gateway: Gateway, billed: list[Usage], path: str, *, stream: bool
) -> None:
    """A price belongs to the model that the answer names; the record keeps the one that was asked for."""
    secret = await gateway.issue()
    if path == GEMINI:
        model = "gemini-mock:alias"
        path = GEMINI + (":alias:streamGenerateContent?alt=sse" if stream else ":alias:generateContent")
        body = generate()
    else:
        model = REQUESTS[path]["model"] + ":alias"
        body = REQUESTS[path] | {"model": model, "stream": stream}
    async with gateway.post(path, secret, body) as answer:
        await answer.read()
    assert (await settled(gateway, secret)).model == model
    assert [usage.model for usage in billed] == [model.removesuffix(":alias") + "-2026-11-21"]


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("on_hang_up", ["drain", "close"])
async def test_trap_11_a_client_that_hangs_up_before_the_last_event_has_nothing_for_free(
    start_gateway: StartGateway, path: str, on_hang_up: str
) -> None:
    """Usage stands at the end. It is read on for the exact count, or stopped and charged from what has passed."""
    gateway = await start_gateway(on_hang_up=on_hang_up)
    secret = await gateway.issue("tokens=1000000/1h")
    model = REQUESTS[path]["model"] + ":chunks-30.interval-10"
    async with gateway.post(
        path, secret, REQUESTS[path] | {"model": model, "stream": True, "max_tokens": 90}
    ) as answer:
        for _ in range(5):
            await answer.content.readany()
        answer.close()
    event = await settled(gateway, secret)
    if on_hang_up == "drain":
        assert figures(event.usage) == (3, 0, 0, 30, 0, False)
    else:
        assert event.usage.estimated
        assert event.usage.input_total > 0
        assert 0 < event.usage.output <= 30
    assert (await gateway.usage(secret)).windows[0].used == event.usage.input_total + event.usage.output


@pytest.mark.parametrize("end", ["incomplete", "failed"])
@pytest.mark.parametrize("stream", [True, False])
async def test_trap_11_a_response_that_is_not_complete_is_billed_all_the_same(
    gateway: Gateway, end: str, *, stream: bool
) -> None:
    """Usage counts whatever became of the response: others have billed nothing for what was cut short."""
    secret = await gateway.issue()
    async with gateway.post(RESPONSES, secret, respond(model=f"gpt-mock:{end}.reasoning-7", stream=stream)) as answer:
        await answer.read()
    assert figures((await settled(gateway, secret)).usage) == (3, 0, 0, 12, 7, False)


async def test_trap_12_a_chat_stream_tells_no_usage_unless_it_is_asked(play: Play) -> None:
    """It is asked for in the client's place, in streams only, and what comes for it never reaches the client."""
    text = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}], "usage": None}
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}
    answer = whole_answer(events(text, usage, "[DONE]"), STREAM, size=7)
    one = whole_answer(json.dumps(usage).encode(), JSON)
    async with play(answer, one, answer) as scene:
        assert await scene.ask(CHAT, chat(stream=True)) == (200, events(text, "[DONE]"))
        assert figures((await scene.event()).usage) == (5, 0, 0, 1, 0, False)
        raw = json.dumps(chat(stream=False)).encode()
        await scene.ask(CHAT, raw)  # where nothing is streamed, the question is an error
        asked = json.dumps(chat(stream=True, stream_options={"include_usage": True})).encode()
        assert (await scene.ask(CHAT, asked))[1] == events(text, usage, "[DONE]")
        assert json.loads(scene.bodies[0]) == chat(stream=True, stream_options={"include_usage": True})
        assert scene.bodies[1:] == [raw, asked]


async def test_trap_12_some_servers_refuse_to_be_asked_for_usage(play: Play) -> None:
    """The question can be switched off for a provider; then bytes pass as they are, and an estimate is charged."""
    text = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}
    raw = json.dumps(chat(stream=True)).encode()
    async with play(whole_answer(events(text, "[DONE]"), STREAM), include_usage=False) as scene:
        assert await scene.ask(CHAT, raw) == (200, events(text, "[DONE]"))
        assert scene.bodies == [raw]
        assert (await scene.event()).usage.estimated


async def test_trap_13_a_long_request_is_priced_by_all_of_its_input(play: Play, billed: list[Usage]) -> None:
    """Beyond some length the whole request costs more, cached input included: so all of it is in one record."""
    used = {
        "prompt_tokens": 300_000,
        "completion_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 250_000, "cache_write_tokens": 40_000},
    }
    async with play(whole_answer(json.dumps({"usage": used}).encode(), JSON)) as scene:
        await scene.ask(CHAT)
        (event,) = await scene.gateway.events(scene.secret)
    assert figures(event.usage) == (10_000, 250_000, 40_000, 10, 0, False)
    assert event.usage.input_total == billed[0].input_total == 300_000
    assert billed[0].parts == ()


async def test_trap_14_a_price_can_hang_on_the_time_of_day(start_gateway: StartGateway) -> None:
    """The record's id holds when the request was admitted, not when its answer, which can take hours, was over."""
    arrived = 0.0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        await read_request(reader)
        arrived = time.time()
        await asyncio.sleep(0.5)
        writer.write(whole_answer(b'{"usage":{"prompt_tokens":1,"completion_tokens":1}}', JSON))
        await writer.drain()

    async with scripted_provider(script) as url:
        gateway = await start_gateway(base_url=url)
        secret = await gateway.issue()
        asked = time.time()
        async with gateway.post(CHAT, secret, chat()) as answer:
            assert answer.headers["x-request-id"] == (await settled(gateway, secret)).id
    event = await settled(gateway, secret)
    assert asked - 0.1 <= event.at_ms / 1000 <= arrived + 0.1
    assert event.latency_ms >= 490


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages/count_tokens", message()),
        (f"{GEMINI}:countTokens", generate()),
        ("/v1/responses/input_tokens", respond()),
        ("/v1/moderations", {"model": "gpt-mock", "input": "one"}),
    ],
)
async def test_trap_15_some_calls_are_free(gateway: Gateway, path: str, body: dict[str, Any]) -> None:
    """Counting tokens tells a number of them and bills none; it counts as a request, and fits whatever is left."""
    secret = await gateway.issue("tokens=1/1h", "requests=9/1h")
    async with gateway.post(path, secret, body) as answer:
        assert answer.status == 200
    assert (await settled(gateway, secret)).usage == Usage()
    assert [window.used for window in (await gateway.usage(secret)).windows] == [0, 1]


async def test_trap_15_what_was_billed_before_is_not_billed_again(play: Play) -> None:
    """A background response is answered before it has used anything, and repeats its usage each time it is fetched."""
    queued = json.dumps({"id": "resp_1", "status": "queued", "usage": None}).encode()
    done = {"type": "response.completed", "response": {"usage": {"input_tokens": 900, "output_tokens": 90}}}
    again = whole_answer(events(done, named=True), STREAM)
    async with play(whole_answer(queued, JSON), again, again, unmetered=["background=500"]) as scene:
        await scene.ask(RESPONSES, respond(background=True))
        usage = (await scene.event()).usage
        assert (usage.estimated, usage.input_total >= 500) == (True, True)
        headers = {"authorization": f"Bearer {scene.secret}"}
        for _ in range(2):
            url = f"{scene.gateway.url}/v1/responses/resp_1?stream=true&starting_after=3"
            async with scene.gateway.session.get(url, headers=headers) as answer:
                assert await answer.read() == events(done, named=True)
            assert (await scene.event()).usage == Usage()


# --- Transport ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [MESSAGES, f"{GEMINI}:streamGenerateContent"])
async def test_trap_16_a_stream_can_come_compressed_although_plain_bytes_were_asked_for(play: Play, path: str) -> None:
    """Nothing but `identity` is asked for; what comes compressed all the same passes as it is, and is read."""
    body, kind = messages_stream({"input_tokens": 4, "output_tokens": 1}, {"output_tokens": 6}), STREAM
    if path != MESSAGES:
        row = generated("end", promptTokenCount=4, candidatesTokenCount=6, totalTokenCount=10)
        body, kind = f"[{json.dumps(row, indent=2)}\n]".encode(), JSON
    packed = gzip.compress(body)
    async with (
        play(whole_answer(packed, kind, "content-encoding: gzip", size=11)) as scene,
        aiohttp.ClientSession(auto_decompress=False, headers={"accept-encoding": "gzip, br"}) as session,
    ):
        headers = {"authorization": f"Bearer {scene.secret}"}
        request = message(stream=True) if path == MESSAGES else generate()
        async with session.post(scene.gateway.url + path, json=request, headers=headers) as answer:
            assert (answer.headers["content-encoding"], await answer.read()) == ("gzip", packed)
        assert "accept-encoding: identity\r\n" in scene.heads[0]
        assert figures((await scene.event()).usage) == (4, 0, 0, 6, 0, False)


@pytest.mark.parametrize(
    "body",
    [
        b'data: {"a":1}\r\n\r\n',
        b'data:{"a":1}\n\n: ping\n\ndata: [DONE]\n\n',
        b"\xef\xbb\xbf: OPENROUTER PROCESSING\n\n\n\nid: 7\nretry: 1\ndata: x\ndata: y\n\nno line at all",
        b'event: message_start\rdata: {"type":\rdata: "message_start"}\r\r',
    ],
)
async def test_trap_17_a_stream_has_no_bytes_of_ours(start_gateway: StartGateway, body: bytes) -> None:
    """Clients fail on a comment, on a missing space or name of an event: what came is what they get, in its pauses."""
    middle = len(body) // 2

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in (body[:middle], body[middle:]):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0.2)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async with scripted_provider(script) as url:
        gateway = await start_gateway(base_url=url)
        secret = await gateway.issue()
        asks = chat(stream=True, stream_options={"include_usage": True})
        for path, request in ((CHAT, asks), (MESSAGES, message(stream=True)), (GEMINI_STREAM, generate())):
            async with gateway.post(path, secret, request) as answer:
                assert await answer.read() == body


@pytest.mark.parametrize("fault", ["cut-after-3", "close-after-3", "cut-after-3.half", "framing-after-3"])
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES, GEMINI])
async def test_trap_18_a_stream_that_ended_early_must_not_look_whole(gateway: Gateway, path: str, fault: str) -> None:
    """SDKs take what ends in order for a success: when the provider breaks off, the client's connection is reset."""
    secret = await gateway.issue()
    if path == GEMINI:
        path, body = f"{GEMINI}:chunks-9.{fault}:streamGenerateContent?alt=sse", generate()
    else:
        body = REQUESTS[path] | {"model": f"{REQUESTS[path]['model']}:chunks-9.{fault}", "stream": True}
    raw = json.dumps(body).encode()
    async with Client(gateway.url) as client:
        client.send(f"POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n")
        client.send(raw)
        received = b""
        try:
            async with asyncio.timeout(10):
                while piece := await client.reader.read(2**16):
                    received += piece
            was_reset = False
        except ConnectionResetError:
            was_reset = True
    assert was_reset
    assert received.startswith(b"HTTP/1.1 200")
    assert not received.endswith(b"0\r\n\r\n")
    assert (await settled(gateway, secret)).usage.estimated


def broken_streams() -> dict[str, tuple[str, bytes]]:
    """Every way in which providers tell in the middle of a stream that it has failed."""
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}}
    delta = {"type": "response.output_text.delta", "delta": "a"}
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    flat = {"type": "error", "code": "server_error", "message": "x", "sequence_number": 9}
    failed = {"type": "response.failed", "response": {"usage": None, "error": {"code": "server_error"}}}
    text = {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    said = generated("end", promptTokenCount=3, candidatesTokenCount=1, totalTokenCount=4)
    gone = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
    return {
        "anthropic": (MESSAGES, events(start, error, named=True)),
        "responses": (RESPONSES, events(delta, error, failed, named=True)),
        "responses, flat": (RESPONSES, events(delta, flat, named=True)),
        "chat": (CHAT, events(text, {"error": {"message": "x", "code": 500}}, "[DONE]")),
        "gemini": (GEMINI_STREAM, events(said, gone, newline="\r\n")),
        "gemini, bare": (GEMINI_STREAM, events(said, newline="\r\n") + json.dumps(gone, indent=2).encode() + b"\n"),
    }


@pytest.mark.parametrize("shape", broken_streams())
async def test_trap_19_an_error_can_come_after_a_status_of_200(play: Play, shape: str) -> None:
    """It passes as it came, and the count is marked as incomplete: no figure in such a stream is the last word."""
    path, body = broken_streams()[shape]
    request = REQUESTS[path] | ({} if path == GEMINI_STREAM else {"stream": True})
    request |= {"stream_options": {"include_usage": True}} if path == CHAT else {}
    async with play(whole_answer(body, STREAM)) as scene:
        assert await scene.ask(path, request) == (200, body)
        event = await scene.event()
    assert (event.status, event.usage.estimated) == (200, True)
    assert event.usage.input_total > 0


@pytest.mark.parametrize("path", ORDINARY)
@pytest.mark.parametrize("limit", ["requests=1/1m", "requests=1/1d"])
async def test_trap_20_clients_retry_as_they_are_told(gateway: Gateway, path: str, limit: str) -> None:
    """A bare 429 keeps them trying for a minute. Each is told in its own words to wait a little, or to stop."""
    secret = await gateway.issue(limit)
    for _ in range(2):
        async with gateway.post(path, secret, REQUESTS[path]) as answer:
            body = await answer.json()
    stops = limit.endswith("d")
    assert answer.status == 429
    assert answer.headers.get("x-should-retry") == ("false" if stops else None)
    assert (float(answer.headers["retry-after"]) > 120) is stops
    error = body["error"]
    if path == CHAT:
        assert (error["code"], error["type"]) == (("insufficient_quota" if stops else "rate_limit_exceeded"),) * 2
    elif path == MESSAGES:
        assert (body["type"], error["type"]) == ("error", "rate_limit_error")
        assert answer.headers["request-id"] == body["request_id"]
    else:
        details = {row["@type"].rpartition(".")[2]: row for row in error["details"]}
        assert error["status"] == "RESOURCE_EXHAUSTED"
        longest = 300  # seconds that Google's own tool waits; it also stops at a limit by the day
        is_daily = "PerDay" in str(details.get("QuotaFailure"))
        assert (is_daily or float(details["RetryInfo"]["retryDelay"].removesuffix("s")) > longest) is stops


@pytest.mark.parametrize(
    ("path", "sent", "first"),
    [
        ("/v1/models", {"authorization": "Bearer {}"}, "gpt-mock"),
        ("/v1/models", {"x-api-key": "{}", "anthropic-version": "2023-06-01"}, "claude-mock"),
        ("/v1/models?limit=1000", {"authorization": "Bearer {}", "anthropic-version": "2026-10-21"}, "claude-mock"),
        ("/v1/models", {"x-goog-api-key": "{}"}, "models/gemini-mock"),
        ("/v1/models?key={}", {}, "models/gemini-mock"),
        ("/v1beta/models", {"x-goog-api-key": "{}"}, "models/gemini-mock"),
    ],
)
async def test_trap_21_one_path_is_shared_by_three_providers(
    gateway: Gateway, path: str, sent: dict[str, str], first: str
) -> None:
    """Clients of all three ask `/v1/models`: what only one of them sends tells who asks."""
    secret = await gateway.issue()
    headers = {name: value.format(secret) for name, value in sent.items()}
    async with gateway.session.get(gateway.url + path.format(secret), headers=headers) as answer:
        body = await answer.json()
    rows = body.get("data") or body["models"]
    assert rows[0].get("name", rows[0].get("id")) == first


@pytest.mark.parametrize("version", ["v1", "v1beta"])
@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent?alt=sse"])
async def test_trap_21_googles_clients_call_two_versions(gateway: Gateway, version: str, method: str) -> None:
    """One of Google's own clients calls `/v1`, the others `/v1beta`: both are served, and sent on as they came."""
    secret = await gateway.issue()
    path = f"/{version}/models/gemini-mock:{method}"
    headers = {"x-goog-api-key": secret}
    async with gateway.session.post(gateway.url + path, json=generate(), headers=headers) as answer:
        assert answer.status == 200
    assert gateway.mock.counts.last.path == path.partition("?")[0]


@pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21", "tomorrow"])
@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_trap_22_one_clients_key_comes_in_two_headers(play: Play, header: str, version: str) -> None:
    """Newer clients send Bearer, older ones `x-api-key`: both are taken. The version is theirs, and is not touched."""
    answer = whole_answer(b'{"usage":{"input_tokens":1,"output_tokens":1}}', JSON)
    async with play(answer) as scene:
        value = scene.secret if header == "x-api-key" else f"Bearer {scene.secret}"
        headers = {header: value, "anthropic-version": version, "anthropic-beta": "a-1,b-2"}
        async with scene.gateway.session.post(
            scene.gateway.url + MESSAGES + "?beta=true", json=message(), headers=headers
        ) as reply:
            assert reply.status == 200
        head = scene.heads[0].lower()
    assert f"\r\nanthropic-version: {version}\r\n" in head
    assert "\r\nanthropic-beta: a-1,b-2\r\n" in head
    assert f"\r\nx-api-key: {OPERATOR_SECRET}\r\n" in head
    assert scene.secret.lower() not in head


async def test_trap_23_a_websocket_is_tried_first(gateway: Gateway) -> None:
    """Answered with 426, the client falls back at once; with anything else it tries for seconds."""
    upgrade = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n"
    async with Client(gateway.url) as client:
        started = time.monotonic()
        client.send(f"GET {RESPONSES} HTTP/1.1\r\nhost: x\r\n{upgrade}\r\n")
        head, _ = await client.answer()
    assert head.startswith(b"HTTP/1.1 426 ")
    assert b"\r\nupgrade: " in head.lower()
    assert time.monotonic() - started < 1
    assert gateway.mock.counts.total.requests == 0


@pytest.mark.claims("OL-2b")
async def test_trap_24_cookies_are_not_shared(play: Play) -> None:
    """Providers set cookies. One client's must not go up with the next one's request, and none comes down."""
    body = b'{"usage":{"input_tokens":1,"output_tokens":1}}'
    async with play(*[whole_answer(body, JSON, "set-cookie: __cf_bm=canary-24; path=/")] * 2) as scene:
        for secret in (scene.secret, await scene.gateway.issue()):
            headers = {"cookie": "canary-25=1"}
            async with scene.gateway.post(MESSAGES, secret, message(), headers=headers) as answer:
                assert "set-cookie" not in answer.headers
                assert await answer.read() == body
        assert len(scene.heads) == 2
        assert "canary" not in "".join(scene.heads).lower()
        assert "cookie" not in "".join(scene.heads).lower()


async def test_trap_24_bodies_and_lines_are_longer_than_servers_expect(play: Play) -> None:
    """A first request has 85 kB, one with images tens of MB; and one line of a stream repeats the whole output."""
    text = "x" * 300_000
    response = {"output": [{"text": text}], "usage": {"input_tokens": 9, "output_tokens": 8}}
    body = events({"type": "response.completed", "response": response}, named=True)
    request = json.dumps(respond(input="y" * 12 * 2**20, stream=True)).encode()
    async with play(whole_answer(body, STREAM, size=5000)) as scene:
        headers = {"authorization": f"Bearer {scene.secret}"}
        url = scene.gateway.url + RESPONSES
        async with scene.gateway.session.post(url, data=io.BytesIO(request), headers=headers) as answer:
            assert (answer.status, await answer.read()) == (200, body)
        assert scene.bodies == [request]
        assert figures((await scene.event()).usage) == (9, 0, 0, 8, 0, False)


async def test_trap_24_no_time_limit_but_the_operators_ends_an_answer(start_gateway: StartGateway) -> None:
    """Five minutes are a library's default and too short for an answer: the limit is a setting, and a generous one."""
    assert Provider().total_timeout_ms >= 30 * 60 * 1000
    slow = message("claude-mock:chunks-20.interval-40", stream=True)
    for total_ms, is_whole in ((400, False), (20_000, True)):
        gateway = await start_gateway(total_timeout_ms=total_ms, silence_timeout_ms=300)
        secret = await gateway.issue()
        received = b""
        async with gateway.post(MESSAGES, secret, slow) as answer:
            try:
                received = await answer.read()
            except BROKEN:
                assert not is_whole
        assert (b"message_stop" in received) is is_whole
        assert (await settled(gateway, secret)).usage.estimated is not is_whole


@pytest.mark.parametrize("accept", [JSON, STREAM, "*/*"])
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES, GEMINI])
@pytest.mark.parametrize("stream", [True, False])
async def test_trap_25_what_a_client_accepts_does_not_tell_whether_it_streams(
    gateway: Gateway, path: str, accept: str, *, stream: bool
) -> None:
    """SDKs accept JSON and ask for streams: only the body counts, wherever in it, or the method in Gemini's path."""
    secret = await gateway.issue()
    if path == GEMINI:
        path, body = (GEMINI_STREAM if stream else f"{GEMINI}:generateContent"), generate()
    else:
        body = {name: REQUESTS[path][name] for name in sorted(REQUESTS[path])} | {"stream": stream}
    async with gateway.post(path, secret, body, headers={"accept": accept}) as answer:
        assert answer.headers["content-type"].partition(";")[0] == (STREAM if stream else JSON)
        await answer.read()
    assert figures((await settled(gateway, secret)).usage) == (3, 0, 0, 5, 0, False)


# --- Privacy --------------------------------------------------------------------------------------------------------

IDENTITY = (
    *("x-claude-code-session-id", "x-codex-turn-metadata", "x-codex-installation-id", "session-id", "thread-id"),
    *("originator", "x-stainless-os", "x-stainless-retry-count", "openai-organization", "openai-project", "referer"),
    *("x-goog-user-project", "x-goog-api-client", "x-forwarded-for", "forwarded", "via", "traceparent", "cookie"),
)
OPERATORS = (
    *("set-cookie", "anthropic-organization-id", "anthropic-workspace-id", "openai-organization", "openai-project"),
    *("x-ratelimit-limit-requests", "anthropic-ratelimit-tokens-limit", "x-amz-cf-id", "cf-ray", "request-id"),
    *("x-request-id", "server", "via", "alt-svc", "traceresponse", "www-authenticate", "x-ds-trace-id"),
)


@pytest.mark.parametrize("status", [200, 404, 429])
@pytest.mark.parametrize("path", ORDINARY)
async def test_trap_26_who_asks_and_who_pays_stay_apart(play: Play, path: str, status: int) -> None:
    """Headers that name a person or a machine do not go up; those that name the operator's account do not come down."""
    answer = whole_answer(b"{}", JSON, *(f"{name}: canary-26" for name in OPERATORS), status=status)
    async with play(answer) as scene:
        headers = {**dict.fromkeys(IDENTITY, "canary-27"), "user-agent": "canary-27"}
        async with scene.gateway.post(path, scene.secret, REQUESTS[path], headers=headers) as reply:
            assert reply.status == status
            assert "canary" not in str(reply.headers)
        assert "canary" not in scene.heads[0].lower()
        assert scene.secret not in scene.heads[0]


async def test_trap_26_a_key_in_a_query_is_neither_sent_on_nor_written_down(
    play: Play, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Google's keys may stand in the address. They are taken from there, and stay out of every other place."""
    ok = whole_answer(json.dumps(generated("end", promptTokenCount=1, candidatesTokenCount=1)).encode(), JSON)
    async with play(ok, b"not HTTP at all\r\n\r\n", whole_answer(b"{}", JSON, status=500)) as scene:
        texts = []
        # Served; the provider breaks off; it fails; its own error; no such path; a key that is none; no HTTP.
        for path in ("generateContent", "generateContent", "generateContent", "nothing", "generateContent?x=\xe9"):
            url = f"{GEMINI}:{path}{'&' if '?' in path else '?'}key={scene.secret}&alt=json"
            async with scene.gateway.session.post(scene.gateway.url + url, json=generate()) as answer:
                texts += [await answer.text(), str(answer.headers)]
        async with scene.gateway.session.post(f"{scene.gateway.url}{GEMINI}:generateContent?key=canary-28") as answer:
            texts += [await answer.text(), str(answer.headers)]
        async with Client(scene.gateway.url) as client:
            client.send(f"POST {GEMINI}:x?key={scene.secret} HTTP/9.9\r\ncontent-length: canary-28\r\n\r\n")
            texts.append((await client.reader.read()).decode())
        assert len(scene.heads) == 3
        assert "?alt=json HTTP" in scene.heads[0]
        texts += [*scene.heads, scene.gateway.metrics.render().decode(), *capfd.readouterr(), caplog.text]
    assert not [text for text in texts if scene.secret in text or "canary-28" in text or "key=" in text]
