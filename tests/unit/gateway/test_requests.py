"""Requests that come whole and plain are read here as aiohttp's parser would read them, or are left to it."""

import asyncio
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.gateway.hygiene import Limits
from edgeproxy.gateway.requests import Request

LIMITS = Limits(16 * 1024, 100)
NOBODY: Any = object()  # a request only hands its connection on

names = st.text("!#$%&'*+.^_`|~09AZaz-", min_size=1, max_size=8)
values = st.text('\t !"(),/:;<=>?@[]{}09AZaz\x80\u00e9\u20ac\udcff', max_size=12)
targets = st.text("!$%&'()*+,-./09:;=?@AZ_az~", max_size=20).map(lambda text: f"/{text}")


def written(method: str, target: str, fields: list[tuple[str, str]], body: bytes) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *(f"{name}:{value}" for name, value in fields)]
    lines += [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*lines, "\r\n"]).encode("utf-8", "surrogateescape") + body


def read_here(data: bytes) -> Request | None:
    found = LIMITS.plain.match(data)
    return None if found is None else Request.plain(NOBODY, data, found.end())


class Quiet(BaseProtocol):
    """What aiohttp's parser is told by; it may pause nothing."""

    def pause_reading(self) -> None:
        return

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's
        return


async def read_by_aiohttp(data: bytes) -> tuple[RawRequestMessage, StreamReader]:
    loop = asyncio.get_running_loop()
    parser = HttpRequestParser(
        Quiet(loop), loop, 2**16, max_line_size=2**16, max_field_size=2**16, max_headers=200, auto_decompress=False
    )
    ((message, content),), _, _ = parser.feed_data(data)
    return message, content


@given(st.sampled_from(("GET", "POST", "DELETE")), targets, st.lists(st.tuples(names, values), max_size=5), st.binary())
def test_a_plain_request_is_what_the_parser_would_have_made_of_it(
    method: str, target: str, fields: list[tuple[str, str]], body: bytes
) -> None:
    data = written(method, target, fields, body)
    request = read_here(data)
    if request is None:
        return
    message, content = asyncio.run(read_by_aiohttp(data))
    other = Request.parsed(NOBODY, message, content)
    assert (request.method, request.raw_path, request.version) == (other.method, other.raw_path, tuple(other.version))
    assert request.headers == {name.lower(): value for name, value in other.headers.items()}
    assert (request.content_length, request.keep_alive) == (other.content_length, other.keep_alive)
    assert (request.take(), request.take()) == (body, b"")
    assert body == (other.content.read_nowait() if body else b"")
    assert request.is_read


@pytest.mark.parametrize(
    "fields",
    [
        [("User-Agent", "a"), ("user-agent", "b")],  # a singleton: aiohttp refuses two
        [("Accept", "a"), ("accept", "b")],  # a list: aiohttp keeps both
        [("X-A", "b ")],
        [("X-A", "b\t")],
        [("Sec-WebSocket-Key1", "b")],
    ],
)
def test_what_the_parser_has_a_word_in_is_left_to_it(fields: list[tuple[str, str]]) -> None:
    assert read_here(written("POST", "/v1/messages", [("X-B", "c")], b"{}")) is not None
    assert read_here(written("POST", "/v1/messages", fields, b"{}")) is None


def test_a_header_is_told_as_often_as_it_stands() -> None:
    plain = read_here(written("GET", "/", [("X-Forwarded-Proto", "https")], b""))
    assert plain is not None
    assert (plain.values("x-forwarded-proto"), plain.values("accept")) == (["https"], [])
    message, content = asyncio.run(read_by_aiohttp(written("GET", "/", [("X-A", "b"), ("x-a", "c")], b"")))
    assert Request.parsed(NOBODY, message, content).values("X-a") == ["b", "c"]


def test_a_whole_body_is_not_read_until_it_was_taken() -> None:
    request = read_here(written("POST", "/", [], b"body"))
    assert request is not None
    assert not request.is_read
    assert request.take() == b"body"
    assert request.is_read


def test_what_could_not_be_read_is_no_request_to_go_on_after() -> None:
    request = Request.refused(NOBODY, EMPTY_PAYLOAD)
    assert (request.keep_alive, request.content_length, request.is_read) == (False, None, True)
