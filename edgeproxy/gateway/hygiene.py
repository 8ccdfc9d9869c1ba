"""What of a client's bytes may be parsed: one table of what is refused and why, and the sieve that applies it.

Two readers of one stream of bytes who disagree about where a request ends let a client hide a second request inside
the first (request smuggling). So this gateway is strict where the standards let it be lenient: whatever a proxy before
it or a provider behind it could read in another way is refused, whether or not aiohttp's parser would take it.

How it works: `Sieve.feed` is given the bytes of one connection as they come and returns those that the parser may see.
A head is held until all of it is here, and then it is read field by field. In a body it counts: bytes of a declared
length, or chunks. So the parser, which stays, never has to guess, and both agree on every boundary. Nearly all
requests come whole, and in a form that one regular expression (`Limits.plain`) accepts at once; it is there for speed,
and passes nothing that the long way would not. What is refused is neither kept nor told: a `Rule` is all that leaves
this module.

What follows a request that closes its connection is dropped (RFC 9112, 9.6): nobody would read it.

An upgrade is no part of HTTP/1.1 here. The field is taken out of the head, so that the request is served as any other;
one to a WebSocket is kept for its own answer (426) and closes the connection, for what follows may be no HTTP.

This module is pure: no I/O, no clock.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto

from edgeproxy.errors import BAD_HTTP, HEAD_TOO_LARGE, NOT_IMPLEMENTED, ErrorKind


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table: what is refused, how it is answered, where that stands, and what could go wrong."""

    name: str
    kind: ErrorKind
    source: str
    why: str


_TABLE = (
    # --- the head as a whole
    Rule("control_byte", BAD_HTTP, "RFC 9110, 5.5; RFC 9112, 3", "NUL and its like end a text for some readers."),
    Rule("line_end", BAD_HTTP, "RFC 9112, 2.2", "A bare CR or LF ends a line for some readers only."),
    Rule("head_size", HEAD_TOO_LARGE, "RFC 6585, 5", "Whoever sends a head holds memory here."),
    Rule("header_count", HEAD_TOO_LARGE, "RFC 6585, 5", "Every header costs time, however short it is."),
    # --- the request line
    Rule("request_line", BAD_HTTP, "RFC 9112, 3", "Not three words with one space between: nobody's HTTP/1."),
    Rule("version", BAD_HTTP, "RFC 9112, 2.3", "0.9 has no heads, 2 is another protocol, 1.2 is unknown."),
    Rule("method", NOT_IMPLEMENTED, "RFC 9110, 9.1", "CONNECT and TRACE change what follows; others are unknown."),
    Rule("target", BAD_HTTP, "RFC 9112, 3.2", "A path alone: other hosts, fragments, odd bytes are read in two ways."),
    # --- the fields
    Rule("folded", BAD_HTTP, "RFC 9112, 5.2", "A line that begins with a space belongs to the one before, for some."),
    Rule("field_name", BAD_HTTP, "RFC 9112, 5.1", "No name, or a space in it: another field for some readers."),
    Rule("host", BAD_HTTP, "RFC 9112, 3.2", "None, two or an odd one: readers differ about who is asked."),
    Rule("connection", BAD_HTTP, "RFC 9110, 7.6.1", "It could make a proxy drop a field, or both keep and close."),
    # --- where the body ends
    Rule("length", BAD_HTTP, "RFC 9112, 6.3", "Two lengths, a list or an odd number: readers take different ones."),
    Rule("coding", NOT_IMPLEMENTED, "RFC 9112, 6.1", "`chunked` alone: of anything else readers see other ends."),
    Rule("coding_twice", BAD_HTTP, "RFC 9112, 6.1", "Of two fields a reader may see one."),
    Rule("coding_and_length", BAD_HTTP, "RFC 9112, 6.1", "One reader takes the length, the other the chunks."),
    Rule("coding_in_1_0", BAD_HTTP, "RFC 9112, 6.1", "Who knows only 1.0 does not read chunks."),
    # --- inside the body
    Rule("chunk", BAD_HTTP, "RFC 9112, 7.1", "A size is hexadecimal digits and CRLF; extensions are read differently."),
    Rule("trailer", BAD_HTTP, "RFC 9112, 7.1.2", "Fields after the body can pose as fields of the head."),
)
RULES = {rule.name: rule for rule in _TABLE}

_NAME = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_METHODS = rb"GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS"
_TARGET = rb"/[!\"$-\[\]-~]*+"  # visible, but for # and \
_START = re.compile(rb"(?:%b) %b HTTP/1\.([01])" % (_METHODS, _TARGET))
_VALUE = rb"[\t -~\x80-\xff]*+"
_FIELD = re.compile(rb"%b:%b" % (_NAME, _VALUE))


