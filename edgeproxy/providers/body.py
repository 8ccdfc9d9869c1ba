"""Finds members at the top level of a JSON object in its bytes, so that one can be changed without touching the rest.

Only for bodies that a JSON parser has accepted: here brackets and strings are skipped over, not judged. A body comes
from a client and can be 32 MiB of anything, so what is inside a value is skipped by the regular expression engine, and
its quantifiers are possessive (`*+`): they never go back. What is left to walk has a bound (`TooIntricateError`): a
body of nothing but brackets must not hold up a worker's other requests.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import orjson

from edgeproxy.errors import INVALID_FIELD, GatewayError

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_NAME = re.compile(rb"\s*+,?+\s*+(%b)\s*+:\s*+" % _STRING, re.DOTALL)
_SCALAR = re.compile(rb"%b|[^\s,{}\[\]]++" % _STRING, re.DOTALL)
_FLAT = rb'[^"{}\[\]]*+(?:%b[^"{}\[\]]*+)*+' % _STRING  # all but brackets
# The next bracket; lists and objects that hold no other are skipped as a whole, some at a time.
_NEXT_BRACKET = re.compile(rb"%b(?:[\[{]%b[\]}]%b){0,20}+[{}\[\]]" % (_FLAT, _FLAT, _FLAT), re.DOTALL)
_MAX_STEPS = 100_000  # brackets and members: far more than any conversation has, and less than a second
_MAX_PARTS = 1_000_000  # commas and brackets: parsed in a tenth of a second
# An ASCII letter written as an escape: legal, never needed, and able to hide the name of a member from a byte search.
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")


class TooIntricateError(GatewayError):
    """The body has more members or brackets than are walked."""

    def __init__(self) -> None:
        super().__init__(INVALID_FIELD, "The request has more parts than can be checked. Send less.")


@dataclass(frozen=True, slots=True)
class Member:
    """One member of the outermost object: its name, and where its value lies in the bytes (end excluded)."""

    name: str
    start: int
    end: int


def top_level_members(body: bytes) -> Iterator[Member]:
    """Yield the members of the outermost object, in order. `body` has to be a valid JSON object.

    Raises TooIntricateError.
    """
    at = body.index(b"{") + 1
    steps = 0
    while (name := _NAME.match(body, at)) is not None:
        start = name.end()
        if steps > _MAX_STEPS:
            raise TooIntricateError
        at, steps = _value_end(body, start, steps + 1)
        yield Member(orjson.loads(name[1]), start, at)


def ambiguous_member(body: bytes, names: Sequence[str]) -> str | None:
    """Return the first of `names` that stands more than once at the top level of `body`, None when none does.

    The bytes are searched first, which is cheap; the members are walked only when that leaves a doubt.
    """
    count = body.count
    for quoted in _quoted(tuple(names)):
        if count(quoted) > 1:
            break
    else:
        if b"\\u00" not in body or _ESCAPED_LETTER.search(body) is None:
            return None
    found = [member.name for member in top_level_members(body)]
    return next((name for name in names if found.count(name) > 1), None)


@cache
def _quoted(names: tuple[str, ...]) -> tuple[bytes, ...]:
    """Return names as they stand in JSON. The same few lists of names are asked for with every request."""
    return tuple(b'"%b"' % name.encode() for name in names)


def replace_member(body: bytes, name: str, value: bytes) -> bytes:
    """Return `body` with the value of a top-level member replaced, or with the member put first if it is absent."""
    if b'"%b"' % name.encode() in body or _ESCAPED_LETTER.search(body) is not None:
        for member in top_level_members(body):
            if member.name == name:
                return body[: member.start] + value + body[member.end :]
    first = body.index(b"{") + 1
    comma = b"," if _NAME.match(body, first) else b""
    return b'%b"%b":%b%b%b' % (body[:first], name.encode(), value, comma, body[first:])


def with_number_at_most(body: bytes, names: Sequence[str], number: int) -> bytes:
    """Return `body` with each of `names` that says more than `number` lowered to it; with the first if there is none.

    0 and null say more than any number: some servers take a maximum of 0 for none.
    """
    told = []
    for member in top_level_members(body):
        if member.name in names:
            value = orjson.loads(body[member.start : member.end])
            if value is not None:
                told.append((member, float(value)))
    if not told:
        return replace_member(body, names[0], b"%d" % number)
    for member, value in reversed(told):
        if not 0 < value <= number:
            body = b"%b%d%b" % (body[: member.start], number, body[member.end :])
    return body


def refuse_repeated_members(body: bytes) -> None:
    """Raise GatewayError when an object anywhere in `body` has a member twice: parsers differ in which of them counts.

    For what has to be known exactly. It parses the body anew, so one with very many parts is refused before.
    """
    if body.count(b",") + body.count(b"[") + body.count(b"{") > _MAX_PARTS:
        raise TooIntricateError
    try:
        json.loads(body, object_pairs_hook=_single)
    except RecursionError:
        raise TooIntricateError from None


def _single(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) < len(pairs):
        raise GatewayError(INVALID_FIELD, "A field stands twice in an object of the request. Send it once.")


def _value_end(body: bytes, start: int, steps: int) -> tuple[int, int]:
    """Return where the value that begins at `start` ends, and the steps taken until there. Raises TooIntricateError."""
    scalar = _SCALAR.match(body, start)
    if scalar is not None:
        return scalar.end(), steps
    depth = 1
    for bracket in _NEXT_BRACKET.finditer(body, start + 1):
        steps += 1
        if steps > _MAX_STEPS:
            raise TooIntricateError
        end = bracket.end()
        depth += 1 if body[end - 1] in b"{[" else -1
        if not depth:
            return end, steps
    return len(body), steps
