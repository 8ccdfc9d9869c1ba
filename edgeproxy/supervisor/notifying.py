"""What systemd is told where it asks, with `Type=notify` or `notify-reload`: ready, reloading, stopping, alive.

The protocol is that of sd_notify(3): lines in one datagram to the socket that NOTIFY_SOCKET names.
"""

import asyncio
import os
import socket
import time
from collections.abc import Mapping

from edgeproxy import logs


class Notifier:
    """Tells systemd, where it asked to be told."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        # Without WATCHDOG_PID the question is for whoever reads it.
        is_for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        interval_us = environ.get("WATCHDOG_USEC", "") if is_for_us else ""
        self._watchdog_s = int(interval_us) / 1_000_000 if interval_us.isdecimal() else 0.0

    def ready(self, status: str = "serving") -> None:
        """Tell that requests are served, also after a reload."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Tell that the configuration is being read again; `ready` tells the end of it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reading the configuration")

    def stopping(self) -> None:
        """Tell that this is the end."""
        self._tell("STOPPING=1", "STATUS=open answers may finish")

    async def keep_alive(self) -> None:
        """Tell for ever that the event loop turns, twice as often as systemd asks; end at once where it does not."""
        while self._address and self._watchdog_s:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / 2)

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0)  # a systemd that does not listen must not stop us
            try:
                sock.sendto("\n".join(lines).encode(), self._address)
            except OSError as error:
                logs.event("systemd_not_told", error=type(error).__name__)
