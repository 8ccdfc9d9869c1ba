"""Malformed and ambiguous requests through a running gateway, before a provider that records every byte it gets.

Each case of the corpus gets the answers that it names and no others. What reaches the provider is compared as a whole:
the heads that the gateway writes and the bodies that were understood, so nothing that was hidden can be among them.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from edgeproxy import __version__
from edgeproxy.errors import KINDS
from edgeproxy.gateway.hygiene import RULES
from tests.support.gateway import Gateway, StartGateway
from tests.support.hygiene import FILES, JSON, Case, cases, whole
from tests.support.raw import Client, scripted_provider

FOLLOW_UP = JSON.replace(b"gpt-mock", b"gpt-follow-up")
ANSWER = b'{"usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
ANSWER_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
# Long enough for what comes in one piece, short enough for the cases that wait for the end of it.
BOUNDS = {"head_timeout_ms": 250, "body_silence_ms": 250, "max_body_bytes": 65_536}
STATUSES = {"ok": "200", "bare": "200", "sent": "200", "continue": "100"}
MESSAGES = {f"{kind.message}\n".encode() for kind in KINDS}


@dataclass
class Recorder:
    """A provider that answers whatever ends where its length says, and keeps all that came."""

    url: str = ""
    received: bytearray = field(default_factory=bytearray)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun = b""
        while data := await reader.read(65_536):
            self.received += data
            begun += data
            while (end := begun.find(b"\r\n\r\n") + 4) >= 4:
                end += int(begun[:end].partition(b"content-length: ")[2].partition(b"\r\n")[0])
                if len(begun) < end:
                    break
                begun = begun[end:]
                writer.write(ANSWER_HEAD + ANSWER)

    def taken(self) -> bytes:
        received = bytes(self.received)
        self.received.clear()
        return received

    def expected(self, body: bytes) -> bytes:
        """A request as the gateway writes it."""
        lines = (
            "POST /v1/chat/completions HTTP/1.1",
            f"host: {self.url.removeprefix('http://')}",
            f"user-agent: edgeproxy/{__version__}",
            "accept-encoding: identity",
            "authorization: Bearer sk-operator-secret",
            "content-type: application/json",
            f"content-length: {len(body)}",
        )
        return "\r\n".join((*lines, "\r\n")).encode() + body


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    recorder = Recorder()
    async with scripted_provider(recorder.serve) as recorder.url:
        yield recorder


async def read_answer(client: Client, *, has_body: bool = True) -> tuple[str, bytes, bytes]:
    """Return status, head and body of one answer, which is framed by its length, as the recorder's and ours are."""
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 ")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
    return head[9:12].decode(), head, await client.reader.readexactly(length if has_body else 0)


def check_refusal(case: Case, body: bytes) -> None:
    """A fixed text, or where the body of a request was at fault, an error of its dialect."""
    if body not in MESSAGES:
        assert json.loads(body)["error"]["code"] == RULES[case.rule].kind.code


async def play(client: Client, case: Case) -> None:
    """Send a case, and read what it is to be answered with."""
    client.send(case.data)
    for expected in case.answers:
        status, head, body = await read_answer(client, has_body=expected != "bare")
        assert status == STATUSES.get(expected, expected)
        if expected == "continue":
            client.send(JSON)
        if expected == "ok":
            assert body == b"ok\n"
    if case.closes:
        assert b"connection: close" in head
    if case.rule and case.answers[-1] not in STATUSES:
        check_refusal(case, body)


async def is_closed(client: Client) -> bool:
    try:
        return await client.reader.read() == b""
    except ConnectionResetError:  # what came after the end was not read
        return True


def refusals(gateway: Gateway) -> dict[str, float]:
    samples = (sample for metric in gateway.metrics.malformed.collect() for sample in metric.samples)
    return {sample.labels["rule"]: sample.value for sample in samples if sample.name.endswith("_total")}


async def run_case(case: Case, gateway: Gateway, recorder: Recorder, secret: str) -> None:
    before = refusals(gateway)
    async with asyncio.timeout(10), Client(gateway.url) as client:
        await play(client, case)
        assert recorder.taken() == recorder.expected(JSON) * case.sent
        if case.closes:
            assert await is_closed(client)
        else:
            client.send(whole(secret, FOLLOW_UP))
            status, _, body = await read_answer(client)
            assert (status, body) == ("200", ANSWER)
            assert recorder.taken() == recorder.expected(FOLLOW_UP)
    counted = {rule: count - before.get(rule, 0) for rule, count in refusals(gateway).items()}
    if case.rule:
        assert counted[case.rule] == 1
    assert recorder.taken() == b""


@pytest.mark.parametrize("name", FILES)
async def test_each_case_is_refused_or_forwarded_exactly_as_understood(
    start_gateway: StartGateway, recorder: Recorder, name: str
) -> None:
    gateway = await start_gateway(base_url=recorder.url, bounds=BOUNDS)
    secret = await gateway.issue()
    wrong = []
    for case in cases(name, secret):
        try:
            await run_case(case, gateway, recorder, secret)
        except (AssertionError, TimeoutError, EOFError, OSError, ValueError, KeyError) as error:
            wrong.append(f"{case.place}: {type(error).__name__} {error}")
            recorder.taken()
    assert not wrong, "\n".join(wrong)


def test_the_corpus_is_large_and_breaks_every_rule() -> None:
    found = [case for name in FILES for case in cases(name, "ep-secret")]
    assert len({case.data for case in found}) >= 300
    assert {case.rule for case in found if case.rule} == set(RULES)


async def test_how_bytes_are_cut_changes_nothing(start_gateway: StartGateway, recorder: Recorder) -> None:
    gateway = await start_gateway(base_url=recorder.url, bounds={"max_body_bytes": 65_536})
    secret = await gateway.issue()
    chance = random.Random(4)
    for case in (case for name in FILES for case in cases(name, secret)):
        if "408" in case.answers or "continue" in case.answers or len(case.data) > 2000:
            continue
        byte_by_byte = chance.random() < 0.1
        async with asyncio.timeout(10), Client(gateway.url) as client:
            position = 0
            while position < len(case.data) and not client.writer.is_closing():
                size = 1 if byte_by_byte else chance.choice((1, 2, 3, 50, 200))
                client.send(case.data[position : position + size])
                position += size
                await asyncio.sleep(0)
            sent = 0
            for expected in case.answers:
                status, head, _ = await read_answer(client, has_body=expected != "bare")
                assert status == STATUSES.get(expected, expected), case.place
                sent += expected == "sent"
                if b"connection: close" in head:  # an answer that did not wait for the rest of its question
                    break
            assert recorder.taken() == recorder.expected(JSON) * sent, case.place
