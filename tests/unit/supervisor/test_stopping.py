"""Signals as something to wait for."""

import asyncio
import os
import signal

import pytest

from edgeproxy.supervisor.stopping import StopRequest


@pytest.fixture
async def stop():
    yield StopRequest()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.remove_signal_handler(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_asks_for_a_stop(stop: StopRequest, number: signal.Signals):
    assert not stop.asked.is_set()
    os.kill(os.getpid(), number)
    await asyncio.wait_for(stop.asked.wait(), 5)
    assert not stop.hurry.is_set()


async def test_a_second_one_asks_for_haste_and_a_third_is_nothing_new(stop: StopRequest):
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)
    await asyncio.wait_for(stop.hurry.wait(), 5)
    assert stop.asked.is_set()


async def test_a_program_that_is_to_outlive_its_terminal_does():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        assert not stop.asked.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
