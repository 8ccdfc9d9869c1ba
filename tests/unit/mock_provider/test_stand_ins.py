from collections.abc import Callable

import orjson
import pytest

from edgeproxy.mock_provider import stand_ins
from edgeproxy.mock_provider.exchange import Exchange, exchange_from


def ask(**fields: object) -> Exchange:
    return exchange_from({"model": "", **fields})


@pytest.mark.parametrize(
    ("stand_in", "member", "value"),
    [
        (stand_ins.response, "status", "completed"),
        (stand_ins.cancelled_response, "status", "cancelled"),
        (stand_ins.batch, "object", "batch"),
        (stand_ins.batches, "object", "list"),
        (stand_ins.file, "object", "file"),
        (stand_ins.files, "object", "list"),
        (stand_ins.message_batch, "type", "message_batch"),
        (stand_ins.message_batches, "has_more", False),
        (stand_ins.gemini_batch, "name", "batches/mock0123456789"),
        (stand_ins.cached_content, "name", "cachedContents/mock0123456789"),
    ],
)
def test_each_is_the_object_that_was_asked_for(
    stand_in: Callable[[Exchange], bytes], member: str, value: object
) -> None:
    assert orjson.loads(stand_in(ask()))[member] == value


def test_geminis_lists_have_names_of_their_own() -> None:
    assert len(orjson.loads(stand_ins.cached_contents(ask()))["cachedContents"]) == 1
    files = orjson.loads(stand_ins.gemini_files(ask()))["files"]
    assert [orjson.loads(stand_ins.gemini_file(ask()))["file"]] == files


def test_a_file_is_as_large_as_what_was_uploaded() -> None:
    fields = {"file.bytes": "12", "file.name": "a.jsonl", "purpose": "batch"}
    file = orjson.loads(stand_ins.file(ask(**fields)))
    assert (file["bytes"], file["filename"], file["purpose"]) == (12, "a.jsonl", "batch")
    assert orjson.loads(stand_ins.file(ask(**{"file.bytes": "x"})))["bytes"] == 0


def test_what_was_asked_for_comes_back() -> None:
    assert orjson.loads(stand_ins.batch(ask(input_file_id="file-7")))["input_file_id"] == "file-7"
    assert orjson.loads(stand_ins.response(ask(model="m:chunks-1")))["model"] == "m"
    assert orjson.loads(stand_ins.gemini_batch(ask(model="g")))["metadata"]["model"] == "models/g"


def test_a_stored_response_repeats_its_usage() -> None:
    assert orjson.loads(stand_ins.response(ask()))["usage"]["total_tokens"] == 24
