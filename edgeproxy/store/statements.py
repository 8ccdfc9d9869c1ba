"""SQL lives in files beside the module that runs it: `keys.sql` for `keys.py`. Each statement has a name and a reason.

A file is a sequence of statements, each begun by `-- name: NAME` and a comment that says what it is for.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

_NAME = re.compile(r"^-- name: ([a-z_]+)\n", re.MULTILINE)


@cache
def statements(room: str) -> Mapping[str, str]:
    """Return the statements of `<room>.sql` by name; read at the first use."""
    text = resources.files("edgeproxy.store").joinpath(f"{room}.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return MappingProxyType(dict(zip(parts[::2], parts[1::2], strict=True)))