def _in_any_case(word: bytes) -> bytes:
    """Return a pattern: much faster than the flag."""
    return re.sub(rb"[a-z]", lambda letter: b"[%b%b]" % (letter[0].upper(), letter[0]), word)


_HOST_NAME, _CONNECTION, _CONTENT_LENGTH, _UPGRADE = map(
    _in_any_case, (b"host", b"connection", b"content-length", b"upgrade")
)
_DECIDING = b"|".join((_HOST_NAME, _CONNECTION, _CONTENT_LENGTH, _UPGRADE, _in_any_case(b"transfer-encoding")))
_DECIDING_FIELD = re.compile(rb"\n(%b):([^\r]*+)" % _DECIDING)
_UPGRADE_LINE = re.compile(rb"(?<=\n)%b:[^\r]*+\r\n" % _UPGRADE)
_CONNECTION_LINE = re.compile(rb"(?<=\n)%b:[^\r]*+\r\n" % _CONNECTION)

_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,15}")
_OPTIONS = frozenset((b"close", b"keep-alive", b"upgrade", b"http2-settings", b"te", b"trailer", b"proxy-connection"))

_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")

# What stands before a chunk, or after the last one; and what can still become that.
_FIRST_SIZE = re.compile(rb"(?:0{1,8}\r\n(\r\n)|([0-9A-Fa-f]{1,8})\r\n)")
_SIZE = re.compile(rb"\r\n" + _FIRST_SIZE.pattern)
_FIRST_SIZE_BEGUN = re.compile(rb"(?:0{1,8}\r\n\r?|[0-9A-Fa-f]{1,8}\r?)?")
_SIZE_BEGUN = re.compile(rb"\r?|\r\n" + _FIRST_SIZE_BEGUN.pattern)


class _Expected(Enum):
    HEAD = auto()
    BODY = auto()  # of a declared length
    FIRST_SIZE = auto()
    CHUNK = auto()
    SIZE = auto()  # with the line end of the chunk before it
    NOTHING = auto()


# Version 1.1, one host, at most one length, nothing said of codings or upgrades. The first branch takes most lines by
# their first letter; `(?(1)(?!))` lets a second host fail, and `(?(1)|(?!))` the lack of one.
_PLAIN = rb"""(?x)
    (?:%(methods)b)\ %(target)b\ HTTP/1\.1\r\n
    (?: [!\#$%%&'*+.^_`|~0-9ABD-GI-SV-Zabd-gi-sv-z-]%(field)b\r\n
      | %(host_name)b: (?(1)(?!))\ ? (%(host)b)\r\n
      | %(content_length)b: (?(2)(?!))\ ? (%(length)b)\r\n
      | %(connection)b:\ ? keep-alive\r\n
      | (?!(?:%(deciding)b):)[HhCcTtUu]%(field)b\r\n
    ){0,%(max_headers)d}+
    \r\n (?(1)|(?!))
"""


class Limits:
    """How large a head may be, with the expressions that hold it to that. Made once, for all connections."""

    def __init__(self, max_bytes: int, max_headers: int) -> None:
        self.max_bytes = max_bytes
        self.well_formed = re.compile(rb"%b\r\n(?:%b\r\n){0,%d}+\r\n" % (_START.pattern, _FIELD.pattern, max_headers))
        parts = {
            b"methods": _METHODS,
            b"target": _TARGET,
            b"field": rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*+:" + _VALUE,
            b"host_name": _HOST_NAME,
            b"host": _HOST.pattern,
            b"content_length": _CONTENT_LENGTH,
            b"length": _LENGTH.pattern,
            b"connection": _CONNECTION,
            b"deciding": _DECIDING,
            b"max_headers": max_headers,
        }
        self.plain = re.compile(_PLAIN % parts)


