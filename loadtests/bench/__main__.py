"""The bench: what the gateway costs, held against nginx and against asking the upstream directly.

    make bench
    .venv/bin/python -m loadtests.bench --quick

Takes under five minutes, `--quick` about one. Everything runs on loopback, is started by it, and ends with it.
"""

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from loadtests.bench import figures, report
from loadtests.bench.load import Client, compiled, upstream
from loadtests.bench.machine import BenchError, Elsewhere, commit, describe, loopback, open_files, split_cores
from loadtests.bench.sides import ROOT, Place, direct, gateway, nginx, nginx_program, tls_end
from tests.support.certificates import make_pair

DEFAULT = figures.Extent()
QUICK = figures.Extent(rounds=2, seconds=0.8, memory_seconds=3, rounds_seconds=45)
LONG_S = 3600.0
CORES_FOR_TWO = 4
RESULTS = ROOT / "loadtests" / "RESULTS.md"


def arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench", description="What the gateway costs, held against nginx.")
    parser.add_argument("--quick", action="store_true", help="about a minute: two rounds of one second")
    parser.add_argument(
        "--long", action="store_true", help="look at memory after 1,000,000 requests, however long it takes"
    )
    parser.add_argument("--rounds", type=int, help=f"how many rounds (default {DEFAULT.rounds})")
    parser.add_argument("--address", default="127.0.0.1", help="loopback address that everything listens on")
    parser.add_argument("--dry", action="store_true", help="print, and leave RESULTS.md as it is")
    return parser.parse_args(words)


def extent(options: argparse.Namespace) -> figures.Extent:
    """Return how much is measured."""
    chosen = QUICK if options.quick else DEFAULT
    if options.long:
        chosen = replace(chosen, memory_seconds=LONG_S)
    return replace(chosen, rounds=options.rounds or chosen.rounds)


def run(options: argparse.Namespace) -> str:
    """Measure everything and return the section for RESULTS.md. Raises BenchError."""
    address = loopback(options.address)
    open_files()
    measured, rest = split_cores()
    elsewhere = Elsewhere()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeproxy-bench-")))
        program = compiled(folder)
        os.sched_setaffinity(0, rest)  # what is started from here on inherits it
        _, port = stack.enter_context(upstream(program, address))
        pair = make_pair(folder, hosts=(address, "localhost"))
        tls = 0
        if nginx_program():
            folder.chmod(0o755)  # nginx's worker may be somebody else
            tls = stack.enter_context(tls_end(address, port, pair.certificate, pair.key))
        place = Place(address, port, tls, pair.certificate, measured, rest)
        with figures.timed("starting everything"):
            sides = [direct(place)]
            if nginx_program():
                sides.append(stack.enter_context(nginx(place)))
            sides.append(stack.enter_context(gateway(place)))
        bench = figures.Bench(Client(program, address), sides, extent(options))
        measure(bench, place)
    os.sched_setaffinity(0, [*measured, *rest])
    told = (
        f"The measured worker alone on core {measured[0]}, all the rest on {', '.join(map(str, rest))} (by affinity)."
    )
    bench.note(f"Whatever else ran on the machine took {elsewhere.share():.0%} of it.")
    return report.section(bench, machine=describe(), commit=commit(ROOT), cores=told)


def measure(bench: figures.Bench, place: Place) -> None:
    """Measure everything, in its order."""
    with figures.timed("memory"):
        figures.memory(bench)
    figures.run_rounds(bench)
    with figures.timed("round trips to Redis"):
        figures.round_trips(bench)
    cores = sorted({*place.measured_cores, *place.other_cores})
    at_full_load = len(cores) >= CORES_FOR_TWO
    wide = replace(place, measured_cores=cores[-2:] if at_full_load else place.measured_cores)
    with figures.timed("two workers"), gateway(wide, workers=2) as two:
        figures.two_workers(bench, two, at_full_load=at_full_load)
    with figures.timed("holding counts against each other"):
        figures.check_counts(bench)


def main(words: list[str]) -> int:
    """Run the bench and return the exit status."""
    options = arguments(words)
    try:
        written = run(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(written)
    if not options.dry:
        report.write(RESULTS, written)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
