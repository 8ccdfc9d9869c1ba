"""A provider of our own that answers with markers in everything that an answer consists of, and misbehaves on demand.

What it does stands in the name of the model, as in `canary-status-500`. It remembers which markers have reached it:
those that were sent and passed show that the traffic was real.
"""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from edgeproxy.canary.markers import TEXT_LENGTH, Markers

_BEHAVIOUR = re.compile(rb"canary-([a-z0-9-]+)")
_LONGEST_HEAD = 64 << 10
_HOLDS_S = 60.0
_EVENT_PAUSE_S = 0.2  # of a stream that goes on while something is done to the installation
_EVENTS = 6

Answer = tuple[int, str, bytes]  # status, content type, body


@dataclass(slots=True)
class Upstream:
    """What has reached it so far. `url` is where it listens."""

    markers: Markers
    url: str = ""
    reached: set[str] = field(default_factory=set)
    _held: set[asyncio.Event] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while request := await _request(reader):
                self._remember(request)
                if not await self._answer(request, writer) or b"\r\nconnection: close" in request:
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # whoever called has gone, which is part of the play
        finally:
            writer.close()

    def _remember(self, request: bytes) -> None:
        for match in re.finditer(self.markers.tag.encode(), request):
            text = request[match.start() : match.start() + TEXT_LENGTH].decode("ascii", "replace")
            if marker := self.markers.of(text):
                self.reached.add(marker.name)

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False when the connection is over."""
        dialect = _dialect(request)
        named = _BEHAVIOUR.search(request)
        behaviour = named[1].decode() if named else "plain"
        name, _, argument = behaviour.partition("-")

        def new(what: str) -> str:
            return self.markers.content(f"answer of {dialect}, {behaviour}: {what}")

        match name:
            case "status":
                self._write(writer, int(argument), "application/json", _error(dialect, new), new)
            case "html":
                body = f"<html><body>bad gateway {new('page')}</body></html>".encode()
                self._write(writer, 502, "text/html", body, new)
            case "broken":
                body = f'{{"id": "{new("broken JSON")}", "usage": {{'.encode()
                self._write(writer, 200, "application/json", body, new)
            case "gzip":
                body = gzip.compress(_unary(dialect, new))
                self._write(writer, 200, "application/json", body, new, "content-encoding: gzip\r\n")
            case "head":
                writer.write(f"HTTP/1.1 200 {new('reason')}\r\nno colon {new('head')}\0\r\n\r\n{new('body')}".encode())
                return False
            case "mute":
                await self._hold()
                return False
            case "stream" | "cut" | "slow" | "hold":
                return await self._stream(name, dialect, new, writer)
            case _:
                self._write(writer, 200, _content_type(request), _unary(dialect, new), new)
        await writer.drain()
        return True

    def _write(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        content_type: str,
        body: bytes,
        new: Callable[[str], str],
        more: str = "",
    ) -> None:
        head = (
            f"HTTP/1.1 {status} {new('reason')}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {new('x-request-id')}\r\nx-canary: {new('header')}\r\nset-cookie: a={new('cookie')}\r\n"
            f"openai-organization: {new('organization')}\r\n{more}\r\n"
        )
        writer.write(head.encode() + body)

    async def _stream(self, name: str, dialect: str, new: Callable[[str], str], writer: asyncio.StreamWriter) -> bool:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-canary: {new('header')}\r\n"
        writer.write(f"{head}connection: close\r\n\r\n".encode())
        events = _events(dialect, new)
        for at, event in enumerate(events):
            writer.write(event)
            await writer.drain()
            if name == "cut" and at == 1:
                writer.write(b"data: {" + new("event that breaks off").encode())
                await writer.drain()
                writer.transport.abort()
                return False
            if name == "hold" and at == 1:
                await self._hold()
                return False
            if name == "slow":
                await asyncio.sleep(_EVENT_PAUSE_S)
        return False

    def let_go(self) -> None:
        """End all answers that are held open."""
        for each in self._held:
            each.set()

    async def _hold(self) -> None:
        released = asyncio.Event()
        self._held.add(released)
        try:
            await asyncio.wait_for(released.wait(), _HOLDS_S)
        except TimeoutError:
            return
        finally:
            self._held.discard(released)


@asynccontextmanager
async def running(markers: Markers) -> AsyncIterator[Upstream]:
    """Have it listen on a free port of this machine while the block runs."""
    upstream = Upstream(markers)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs is in a task
        tasks.add(task)
        try:
            await upstream.serve(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=_LONGEST_HEAD)
    host, port = server.sockets[0].getsockname()
    upstream.url = f"http://{host}:{port}"
    try:
        yield upstream
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


async def _request(reader: asyncio.StreamReader) -> bytes:
    """Return the next request, head and body; b"" when there is none."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
        return head + body
    length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
    return head + await reader.readexactly(length)


