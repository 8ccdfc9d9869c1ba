"""What gives a request no upper bound, in each dialect; and what does not, as the official clients send it."""

import json
from contextlib import suppress
from itertools import chain

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.errors import GatewayError
from edgeproxy.providers import unbounded
from edgeproxy.providers.base import NOT_EXAMINED, Incoming
from edgeproxy.providers.registry import DIALECTS
from edgeproxy.providers.unbounded import Kinds, Members, examined, names

PATHS = {
    "chat": ("openai", "/v1/chat/completions"),
    "completions": ("openai", "/v1/completions"),
    "responses": ("openai", "/v1/responses"),
    "compact": ("openai", "/v1/responses/compact"),
    "embeddings": ("openai", "/v1/embeddings"),
    "images": ("openai", "/v1/images/generations"),
    "speech": ("openai", "/v1/audio/speech"),
    "batches": ("openai", "/v1/batches"),
    "messages": ("anthropic", "/v1/messages"),
    "generate": ("gemini", "/v1beta/models/m:generateContent"),
    "embed": ("gemini", "/v1beta/models/m:embedContent"),
    "batch embed": ("gemini", "/v1beta/models/m:batchEmbedContents"),
}
LEAST = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "completions": {"model": "m", "prompt": "hi"},
    "responses": {"model": "m", "input": "hi"},
    "compact": {"model": "m", "input": "hi"},
    "embeddings": {"model": "m", "input": "hi"},
    "images": {"model": "m", "prompt": "hi"},
    "speech": {"model": "m", "input": "hi", "voice": "v"},
    "batches": {},
    "messages": {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
    "generate": {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
    "embed": {"content": {"parts": [{"text": "hi"}]}},
    "batch embed": {"requests": [{"model": "models/m", "content": {"parts": [{"text": "hi"}]}}]},
}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def found(operation, fields=None, *, strict=True, raw=None):
    dialect, path = PATHS[operation]
    call = DIALECTS[dialect].find(path)
    body = raw or json.dumps({**LEAST[operation], **(fields or {})}).encode()
    return call.endpoint.read_request(Incoming("POST", body, len(body), call.model, strict=strict)).unbounded


def said(content, operation):
    """A conversation with this content in it."""
    if operation == "responses":
        return {"input": [{"role": "user", "content": content}]}
    if operation == "generate":
        return {"contents": [{"role": "user", "parts": content}]}
    return {"messages": [{"role": "user", "content": content}]}


BOUNDED = [
    ("chat", {}),
    ("chat", {"temperature": 0.5, "top_p": 1, "stop": ["x"], "n": 3, "max_tokens": 5, "stream": True, "seed": 1}),
    ("chat", said([{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}], "chat")),
    ("chat", {"messages": [{"role": "assistant", "content": None, "audio": None, "annotations": [], "refusal": None}]}),
    (
        "chat",
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]},
                {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "42"}]},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        },
    ),
    ("chat", {"modalities": ["text"], "deferred": False, "prediction": None, "reasoning_effort": "low"}),
    ("completions", {"prompt": ["a", "b"], "best_of": 2, "suffix": "x", "echo": True}),
    ("completions", {"prompt": [[1, 2], [3]]}),
    ("responses", {"background": False, "previous_response_id": None, "conversation": None, "store": False}),
    (
        "responses",
        {
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": "ho", "annotations": []}]},
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "x"}]},
                {"type": "custom_tool_call", "call_id": "2", "name": "patch", "input": "x"},
                {"type": "custom_tool_call_output", "call_id": "2", "output": "ok"},
            ],
            "tools": [
                {"type": "function", "name": "f", "parameters": {}, "strict": True},
                {"type": "custom", "name": "patch", "format": {"type": "grammar", "definition": "x"}},
            ],
            "include": ["reasoning.encrypted_content"],
            "reasoning": {"effort": "medium", "summary": "auto"},
            "client_metadata": {"x": "y"},
            "text": {"verbosity": "low"},
        },
    ),
    ("embeddings", {"input": ["a", "b"], "dimensions": 8, "encoding_format": "base64"}),
    ("embeddings", {"input": [[1, 2], [3]]}),
    (
        "messages",
        {
            "system": [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
            "messages": [
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "s"},
                        {"type": "redacted_thinking", "data": "s"},
                        {"type": "text", "text": "ho", "citations": None},
                        {"type": "tool_use", "id": "1", "name": "f", "input": {}, "caller": {"type": "direct"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "42"}]},
                        {"type": "tool_result", "tool_use_id": "1", "content": "42", "is_error": False},
                    ],
                },
            ],
            "tools": [{"name": "f", "description": "d", "input_schema": {}}, {"type": "custom", "name": "g"}],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "metadata": {"user_id": "x"},
            "output_config": {"effort": "low"},
        },
    ),
    (
        "generate",
        {
            "systemInstruction": {"parts": [{"text": "be kind"}]},
            "contents": [
                {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "s"}]},
                {"role": "user", "parts": [{"function_response": {"name": "f", "response": {"x": 1}}}]},
                {"parts": {"text": "one part"}},
            ],
            "tools": [{"functionDeclarations": [{"name": "f", "parameters": {}}]}, {"function_declarations": []}],
            "toolConfig": {"functionCallingConfig": {"mode": "AUTO"}},
            "generationConfig": {
                "maxOutputTokens": 9,
                "thinkingConfig": {"thinkingBudget": 5},
                "responseModalities": ["TEXT"],
            },
            "safetySettings": [],
        },
    ),
    ("generate", {"contents": {"parts": {"text": "hi"}}, "tools": {"functionDeclarations": []}}),
    ("embed", {"taskType": "RETRIEVAL_QUERY", "outputDimensionality": 8}),
    ("batch embed", {}),
]


