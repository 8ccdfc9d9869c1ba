"""What is measured, in which order, and what it means.

Every figure is measured on all sides in every round, one right after the other, so that what else the machine does
meets all of them alike; ratios are taken within a round.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from loadtests.bench.load import Answers, Client, Load
from loadtests.bench.machine import BenchError, cpu_us, memory_kb, wait_until
from loadtests.bench.relay import relay
from loadtests.bench.sides import Side

PACE_US = 10_000  # between the chunks of a stream
STREAMS = 300
FEWEST_STREAMS = 30
MEMORY_STREAMS = 1000
FIRST_REQUESTS = 10_000
_QUIET_SHARE, _QUIET_WINDOW_S, _QUIET_WITHIN_S = 0.06, 0.4, 20.0
_BUSY_SHARE, _ALONE_SHARE = 0.9, 0.9
_INPUT_TOKENS = 160  # that the upstream tells for each request


@dataclass(frozen=True, slots=True)
class Extent:
    """How long the bench takes."""

    rounds: int = 5
    seconds: float = 2.0  # of each measurement
    memory_requests: int = 1_000_000
    memory_seconds: float = 20.0  # for these; whatever ends first
    rounds_seconds: float = 200.0  # no round begins that would probably end later

    @property
    def stream_chunks(self) -> int:
        """Return how many chunks a stream has that lasts for `seconds`."""
        return int(self.seconds * 1_000_000 / PACE_US)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one side: what its clients saw, and the CPU time that it took."""

    answers: Answers
    took_s: float
    workers_us: float
    redis_us: float

    @property
    def rate(self) -> float:
        """Return good answers per second."""
        return self.answers.good / self.answers.seconds

    @property
    def busy(self) -> float:
        """Return how much of one core the workers took."""
        return self.workers_us / 1e6 / self.took_s


@dataclass
class Bench:
    """Measures, and keeps what was measured: figure, side, one value for each round."""

    client: Client
    sides: list[Side]
    extent: Extent
    values: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    notes: list[str] = field(default_factory=list)
    asked: int = 0  # requests that the gateway answered
    stirred: bool = False  # whether a gateway was asked since it was quiet

    @property
    def gateway(self) -> Side:
        """Return the side that this is about."""
        return next(side for side in self.sides if side.workers and side.redis)

    @property
    def proxies(self) -> list[Side]:
        """Return the sides that have processes of their own."""
        return [side for side in self.sides if side.workers]

    def keep(self, figure: str, side: str, value: float) -> None:
        """Keep what was measured in this round."""
        self.values[figure][side].append(value)

    def measure(self, side: Side, load: Load) -> Sample:
        """Let one client ask one side, when all of them have nothing else to do."""
        self.quiet()
        began = time.monotonic()
        before = cpu_us(side.workers), cpu_us(side.redis)
        try:
            answers = self.client.ask(side.port_for(load.model), side.key, load)
        except BenchError as error:
            raise BenchError(f"{side.name}: {error}") from None
        time.sleep(0.02)  # what is settled behind the last answer belongs to it
        took_s = time.monotonic() - began
        sample = Sample(answers, took_s, cpu_us(side.workers) - before[0], cpu_us(side.redis) - before[1])
        self.count(side, answers)
        return sample

    def count(self, side: Side, answers: Answers) -> None:
        """Remember what the gateway has to have counted in the end."""
        self.stirred |= bool(side.redis)
        if side is self.gateway:
            self.asked += answers.good

    def quiet(self) -> None:
        """Wait until what the gateway does behind its answers is done: it would run beside the next load."""
        processes = [*self.gateway.redis, *self.gateway.others]
        until = time.monotonic() + _QUIET_WITHIN_S
        while self.stirred and time.monotonic() < until:
            before = cpu_us(processes)
            time.sleep(_QUIET_WINDOW_S)
            self.stirred = cpu_us(processes) - before > _QUIET_SHARE * _QUIET_WINDOW_S * 1e6
        if self.stirred:
            self.note("Usage was still being written to PostgreSQL while something else was measured.")

    def note(self, text: str) -> None:
        """Keep what a reader has to know, once."""
        if text not in self.notes:
            self.notes.append(text)


