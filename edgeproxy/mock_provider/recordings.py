"""Recorded answers, served by name: `recording:<provider>/<file>`.

A folder has one sub-folder per provider, with the bodies as they travelled and an `index.json` that names
status, headers and the tokens that must be billed. Files are read when asked for, and only below the folder.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from edgeproxy.mock_provider.exchange import Tokens

_NAME = re.compile(r"[a-z][a-z0-9-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_EVENT = re.compile(rb".*?(?:\r?\n\r?\n|\Z)", re.DOTALL)
_MAX_BYTES = 64 * 1024 * 1024  # a recording is held in memory while it is served
_CONTENT_TYPES = {".sse": "text/event-stream; charset=utf-8", ".json": "application/json"}


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded answer."""

    body: bytes
    status: int
    content_type: str
    gzipped: bool  # `body` is compressed, as it travelled
    tokens: Tokens

    def events(self) -> list[bytes]:
        """Cut the body after each blank line; a body without any is one piece."""
        return [piece for piece in _EVENT.findall(self.body) if piece] if not self.gzipped else [self.body]


def read_recording(folder: Path, name: str) -> Recording:
    """Read `<provider>/<file>` below the folder. Raises LookupError when there is no such recording."""
    if not _NAME.fullmatch(name):
        raise LookupError("a recording is named <provider>/<file>")
    path = folder / name
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise LookupError("no such recording")
    gzipped = path.suffix == ".gz"
    entry = _index_entry(path)
    headers = entry.get("response_headers", {})
    suffix = path.with_suffix("").suffix if gzipped else path.suffix
    return Recording(
        body=path.read_bytes(),
        status=entry.get("http_status", 200),
        content_type=headers.get("content-type", _CONTENT_TYPES.get(suffix, "application/octet-stream")),
        gzipped=gzipped,
        tokens=_tokens(entry.get("expected") or {}),
    )


def _index_entry(path: Path) -> dict[str, Any]:
    index = path.with_name("index.json")
    if not index.is_file():
        return {}
    for entry in orjson.loads(index.read_bytes())["fixtures"]:
        if entry["file"] == path.name:
            return dict(entry)
    return {}


def _tokens(expected: Mapping[str, int]) -> Tokens:
    reasoning = expected.get("reasoning", 0)
    return Tokens(
        input_uncached=expected.get("input_uncached", 0),
        cache_read=expected.get("cache_read", 0),
        cache_write=expected.get("cache_write", 0),
        output=expected.get("output", 0) - reasoning,
        reasoning=reasoning,
    )
