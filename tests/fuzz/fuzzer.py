"""Looks for inputs that break an invariant, guided by what code they reach. Not a test: `make fuzz` runs it.

fuzzer.py [--seconds N] [TARGET ...]   each target for so long, in a process of its own; not 0 when one broke
fuzzer.py --run TARGET [libFuzzer options]   one target in this process
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "build" / "fuzz"
SLOW_S = 10  # an input that takes longer is a finding, too
WORD = re.compile(rb'"[A-Za-z_.\-]{1,40}"')  # names of members, and values that are words
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["edgeproxy.providers", "edgeproxy.domain", "edgeproxy.gateway"]):
    from tests.fuzz import targets


def main() -> int:
    """Run the targets that are asked for."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of answers and requests.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("target", nargs="*", help=f"of {', '.join(targets.TARGETS)}; none: all")
    options = parser.parse_args()
    broken = [target for target in options.target or targets.TARGETS if run(target, options.seconds)]
    if broken:
        print(f"fuzz: broken: {', '.join(broken)}; the inputs are in {FOUND}")  # noqa: T201 - a command's own words
    return 1 if broken else 0


def run(target: str, seconds: int) -> int:
    """Run one target in a process of its own, and return how it ended: 0 when nothing broke."""
    FOUND.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgeproxy-fuzz-") as name:
        corpus, words = Path(name) / "corpus", Path(name) / "words"
        corpus.mkdir()
        seeds = list(targets.seeds(target))
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
        known = sorted({word.strip(b'"') for seed in seeds for word in WORD.findall(seed)})
        words.write_bytes(b"".join(b'"%b"\n' % word for word in known))
        print(f"fuzz: {target}: for {seconds} s, from {len(seeds)} seeds and {len(known)} words", flush=True)  # noqa: T201 - as above
        options = [f"-max_total_time={seconds}", f"-max_len={targets.MOST_BYTES}", f"-timeout={SLOW_S}"]
        options += [f"-artifact_prefix={FOUND}/{target}-", "-print_final_stats=1", "-verbosity=0"]
        options += [f"-dict={words}"] if known else []
        command = [sys.executable, __file__, "--run", target, *options, str(corpus)]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        atheris.Setup([sys.argv[0], *sys.argv[3:]], targets.TARGETS[sys.argv[2]])
        atheris.Fuzz()
    sys.exit(main())
