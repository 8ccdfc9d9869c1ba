"""What is left on purpose, so that the search can prove itself: files with a text in every form.

One of them lies across the border of two blocks, some are compressed. Redis and PostgreSQL get theirs where they are
searched.
"""

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from edgeproxy.canary.markers import Markers
from edgeproxy.canary.scanning import BLOCK_BYTES

AREA = "decoys of this run"
REDIS, POSTGRES = "a key of Redis", "a row of PostgreSQL"

_FORMS: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "upper case": lambda text: text.upper().encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 the other way round": lambda text: text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "hexadecimal": lambda text: text.encode().hex().encode(),
    "escaped for a URL": lambda text: "".join(f"%{ord(each):02X}" for each in text).encode(),
    "escaped for JSON": lambda text: "".join(f"\\u{ord(each):04x}" for each in text).encode(),
    "escaped for C": lambda text: "".join(f"\\x{ord(each):02x}" for each in text).encode(),
    "in octal": lambda text: "".join(f"\\{ord(each):03o}" for each in text).encode(),
    "inside of JSON": lambda text: json.dumps({"a": [quote(text)]}).encode(),
    "base64": lambda text: base64.b64encode(text.encode()),
    "base64, one further": lambda text: base64.b64encode(b"x" + text.encode()),
    "base64, two further": lambda text: base64.urlsafe_b64encode(b"xy" + text.encode()),
    "gzip": lambda text: gzip.compress(text.encode()),
    "gzip inside of something": lambda text: bytes(1000) + gzip.compress(text.encode()) + bytes(1000),
    "across a border": lambda text: bytes(BLOCK_BYTES - 7) + text.encode(),
    "cut in two, as where strings are compressed": lambda text: f"{text[:9]}\0{text[9:]}".encode(),
}


def write(folder: Path, markers: Markers) -> frozenset[str]:
    """Write a file for each form, and return the names that have to be found."""
    for number, (name, encode) in enumerate(_FORMS.items()):
        (folder / f"decoy-{number:02}").write_bytes(encode(markers.decoy(f"decoy: {name}")))
    return frozenset(f"decoy: {name}" for name in _FORMS)
