"""The control channel between the supervisor and a child: frames on a socket pair that only the two of them hold.

A frame is one byte of kind, four bytes of length, and the payload. It goes like this:

    supervisor -> child    SETTINGS   the settings with the addresses of the stores, as JSON; first
    child -> supervisor    READY      it serves
    child -> supervisor    REFUSED    it cannot serve: one line for the operator, then it ends
    supervisor -> child    SNAPSHOT   asks for the metrics (no payload)
    child -> supervisor    SNAPSHOT   the metrics of the process in Prometheus text format
    supervisor -> child    SETTINGS   other settings to use from now on
    child -> supervisor    RELOADED   it does (no payload), or it goes on with the old ones: one line that says why
    supervisor -> child    DRAIN      a stop is near: it serves on, and says that nothing new should come
    supervisor -> child    HURRY      when it stops, answers that are open are not waited for

The end of the channel means that the other side is gone; a child then stops as if it had been asked to. Passwords
travel here, because arguments and environments can be read by others.
"""

import asyncio
import json
import socket
import struct
from dataclasses import asdict
from enum import IntEnum
from typing import Self

from edgeproxy.config import Settings, from_tables

_HEAD = struct.Struct("!BI")

# Metrics of a process are about 50 kB, settings less; a longer frame is a mistake.
MAX_PAYLOAD_BYTES = 4 * 2**20


class Kind(IntEnum):
    """What a frame means."""

    SETTINGS = 1
    READY = 2
    REFUSED = 3
    SNAPSHOT = 4
    RELOADED = 5
    DRAIN = 6
    HURRY = 7


class Channel:
    """One end of a control channel."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Return the channel of this end of a socket pair; the channel owns it from now on."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Hand a frame to the system, if the other side is there. The protocol bounds how many wait: see above."""
        if self._writer.is_closing():
            return  # uvloop raises where asyncio says nothing; `receive` tells
        self._writer.write(_HEAD.pack(kind, len(payload)) + payload)

    async def receive(self) -> tuple[Kind, bytes] | None:
        """Return the next frame, None when the other side is gone. Raises ValueError for what is no frame."""
        try:
            kind, length = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
            if length > MAX_PAYLOAD_BYTES:
                raise ValueError("frame too long")
            return Kind(kind), await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def close(self) -> None:
        """Send what waits, and close this end."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return  # the other side was first


def encode_settings(settings: Settings) -> bytes:
    """Return settings as the payload of SETTINGS."""
    return json.dumps(asdict(settings), default=str).encode()


def decode_settings(payload: bytes) -> Settings:
    """Return the settings in the payload of SETTINGS. Raises OperatorError, ValueError."""
    return from_tables(json.loads(payload))