# --- the rounds


def run_rounds(bench: Bench) -> None:
    """Measure as many rounds as were asked for and fit."""
    began = time.monotonic()
    for number in range(bench.extent.rounds):
        if (time.monotonic() - began) * (1 + 1 / max(number, 1)) > bench.extent.rounds_seconds:
            bench.note(f"The time was up after {number} rounds of {bench.extent.rounds}.")
            return
        with timed(f"round {number + 1} of {bench.extent.rounds}"):
            run_round(bench, number)


def run_round(bench: Bench, number: int) -> None:
    """Measure each figure once on every side; sides take turns in being the first."""
    sides = bench.sides if number % 2 == 0 else bench.sides[::-1]
    saturation(bench, sides)
    first_bytes(bench, sides)
    half_rate(bench, sides)
    streams(bench, sides, "streams", "bench")
    if all(side.tls for side in bench.proxies):
        streams(bench, sides, "streams_tls", "bench-tls")


def saturation(bench: Bench, sides: list[Side]) -> None:
    """Unary requests as fast as 32 connections get them: rate, and CPU per request."""
    for side in sides:
        bench.quiet()
        behind_us = cpu_us(side.others)
        sample = bench.measure(side, Load(seconds=bench.extent.seconds))
        bench.keep("rate", side.name, sample.rate)
        if side.workers:
            bench.keep("unary_cpu", side.name, sample.workers_us / sample.answers.good)
            bench.keep("busy", side.name, sample.busy * 100)
        if side.redis:
            bench.keep("redis_cpu", side.name, sample.redis_us / sample.answers.good)
            bench.quiet()  # until all of it is written down
            bench.keep("behind_cpu", side.name, (cpu_us(side.others) - behind_us) / sample.answers.good)


def first_bytes(bench: Bench, sides: list[Side]) -> None:
    """Time to the first byte of streams that begin 200 times a second; chunks that came after the next was sent."""
    for side in sides:
        answers = bench.measure(
            side, Load("bench-c4-i30000", connections=64, seconds=bench.extent.seconds, rate=200)
        ).answers
        bench.keep("first_byte", side.name, answers.first_p50_us)
        bench.keep("held_first", side.name, answers.held_first)
        bench.keep("held", side.name, answers.held)


def half_rate(bench: Bench, sides: list[Side]) -> None:
    """Latency of unary requests that fall due at half of what the gateway could do in this round."""
    rate = bench.values["rate"][bench.gateway.name][-1] / 2
    for arrivals in ("even", "random"):
        for side in sides:
            load = Load(seconds=bench.extent.seconds, rate=rate, arrivals=arrivals, connections=64)
            answers = bench.measure(side, load).answers
            bench.keep(f"half_{arrivals}_p50", side.name, answers.answer_p50_us)
            bench.keep(f"half_{arrivals}_p99", side.name, answers.answer_p99_us)


def streams(bench: Bench, sides: list[Side], figure: str, model: str) -> None:
    """CPU per chunk of as many streams of 100 chunks a second as every side can pass on chunk by chunk."""
    count = int(bench.values[f"{figure}_count"]["all"][0]) if bench.values[f"{figure}_count"]["all"] else STREAMS
    chunks = bench.extent.stream_chunks
    while True:
        load = Load(f"{model}-c{chunks}-i{PACE_US}", connections=count, most=count)
        samples = {side.name: bench.measure(side, load) for side in sides if side.workers}
        crowded = [name for name, sample in samples.items() if not _is_paced(sample)]
        if not crowded or count // 2 < FEWEST_STREAMS or bench.values[figure]:
            break
        count //= 2
    if crowded:
        bench.note(
            f"{figure}: {' and '.join(crowded)} could not pass on each of {count} streams chunk by chunk in a round."
        )
    bench.keep(f"{figure}_count", "all", count)
    for name, sample in samples.items():
        bench.keep(figure, name, sample.workers_us / sample.answers.events)
        bench.keep(f"{figure}_delay", name, sample.answers.event_p99_us)


