"""Signals as something to wait for."""

import asyncio
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from edgeproxy.supervisor.signals import Signals, wait

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# Tells what it was asked to do, once it runs in a session of its own whose terminal is its standard input.
ASKED = """
import asyncio, fcntl, signal, sys, termios
from edgeproxy.supervisor.signals import Signals, wait
async def run():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if "nohup" in sys.argv:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = Signals()
    print("ready", flush=True)
    while not (signals.stop.is_set() or signals.reload.is_set()):
        await asyncio.sleep(0.01)
    print("stop" if signals.stop.is_set() else "reload", flush=True)
asyncio.run(run())
"""


@pytest.fixture
async def signals():
    yield Signals()
    for number in NUMBERS:
        asyncio.get_running_loop().remove_signal_handler(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_asks_for_a_stop(signals: Signals, number: signal.Signals):
    assert not signals.stop.is_set()
    os.kill(os.getpid(), number)
    await asyncio.wait_for(signals.stop.wait(), 5)
    assert not signals.hurry.is_set()


async def test_a_second_one_asks_for_haste_and_a_third_is_nothing_new(signals: Signals):
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)
    await asyncio.wait_for(signals.hurry.wait(), 5)
    assert signals.stop.is_set()


async def test_a_hang_up_that_somebody_sends_asks_for_a_reload_as_often_as_it_comes(signals: Signals):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(signals.reload.wait(), 5)
        signals.reload.clear()
    assert not signals.stop.is_set()


async def test_waiting_ends_with_the_event_or_with_the_time(signals: Signals):
    await asyncio.wait_for(wait(signals.stop, 0), 5)
    signals.ask()
    await asyncio.wait_for(wait(signals.stop, 60), 5)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    yield master, slave
    for descriptor in (master, slave):
        try:
            os.close(descriptor)
        except OSError:
            continue  # closed by the test


def asked(terminal: tuple[int, int], *arguments: str, close: bool) -> str:
    """What a program with this terminal says when the terminal is closed, or when it is sent SIGHUP."""
    master, slave = terminal
    process = subprocess.Popen(
        [sys.executable, "-c", ASKED, *arguments],
        stdin=slave,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    with process, closing(process.stdout) as output:
        assert output.readline() == "ready\n"
        if close:
            os.close(slave)
            os.close(master)
        if not close or "nohup" in arguments:
            process.send_signal(signal.SIGHUP)
        return output.readline().strip()


def test_a_terminal_that_is_closed_is_a_reason_to_stop(terminal: tuple[int, int]):
    assert asked(terminal, close=True) == "stop"


def test_a_hang_up_that_somebody_sends_is_none_while_the_terminal_is_there(terminal: tuple[int, int]):
    assert asked(terminal, close=False) == "reload"


def test_a_program_that_is_to_outlive_its_terminal_does(terminal: tuple[int, int]):
    assert asked(terminal, "nohup", close=True) == "reload"
