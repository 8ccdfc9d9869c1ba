"""Long tests, for `make evidence`. Each prints what it begins its random choices with; that can be given again:

EDGEPROXY_TEST_SEED=... EDGEPROXY_TEST_ROUNDS=30 EDGEPROXY_TEST_SOAK_S=600 make evidence
"""

import os

collect_ignore_glob = [] if os.environ.get("EDGEPROXY_TEST_EVIDENCE") == "1" else ["test_*.py"]
