"""The PROXY header: what a proxy says of a connection before the connection's first byte.

Versions 1 and 2 as https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt has them. All that is decided here is
whether it is one, and where it ends: nobody wants to know the client's address, so it is not read. Pure: bytes in.
"""

import re

MAX_LENGTH = 16 + 2048  # of version 2, whose extensions hold a host name, a TLS subject and the like
_MAX_LENGTH_1 = 107

_SIGNATURE_1 = b"PROXY "
_SIGNATURE_2 = b"\r\n\r\n\0\r\nQUIT\n"

# The addresses' own bounds are the proxy's to keep; what matters is that no line of a request is taken for a header.
_PORT = rb"(0|[1-9][0-9]{0,4})"
_LINE = re.compile(
    rb"PROXY (UNKNOWN( [^\r\n]*)?|TCP4( [0-9.]{7,15}){2} %b %b|TCP6( [0-9A-Fa-f:.]{2,39}){2} %b %b)\r\n"
    % ((_PORT,) * 4)
)

_LOCAL, _PROXY = 0x20, 0x21  # version 2 with its two commands
_ADDRESS_BYTES = {0x00: 0, 0x11: 12, 0x21: 36, 0x31: 216}  # at least: not specified, and streams over IPv4, IPv6, Unix


def header_length(data: bytes) -> int | None:
    """Return how many bytes of `data` are its PROXY header, None while more are needed to tell.

    Raises ValueError as soon as it can only be something else; for MAX_LENGTH bytes there is always an answer.
    """
    if data[:1] == _SIGNATURE_1[:1]:
        return _length_1(data)
    return _length_2(data)


def _length_1(data: bytes) -> int | None:
    _check_signature(data, _SIGNATURE_1)
    line, end, _ = data[:_MAX_LENGTH_1].partition(b"\r\n")
    if not end:
        if len(data) >= _MAX_LENGTH_1:
            raise ValueError("line too long")
        return None
    if not _LINE.fullmatch(line + end):
        raise ValueError("no such line")
    return len(line) + 2


def _length_2(data: bytes) -> int | None:
    _check_signature(data, _SIGNATURE_2)
    if len(data) < 16:
        return None
    command, family = data[12], data[13]
    length = 16 + int.from_bytes(data[14:16])
    if command not in (_LOCAL, _PROXY) or length > MAX_LENGTH:
        raise ValueError("no such command, or too long")
    # What a proxy says of a health check of its own (LOCAL) is skipped, whatever it is.
    if command == _PROXY and length < 16 + _ADDRESS_BYTES.get(family, MAX_LENGTH):
        raise ValueError("no stream, or no address of its family")
    return length if len(data) >= length else None


def _check_signature(data: bytes, signature: bytes) -> None:
    if not data.startswith(signature[: len(data)]):
        raise ValueError("no signature")
