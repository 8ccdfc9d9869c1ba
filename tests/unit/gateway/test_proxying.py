"""The PROXY header, versions 1 and 2: what is one, where it ends, and what is never taken for one."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.gateway.proxying import MAX_LENGTH, header_length

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"

ports = st.integers(0, 65535)
lines = st.one_of(
    st.builds(
        lambda source, target, a, b: f"PROXY TCP4 {source} {target} {a} {b}\r\n".encode(),
        st.ip_addresses(v=4),
        st.ip_addresses(v=4),
        ports,
        ports,
    ),
    st.builds(
        lambda source, target, a, b: f"PROXY TCP6 {source} {target} {a} {b}\r\n".encode(),
        st.ip_addresses(v=6),
        st.ip_addresses(v=6),
        ports,
        ports,
    ),
    st.just(b"PROXY UNKNOWN\r\n"),
    st.text("abcdef0123456789: ", max_size=90).map(lambda rest: f"PROXY UNKNOWN {rest}\r\n".encode()),
)


def binary(command: int, family: int, block: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


blocks = st.sampled_from([(0x11, 12), (0x21, 36), (0x31, 216), (0x00, 0)]).flatmap(
    lambda row: st.tuples(st.just(row[0]), st.binary(min_size=row[1], max_size=row[1] + 300))
)
binaries = st.one_of(
    blocks.map(lambda block: binary(0x21, *block)),
    st.builds(binary, st.just(0x20), st.integers(0, 255), st.binary(max_size=300)),
)
headers = st.one_of(lines, binaries)


@given(headers, st.binary(max_size=50))
def test_a_header_ends_where_it_says_at_whatever_it_is_cut(header: bytes, following: bytes) -> None:
    for end in range(len(header)):
        assert header_length(header[:end]) is None
    assert header_length(header + following) == len(header)


@given(st.one_of(st.binary(max_size=200), headers.flatmap(lambda header: st.binary(max_size=40).map(header.__add__))))
def test_an_answer_never_changes_as_more_comes(data: bytes) -> None:
    """What was taken for a header, or for none, stays that; so it does not matter how a network cuts it."""
    answers: list[object] = []
    for end in range(len(data) + 1):
        try:
            answers.append(header_length(data[:end]))
        except ValueError:
            answers.append("none")
    known = [answer for answer in answers if answer is not None]
    assert len(set(known)) <= 1
    assert all(answer == known[0] for answer in answers[len(answers) - len(known) :])


@given(
    st.binary(min_size=MAX_LENGTH, max_size=MAX_LENGTH), st.sampled_from([b"", b"PROXY ", b"PROXY UNKNOWN ", SIGNATURE])
)
def test_there_is_an_answer_within_the_bound(data: bytes, beginning: bytes) -> None:
    try:
        assert header_length((beginning + data)[:MAX_LENGTH]) is not None
    except ValueError:
        return


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n",
        b"PROXY TCP6 :: ::1 0 0\r\n",
    ],
)
def test_the_longest_and_shortest_lines_of_the_protocol_are_taken(line: bytes) -> None:
    assert len(line) <= 107
    assert header_length(line + REQUEST) == len(line)


@pytest.mark.parametrize(
    "data",
    [
        REQUEST,
        b"POST / HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # a TLS handshake
        b"proxy TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
        b"PROXY\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1 1\r\n",
        b"PROXY TCP4  1.2.3.4 1.2.3.4 1 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 100000 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 1\r\n",
        b"PROXY TCP4 ::1 ::1 1 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1 \r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\n\r\n",
        b"PROXY TCP6 g::1 ::1 1 1\r\n",
        b"PROXY UDP4 1.2.3.4 1.2.3.4 1 1\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY UNKNOWN a\nb\r\n",
        b"PROXY UNKNOWN a\rb\r\n",
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",  # 108 bytes
        b"PROXY UNKNOWN " + b"x" * 93,
        binary(0x22, 0x11, bytes(12)),
        binary(0x2F, 0x11, bytes(12)),
        binary(0x11, 0x11, bytes(12)),  # version 1, which has no such form
        binary(0x31, 0x11, bytes(12)),
        binary(0x21, 0x12, bytes(12)),  # UDP
        binary(0x21, 0x41, bytes(300)),
        binary(0x21, 0x13, bytes(300)),
        binary(0x21, 0x01, bytes(300)),
        binary(0x21, 0x11, bytes(11)),
        binary(0x21, 0x21, bytes(35)),
        binary(0x21, 0x31, bytes(215)),
        binary(0x21, 0x11, bytes(MAX_LENGTH - 15)),
        binary(0x20, 0x00, bytes(MAX_LENGTH - 15)),
        SIGNATURE[:-1] + b"\r",
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        header_length(data)


@pytest.mark.parametrize("data", [b"G", b"PROXX", b"\r\n\r\n\r", b"PROXY UNKNOWN " + b"x" * 93, b"\x16"])
def test_it_is_refused_as_soon_as_that_can_be_told(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        header_length(data)
    assert header_length(data[:-1]) is None
