"""The table of a run, and its place in RESULTS.md."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.figures import STREAMS, Bench

BEGIN, END = "<!-- bench: written by `make bench` -->", "<!-- bench: end -->"

_HOW = """
Sides are measured one right after the other: minimum / median / maximum of the rounds, ratios taken within a round. CPU
is that of the worker, user and system. One worker each, keep-alive on both sides, no access logs. The gateway does all
that it does: key, three windows, reservation, settlement, usage events, metrics; its own count of requests and tokens
was compared with the client's afterwards. [README.md](README.md#bench) tells how each figure is measured."""

Values = dict[str, dict[str, list[float]]]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. `added`: what a side adds to asking directly; `ratio`: the gateway against nginx."""

    title: str
    figure: str
    digits: int = 1
    reach: str = ""
    added: bool = False
    ratio: bool = True


ROWS = (
    Row("CPU per unary request, us", "unary_cpu", reach="<= 3.0 x"),
    Row("CPU per streamed chunk, plain upstream, us", "streams", reach="<= 1.3 x"),
    Row("CPU per streamed chunk, TLS to the upstream, us", "streams_tls", reach="<= 2.0 x"),
    Row("added to the first byte of a stream, median, us", "first_byte", reach="<= 2 x", added=True),
    Row("first chunks held until the second was sent", "held_first", 0, reach="none", ratio=False),
    Row("all chunks held until the next was sent", "held", 0, ratio=False),
    Row("unary requests per second, one worker", "rate", 0, reach=">= 0.25 x"),
    Row("share of its core that the worker got meanwhile, %", "busy", 0, ratio=False),
    Row("added at half of the gateway's maximum, p50, us", "half_even_p50", 0, reach="<= 4 x", added=True),
    Row("the same, p99, us", "half_even_p99", 0, reach="<= 4 x", added=True),
    Row("the same with random arrivals, p50, us", "half_random_p50", 0, added=True),
    Row("the same with random arrivals, p99, us", "half_random_p99", 0, added=True),
    Row("chunk on its way at the load above, plain, p99, us", "streams_delay", 0, ratio=False),
    Row("the same, TLS, p99, us", "streams_tls_delay", 0, ratio=False),
    Row("resident memory of an idle worker, kB", "memory_idle", 0, reach="<= 70,000 kB", ratio=False),
    Row("resident memory of each further open stream, kB", "memory_stream", reach="<= 20 kB", ratio=False),
    Row("resident memory after 10,000 requests, kB", "memory_first", 0, ratio=False),
    Row("what it grew by with further requests, %", "memory_growth", reach="<= +2 %", ratio=False),
    Row("how many further requests", "memory_requests", 0, ratio=False),
    Row("round trips to Redis that a request waits for", "round_trips", 2, reach="1", ratio=False),
    Row("CPU behind each request: jobs, PostgreSQL and all else, us", "behind_cpu", ratio=False),
)


def numbers(values: Sequence[float], digits: int) -> str:
    """Return minimum, median and maximum; one number where there is one value."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return " / ".join(f"{each(values):,.{digits}f}" for each in (min, statistics.median, max))


def pairs(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratios of what was measured in the same rounds; none where there was nothing to divide by."""
    return [one / other for one, other in zip(above, below, strict=True) if other > 0]


def less(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return what was added to the base in each round."""
    return [value - below for value, below in zip(values, base, strict=True)]


def line(row: Row, values: Values) -> str:
    """Return the row as a line of the table."""
    sides = {name: values[row.figure][name] for name in ("direct", "nginx", "gateway")}
    if row.added:
        for name in ("nginx", "gateway"):
            sides[name] = less(sides[name], sides["direct"]) if sides[name] else []
    cells = [numbers(sides[name], row.digits) for name in ("direct", "nginx", "gateway")]
    ratio = "-"
    if row.ratio and sides["nginx"] and sides["gateway"]:
        found = pairs(sides["gateway"], sides["nginx"])
        missing = len(sides["gateway"]) - len(found)
        ratio = numbers(found, 2) + f" ({missing} without)" * bool(missing)
    return f"| {row.title} | {' | '.join(cells)} | {ratio} | {row.reach} |"


def table(values: Values) -> list[str]:
    """Return the lines of the table."""
    head = ["| figure | direct | nginx | gateway | gateway / nginx | to reach |", "|---|---|---|---|---|---|"]
    rows = [line(row, values) for row in ROWS if values[row.figure]]
    redis = pairs(values["redis_cpu"]["gateway"], values["unary_cpu"]["nginx"]) if values["unary_cpu"]["nginx"] else []
    rows.append(
        f"| CPU of Redis per request, us; against nginx's | - | - | {numbers(values['redis_cpu']['gateway'], 1)} | "
        f"{numbers(redis, 2)} | <= 1.7 x |"
    )
    return [*head, *rows, *_workers(values)]


def _workers(values: Values) -> list[str]:
    kinds = (
        ("two_rate", 0, "two workers against one, requests per second", ">= 1.7 x"),
        ("two_cpu", 1, "CPU per request of two workers against one, at one rate, us", ""),
    )
    lines = []
    for figure, digits, title, reach in kinds:
        if found := values[figure]:
            both = f"{numbers(found['two'], digits)} against {numbers(found['one'], digits)}"
            lines.append(f"| {title} | - | - | {both} | {numbers(pairs(found['two'], found['one']), 2)} | {reach} |")
    return lines


def section(bench: Bench, *, machine: str, commit: str, cores: str) -> str:
    """Return the section for RESULTS.md."""
    rounds = len(bench.values["rate"]["gateway"])
    counts = {name: bench.values[f"{name}_count"]["all"] for name in ("streams", "streams_tls")}
    used = [f"{int(each[-1])} streams{' with TLS' * (name != 'streams')}" for name, each in counts.items() if each]
    notes = list(bench.notes)
    if any(each and each[-1] != STREAMS for each in counts.values()):
        notes.insert(0, f"Chunks: {', '.join(used)}; {STREAMS} were too many for a side to pass on chunk by chunk.")
    if not bench.values["two_rate"]:
        notes.append("The rate of two workers was not measured: with fewer than four cores the load leaves them none.")
    if all(side.name != "nginx" for side in bench.sides):
        notes.append("nginx is not installed: nothing to hold the gateway against.")
    lines = [
        BEGIN,
        "",
        "# What it costs, held against nginx",
        "",
        f"Commit {commit}. {machine}. {cores} Rounds: {rounds}, measurements of {bench.extent.seconds:g} s.",
        _HOW,
        "",
        *table(bench.values),
        "",
        *(f"- {note}" for note in notes),
        "",
        END,
    ]
    return "\n".join(lines)


def put(text: str, written: str) -> str:
    """Return a document with its section of the bench replaced, or with one at its end."""
    before, found, rest = text.partition(BEGIN)
    after = rest.partition(END)[2].lstrip("\n")
    if not found:
        return f"{text.rstrip()}\n\n{written}\n"
    return f"{before}{written}\n" + (f"\n{after}" if after else "")


def write(path: Path, written: str) -> None:
    """Replace the bench's section of a file."""
    path.write_text(put(path.read_text(encoding="utf-8"), written), encoding="utf-8")