class Sieve:
    """Where one connection's bytes pass or are refused. After a refusal nothing passes any more."""

    __slots__ = ("_after", "_expected", "_held", "_left", "_limits", "_saw_blank", "plain_bytes", "refusal")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._expected = _Expected.HEAD
        self._after = _Expected.HEAD  # what follows this request
        self._held = b""
        self._left = 0  # of what is expected: bytes of a body or of a chunk
        self._saw_blank = False
        self.plain_bytes = 0  # of the head, when what was fed last is one plain request and nothing else
        self.refusal: Rule | None = None

    @property
    def holds_head(self) -> bool:
        """Whether a head has begun and is not complete."""
        return bool(self._held) and self._expected is _Expected.HEAD

    @property
    def is_in_body(self) -> bool:
        """Whether the last request that passed is not complete."""
        return self._expected not in (_Expected.HEAD, _Expected.NOTHING)

    def feed(self, data: bytes) -> bytes:
        """Return what may be parsed now, of these bytes and of those that were held. It may set `refusal`."""
        self.plain_bytes = 0
        if self.refusal is not None:
            return b""
        if self._takes_whole(data):
            return data
        known = len(self._held)
        if known:
            data = self._held + data
        position, size = 0, len(data)
        while position < size and self._expected is not _Expected.NOTHING:  # ends: each round takes bytes, or stops
            before = position
            if self._expected is _Expected.HEAD:
                data, position = self._pass_head(data, position, known)
                size = len(data)
            elif self._expected in (_Expected.BODY, _Expected.CHUNK):
                position = self._pass_body(position, size)
            else:
                position = self._pass_size(data, position)
            if position == before:
                break
            known = 0
        is_wanted = self.refusal is None and self._expected is not _Expected.NOTHING
        self._held = data[position:] if is_wanted else b""
        return data if position == size else data[:position]

    def _takes_whole(self, data: bytes) -> bool:
        """Whether these bytes are one plain request, as nearly all are, or begin a plain one with a body."""
        if self._held or self._expected is not _Expected.HEAD:
            return False
        found = self._limits.plain.match(data)
        if found is None or found.end() > self._limits.max_bytes:
            return False
        left = int(found[2] or 0) - len(data) + found.end()
        if left > 0:
            self._expected, self._left = _Expected.BODY, left
        elif not left:
            self.plain_bytes = found.end()
        self._saw_blank = False
        return left >= 0

    def _pass_body(self, position: int, size: int) -> int:
        taken = min(self._left, size - position)
        self._left -= taken
        if not self._left:
            self._expected = self._after if self._expected is _Expected.BODY else _Expected.SIZE
        return position + taken

    def _pass_size(self, data: bytes, position: int) -> int:
        is_first = self._expected is _Expected.FIRST_SIZE
        found = (_FIRST_SIZE if is_first else _SIZE).match(data, position)
        if found is None or (found[1] is None and not int(found[2], 16)):
            if (_FIRST_SIZE_BEGUN if is_first else _SIZE_BEGUN).fullmatch(data, position) is None:
                self.refusal = RULES["chunk" if found is None else "trailer"]
            return position
        if found[1] is not None:
            self._expected = self._after
        else:
            self._expected, self._left = _Expected.CHUNK, int(found[2], 16)
        return found.end()

    def _pass_head(self, data: bytes, position: int, known: int) -> tuple[bytes, int]:
        """Return the data, in which a head may have been changed, and where the head ends; `position` if it does not.

        The first `known` bytes have been looked at before, and do not hold a whole head.
        """
        if not self._saw_blank and data.startswith(b"\r\n", position):  # RFC 9112, 2.2: one empty line is ignored
            self._saw_blank = True
            return data, position + 2
        end = data.find(b"\r\n\r\n", max(known - 3, position)) + 4
        if end < 4:
            self.refusal = self._fault_so_far(data, position, known)
            return data, position
        found = self._limits.well_formed.fullmatch(data, position, end)
        if found is None or end - position > self._limits.max_bytes:
            self.refusal = _fault(data[position : end - 2], self._limits)
            return data, position
        fields = _DECIDING_FIELD.findall(data, position, end)
        self.refusal = self._read_fields(fields, is_1_0=found[1] == b"0")
        if self.refusal is not None:
            return data, position
        self._saw_blank = False
        if any(name.lower() == b"upgrade" for name, _ in fields):
            head = _without_upgrade(data[position:end])
            return data[:position] + head + data[end:], position + len(head)
        return data, end

    def _fault_so_far(self, data: bytes, position: int, known: int) -> Rule | None:
        """Return what is wrong already with a head that is not complete; None while it can still become one."""
        if len(data) - position > self._limits.max_bytes:
            return RULES["head_size"]
        line_end = data.find(b"\r\n", position)
        if 0 <= line_end < known - 1:  # looked at before
            return _byte_fault(data, known - 1)
        return _opening_fault(data, position, line_end, max(known - 1, position))

    def _read_fields(self, fields: list[tuple[bytes, bytes]], *, is_1_0: bool) -> Rule | None:
        """Set what comes after this head, as its fields say. Returns the rule that they break."""
        values: dict[bytes, list[bytes]] = {}
        for name, value in fields:
            values.setdefault(name.lower(), []).append(value.strip(b" \t").lower())
        return (
            _host_fault(values.get(b"host", []), is_1_0=is_1_0)
            or self._read_connection(values, is_1_0=is_1_0)
            or self._read_framing(values, is_1_0=is_1_0)
        )

    def _read_connection(self, values: dict[bytes, list[bytes]], *, is_1_0: bool) -> Rule | None:
        listed = b",".join(values.get(b"connection", [b"close" if is_1_0 else b"keep-alive"]))
        options = {option.strip(b" \t") for option in listed.split(b",")}
        if not options <= _OPTIONS or options >= {b"close", b"keep-alive"}:
            return RULES["connection"]
        closes = b"close" in options or (is_1_0 and b"keep-alive" not in options)
        self._after = _Expected.NOTHING if closes or values.get(b"upgrade") == [b"websocket"] else _Expected.HEAD
        return None

    def _read_framing(self, values: dict[bytes, list[bytes]], *, is_1_0: bool) -> Rule | None:
        lengths = values.get(b"content-length", [])
        if b"transfer-encoding" in values:
            fault = _coding_fault(values[b"transfer-encoding"], has_length=bool(lengths), is_1_0=is_1_0)
            self._expected = _Expected.HEAD if fault else _Expected.FIRST_SIZE
            return fault
        if len(lengths) > 1 or any(_LENGTH.fullmatch(length) is None for length in lengths):
            return RULES["length"]
        self._left = int(lengths[0]) if lengths else 0
        self._expected = _Expected.BODY if self._left else self._after
        return None


