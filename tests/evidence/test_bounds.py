"""How far a limit is exceeded: under `strict` not at all, under `estimate` by what was in flight and not reserved."""

import threading
from collections import Counter

import pytest

from tests.support.installation import Installation, installed, mock_provider, tell
from tests.support.ledger import Clients, Shape, assert_exact, usage_of
from tests.support.processes import wait_until

LIMIT = 200_000
PARALLEL = 64
DECLARED, USED, ESTIMATED = 8192, 8000, 4096  # output tokens; what an estimate holds at most
BIG = Shape(
    chunks=4, interval_ms=500, input_tokens=20, output_tokens=USED, max_tokens=DECLARED, more=".first-byte-2000"
)


def used_by(there: Installation, clients: Clients, reserve: str) -> tuple[int, int]:
    """Ask on all connections at once, and then until nothing fits; return what was used, and by how many requests."""
    key = there.create_key("--limit", f"tokens={LIMIT}/1h", "--reserve", reserve)
    ready = threading.Barrier(PARALLEL)

    def ask_on() -> None:
        ready.wait()
        while clients.ask(key, BIG).status == 200:
            pass

    threads = [threading.Thread(target=ask_on, daemon=True) for _ in range(PARALLEL)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    wait_until(lambda: usage_of(there, key).open == 0)
    totals = usage_of(there, key).totals
    return totals.input_tokens + totals.output_tokens, totals.requests


@pytest.mark.timeout(300)
def test_what_is_used_beyond_a_limit(capsys: pytest.CaptureFixture[str]):
    with mock_provider() as mock, installed(mock) as there:
        clients = Clients(there)
        used = {reserve: used_by(there, clients, reserve) for reserve in ("estimate", "strict")}
        assert_exact(there, clients)
        statuses = Counter(asked.status for asked in clients.asked)
    with capsys.disabled():
        for reserve, (tokens, requests) in used.items():
            excess = max(tokens - LIMIT, 0)
            tell(f"\n{reserve}: limit {LIMIT}, used {tokens} by {requests} requests, excess {excess}", end="")
        tell(f"\n{dict(statuses)} by status")
    assert used["strict"][0] <= LIMIT
    most = LIMIT // ESTIMATED  # in flight at once
    assert LIMIT < used["estimate"][0] <= LIMIT + most * (BIG.input_tokens + USED - ESTIMATED)
