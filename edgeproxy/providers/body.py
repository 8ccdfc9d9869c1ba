"""Finds members at the top level of a JSON object in its bytes, so that one can be changed without touching the rest.

Only for bodies that a JSON parser has accepted: here brackets and strings are skipped over, not judged. A body comes
from a client and can be 32 MiB of anything, so what is inside a value is skipped by the regular expression engine, and
its quantifiers are possessive (`*+`): they never go back.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_NAME = re.compile(rb"\s*+,?+\s*+(%b)\s*+:\s*+" % _STRING, re.DOTALL)
_SCALAR = re.compile(rb"%b|[^\s,{}\[\]]++" % _STRING, re.DOTALL)
_NEXT_BRACKET = re.compile(rb'[^"{}\[\]]*+(?:%b[^"{}\[\]]*+)*+([{}\[\]])' % _STRING, re.DOTALL)
# An ASCII letter written as an escape: legal, never needed, and able to hide the name of a member from a byte search.
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")


@dataclass(frozen=True, slots=True)
class Member:
    """One member of the outermost object: its name, and where its value lies in the bytes (end excluded)."""

    name: str
    start: int
    end: int


def top_level_members(body: bytes) -> Iterator[Member]:
    """Yield the members of the outermost object, in order. `body` has to be a valid JSON object."""
    at = body.index(b"{") + 1
    while (name := _NAME.match(body, at)) is not None:
        start = name.end()
        at = _value_end(body, start)
        yield Member(orjson.loads(name[1]), start, at)


def ambiguous_member(body: bytes, names: Sequence[str]) -> str | None:
    """Return the first of `names` that stands more than once at the top level of `body`, None when none does.

    The bytes are searched first, which is cheap; the members are walked only when that leaves a doubt.
    """
    if all(body.count(b'"%b"' % name.encode()) < 2 for name in names) and _ESCAPED_LETTER.search(body) is None:
        return None
    found = [member.name for member in top_level_members(body)]
    return next((name for name in names if found.count(name) > 1), None)


def replace_member(body: bytes, name: str, value: bytes) -> bytes:
    """Return `body` with the value of a top-level member replaced, or with the member put first if it is absent."""
    if b'"%b"' % name.encode() in body or _ESCAPED_LETTER.search(body) is not None:
        for member in top_level_members(body):
            if member.name == name:
                return body[: member.start] + value + body[member.end :]
    first = body.index(b"{") + 1
    comma = b"," if _NAME.match(body, first) else b""
    return b'%b"%b":%b%b%b' % (body[:first], name.encode(), value, comma, body[first:])


def _value_end(body: bytes, start: int) -> int:
    """Return where the value that begins at `start` ends."""
    scalar = _SCALAR.match(body, start)
    if scalar is not None:
        return scalar.end()
    depth = 0
    for bracket in _NEXT_BRACKET.finditer(body, start):
        depth += 1 if bracket[1] in b"{[" else -1
        if not depth:
            return bracket.end()
    return len(body)
