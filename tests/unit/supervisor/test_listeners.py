"""Listening sockets: spread over workers, refused in one line when they cannot be had."""

import asyncio
import socket
from contextlib import closing

import aiohttp
import pytest

from edgeproxy.errors import OperatorError
from edgeproxy.supervisor.listeners import bind, metrics_listener, url_of


def test_all_sockets_of_an_address_share_its_port_and_listen():
    sockets = bind("127.0.0.1:0", "listen.api", 3)
    try:
        assert len({sock.getsockname() for sock in sockets}) == 1
        accepted = 0
        clients = [socket.create_connection(sockets[0].getsockname()) for _ in range(60)]
        for sock in sockets:
            sock.settimeout(0)
            taken = []
            try:
                while True:
                    taken.append(sock.accept()[0])
            except BlockingIOError:
                pass
            assert taken, "the system spreads connections over all of them"
            accepted += len(taken)
            for connection in taken:
                connection.close()
        assert accepted == len(clients)
    finally:
        for sock in (*sockets, *clients):
            sock.close()


def test_a_busy_port_names_the_setting_and_the_variable():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(OperatorError, match=rf"{address} is in use.*listen\.web \(EDGEPROXY_LISTEN_WEB\)"):
            bind(address, "listen.web")


def test_a_port_that_another_gateway_of_ours_would_share_is_busy_too():
    (first,) = bind("127.0.0.1:0", "listen.api")
    with closing(first), pytest.raises(OperatorError, match="is in use"):
        bind(f"127.0.0.1:{first.getsockname()[1]}", "listen.api")


def test_a_port_is_free_again_as_soon_as_its_listener_is_closed():
    (first,) = bind("127.0.0.1:0", "listen.api")
    address = first.getsockname()
    with socket.create_connection(address), first.accept()[0]:
        first.close()
    (second,) = bind(f"127.0.0.1:{address[1]}", "listen.api")
    second.close()


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("no-such-host.invalid:80", "no known host"),
        ("192.0.2.1:8080", "no address of this machine"),
        ("127.0.0.1", "HOST:PORT"),
        ("127.0.0.1:99999", "HOST:PORT"),
    ],
)
def test_an_address_that_cannot_be_is_one_line(address: str, line: str):
    with pytest.raises(OperatorError, match=line):
        bind(address, "listen.api")


def test_addresses_are_shown_as_somebody_would_type_them():
    (four,) = bind("localhost:0", "listen.api")
    with closing(four):
        assert url_of(four) == f"http://{four.getsockname()[0]}:{four.getsockname()[1]}"
        assert url_of(four, secure=True) == f"https://{four.getsockname()[0]}:{four.getsockname()[1]}"
    (six,) = bind("[::1]:0", "listen.api")
    with closing(six):
        assert url_of(six) == f"http://[::1]:{six.getsockname()[1]}"


async def test_metrics_are_answered_and_nothing_else_is(capfd: pytest.CaptureFixture[str]):
    async def render() -> bytes:
        return b"edgeproxy_requests_total 1.0\n"

    (sock,) = bind("127.0.0.1:0", "listen.metrics")
    async with metrics_listener(sock, render), aiohttp.ClientSession() as session:
        async with session.get(f"{url_of(sock)}/metrics") as answer:
            assert await answer.read() == b"edgeproxy_requests_total 1.0\n"
            assert answer.content_type == "text/plain"
        async with session.get(f"{url_of(sock)}/?secret=canary") as answer:
            assert answer.status == 404
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(b"canary\0 / HTTP/9.9\r\n\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()
    assert "canary" not in "".join(capfd.readouterr())
