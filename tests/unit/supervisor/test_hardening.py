"""What a process that serves takes upon itself, seen from inside and from outside."""

import subprocess
import sys

import pytest

SHOW = """
import ctypes, os, resource
from edgeproxy.supervisor.hardening import harden
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
harden()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
print(resource.getrlimit(resource.RLIMIT_CORE) == (0, 0))
print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))
print(oct(os.umask(0)))
"""


@pytest.mark.claims("OL-4d")
def test_no_memory_image_all_descriptors_and_private_files():
    shown = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["0", "True", "True", "0o77"]
