"""Ten minutes of load with everything going wrong, one thing after the other: nothing is lost, and no process grows.

What the provider and the clients do wrong goes on all the time. One worker, and in the second half the process with the
jobs, are spared, so that each role has a process that lives long enough to be measured.
"""

import os
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.faults import FAULTS, PROVIDER_FAULTS, supervisor_is_killed
from tests.support.installation import Installation, installed, mock_provider, seed, tell
from tests.support.ledger import Clients, assert_exact
from tests.support.processes import children_of

SOAK_S = float(os.environ.get("EDGEPROXY_TEST_SOAK_S", "600"))
CLIENTS = 6
WARM_S = min(60.0, SOAK_S / 4)  # from then on a process has all that it needs
SAMPLE_S = 2.0
GROWTH_MAX = 1.25
GROWTH_MIB = 16.0  # allowed beyond that: allocators keep what a burst needed
_ROLES = {" gateway ": "worker", " console ": "console and jobs"}


@dataclass
class Memory:
    """Resident memory of processes over their lives, in MiB."""

    there: Installation
    began: dict[tuple[str, int], float] = field(default_factory=dict)
    samples: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at all processes while the block runs."""
        over = threading.Event()

        def look_on() -> None:
            while not over.wait(SAMPLE_S):
                self._look()

        watching = threading.Thread(target=look_on, daemon=True)
        watching.start()
        yield
        over.set()
        watching.join()

    def _look(self) -> None:
        supervisor = self.there.running.process.pid
        found = {("supervisor", supervisor): supervisor}
        for pid, command in children_of(supervisor).items():
            role = next((role for part, role in _ROLES.items() if part in command), "")
            if role:
                found[role, pid] = pid
        redis = self.there.redis._server.pid
        if redis is not None:
            found["redis", redis] = redis
        now = time.monotonic()
        for life, pid in found.items():
            mib = resident_mib(pid)
            began = self.began.setdefault(life, now)
            if mib and now - began >= WARM_S:
                self.samples[life].append(mib)

    def longest(self) -> dict[str, tuple[float, float, float]]:
        """Return of each role the process that was seen longest: seconds after it was warm, MiB then and at its end."""
        found: dict[str, tuple[float, float, float]] = {}
        for (role, _), mib in self.samples.items():
            lived = len(mib) * SAMPLE_S
            if lived > found.get(role, (0.0, 0.0, 0.0))[0]:
                found[role] = lived, mib[0], mib[-1]
        return found


def resident_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0)


@pytest.mark.timeout(SOAK_S * 2 + 600)
def test_nothing_is_lost_and_nothing_grows(capsys: pytest.CaptureFixture[str]):
    began = seed()
    rng = random.Random(began)
    happened: Counter[str] = Counter()
    with capsys.disabled(), mock_provider() as mock, installed(mock, flush_after_ms=2000, lease_ms=3000) as there:
        tell(f"\nEDGEPROXY_TEST_SEED={began} EDGEPROXY_TEST_SOAK_S={SOAK_S:.0f}")
        key = there.create_key("--prepaid", "--limit", "requests=10000000/1d", "--limit", "tokens=1000000000/1d")
        there.program.json("keys", "credit", there.keys[key], "1000000000")
        clients, memory = Clients(there), Memory(there)
        there.spared = {there.workers()[0]}
        half, end = time.monotonic() + SOAK_S / 2, time.monotonic() + SOAK_S
        with memory.watched(), clients.running(key, CLIENTS, random.Random(rng.random()), PROVIDER_FAULTS):
            while time.monotonic() < end:
                fault = rng.choice([each for each in FAULTS if each is not supervisor_is_killed])
                clients.doing = fault.__name__
                happened[fault.__name__] += 1
                fault(there, clients, rng)
                there.until_complete()
                clients.wait_for(20)
                if time.monotonic() > half:
                    there.spared.add(there.console())
            time.sleep(WARM_S / 2)  # as warm as at the beginning, and with nothing on its way
        clients.doing = ""
        unjust = [f"{asked.note}: {asked.body!r}" for asked in clients.asked if asked.status in (401, 429)]
        assert not unjust, unjust[:5]  # the key is good, and far from its limits
        verdict = assert_exact(there, clients)
        tell(f"{len(clients.asked)} requests, {dict(Counter(asked.status for asked in clients.asked))} by status")
        tell(f"{verdict.rows} counted, {verdict.whole} answered whole, {verdict.estimated} flagged")
        tell(f"{sum(happened.values())} faults: {dict(happened)}")
        for role, (lived_s, first, last) in memory.longest().items():
            tell(f"{role}: {first:.1f} MiB when warm, {last:.1f} MiB {lived_s:.0f} s later")
        assert there.stop() == 0
        assert there.journals() == []
    grown = {role: each for role, each in memory.longest().items() if each[2] > each[1] * GROWTH_MAX + GROWTH_MIB}
    assert not grown
    assert {"supervisor", "worker", "console and jobs"} <= set(memory.longest())
