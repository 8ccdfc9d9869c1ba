import hashlib

import orjson

from edgeproxy.mock_provider.counting import Counts, last_request
from edgeproxy.mock_provider.exchange import Tokens


def test_tokens_are_counted_by_kind() -> None:
    counts = Counts()
    counts.total.complete(Tokens(1, 2, 4, 8, 16, cache_write_1h=3, web_searches=2, cost_nanos=7))
    counts.total.complete(Tokens(1, 0, 0, 1, 0))
    snapshot = counts.snapshot()
    assert snapshot["completed"] == 2
    assert snapshot["input_tokens"] == 8
    assert snapshot["output_tokens"] == 25
    assert snapshot["cache_read_tokens"] == 2
    assert snapshot["cache_write_tokens"] == 4
    assert snapshot["reasoning_tokens"] == 16
    assert (snapshot["cache_write_1h_tokens"], snapshot["web_searches"], snapshot["cost_nanos"]) == (3, 2, 7)


def test_a_model_has_a_row_of_its_own_and_rows_are_bounded() -> None:
    counts = Counts()
    for number in range(1100):
        counts.of_model(f"m-{number}").requests += 1
    assert counts.of_model("m-0").requests == 1
    assert len(counts.by_model) == 1001
    assert counts.by_model["other"].requests == 100


def test_what_is_billed_at_another_model_has_a_row_there() -> None:
    counts = Counts()
    counts.of_billed_model("advisor").complete(Tokens(5))
    assert counts.snapshot()["by_model"] == {}
    assert counts.by_billed_model["advisor"].input_tokens == 5


def test_open_requests_and_connections_are_seen() -> None:
    counts = Counts()
    for port in (1, 2, 2):
        counts.arrived(("127.0.0.1", port))
    counts.open -= 2
    snapshot = counts.snapshot()
    assert (snapshot["requests"], snapshot["open"], snapshot["open_peak"], snapshot["connections"]) == (3, 1, 3, 2)


def test_the_last_request_is_described_not_kept() -> None:
    seen = last_request("/v1/messages", b'{"secret":"content"}', ["X-Api-Key", "Host"], "gzip\udcff")
    assert seen.body_sha256 == hashlib.sha256(b'{"secret":"content"}').hexdigest()
    assert (seen.body_bytes, seen.headers, seen.accept_encoding) == (20, ("host", "x-api-key"), "gzip?")
    counts = Counts(last=seen)
    assert b"content" not in orjson.dumps(counts.snapshot())


def test_reset_forgets_everything_but_what_is_open() -> None:
    counts = Counts()
    counts.arrived("a")
    counts.arrived("b")
    counts.open -= 1
    counts.of_model("m").requests += 1
    counts.of_billed_model("m").completed += 1
    counts.by_status["200"] += 1
    counts.keys_in_query += 1
    counts.receiving_bytes += 9
    counts.reset()
    assert counts == Counts(open=1, open_peak=1, receiving_bytes=9)
