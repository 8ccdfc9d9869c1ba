"""Whose word is taken, and for what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.peers import Peers, parse_network

TRUSTED = ("10.0.0.0/8", "192.0.2.7", "2001:db8::/32")


@pytest.mark.parametrize(
    ("host", "trusted", "plain"),
    [
        ("10.0.0.1", True, True),
        ("10.255.255.255", True, True),
        ("192.0.2.7", True, True),
        ("2001:db8::1", True, True),
        ("::ffff:10.1.2.3", True, True),  # IPv4 on a socket that takes both
        ("127.0.0.1", False, True),
        ("127.9.9.9", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("11.0.0.0", False, False),
        ("192.0.2.8", False, False),
        ("2001:db9::1", False, False),
        ("::ffff:11.0.0.1", False, False),
        ("::a00:1", False, False),  # 10.0.0.1 in the last bits only
        ("fe80::1%eth0", False, False),
        ("", False, False),
        ("localhost", False, False),
    ],
)
def test_plain_http_is_for_this_machine_and_for_those_who_are_named(host: str, *, trusted: bool, plain: bool) -> None:
    peers = Peers(TRUSTED)
    assert (peers.is_trusted(host), peers.may_speak_plain(host)) == (trusted, plain)


def test_without_names_only_this_machine_may_speak_plain_http() -> None:
    assert Peers().may_speak_plain("127.0.0.1")
    assert not Peers().may_speak_plain("10.0.0.1")
    assert not Peers().is_trusted("127.0.0.1")


def test_a_proxy_on_this_machine_can_be_named() -> None:
    assert Peers(["127.0.0.1"]).is_trusted("127.0.0.1")
    assert not Peers(["127.0.0.1"]).is_trusted("127.0.0.2")


@pytest.mark.parametrize(
    ("lines", "plain"),
    [
        ([], False),
        (["https"], False),
        (["HTTPS"], False),
        (["https, https"], False),
        (["http"], True),
        (["HTTP"], True),
        (["https, http"], True),  # the way to the last proxy
        (["http, https"], True),  # the way to the first one
        (["https", "http"], True),
        ([""], True),
        (["https,"], True),
        (["wss"], True),
    ],
)
def test_one_step_in_clear_is_enough(lines: list[str], *, plain: bool) -> None:
    assert Peers(TRUSTED).came_plain("10.0.0.1", lines) is plain


@pytest.mark.parametrize("host", ["127.0.0.1", "8.8.8.8", "::1", ""])
def test_who_is_not_trusted_is_not_asked(host: str) -> None:
    assert not Peers(TRUSTED).came_plain(host, ["http"])


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.7", "10.0.0.7/32"),
        ("::1", "::1/128"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
    ],
)
def test_a_network_or_an_address_can_be_named(text: str, written: str) -> None:
    assert str(parse_network(text)) == written


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "10.0.0.0/8"),
        ("proxy.example.com", "10.0.0.0/8"),
        ("10.0.0", "10.0.0.0/8"),
        ("10.0.0.0/33", "10.0.0.0/8"),
        (" 10.0.0.1", "10.0.0.0/8"),
        ("*", "10.0.0.0/8"),
        ("10.0.0.7/8", "written 10.0.0.0/8"),
        ("2001:db8::1/32", "written 2001:db8::/32"),
        ("0.0.0.0/0", "everybody"),
        ("::/0", "everybody"),
        ("10.0.0.1/0", "everybody"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_remedy(text: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        parse_network(text)


@given(st.text(max_size=40))
def test_any_text_is_an_answer_and_never_trust(text: str) -> None:
    peers = Peers(["203.0.113.0/31"])
    assert not peers.is_trusted(text) or text.endswith(("203.0.113.0", "203.0.113.1"))
    assert peers.came_plain("203.0.113.0", [text]) is any(word.strip().lower() != "https" for word in text.split(","))
