"""The crash matrix at random: something is killed, frozen or broken under load, then everything is compared."""

import os
import random
from collections import Counter

import pytest

from tests.support.faults import FAULTS, PROVIDER_FAULTS
from tests.support.installation import installed, mock_provider, seed, tell
from tests.support.ledger import Clients, assert_exact

ROUNDS = int(os.environ.get("EDGEPROXY_TEST_ROUNDS", "30"))


@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_whatever_happens_every_answer_is_counted_once(capsys: pytest.CaptureFixture[str]):
    began = seed()
    rng = random.Random(began)
    happened: Counter[str] = Counter()
    with capsys.disabled():
        tell(f"\nEDGEPROXY_TEST_SEED={began} EDGEPROXY_TEST_ROUNDS={ROUNDS}")
        with mock_provider() as mock, installed(mock) as there:
            key = there.create_key("--prepaid", "--limit", "requests=10000000/1d", "--limit", "tokens=1000000000/1d")
            there.program.json("keys", "credit", there.keys[key], "1000000000")
            clients = Clients(there)
            for number in range(1, ROUNDS + 1):
                fault = rng.choice(FAULTS)
                clients.doing = f"round {number}: {fault.__name__}"
                happened[fault.__name__] += 1
                tell(clients.doing, end=" ")
                with clients.running(key, 5, random.Random(rng.random()), PROVIDER_FAULTS):
                    clients.wait_for(5)
                    how = fault(there, clients, rng)
                    clients.wait_for(5)
                there.until_complete()
                assert not {401, 429} & {asked.status for asked in clients.asked}
                verdict = assert_exact(there, clients)
                tell(f"{how}: {verdict.rows} rows, {verdict.whole} whole, {verdict.estimated} flagged")
            assert there.stop() == 0
            assert there.journals() == []
        tell(str(dict(happened)))