def _host_fault(hosts: list[bytes], *, is_1_0: bool) -> Rule | None:
    if len(hosts) > 1 or not (hosts or is_1_0) or any(_HOST.fullmatch(host) is None for host in hosts):
        return RULES["host"]
    return None


def _coding_fault(codings: list[bytes], *, has_length: bool, is_1_0: bool) -> Rule | None:
    if has_length:
        return RULES["coding_and_length"]
    if is_1_0:
        return RULES["coding_in_1_0"]
    if len(codings) != 1:
        return RULES["coding_twice"]
    return None if codings == [b"chunked"] else RULES["coding"]


def _without_upgrade(head: bytes) -> bytes:
    """Return a head that no parser takes for the beginning of another protocol."""
    wanted = [line.partition(b":")[2].strip().lower() for line in _UPGRADE_LINE.findall(head)]
    if wanted != [b"websocket"]:
        return _UPGRADE_LINE.sub(b"", head)
    return _CONNECTION_LINE.sub(b"", head)[:-2] + b"connection: close\r\n\r\n"


def _fault(head: bytes, limits: Limits) -> Rule:
    """Return the rule that a head breaks which is not well formed."""
    if len(head) + 2 > limits.max_bytes:
        return RULES["head_size"]
    if fault := _opening_fault(head, 0, head.find(b"\r\n"), 0):
        return fault
    lines = head[:-2].split(b"\r\n")[1:]
    if any(line[:1] in (b" ", b"\t") for line in lines):
        return RULES["folded"]
    if any(_FIELD.fullmatch(line) is None for line in lines):
        return RULES["field_name"]
    return RULES["header_count"]


def _opening_fault(data: bytes, begin: int, line_end: int, fresh: int) -> Rule | None:
    """Return what is wrong with a request line, which ends at `line_end` (-1: not yet), and with what is around it."""
    if line_end < 0:
        return _byte_fault(data, fresh)
    line = data[begin:line_end]
    return _byte_fault(line + b"\r\n", 0) or _start_fault(line) or _byte_fault(data, line_end)


def _byte_fault(data: bytes, begin: int) -> Rule | None:
    if _CONTROL.search(data, begin):
        return RULES["control_byte"]
    return RULES["line_end"] if _LINE_END.search(data, begin) else None


def _start_fault(line: bytes) -> Rule | None:
    """Return what is wrong with a request line, None when nothing is."""
    if _START.fullmatch(line):
        return None
    words = line.split(b" ")
    if len(words) != 3 or not all(words):  # a method, a target, a version
        return RULES["version" if len(words) == 2 and words[1][:1] == b"/" else "request_line"]
    method, target, version = words
    if re.fullmatch(rb"HTTP/1\.[01]", version) is None:
        return RULES["version" if version.startswith(b"HTTP/") else "request_line"]
    if re.fullmatch(_TARGET, target) is None and method not in (b"CONNECT", b"TRACE"):
        return RULES["target"]
    return RULES["method" if re.fullmatch(_NAME, method) else "request_line"]
