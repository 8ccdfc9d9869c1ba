"""Frames on the control channel, whole, in order, bounded; and settings that survive the way."""

import asyncio
import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from edgeproxy.config import Listen, Model, Provider, Settings, Stores
from edgeproxy.errors import OperatorError
from edgeproxy.supervisor.channel import MAX_PAYLOAD_BYTES, Channel, Kind, decode_settings, encode_settings


@pytest.fixture
async def ends():
    ours, theirs = socket.socketpair()
    channels = await Channel.open(ours), await Channel.open(theirs)
    yield channels
    for channel in channels:
        await channel.close()


async def test_frames_arrive_whole_and_in_order(ends: tuple[Channel, Channel]):
    ours, theirs = ends
    big = bytes(range(256)) * 4000
    ours.send(Kind.SETTINGS, big)
    ours.send(Kind.SNAPSHOT)
    theirs.send(Kind.READY)
    assert await theirs.receive() == (Kind.SETTINGS, big)
    assert await theirs.receive() == (Kind.SNAPSHOT, b"")
    assert await ours.receive() == (Kind.READY, b"")


async def test_the_end_of_the_other_side_is_the_end(ends: tuple[Channel, Channel]):
    ours, theirs = ends
    theirs.send(Kind.REFUSED, b"why")
    await theirs.close()
    assert await ours.receive() == (Kind.REFUSED, b"why")
    assert await ours.receive() is None
    for _ in range(3):  # at once, and when the end has been noticed
        ours.send(Kind.SNAPSHOT)
        await asyncio.sleep(0.01)
    await ours.close()


@pytest.mark.parametrize("raw", [b"\x63\0\0\0\0", b"\0\0\0\0\0", b"\x01" + (MAX_PAYLOAD_BYTES + 1).to_bytes(4, "big")])
async def test_what_is_no_frame_is_a_value_error(raw: bytes):
    ours, theirs = socket.socketpair()
    channel = await Channel.open(ours)
    theirs.sendall(raw)
    with pytest.raises(ValueError, match=r"frame|Kind"):
        await channel.receive()
    await channel.close()
    theirs.close()


@pytest.mark.parametrize("raw", [b"\x02", b"\x02\0\0\0\x05abc"])
async def test_half_a_frame_is_the_end(raw: bytes):
    ours, theirs = socket.socketpair()
    channel = await Channel.open(ours)
    theirs.sendall(raw)
    theirs.close()
    assert await channel.receive() is None
    await channel.close()


def test_settings_survive_the_way():
    settings = Settings(
        data_dir=Path("/a b/c"),
        workers=3,
        listen=Listen(api="[::1]:0"),
        stores=Stores("unix://:secret@/a%20b/redis.sock?db=0", "postgresql://u:p@/d?host=/a%20b"),
        provider=(Provider("p", base_url="https://p.example", secret_env="P"),),
        model=(Model("gpt-*", "p", list=("gpt-a", "gpt-b")),),
    )
    assert decode_settings(encode_settings(settings)) == settings


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b'{"unknown": 1}', b"[]"])
def test_settings_that_are_none_are_refused(payload: bytes):
    with pytest.raises((ValueError, OperatorError)):
        decode_settings(payload)


def test_settings_of_a_gateway_name_no_database():
    settings = Settings(stores=Stores(postgres="postgresql://u:canary@h/d"))
    bare = replace(settings, stores=replace(settings.stores, postgres="embedded"))
    assert "canary" not in json.dumps(encode_settings(bare).decode())
