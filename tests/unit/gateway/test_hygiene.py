"""The sieve on its own: at every cut, beside the long way, and beside the parser that gets what it passes."""

import re
from collections.abc import Iterable
from itertools import pairwise

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.gateway.hygiene import RULES, Limits, Sieve
from tests.support.hygiene import FILES, Case, cases

BOUNDS = (32_768, 100)
LIMITS = Limits(*BOUNDS)
CASES = [case for name in FILES for case in cases(name, "ep-" + "k" * 45)]
SHORT = [case for case in CASES if len(case.data) < 1500]
HEAD = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\n"


class NothingIsPlain(Limits):
    """Limits that leave all to the long way."""

    def __init__(self) -> None:
        super().__init__(*BOUNDS)
        self.plain = re.compile(b"(?!)")


def sift(pieces: Iterable[bytes], limits: Limits = LIMITS) -> tuple[bytes, Sieve]:
    """Return what passes of the pieces, together, and the sieve."""
    sieve = Sieve(limits)
    return b"".join([sieve.feed(piece) for piece in pieces]), sieve


def rule_of(sieve: Sieve) -> str:
    return "" if sieve.refusal is None else sieve.refusal.name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.place)
def test_each_case_breaks_the_rule_that_it_names_however_it_is_cut(case: Case) -> None:
    passed, sieve = sift([case.data])
    assert rule_of(sieve) == case.rule
    if len(case.data) < 1500:
        bytewise, other = sift(case.data[i : i + 1] for i in range(len(case.data)))
        assert (bytewise, rule_of(other)) == (passed, case.rule)
        assert (other.holds_head, other.is_in_body) == (sieve.holds_head, sieve.is_in_body)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A case in which a few bytes were replaced, removed or repeated."""
    data = bytearray(draw(st.sampled_from(SHORT)).data)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        until = at + draw(st.sampled_from((0, 1, 1, 2, 20)))
        new = draw(
            st.sampled_from((b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b"0", b":", b",", b"\x00", data[at:until] * 2))
        )
        data[at:until] = new
    return bytes(data)


@given(spoilt(), st.lists(st.integers(0, 5000), max_size=8))
def test_where_it_is_cut_does_not_change_what_passes(data: bytes, cuts: list[int]) -> None:
    passed, sieve = sift([data])
    again, other = sift(pieces_of(data, cuts))
    assert again == passed
    assert (other.refusal is None, other.holds_head, other.is_in_body) == (
        sieve.refusal is None,
        sieve.holds_head,
        sieve.is_in_body,
    )


@given(spoilt())
def test_the_short_way_passes_nothing_that_the_long_way_would_not(data: bytes) -> None:
    passed, sieve = sift([data])
    again, other = sift([data], NothingIsPlain())
    assert (again, rule_of(other)) == (passed, rule_of(sieve))
    assert (other.holds_head, other.is_in_body) == (sieve.holds_head, sieve.is_in_body)


class Parsed:
    """What llhttp makes of bytes."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_message_complete(self) -> None:
        self.ended += 1


@given(spoilt())
def test_the_parser_sees_the_same_ends(data: bytes) -> None:
    passed, sieve = sift([data])
    seen = Parsed()
    try:
        httptools.HttpRequestParser(seen).feed_data(passed)
    except (httptools.HttpParserInvalidMethodError, httptools.HttpParserInvalidURLError):
        raise
    except httptools.HttpParserError:
        return  # stricter still, as with a tab after a coding: then that request is refused, too
    assert (seen.begun > seen.ended) == sieve.is_in_body


def test_a_plain_request_passes_as_the_object_that_it_is() -> None:
    data = HEAD + b"Content-Length: 3\r\n\r\nabc"
    assert Sieve(LIMITS).feed(data) is data


def test_a_head_is_held_until_it_is_whole() -> None:
    sieve = Sieve(LIMITS)
    assert sieve.feed(HEAD) == b""
    assert sieve.holds_head
    assert sieve.feed(b"Content-Length: 5\r\n\r\nab") == HEAD + b"Content-Length: 5\r\n\r\nab"
    assert (sieve.holds_head, sieve.is_in_body) == (False, True)
    assert sieve.feed(b"cde" + HEAD) == b"cde"
    assert (sieve.holds_head, sieve.is_in_body) == (True, False)


def test_nothing_passes_after_a_refusal() -> None:
    sieve = Sieve(LIMITS)
    assert sieve.feed(HEAD + b"\r\n" + b"nonsense\r\n\r\n") == HEAD + b"\r\n"
    assert rule_of(sieve) == "request_line"
    assert sieve.feed(HEAD + b"\r\n") == b""


def test_nothing_passes_after_the_last_request() -> None:
    last = HEAD + b"Connection: close\r\n\r\n"
    sieve = Sieve(LIMITS)
    assert sieve.feed(last + HEAD) == last
    assert sieve.feed(HEAD + b"\r\n\x00") == b""
    assert (sieve.refusal, sieve.holds_head, sieve.is_in_body) == (None, False, False)


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket, h2c", b"TLS/1.2", b""])
def test_an_upgrade_is_taken_out_of_a_head(upgrade: bytes) -> None:
    head = HEAD + b"Connection: Upgrade\r\n%bAccept: a\r\n\r\n"
    assert Sieve(LIMITS).feed(head % (b"uPGRADE: " + upgrade + b"\r\n")) == head % b""


def test_a_websocket_is_left_for_its_own_answer_and_ends_the_connection() -> None:
    head = HEAD + b"%bUpgrade: websocket\r\n%b\r\n"
    passed = Sieve(LIMITS).feed(head % (b"Connection: Upgrade\r\n", b"") + b"\x81\x00")
    assert passed == head % (b"", b"connection: close\r\n")


@pytest.mark.parametrize(("size", "rule"), [(1000, ""), (1001, "head_size")])
def test_a_head_may_be_as_large_as_is_allowed(size: int, rule: str) -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\nA: %b\r\n\r\n"
    data = head % (b"b" * (size - len(head) + 2))
    assert len(data) == size
    for limits in (Limits(1000, 10), Limits(1000, 2)):
        for pieces in ([data], [data[:500], data[500:]]):
            assert rule_of(sift(pieces, limits)[1]) == rule
    assert rule_of(sift([data[:1000]], Limits(999, 10))[1]) == "head_size"


def test_a_head_may_have_as_many_headers_as_are_allowed() -> None:
    data = b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\nC: d\r\n\r\n"
    assert rule_of(sift([data], Limits(1000, 3))[1]) == ""
    assert rule_of(sift([data], Limits(1000, 2))[1]) == "header_count"


def test_a_head_that_goes_on_for_ever_is_not_held() -> None:
    sieve = Sieve(Limits(1000, 10))
    for _ in range(101):
        sieve.feed(b"GET /aaaaa")
    assert rule_of(sieve) == "head_size"
    assert not sieve.holds_head


def test_every_rule_says_why_and_where_that_stands() -> None:
    for rule in RULES.values():
        assert rule.source.startswith("RFC ")
        assert rule.why.endswith(".")
        assert rule.kind.status in (400, 431, 501)
