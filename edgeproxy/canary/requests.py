"""The requests of a run: every dialect, every field that can hold content, a marker in each; and what is no request.

Bytes only: nothing here connects. Names of models are plain words, because they are counted and kept; so only a name
that is not served holds a marker.
"""

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from edgeproxy.canary.markers import Markers

New = Callable[[str], str]
_BOUNDARY = "canary-boundary"
_ANTHROPIC = {"anthropic-version": "2023-06-01"}


@dataclass(frozen=True, slots=True)
class Sent:
    """One request as it is written. `pauses_at`: where it stops for a while; `listener` is api, web or metrics."""

    name: str
    data: bytes
    listener: str = "api"
    pauses_at: int = 0


@dataclass(frozen=True, slots=True)
class Models:
    """Which model each dialect is asked for."""

    openai: str
    anthropic: str
    gemini: str


def behaving(behaviour: str) -> Models:
    """Return the names with which the upstream of our own behaves so."""
    return Models(*[f"canary-{behaviour}"] * 3)


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes requests with the markers of a run, sent with one key to one host."""

    markers: Markers
    key: str
    host: str = "canary.invalid"

    # --- what is served

    def everything(self, models: Models) -> Iterator[Sent]:
        """Yield a request for each operation of each dialect, unary."""
        for name, path, body in self._openai(models.openai):
            yield self._json(name, path, body, self._bearer(name))
        for name, path, body in self._anthropic(models.anthropic):
            yield self._json(name, path, body, self._x_api_key(name))
        for name, path, body in self._gemini(models.gemini):
            yield self._json(name, path, body, self._x_goog(name))
        yield self._transcription(models.openai)

    def conversations(self, models: Models, *, stream: bool) -> list[Sent]:
        """Return a conversation in each dialect, in a stream or not."""
        openai, responses = list(self._openai(models.openai))[:2]
        (messages, *_), (generate, *_) = list(self._anthropic(models.anthropic)), list(self._gemini(models.gemini))
        told = {"stream": True} if stream else {}
        path = f"{generate[1].partition(':')[0]}:streamGenerateContent?alt=sse" if stream else generate[1]
        return [
            self._json(openai[0], openai[1], openai[2] | told, self._bearer(openai[0])),
            self._json(responses[0], responses[1], responses[2] | told, self._bearer(responses[0])),
            self._json(messages[0], messages[1], messages[2] | told, self._x_api_key(messages[0])),
            self._json(generate[0], path, generate[2], self._x_goog(generate[0])),
        ]

    def halted(self, models: Models) -> Sent:
        """Return a request that stops in the middle of its body for a while."""
        whole = self.conversations(models, stream=False)[0]
        return Sent("an upload that halts", whole.data, pauses_at=len(whole.data) - 200)

    def _openai(self, model: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        new = self._of("openai chat")
        image, sound = self._image(new("image")), _encoded(b"RIFF" + new("sound").encode())
        parts = [
            {"type": "text", "text": new("prompt")},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
            {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        ]
        call = {"name": new("tool"), "arguments": json.dumps({"city": new("tool arguments")})}
        messages = [
            {"role": "system", "content": new("system")},
            {"role": "user", "name": new("name"), "content": parts},
            {"role": "assistant", "tool_calls": [{"id": new("call id"), "type": "function", "function": call}]},
            {"role": "tool", "tool_call_id": new("call id"), "content": new("tool result")},
        ]
        yield (
            "openai chat",
            f"/v1/chat/completions?q={new('query')}&key2={new('query')}",
            {
                "model": model,
                "messages": messages,
                "max_tokens": 50,
                "user": new("user"),
                "safety_identifier": new("safety identifier"),
                "prompt_cache_key": new("cache key"),
                "metadata": {new("name of metadata"): new("metadata")},
                "stop": [new("stop")],
                "tools": [_tool(new)],
                new("unknown field"): new("unknown value"),
            },
        )
        new = self._of("openai responses")
        call = {"type": "function_call", "call_id": new("call id"), "name": new("tool"), "arguments": new("arguments")}
        yield (
            "openai responses",
            "/v1/responses",
            {
                "model": model,
                "instructions": new("system"),
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": new("prompt")}]},
                    call,
                    {"type": "function_call_output", "call_id": new("call id"), "output": new("tool result")},
                ],
                "max_output_tokens": 50,
                "store": False,
                "user": new("user"),
                "metadata": {"a": new("metadata")},
            },
        )
        for path, field, more in (
            ("completions", "prompt", {"suffix": "suffix", "max_tokens": 20}),
            ("embeddings", "input", {}),
            ("moderations", "input", {}),
            ("images/generations", "prompt", {}),
            ("audio/speech", "input", {"voice": "alloy", "instructions": "instructions"}),
        ):
            new = self._of(f"openai {path}")
            texts = {name: new(name) if name == value else value for name, value in more.items()}
            yield f"openai {path}", f"/v1/{path}", {"model": model, field: new(field), "user": new("user")} | texts

    def _anthropic(self, model: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for operation, path in (("messages", "/v1/messages"), ("count", "/v1/messages/count_tokens")):
            new = self._of(f"anthropic {operation}")
            source = {"type": "base64", "media_type": "image/png", "data": self._image(new("image"))}
            document = {"type": "text", "media_type": "text/plain", "data": new("document")}
            called = {"type": "tool_use", "id": new("call id"), "name": new("tool"), "input": {"a": new("arguments")}}
            result = {"type": "tool_result", "tool_use_id": new("call id"), "content": new("tool result")}
            content = [
                {"type": "text", "text": new("prompt")},
                {"type": "image", "source": source},
                {"type": "document", "source": document, "title": new("file name"), "context": new("context")},
            ]
            body = {
                "model": model,
                "system": [{"type": "text", "text": new("system")}],
                "messages": [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": [called]},
                    {"role": "user", "content": [result]},
                ],
                "tools": [{"name": new("tool"), "description": new("tool"), "input_schema": {"type": "object"}}],
            }
            more = {"max_tokens": 50, "metadata": {"user_id": new("user")}, "stop_sequences": [new("stop")]}
            yield (
                f"anthropic {operation}",
                f"{path}?beta={new('query')}",
                body | (more if operation == "messages" else {}),
            )

    def _gemini(self, model: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        new = self._of("gemini generate")
        parts = [
            {"text": new("prompt")},
            {"inlineData": {"mimeType": "image/png", "data": self._image(new("image")), "displayName": new("file")}},
        ]
        called = {"functionCall": {"name": new("tool"), "args": {"a": new("tool arguments")}}}
        result = {"functionResponse": {"name": new("tool"), "response": {"a": new("tool result")}}}
        contents = [
            {"role": "user", "parts": parts},
            {"role": "model", "parts": [called]},
            {"role": "user", "parts": [result]},
        ]
        config = {"maxOutputTokens": 50, "stopSequences": [new("stop")]}
        yield (
            "gemini generate",
            f"/v1beta/models/{model}:generateContent?key={self.key}&q={new('query')}",
            {
                "systemInstruction": {"parts": [{"text": new("system")}]},
                "contents": contents,
                "generationConfig": config,
                "labels": {"a": new("metadata")},
            },
        )
        one = {"content": {"parts": [{"text": self._of("gemini embed")("prompt")}]}}
        yield "gemini embed", f"/v1beta/models/{model}:embedContent", {"model": f"models/{model}"} | one
        many = {"contents": [{"parts": [{"text": self._of("gemini count")("prompt")}]}]}
        yield "gemini count", f"/v1beta/models/{model}:countTokens", many

    def _transcription(self, model: str) -> Sent:
        new = self._of("openai transcription")
        parts = [f'name="model"\r\n\r\n{model}', f'name="prompt"\r\n\r\n{new("prompt")}']
        named = new("file name")
        parts.append(f'name="file"; filename="{named}.mp3"\r\nContent-Type: audio/mpeg\r\n\r\nID3{new("file")}')
        body = "".join(f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {part}\r\n" for part in parts)
        headers = self._bearer("openai transcription") | {"content-type": f"multipart/form-data; boundary={_BOUNDARY}"}
        data = f"{body}--{_BOUNDARY}--\r\n".encode()
        return Sent("openai transcription", self._request("POST", "/v1/audio/transcriptions", headers, data))

    # --- what is refused

    def refused(self, models: Models) -> Iterator[Sent]:
        """Yield what ends with a 4xx: bodies, paths, methods, models and keys that are not taken."""
        new = self._of("refused")
        bearer = self._bearer("refused") | {"content-type": "application/json"}
        chat = "/v1/chat/completions"
        bodies = {
            "malformed body": b'{"model": "%s", "messages": [{"role": "%s'
            % (models.openai.encode(), new("body").encode()),
            "body that is no object": json.dumps([new("list")]).encode(),
            "body twice": b'{"model":"a","model":"b","x":"%s"}' % new("doubled").encode(),
            "body that is not UTF-8": b'{"model":"%s","x":"\xff\xfe%s"}'
            % (models.openai.encode(), new("bytes").encode()),
            "body of a wrong type": json.dumps({"model": models.openai, "max_tokens": new("number")}).encode(),
            "empty model": json.dumps({"model": "", "messages": new("messages")}).encode(),
            "unknown model": json.dumps({"model": f"{new('model')}", "messages": []}).encode(),
            "model that is no text": json.dumps({"model": {new("model"): 1}}).encode(),
            "UTF-16": json.dumps({"model": models.openai, "x": new("utf-16")}).encode("utf-16"),
        }
        for name, body in bodies.items():
            yield Sent(name, self._request("POST", chat, bearer, body))
            yield Sent(name, self._request("POST", "/v1/messages", bearer | _ANTHROPIC, body))
        packed = gzip.compress(json.dumps({"model": models.openai, "x": new("gzip")}).encode())
        yield Sent("encoded body", self._request("POST", chat, bearer | {"content-encoding": "gzip"}, packed))
        broken = "multipart/form-data; boundary="
        for boundary, part in (("b", f'--b\r\nContent-Disposition: form-data; name="{new("part")}'), ("", new("part"))):
            headers = bearer | {"content-type": broken + boundary}
            yield Sent("broken multipart", self._request("POST", "/v1/audio/transcriptions", headers, part.encode()))
        background = json.dumps({"model": models.openai, "input": new("background"), "background": True}).encode()
        yield Sent("not metered", self._request("POST", "/v1/responses", bearer, background))
        for path in (
            f"/v1/{new('path')}",
            f"/v1/files/{new('path')}",
            f"/v1beta/models/{new('model')}:generateContent",
        ):
            yield Sent("unknown path", self._request("POST", path, bearer, b"{}"))
        yield Sent("unknown method", self._request(f"X{new('method')}".upper(), chat, bearer, b"{}"))
        yield Sent(
            "websocket", self._request("GET", f"/v1/realtime?m={new('query')}", bearer | {"upgrade": "websocket"})
        )
        yield from self._strangers(chat)

    def _strangers(self, chat: str) -> Iterator[Sent]:
        new = self._of("a stranger's")
        body = json.dumps({"model": "any", "messages": [{"role": "user", "content": new("prompt")}]}).encode()
        plain = {"content-type": "application/json"}
        for header, value in (("authorization", "Bearer ep-{}"), ("authorization", "Basic {}"), ("x-api-key", "{}")):
            yield Sent("wrong key", self._request("POST", chat, plain | {header: value.format(new("key"))}, body))
        yield Sent("wrong key", self._request("POST", f"{chat}?key={new('key')}", plain, body))
        altered = self.key[:-1] + ("a" if self.key[-1:] != "a" else "b")
        yield Sent("altered key", self._request("POST", chat, plain | {"authorization": f"Bearer {altered}"}, body))
        yield Sent("health", self._request("GET", f"/healthz?{new('query')}", {"user-agent": new("user agent")}))

    # --- what is no request

    def malformed(self) -> Iterator[Sent]:
        """Yield bytes that are not HTTP, each broken in another place."""
        new, bearer = self._of("malformed head"), f"Authorization: Bearer {self.key}\r\n"
        start = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.host}\r\n{bearer}"
        chunked = f"{start}Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
        texts = {
            "no request line": f"{new('line')}\r\n\r\n",
            "wrong version": f"GET /{new('path')} HTTP/9.9\r\n{bearer}\r\n",
            "line without a colon": f"{start}{new('header')}\r\n\r\n",
            "name with a blank": f"{start}bad {new('header')}: x\r\n\r\n",
            "zero in a header": f"{start}x-a: {new('header')}\0\r\n\r\n",
            "folded header": f"{start}x-a: b\r\n {new('header')}\r\n\r\n",
            "two lengths": f"{start}Content-Length: 5\r\nContent-Length: 6\r\n\r\n{new('body')}",
            "length that is no number": f"{start}Content-Length: {new('length')}\r\n\r\n",
            "length and chunks": f"{start}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{new('body')}",
            "chunk without a size": f"{chunked}{new('size')}\r\n{new('body')}\r\n",
            "chunk that goes on": f"{chunked}3\r\n{new('body')}\r\n0\r\n\r\n",
            "trailer that is broken": f"{chunked}2\r\n{{}}\r\n0\r\n{new('trailer')}\r\n\r\n",
            "huge header": f"{start}x-a: {new('header') * 3000}\r\n\r\n",
            "huge path": f"GET /{new('path') * 3000} HTTP/1.1\r\n\r\n",
            "many headers": start + "".join(f"x-{n}: {new('header')}\r\n" for n in range(150)) + "\r\n",
            "TLS on a plain port": f"\x16\x03\x01\x02\0\x01{new('handshake')}",
            "expectation": f"{start}Expect: {new('expectation')}\r\nContent-Length: 2\r\n\r\n{{}}",
            "PROXY header": f"PROXY TCP4 {new('address')} 1.2.3.4 1 2\r\n{start}\r\n",
            "second request": f"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n{new('pipelined')}\r\n\r\n",
        }
        for name, text in texts.items():
            for listener in ("api", "web"):
                yield Sent(f"malformed: {name}", text.encode("latin-1"), listener)

    def elsewhere(self) -> Iterator[Sent]:
        """Yield requests to the other listeners."""
        new = self._of("usage page")
        usage = f"/api/v1/usage?a={new('query')}"
        yield Sent("usage", self._request("GET", usage, self._bearer("usage page")), "web")
        yield Sent("usage", self._request("GET", usage, {"authorization": f"Bearer {new('key')}"}), "web")
        yield Sent("usage", self._request("GET", f"/{new('path')}", {"cookie": f"session={new('cookie')}"}), "web")
        yield Sent("usage", self._request("POST", usage, {}, json.dumps({"a": new("body")}).encode()), "web")
        page = f"/privacy?a={new('query')}"
        yield Sent("privacy page", self._request("GET", page, self._noise("privacy page")), "web")
        yield Sent("metrics", self._request("GET", f"/metrics?a={self._of('metrics')('query')}", {}), "metrics")
        yield Sent("metrics", self._request("GET", f"/{self._of('metrics')('path')}", {}), "metrics")

    # --- how it is written

    def _of(self, name: str) -> New:
        return lambda what: self.markers.content(f"{name}: {what}")

    def _image(self, text: str) -> str:
        return _encoded(b"\x89PNG\r\n\x1a\n" + text.encode() + bytes(64))

    def _noise(self, name: str) -> dict[str, str]:
        """Return headers that a client may send, and in which anything may stand."""
        new = self._of(name)
        return {
            "user-agent": new("user agent"),
            "x-request-id": new("x-request-id"),
            "x-forwarded-for": new("x-forwarded-for"),
            "referer": f"https://canary.invalid/{new('referer')}",
            "cookie": f"session={new('cookie')}",
            "openai-organization": new("organization"),
            "idempotency-key": new("idempotency key"),
            "x-canary": new("header"),
        }

    def _bearer(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} | self._noise(name)

    def _x_api_key(self, name: str) -> dict[str, str]:
        return {"x-api-key": self.key} | _ANTHROPIC | self._noise(name)

    def _x_goog(self, name: str) -> dict[str, str]:
        return {"x-goog-api-key": self.key} | self._noise(name)

    def _json(self, name: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> Sent:
        data = json.dumps(body).encode()
        return Sent(name, self._request("POST", path, headers | {"content-type": "application/json"}, data))

    def _request(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {path} HTTP/1.1\r\nhost: {self.host}\r\nconnection: close\r\n{lines}"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _tool(new: New) -> dict[str, Any]:
    schema = {"type": "object", "properties": {new("parameter"): {"type": "string", "description": new("parameter")}}}
    function = {"name": new("tool"), "description": new("description of a tool"), "parameters": schema}
    return {"type": "function", "function": function}
