"""Stand-ins for what bills elsewhere or never: batches, files, stored responses, cached contents.

Plausible objects, always the same, and nothing is kept: they are there to see that a gateway passes on what its
operator allowed, and nothing else.
"""

from typing import Any

import orjson

from edgeproxy.mock_provider.exchange import CREATED_S, Exchange
from edgeproxy.mock_provider.responses import RESPONSE_ID

_TIME = "2026-09-21T14:13:20Z"  # CREATED_S as Anthropic and Google write it
_LATER = "2026-09-22T14:13:20Z"


def response(exchange: Exchange) -> bytes:
    """A response that was stored earlier, with a usage that was billed then."""
    return orjson.dumps(_stored(exchange, "completed"))


def cancelled_response(exchange: Exchange) -> bytes:
    """A response that was to go on in the background."""
    return orjson.dumps(_stored(exchange, "cancelled"))


def batch(exchange: Exchange) -> bytes:
    """OpenAI's batch, just created."""
    return orjson.dumps(_batch(str(exchange.fields.get("input_file_id", "file-Mock0123456789"))))


def batches(_exchange: Exchange) -> bytes:
    """OpenAI's list of batches."""
    return _listed([_batch("file-Mock0123456789")])


def file(exchange: Exchange) -> bytes:
    """OpenAI's file, just uploaded: its size and its name are what the form said."""
    size, name, purpose = (str(exchange.fields.get(each, "")) for each in ("file.bytes", "file.name", "purpose"))
    return orjson.dumps(_file(int(size) if size.isdigit() else 0, name, purpose))


def files(_exchange: Exchange) -> bytes:
    """OpenAI's list of files."""
    return _listed([_file(7, "mock.jsonl", "batch")])


def message_batch(_exchange: Exchange) -> bytes:
    """Anthropic's batch, just created."""
    return orjson.dumps(_message_batch())


def message_batches(_exchange: Exchange) -> bytes:
    """Anthropic's list of batches."""
    found = _message_batch()
    return orjson.dumps({"data": [found], "has_more": False, "first_id": found["id"], "last_id": found["id"]})


def gemini_batch(exchange: Exchange) -> bytes:
    """Gemini's batch, just created."""
    metadata = {"model": f"models/{exchange.served_model}", "state": "BATCH_STATE_PENDING", "createTime": _TIME}
    return orjson.dumps({"name": "batches/mock0123456789", "metadata": metadata})


def cached_content(exchange: Exchange) -> bytes:
    """Gemini's cached content, just created."""
    return orjson.dumps(_cached_content(exchange.served_model))


def cached_contents(_exchange: Exchange) -> bytes:
    """Gemini's list of cached contents."""
    return orjson.dumps({"cachedContents": [_cached_content("models/gemini-mock")]})


def gemini_file(_exchange: Exchange) -> bytes:
    """Gemini's file, just uploaded."""
    return orjson.dumps({"file": _gemini_file()})


def gemini_files(_exchange: Exchange) -> bytes:
    """Gemini's list of files."""
    return orjson.dumps({"files": [_gemini_file()]})


def _listed(data: list[dict[str, Any]]) -> bytes:
    first, last = data[0]["id"], data[-1]["id"]
    return orjson.dumps({"object": "list", "data": data, "has_more": False, "first_id": first, "last_id": last})


def _stored(exchange: Exchange, status: str) -> dict[str, Any]:
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {
        "id": RESPONSE_ID,
        "object": "response",
        "created_at": CREATED_S,
        "status": status,
        "background": True,
        "model": exchange.served_model or "gpt-mock",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {"input_tokens": 15, "output_tokens": 9, "total_tokens": 24, **details},
    }


def _batch(input_file_id: str) -> dict[str, Any]:
    return {
        "id": "batch_Mock0123456789",
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "input_file_id": input_file_id,
        "completion_window": "24h",
        "status": "validating",
        "created_at": CREATED_S,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
    }


def _file(size: int, name: str, purpose: str) -> dict[str, Any]:
    return {
        "id": "file-Mock0123456789",
        "object": "file",
        "bytes": size,
        "created_at": CREATED_S,
        "filename": name,
        "purpose": purpose,
        "status": "processed",
    }


def _message_batch() -> dict[str, Any]:
    counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
    return {
        "id": "msgbatch_Mock0123456789",
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": counts | {"processing": 1},
        "created_at": _TIME,
        "expires_at": _LATER,
        "ended_at": None,
        "cancel_initiated_at": None,
        "archived_at": None,
        "results_url": None,
    }


def _cached_content(model: str) -> dict[str, Any]:
    times = {"createTime": _TIME, "updateTime": _TIME, "expireTime": _LATER}
    return {"name": "cachedContents/mock0123456789", "model": model, **times, "usageMetadata": {"totalTokenCount": 9}}


def _gemini_file() -> dict[str, Any]:
    return {
        "name": "files/mock0123456789",
        "mimeType": "text/plain",
        "sizeBytes": "7",
        "createTime": _TIME,
        "state": "ACTIVE",
        "uri": "https://generativelanguage.invalid/v1beta/files/mock0123456789",
    }
