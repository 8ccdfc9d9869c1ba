"""Recorded answers, served by name: `recording:<provider>/<file>`.

A folder has one sub-folder per provider, with the bodies as they travelled and an `index.json` that names
status, headers and the tokens that must be billed. Files are read when asked for, and only below the folder.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import orjson

from edgeproxy.mock_provider.endpoint import Bill
from edgeproxy.mock_provider.exchange import Tokens

_NAME = re.compile(r"[a-z][a-z0-9-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_EVENT = re.compile(rb".*?(?:\r?\n\r?\n|\Z)", re.DOTALL)
_MAX_BYTES = 64 * 1024 * 1024  # a recording is held in memory while it is served
_SLICES = 4  # pieces of a body that has no events
_CONTENT_TYPES = {".sse": "text/event-stream; charset=utf-8", ".json": "application/json"}
_NOT_SERVED = {"transfer-encoding", "content-length", "connection"}  # belong to the connection it was recorded on


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded answer."""

    body: bytes
    status: int
    headers: dict[str, str]
    bill: Bill

    def pieces(self) -> list[bytes]:
        """Cut the body: after each blank line of an event stream, anything else into a few slices."""
        is_events = self.headers["content-type"].startswith("text/event-stream")
        if is_events and "content-encoding" not in self.headers:
            return [piece for piece in _EVENT.findall(self.body) if piece]
        return list(slices(self.body))


def slices(body: bytes) -> Iterator[bytes]:
    """Cut a body that has no events, so that it can break off somewhere."""
    size = max(1, -(-len(body) // _SLICES))
    return (body[start : start + size] for start in range(0, len(body), size))


def read_recording(folder: Path, name: str) -> Recording:
    """Read `<provider>/<file>` below the folder. Raises LookupError when there is no such recording."""
    if not _NAME.fullmatch(name):
        raise LookupError("a recording is named <provider>/<file>")
    path = folder / name
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise LookupError("no such recording")
    entry = _index_entry(path)
    return Recording(
        body=path.read_bytes(),
        status=entry.get("http_status", 200),
        headers=_headers(path, entry.get("response_headers", {})),
        bill=_bill(entry.get("expected_model") or "recording", entry.get("expected") or {}),
    )


def _headers(path: Path, recorded: Mapping[str, str]) -> dict[str, str]:
    gzipped = path.suffix == ".gz"
    suffix = path.with_suffix("").suffix if gzipped else path.suffix
    headers = {"content-type": _CONTENT_TYPES.get(suffix, "application/octet-stream"), **recorded}
    headers = {name: value for name, value in headers.items() if name not in _NOT_SERVED | {"content-encoding"}}
    return headers | ({"content-encoding": "gzip"} if gzipped else {})


def _index_entry(path: Path) -> dict[str, Any]:
    index = path.with_name("index.json")
    if not index.is_file():
        return {}
    for entry in orjson.loads(index.read_bytes())["fixtures"]:
        if entry["file"] == path.name:
            return dict(entry)
    return {}


def _bill(model: str, expected: Mapping[str, Any]) -> Bill:
    """Tokens by model; where several are named, what is not split (the reasoning, the cost) goes with the first."""
    split = expected.get("per_model")
    if not split:
        return {model: _tokens(expected)}
    first = Tokens(output=-expected.get("reasoning", 0), reasoning=expected.get("reasoning", 0))
    bill = {name: _tokens(part) for name, part in split.items()}
    bill[model] = bill.get(model, Tokens()) + first
    return bill


def _tokens(expected: Mapping[str, Any]) -> Tokens:
    reasoning = expected.get("reasoning", 0)
    cost = Decimal(expected.get("provider_cost_usd", 0)) * 10**9
    return Tokens(
        input_uncached=expected.get("input_uncached", 0),
        cache_read=expected.get("cache_read", 0),
        cache_write=expected.get("cache_write", 0),
        output=expected.get("output", 0) - reasoning,
        reasoning=reasoning,
        cache_write_1h=expected.get("cache_write_1h", 0),
        cost_nanos=int(cost.to_integral_value(ROUND_CEILING)),
    )
