"""Tests of clients that cannot be installed beside the others. `make compat` installs and runs them, no other run."""

import os

collect_ignore_glob = [] if os.environ.get("EDGEPROXY_TEST_COMPAT") == "1" else ["test_*.py"]
