"""What a process that serves takes upon itself before it does: no memory image, private files, enough descriptors."""

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def harden() -> None:
    """Keep what is in memory out of files, keep what we write from others, and raise the limit of open files."""
    # A kernel that pipes core dumps to a crash reporter ignores the limit of core files; this it obeys. Nor can
    # another process of our own user read our memory any more. It is the one thing here that children do not inherit.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
