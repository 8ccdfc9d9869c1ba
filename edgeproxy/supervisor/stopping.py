"""Ctrl-C, SIGTERM and a closed terminal, as something to wait for instead of an exception at any point."""

import asyncio
import signal

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether the process was asked to stop: once for an orderly stop, twice for a quick one.

    Made inside the running loop of the main thread.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.ask)
        # The terminal was closed: a reason to stop, unless we were started with nohup.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self.ask)

    def ask(self) -> None:
        """Ask for a stop, as a signal does."""
        (self.hurry if self.asked.is_set() else self.asked).set()
