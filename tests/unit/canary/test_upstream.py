import asyncio
import gzip
import json

import pytest

from edgeproxy.canary.markers import Markers
from edgeproxy.canary.requests import Sent, Writer, behaving
from edgeproxy.canary.sending import Sending
from edgeproxy.canary.upstream import Upstream, running


async def asked(upstream: Upstream, sent: Sent) -> bytes:
    host, port = upstream.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent.data)
    try:
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            if b"content-length" not in head:
                return head + await reader.read(-1)
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return head + await reader.readexactly(length)
    finally:
        writer.close()


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("behaviour", ["plain", "gzip", "status-500", "stream", "html", "broken", "head"])
async def test_every_answer_holds_markers_and_what_was_sent_is_remembered(behaviour: str, number: int):
    markers = Markers()
    async with running(markers) as upstream:
        sent = Writer(markers, "key").conversations(behaving(behaviour), stream=behaviour == "stream")[number]
        answer = await asked(upstream, sent)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert markers.tag.encode() in head
        assert markers.tag.encode() in (gzip.decompress(body) if behaviour == "gzip" else body)
        assert any(name.endswith("prompt") for name in upstream.reached)
        if behaviour == "plain":
            assert "usage" in json.dumps(json.loads(body)).lower()


async def test_what_is_held_open_ends_when_it_is_let_go():
    markers = Markers()
    async with running(markers) as upstream:
        sending = Sending({"api": upstream.url})
        sent = Writer(markers, "key").conversations(behaving("hold"), stream=True)[0]
        asking = asyncio.ensure_future(sending.one(sent))
        while not upstream._held:
            await asyncio.sleep(0.01)
        assert not asking.done()
        upstream.let_go()
        await asyncio.wait_for(asking, 10)
        assert sending.statuses == {200: 1}


async def test_a_stream_that_breaks_off_breaks_off():
    markers = Markers()
    async with running(markers) as upstream:
        sent = Writer(markers, "key").conversations(behaving("cut"), stream=True)[0]
        try:
            answer = await asked(upstream, sent)
        except ConnectionError:
            answer = b""
        assert b"[DONE]" not in answer
