"""Signals as something to wait for, instead of an exception at any point.

SIGTERM and Ctrl-C ask for a stop, a second one for haste. SIGHUP asks to read the configuration again; but when the
system sends it because the terminal was closed, it is a reason to stop, unless we were started with nohup.
"""

import asyncio
import contextlib
import os
import signal

_TERMINAL = "/dev/tty"  # the one that controls this process; cannot be opened where there is none, or none any more


class Signals:
    """What the process was asked to do: `stop` once for an orderly stop, `hurry` for a quick one, `reload`.

    Made inside the running loop of the main thread. Whoever waits for `reload` clears it.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.reload = asyncio.Event()
        self._ends_with_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)

    def ask(self) -> None:
        """Ask for a stop, as a signal does."""
        (self.hurry if self.stop.is_set() else self.stop).set()

    def _hung_up(self) -> None:
        if self._ends_with_terminal and not _has_terminal():
            self.ask()
        else:
            self.reload.set()


async def wait(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for an event, but no longer than this."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)


def _has_terminal() -> bool:
    try:
        os.close(os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