def _dialect(request: bytes) -> str:
    path = request.split(b" ", 2)[1]
    if path.startswith(b"/v1/messages"):
        return "anthropic"
    if path.startswith(b"/v1beta/"):
        return "gemini"
    return "responses" if path.startswith(b"/v1/responses") else "openai"


def _content_type(request: bytes) -> str:
    return "audio/mpeg" if b"/audio/speech" in request.split(b" ", 2)[1] else "application/json"


def _error(dialect: str, new: Callable[[str], str]) -> bytes:
    error = {"type": "invalid_request_error", "message": f"cannot: {new('error')}", "param": new("error's field")}
    if dialect == "gemini":
        error = {"code": "400", "status": "INVALID_ARGUMENT", "message": new("error")}
    return json.dumps({"type": "error", "error": error, "request_id": new("error's id")}).encode()


def _unary(dialect: str, new: Callable[[str], str]) -> bytes:
    """Return an answer with usage, in which everything that can be a text is a marker."""
    text = {"role": "assistant", "content": new("text")}
    answer: dict[str, object]
    match dialect:
        case "anthropic":
            content = [
                {"type": "thinking", "thinking": new("thinking"), "signature": new("signature")},
                {"type": "text", "text": new("text")},
                {"type": "tool_use", "id": new("tool id"), "name": new("tool"), "input": {"a": new("tool arguments")}},
            ]
            usage = {"input_tokens": 5, "output_tokens": 7}
            answer = {"id": new("id"), "type": "message", "role": "assistant", "content": content, "usage": usage}
        case "gemini":
            parts = [{"text": new("text")}, {"functionCall": {"name": new("tool"), "args": {"a": new("arguments")}}}]
            usage = {"promptTokenCount": 5, "candidatesTokenCount": 7, "totalTokenCount": 12}
            answer = {"candidates": [{"content": {"parts": parts}}], "usageMetadata": usage, "responseId": new("id")}
        case "responses":
            output = [{"type": "message", "content": [{"type": "output_text", "text": new("text")}]}]
            usage = {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}
            answer = {"id": new("id"), "object": "response", "status": "completed", "output": output, "usage": usage}
        case _:
            called = {"name": new("tool"), "arguments": json.dumps({"a": new("tool arguments")})}
            text |= {"reasoning_content": new("reasoning"), "tool_calls": [{"id": new("tool id"), "function": called}]}  # type: ignore[dict-item]
            usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
            choices = [{"index": 0, "message": text, "finish_reason": "stop"}]
            answer = {"id": new("id"), "choices": choices, "usage": usage, "system_fingerprint": new("fingerprint")}
    return json.dumps(answer).encode()


def _events(dialect: str, new: Callable[[str], str]) -> list[bytes]:
    """Return the events of a stream, some with a text each, then its usage and its end."""
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    rows: list[tuple[str, dict[str, object]]]
    match dialect:
        case "anthropic":
            message = {"id": new("id"), "usage": {"input_tokens": 5, "output_tokens": 1}}
            deltas = [{"index": 0, "delta": {"type": "text_delta", "text": new("event")}} for _ in range(_EVENTS)]
            rows = [("message_start", {"message": message}), *(("content_block_delta", dict(each)) for each in deltas)]
            rows += [("message_delta", {"delta": {}, "usage": {"output_tokens": 7}}), ("message_stop", {})]
            return [f"event: {n}\ndata: {json.dumps({'type': n} | row)}\n\n".encode() for n, row in rows]
        case "responses":
            done = {"id": new("id"), "status": "completed", "usage": {"input_tokens": 5, "output_tokens": 7}}
            rows = [("response.output_text.delta", {"delta": new("event")}) for _ in range(_EVENTS)]
            rows.append(("response.completed", {"response": done}))
            return [f"event: {n}\ndata: {json.dumps({'type': n} | row)}\n\n".encode() for n, row in rows]
        case "gemini":
            told = {"promptTokenCount": 5, "candidatesTokenCount": 7, "totalTokenCount": 12}
            parts = [{"candidates": [{"content": {"parts": [{"text": new("event")}]}}]} for _ in range(_EVENTS)]
            last = {"candidates": [{"finishReason": "STOP"}], "usageMetadata": told}
            return [f"data: {json.dumps(each)}\r\n\r\n".encode() for each in (*parts, last)]
    choices = [{"id": new("id"), "choices": [{"delta": {"content": new("event")}}]} for _ in range(_EVENTS)]
    chunks = [f"data: {json.dumps(each)}\n\n".encode() for each in (*choices, {"choices": [], "usage": usage})]
    return [*chunks, f": {new('comment')}\n\n".encode(), b"data: [DONE]\n\n"]
