"""One server, whatever the key: the same connection, told of when it stands."""

import asyncio

import pytest

from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate.nodes import Nodes


async def test_with_one_server_every_key_goes_there(redis_url: str) -> None:
    nodes = Nodes(redis_url, 2000, 100, [("SET", "prepared", 1)])
    told: list[str] = []
    nodes.on_connect = lambda: told.append(nodes.run_id("any"))
    assert (nodes.is_connected, nodes.run_id("a"), nodes.flush("a")) == (False, "", False)
    await nodes.start()
    replies = [nodes.send(key, "ECHO", key) for key in ("a", "{p07}:b", "c")]
    assert nodes.flush("anything")
    assert await asyncio.gather(*replies) == [b"a", b"{p07}:b", b"c"]
    assert await nodes.send("x", "GET", "prepared") == b"1"
    assert nodes.is_connected
    assert told == [nodes.run_id("a")] == [nodes.run_id("b")]
    assert len(told[0]) == 40
    await nodes.close()
    assert (nodes.is_connected, nodes.run_id("a"), nodes.flush("a")) == (False, "", False)


@pytest.mark.parametrize("url", ["unix:///nonexistent.sock", "redis+cluster://127.0.0.1:1,127.0.0.1:2"])
async def test_without_a_server_everything_says_so_at_once(url: str) -> None:
    nodes = Nodes(url, 200, 10, [])
    await nodes.start()
    assert (nodes.is_connected, nodes.run_id("a"), nodes.flush("a")) == (False, "", False)
    with pytest.raises(StoreUnavailable) as caught:
        nodes.send("a", "GET", "a")
    assert not caught.value.may_have_run
    await nodes.close()