def _is_paced(sample: Sample) -> bool:
    """Whether chunks came one by one: one that waits for others costs less than it would."""
    return sample.busy < _BUSY_SHARE and sample.answers.reads >= _ALONE_SHARE * sample.answers.events


# --- what is measured once


def memory(bench: Bench) -> None:
    """Memory of idle workers, of open streams, and after many requests. Comes first, while the workers are fresh."""
    for side in bench.proxies:
        bench.keep("memory_idle", side.name, memory_kb(side.workers))
    side = bench.gateway
    bench.measure(side, Load(most=FIRST_REQUESTS, seconds=60))
    first_kb = memory_kb(side.workers)
    load = Load(most=bench.extent.memory_requests, seconds=bench.extent.memory_seconds)
    bench.keep("memory_requests", side.name, bench.measure(side, load).answers.good)
    bench.keep("memory_first", side.name, first_kb)
    bench.keep("memory_growth", side.name, (memory_kb(side.workers) / first_kb - 1) * 100)
    for side in bench.proxies:
        few, many = (_memory_of_streams(bench, side, count) for count in (100, 100 + MEMORY_STREAMS))
        bench.keep("memory_stream", side.name, (many - few) / MEMORY_STREAMS)


def _memory_of_streams(bench: Bench, side: Side, count: int) -> float:
    """Return the memory while so many streams are open, in the middle of them."""
    load = Load("bench-c10-i250000", connections=count, most=count)
    bench.quiet()
    client = bench.client.begin(side.port_for(load.model), side.key, load)
    time.sleep(1.5)
    taken_kb = memory_kb(side.workers)
    bench.count(side, bench.client.end(client, load))
    return taken_kb


def round_trips(bench: Bench) -> None:
    """How often a request waits for Redis: by how much it takes longer when each reply takes longer."""
    load = Load(connections=1, seconds=1.5)
    with relay(bench.gateway.redis_socket, bench.gateway.redis_password) as between:
        medians = {}
        for delay_ms in (10, 30):
            between.delay_s = delay_ms / 1000
            time.sleep(1)  # connections are made anew
            medians[delay_ms] = bench.measure(bench.gateway, load).answers.answer_p50_us
        if not between.passed:
            raise BenchError("nothing went through the relay before Redis")
    bench.keep("round_trips", bench.gateway.name, (medians[30] - medians[10]) / 20_000)


def two_workers(bench: Bench, two: Side, *, at_full_load: bool) -> None:
    """Hold two workers against one: their rate, or where the load leaves them no cores, what a request costs them."""
    rate = 0 if at_full_load else min(bench.values["rate"][bench.gateway.name]) / 2
    figure = "two_rate" if at_full_load else "two_cpu"
    for _ in range(min(3, bench.extent.rounds)):
        for name, side in (("one", bench.gateway), ("two", two)):
            sample = bench.measure(side, Load(seconds=bench.extent.seconds, rate=rate, connections=64))
            bench.keep(figure, name, sample.rate if at_full_load else sample.workers_us / sample.answers.good)


def check_counts(bench: Bench) -> None:
    """Hold the gateway's own count against the client's: what is measured has to be the gateway with everything on."""

    def is_whole() -> bool:
        return bench.gateway.counted()["requests"] >= bench.asked

    wait_until(is_whole, "that all requests are counted")
    counted = bench.gateway.counted()
    if counted["requests"] != bench.asked or counted["input_tokens"] != _INPUT_TOKENS * bench.asked:
        raise BenchError(
            f"the gateway counted {counted}; it was asked {bench.asked} times, for {_INPUT_TOKENS} input tokens each"
        )


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Tell how long something took."""
    began = time.monotonic()
    print(f"{what} ...", end=" ", flush=True)
    yield
    print(f"{time.monotonic() - began:.0f} s", flush=True)
