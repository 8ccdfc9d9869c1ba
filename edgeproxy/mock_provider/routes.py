"""Which path asks what: one row per endpoint, and OpenAI's with and without `/v1`.

Gemini's method stands after the last colon of the path, its model before it: with directives and slashes, if any.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from edgeproxy.mock_provider import (
    anthropic,
    completions,
    embeddings,
    gemini,
    gemini_embeddings,
    images,
    openai,
    responses,
    speech,
    stand_ins,
    transcriptions,
)
from edgeproxy.mock_provider.endpoint import Dialect, Endpoint, free, read_loosely
from edgeproxy.mock_provider.exchange import Exchange

Row = tuple[str, str, Endpoint]  # HTTP method, path, what it asks

_CHAT = Endpoint(openai, openai.unary, openai.events, openai.error_event)
_COMPLETIONS = Endpoint(openai, completions.unary, completions.events, openai.error_event)
_RESPONSES = Endpoint(openai, responses.unary, responses.events, responses.error_event)
_EMBEDDINGS = Endpoint(openai, embeddings.unary, read=embeddings.read)
_IMAGES = Endpoint(openai, images.unary, images.events, images.error_event, read=images.read, bill=images.bill)
_SPEECH = Endpoint(
    openai,
    speech.unary,
    speech.events,
    images.error_event,
    read=speech.read,
    bill=speech.bill,
    content_type=speech.content_type,
)
_TRANSCRIPTIONS = Endpoint(
    openai,
    transcriptions.unary,
    transcriptions.events,
    transcriptions.error_event,
    read=transcriptions.read,
    bill=transcriptions.bill,
    content_type=transcriptions.content_type,
)
_MESSAGES = Endpoint(anthropic, anthropic.unary, anthropic.events, anthropic.error_event, bill=anthropic.bill)
_GENERATED = Endpoint(gemini, gemini.unary, read=gemini.read, content_type=gemini.content_type)
_STREAMED = Endpoint(
    gemini,
    gemini.unary,
    gemini.events,
    gemini.error_event,
    read=gemini.read_streamed,
    content_type=gemini.content_type,
)
_EMBEDDED = Endpoint(gemini, gemini_embeddings.embedded, read=gemini_embeddings.read, content_type=gemini.content_type)
_COUNTED = replace(_EMBEDDED, unary=gemini_embeddings.counted, bill=free)


def _stand_in(dialect: Dialect, unary: Callable[[Exchange], bytes]) -> Endpoint:
    """Make an endpoint that is only there to see that a request was passed on."""
    return Endpoint(dialect, unary, read=read_loosely, bill=free)


_OPENAI: tuple[Row, ...] = (
    ("POST", "/chat/completions", _CHAT),
    ("POST", "/completions", _COMPLETIONS),
    ("POST", "/responses", _RESPONSES),
    ("POST", "/responses/input_tokens", Endpoint(openai, responses.counted, bill=free)),
    ("POST", "/responses/compact", Endpoint(openai, responses.compacted)),
    ("GET", "/responses/{id}", _stand_in(openai, stand_ins.response)),
    ("POST", "/responses/{id}/cancel", _stand_in(openai, stand_ins.cancelled_response)),
    ("POST", "/embeddings", _EMBEDDINGS),
    ("POST", "/moderations", Endpoint(openai, embeddings.moderated, bill=free)),
    ("POST", "/images/generations", _IMAGES),
    ("POST", "/audio/speech", _SPEECH),
    ("POST", "/audio/transcriptions", _TRANSCRIPTIONS),
    ("POST", "/batches", _stand_in(openai, stand_ins.batch)),
    ("GET", "/batches", _stand_in(openai, stand_ins.batches)),
    ("POST", "/files", _stand_in(openai, stand_ins.file)),
    ("GET", "/files", _stand_in(openai, stand_ins.files)),
)
_ANTHROPIC: tuple[Row, ...] = (
    ("POST", "/v1/messages", _MESSAGES),
    ("POST", "/v1/messages/count_tokens", Endpoint(anthropic, anthropic.counted, bill=free)),
    ("POST", "/v1/messages/batches", _stand_in(anthropic, stand_ins.message_batch)),
    ("GET", "/v1/messages/batches", _stand_in(anthropic, stand_ins.message_batches)),
)
_GEMINI: tuple[Row, ...] = (
    ("POST", "/models/{model:.+}:generateContent", _GENERATED),
    ("POST", "/models/{model:.+}:streamGenerateContent", _STREAMED),
    ("POST", "/models/{model:.+}:countTokens", _COUNTED),
    ("POST", "/models/{model:.+}:embedContent", _EMBEDDED),
    ("POST", "/models/{model:.+}:batchEmbedContents", replace(_EMBEDDED, unary=gemini_embeddings.embedded_batch)),
    ("POST", "/models/{model:.+}:batchGenerateContent", _stand_in(gemini, stand_ins.gemini_batch)),
    ("POST", "/cachedContents", _stand_in(gemini, stand_ins.cached_content)),
    ("GET", "/cachedContents", _stand_in(gemini, stand_ins.cached_contents)),
)


def routes() -> Iterator[Row]:
    """Every row, once for each of its paths."""
    for method, path, endpoint in _OPENAI:
        yield method, f"/v1{path}", endpoint
        yield method, path, endpoint
    yield from _ANTHROPIC
    for method, path, endpoint in _GEMINI:
        yield method, f"/v1beta{path}", endpoint
        yield method, f"/v1{path}", endpoint
    yield "POST", "/upload/v1beta/files", _stand_in(gemini, stand_ins.gemini_file)
    yield "GET", "/v1beta/files", _stand_in(gemini, stand_ins.gemini_files)
