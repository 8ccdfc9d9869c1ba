"""Addresses as settings have them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.addresses import is_loopback, split_address, url_parts
from edgeproxy.errors import OperatorError


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
    ],
)
def test_an_address_has_a_host_and_a_port(address, parts):
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            ":",
            "8080",
            ":8080",
            "[]:8080",
            "localhost",
            "localhost:",
            "localhost:x",
            "localhost:-1",
            "localhost:+1",
        ),
        *(
            "localhost:65536",
            "localhost:1_0",
            "localhost: 1",
            "localhost:1 ",
            "localhost:\u0661",
            "localhost:" + "9" * 5000,
        ),
    ],
)
def test_what_is_no_address_is_refused_by_name(address):
    with pytest.raises(OperatorError) as refused:
        split_address(address, "listen.api")
    line = str(refused.value)
    assert line.startswith("listen.api = ")
    assert "HOST:PORT" in line


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_is_refused(text):
    try:
        host, port = split_address(text)
    except OperatorError as error:
        line = str(error)
    else:
        line = ""
        assert host
        assert 0 <= port <= 65535
    assert "\n" not in line


@pytest.mark.parametrize("host", ["", "127.0.0.1:80", "::ffff:10.0.0.1", "1", "2130706433", "0x7f.1", "lo"])
def test_what_is_no_plain_loopback_address_is_none(host):
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "::1"])
def test_an_address_that_never_leaves_this_machine_is_one(host):
    assert is_loopback(host)


@pytest.mark.parametrize("address", ["http://a:b", "http://a:70000", "http://a:0", "http://[::1"])
def test_an_address_without_a_usable_port_has_no_parts(address):
    assert url_parts(address) is None