@pytest.mark.parametrize(("operation", "fields"), BOUNDED)
def test_what_clients_send_in_text_is_bounded(operation, fields):
    assert found(operation, fields) == ""


UNBOUNDED = [
    ("chat", said([{"type": "image_url", "image_url": {"url": "https://x/y.png"}}], "chat"), unbounded.IMAGE),
    ("chat", said([{"type": "input_audio", "input_audio": {"data": "AA"}}], "chat"), unbounded.SOUND),
    ("chat", said([{"type": "file", "file": {"file_id": "file-1"}}], "chat"), unbounded.DOCUMENT),
    ("chat", said({"type": "image_url", "image_url": {"url": "x"}}, "chat"), unbounded.IMAGE),
    ("chat", said([{"type": "hologram"}], "chat"), unbounded.PART),
    ("chat", said([{"type": ["text"]}], "chat"), unbounded.PART),
    ("chat", said([{"text": "no type"}], "chat"), unbounded.PART),
    ("chat", said([{"type": "text", "text": "x", "Type": "image_url"}], "chat"), unbounded.FIELD),
    ("chat", said(5, "chat"), unbounded.PART),
    ("chat", {"messages": ["hi"]}, unbounded.PART),
    ("chat", {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, unbounded.STORED),
    ("chat", {"web_search_options": {}}, unbounded.TOOL),
    ("chat", {"search_parameters": {"mode": "on"}}, unbounded.TOOL),
    ("chat", {"plugins": [{"id": "web"}]}, unbounded.TOOL),
    ("chat", {"tools": [{"type": "live_search"}]}, unbounded.TOOL),
    ("chat", {"tools": [{"type": "function", "function": {}}, {"googleSearch": {}}]}, unbounded.TOOL),
    ("chat", {"tools": {"type": "live_search"}}, unbounded.TOOL),
    ("chat", {"prediction": {"type": "content", "content": "x"}}, unbounded.PREDICTION),
    ("chat", {"modalities": ["text", "audio"]}, unbounded.SOUND),
    ("chat", {"audio": {"voice": "v"}}, unbounded.SOUND),
    ("chat", {"deferred": True}, unbounded.BACKGROUND),
    ("chat", {"models": ["a", "b"]}, unbounded.OTHER_MODELS),
    ("chat", {"best_of": 5}, unbounded.FIELD),  # in a chat, some servers write so many and bill them all
    ("chat", {"Tools": [{"type": "live_search"}]}, unbounded.FIELD),
    ("chat", {"enable_search": True}, unbounded.FIELD),
    ("completions", {"prompt": [{"image": "x"}]}, unbounded.PART),
    ("completions", {"prompt": [[1, {"image": "x"}]]}, unbounded.PART),
    ("completions", {"prompt_embeds": "x"}, unbounded.FIELD),
    ("responses", {"background": True}, unbounded.BACKGROUND),
    ("responses", {"previous_response_id": "resp_1"}, unbounded.STORED),
    ("responses", {"conversation": {"id": "c"}}, unbounded.STORED),
    ("responses", {"prompt": {"id": "p"}}, unbounded.STORED),
    ("responses", {"context_management": [{"type": "compaction"}]}, unbounded.COMPACTION),
    ("responses", {"tools": [{"type": "web_search"}]}, unbounded.TOOL),
    ("responses", {"tools": [{"type": "mcp", "server_url": "https://x"}]}, unbounded.TOOL),
    ("responses", {"input": [{"type": "item_reference", "id": "msg_1"}]}, unbounded.STORED),
    ("responses", {"input": [{"id": "msg_1"}]}, unbounded.STORED),
    ("responses", {"input": [{"type": "message", "id": "msg_1", "role": "assistant"}]}, unbounded.STORED),
    ("responses", {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, unbounded.STORED),
    ("responses", {"input": [{"type": "function_call_output", "call_id": "1"}]}, unbounded.STORED),
    ("responses", {"input": [{"type": "web_search_call", "id": "ws_1"}]}, unbounded.TOOL),
    ("responses", {"input": [{"type": "compaction", "encrypted_content": "x"}]}, unbounded.COMPACTION),
    ("responses", said([{"type": "input_image", "image_url": "x"}], "responses"), unbounded.IMAGE),
    ("responses", said([{"type": "input_file", "file_id": "x"}], "responses"), unbounded.DOCUMENT),
    (
        "responses",
        {"input": [{"type": "function_call_output", "call_id": "1", "output": [{"type": "input_image"}]}]},
        unbounded.IMAGE,
    ),
    ("compact", {}, unbounded.COMPACTION),
    ("embeddings", {"input": [{"image": "x"}]}, unbounded.PART),
    ("embeddings", {"prompt_name": "query"}, unbounded.FIELD),
    ("images", {}, unbounded.IMAGE),
    ("speech", {}, unbounded.SOUND),
    ("batches", {}, unbounded.UNREAD),
    ("messages", said([PICTURE], "messages"), unbounded.IMAGE),
    (
        "messages",
        said([{"type": "tool_result", "tool_use_id": "1", "content": [PICTURE]}], "messages"),
        unbounded.IMAGE,
    ),
    (
        "messages",
        said([{"type": "tool_result", "content": [{"type": "tool_reference", "tool_name": "f"}]}], "messages"),
        unbounded.PART,  # it puts a tool's whole definition there
    ),
    (
        "messages",
        said([{"type": "document", "source": {"type": "url", "url": "https://x"}}], "messages"),
        unbounded.DOCUMENT,
    ),
    ("messages", said([{"type": "web_search_tool_result", "content": []}], "messages"), unbounded.PART),
    ("messages", said([{"type": "text", "text": "x", "citations": [{"x": 1}]}], "messages"), unbounded.FIELD),
    ("messages", {"system": [PICTURE]}, unbounded.IMAGE),
    ("messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, unbounded.TOOL),
    ("messages", {"tools": [{"type": "bash_20250124", "name": "bash"}]}, unbounded.TOOL),
    ("messages", {"tools": [{"name": "f", "input_schema": {}, "defer_loading": True}]}, unbounded.FIELD),
    ("messages", {"mcp_servers": [{"url": "https://x"}]}, unbounded.TOOL),
    ("messages", {"container": "c"}, unbounded.TOOL),
    ("messages", {"thread": {"id": "t"}}, unbounded.STORED),
    ("messages", {"fallbacks": "default"}, unbounded.OTHER_MODELS),
    ("messages", {"context_management": {"edits": [{"type": "compact_20260112"}]}}, unbounded.COMPACTION),
    ("messages", {"context_management": {"edits": []}, "task_budget": 5}, unbounded.FIELD),
    ("messages", {"context_management": {"compaction": {}}}, unbounded.COMPACTION),
    (
        "messages",
        {"context_management": {"edits": [{"type": "clear_thinking_20251015"}] * 200 + [{"type": "compact"}]}},
        unbounded.COMPACTION,
    ),
    ("generate", said([{"inlineData": {"mimeType": "image/png", "data": "AA"}}], "generate"), unbounded.MEDIA),
    ("generate", said([{"inline_data": {"mimeType": "image/png", "data": "AA"}}], "generate"), unbounded.MEDIA),
    ("generate", said([{"text": "x", "fileData": {"fileUri": "https://youtu.be/x"}}], "generate"), unbounded.DOCUMENT),
    ("generate", {"system_instruction": {"parts": [{"fileData": {"fileUri": "x"}}]}}, unbounded.DOCUMENT),
    (
        "generate",
        said([{"functionResponse": {"name": "f", "response": {}, "parts": [{"inlineData": {}}]}}], "generate"),
        unbounded.MEDIA,
    ),
    ("generate", {"tools": [{"googleSearch": {}}]}, unbounded.TOOL),
    ("generate", {"tools": [{"functionDeclarations": [], "url_context": {}}]}, unbounded.TOOL),
    ("generate", {"tools": {"codeExecution": {}}}, unbounded.TOOL),
    ("generate", {"cachedContent": "cachedContents/x"}, unbounded.STORED),
    ("generate", {"generationConfig": {"responseModalities": ["TEXT", "IMAGE"]}}, unbounded.MEDIA),
    ("generate", {"generation_config": {"response_modalities": ["AUDIO"]}}, unbounded.MEDIA),
    ("generate", {"generationConfig": {"speechConfig": {}}}, unbounded.SOUND),
    ("generate", {"generationConfig": {"newThing": 1}}, unbounded.FIELD),
    ("generate", {"contents": ["hi"]}, unbounded.PART),
    ("embed", {"content": {"parts": [{"inlineData": {}}]}}, unbounded.MEDIA),
    ("batch embed", {"requests": [{"content": {"parts": [{"fileData": {}}]}}]}, unbounded.DOCUMENT),
    ("batch embed", {"requests": ["hi"]}, unbounded.PART),
]


@pytest.mark.parametrize(("operation", "fields", "name"), UNBOUNDED)
def test_what_is_not_bounded_by_its_bytes_is_named(operation, fields, name):
    assert found(operation, fields) == name


@pytest.mark.parametrize(
    "operation", [name for name in LEAST if name not in ("images", "speech", "batches", "compact")]
)
def test_what_nobody_asked_for_is_not_examined(operation):
    assert found(operation, {"a_new_field": 1}, strict=False) == NOT_EXAMINED
    assert found(operation, {"a_new_field": 1}) == unbounded.FIELD
    assert found(operation, {"a_new_field": None, "another": False, "third": []}) == ""


@pytest.mark.parametrize(
    "operation", [name for name in LEAST if name not in ("images", "speech", "batches", "compact")]
)
def test_a_member_that_stands_twice_is_refused_however_deep(operation):
    raw = json.dumps(LEAST[operation]).encode()
    assert found(operation, raw=raw) == ""
    twice = raw.replace(b'"hi"', b'"hi", "deep": {"a": 1, "a": 2}').replace(b'["hi"', b"[")
    with pytest.raises(GatewayError) as caught:
        found(operation, raw=twice)
    assert caught.value.kind.status == 400


def test_so_many_parts_are_not_looked_at():
    assert found("chat", said([{"type": "text", "text": ""}] * 60_000, "chat")) == unbounded.TOO_MANY
    assert found("generate", {"contents": [{}] * 60_000}) == unbounded.TOO_MANY
    assert found("embeddings", {"input": ["x"] * 60_000}) == unbounded.TOO_MANY


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "content",
                    "parts",
                    "text",
                    "role",
                    "tools",
                    "input",
                    "output",
                    "messages",
                    "contents",
                    "edits",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(
    st.sampled_from([name for name in LEAST if name != "batches"]),
    st.dictionaries(
        st.sampled_from(
            [
                *("messages", "input", "contents", "tools", "system", "content", "requests", "prompt", "modalities"),
                *("systemInstruction", "generationConfig", "context_management", "thinking", "reasoning"),
            ]
        ),
        JSON,
        max_size=4,
    ),
)
def test_anything_is_judged_or_refused_and_nothing_else_happens(operation, fields):
    with suppress(GatewayError):
        assert isinstance(found(operation, raw=orjson.dumps({**LEAST[operation], **fields})), str)


def test_an_object_without_what_it_needs_may_stand_for_a_stored_one():
    members = Members(names("type id content"), {"bad": "x"}, needs="content")
    assert members.first({"content": ""}) == ""
    assert members.first({"id": "1", "content": None}) == unbounded.STORED
    assert members.first({"content": "y", "bad": {}}) == "x"
    assert members.first({"content": "y", "bad": 0}) == "x"
    assert Kinds({"a": members}, default="a").first({"content": "y"}) == ""


def test_the_first_that_is_found_is_told():
    incoming = Incoming("POST", b"{}", 2, strict=True)
    assert examined(incoming, ["", "b", "c"]) == "b"
    assert examined(incoming, chain([""] * 10)) == ""
