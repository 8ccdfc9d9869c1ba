"""Answers of providers in files, with the usage that they are to be read as.

A folder has `index.json` files: for each answer its file, the endpoint that gave it, its status and headers, and what
is expected. Those of this repository follow the documented shapes; recorded ones lie beside some checkouts; and
`EDGEPROXY_TEST_RECORDINGS` names any other folder.
"""

import gzip
import json
import math
import os
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from edgeproxy.domain.usage import Usage
from edgeproxy.gateway import routes
from edgeproxy.gateway.metering import Meter
from edgeproxy.gateway.routes import Query, Route
from edgeproxy.providers import sse
from edgeproxy.providers.base import Body, Headers, Incoming, RequestFacts

OURS = Path(__file__).parents[1] / "fixtures" / "answers"
RECORDED = Path(__file__).parents[3] / "shared" / "recordings"
NAMED = os.environ.get("EDGEPROXY_TEST_RECORDINGS", "")
WIDE = 16 * 2**20
FIGURES = ("input_uncached", "cache_read", "cache_write", "output", "reasoning")
# What any operation takes as a request; the recordings hold only answers.
REQUEST = {"model": "m", "messages": [], "input": "x", "prompt": "x", "contents": [], "content": {}, "requests": []}
SERVED = ("chat/completions", "completions", "responses", "embeddings", "messages", "messages/count_tokens")
SERVED += (
    "responses/compact",
    "responses/input_tokens",
    "images/generations",
    "audio/speech",
    "audio/transcriptions",
    "moderations",
)


@dataclass(frozen=True)
class Recording:
    """One answer. `expected` None: it tells no usage. `raw` is as it travelled, `body` is decoded."""

    folder: Path
    name: str
    raw: bytes
    status: int
    route: Route
    path: str
    streamed: bool
    headers: Headers
    expected: dict[str, Any] | None
    index: dict[str, Any] = field(hash=False)

    @property
    def body(self) -> bytes:
        return gzip.decompress(self.raw) if self.is_gzip else self.raw

    @property
    def is_gzip(self) -> bool:
        return self.name.endswith(".gz")

    @property
    def is_served(self) -> bool:
        """Whether it is an answer, and not an error."""
        return self.status == 200

    @property
    def is_complete(self) -> bool:
        """Whether the provider's final figures are in it."""
        if not self.is_served or self.expected is None or self.index.get("expected_terminal") in ("error", "truncated"):
            return False
        return not self.expected.get("estimated") and not self.expected.get("output_is_lower_bound")

    @property
    def request(self) -> dict[str, Any]:
        """A request that can have got this answer."""
        return {name: value for name, value in REQUEST.items() if name != "prompt" or "/responses" not in self.path}

    def meter(self, estimate: int, *, asks_for_usage: bool = False, headers: Headers | None = None) -> Meter:
        """A meter that has seen the head of the answer, to a request whose input was taken to be `estimate`."""
        meter = Meter(self.route, self.facts(estimate), asks_for_usage=asks_for_usage, max_bytes=WIDE)
        meter.begin(self.status, self.headers if headers is None else headers)
        return meter

    def facts(self, estimate: int) -> RequestFacts:
        body = json.dumps(self.request | {"stream": self.streamed, "max_tokens": 10**6}).encode()
        model = "" if self.route.endpoint.body is Body.JSON and not self.route.model else "m"
        facts = self.route.endpoint.read_request(Incoming("POST", body, len(body), model))
        long_cache = self.index.get("request", {}).get("long_cache", False)
        if facts.is_free:
            return facts
        return replace(facts, input_estimate=estimate, output_max=None, long_cache=long_cache)

    def ends(self) -> list[int]:
        """Where the events of a stream end, or the elements of an array."""
        if self.headers[0][1].startswith("text/event-stream"):
            return list(accumulate(len(event) for event in sse.events(self.body)))
        ends, decoder, text, at = [], json.JSONDecoder(), self.body.decode(), 0
        while (at := text.find("{", at)) >= 0:
            _, at = decoder.raw_decode(text, at)
            ends.append(len(text[:at].encode()))
        return [*ends, len(self.body)]

    def is_right(self, usage: Usage) -> bool:
        """Whether this is the usage that is expected of the whole answer."""
        expected = self.expected
        if expected is None:
            return usage.estimated
        if any(getattr(usage, name) != expected[name] for name in FIGURES[:3]):
            return False
        if not self.is_complete:
            return usage.estimated and usage.output >= expected["output"]
        cost = expected.get("provider_cost_usd")
        model = self.index.get("expected_model")
        per_model = {part.model: part for part in usage.parts}
        return (
            not usage.estimated
            and (usage.output, usage.reasoning) == (expected["output"], expected["reasoning"])
            and (cost is None or usage.cost_nanos == math.ceil(Decimal(cost) * 10**9))
            and (self.route.endpoint.body is not Body.JSON or model is None or usage.model in (model, ""))
            and usage.cache_write_1h == expected.get("cache_write_1h", 0)
            and ("tool_calls" not in expected or dict(usage.tool_calls) == expected["tool_calls"])
            and set(per_model) == set(expected.get("per_model", {}))
            and all(
                getattr(per_model[name], figure) == value
                for name, figures in expected.get("per_model", {}).items()
                for figure, value in figures.items()
            )
        )


def _route(endpoint: str) -> tuple[Route, str]:
    """The route of an endpoint as an index names it: a method, then an address or a path that may lack its version."""
    path, _, query = endpoint.removeprefix("POST ").partition("?")
    if ":" in path.rpartition("/")[2]:
        path = "/v1beta/models/" + path.rpartition("/models/")[2]
    else:
        named = [name for name in SERVED if path.endswith("/" + name)] or [path]
        path = "/v1/" + max(named, key=len)
    return routes.find("POST", path, Query(query), {}), path + ("?" + query if query == "alt=sse" else "")


@cache
def recordings(folder: Path) -> list[Recording]:
    """The answers in a folder."""
    found = []
    for index in sorted(folder.rglob("index.json")):
        for row in json.loads(index.read_text(encoding="utf-8"))["fixtures"]:
            path = index.parent / row["file"]
            route, wanted = _route(row["endpoint"])
            is_sse = ".sse" in path.suffixes
            kind = "text/event-stream" if is_sse else row.get("response_headers", {}).get("content-type")
            headers = [("content-type", kind or "application/json")]
            headers += [("content-encoding", "gzip")] if path.suffix == ".gz" else []
            name = path.relative_to(folder).as_posix()
            streamed = is_sse or ":streamGenerateContent" in row["endpoint"]
            raw, status, expected = path.read_bytes(), row["http_status"], row["expected"]
            found.append(Recording(folder, name, raw, status, route, wanted, streamed, headers, expected, row))
    return found


def all_recordings() -> list[Recording]:
    """Every answer that there is here."""
    folders = [OURS, *([RECORDED] if RECORDED.is_dir() else []), *([Path(NAMED)] if NAMED else [])]
    return [each for folder in folders for each in recordings(folder)]


def cases(*, streamed: bool | None = None) -> list[Any]:
    """The answers as parameters; one that says why it is skipped stands for a folder that is not there."""
    rows: list[Any] = [
        pytest.param(each, id=f"{'ours' if each.folder == OURS else 'recorded'} {each.name}")
        for each in all_recordings()
        if streamed is None or each.streamed is streamed
    ]
    if not RECORDED.is_dir():
        rows.append(
            pytest.param(None, id="recorded", marks=pytest.mark.skip(reason="no recordings beside the checkout"))
        )
    return rows
