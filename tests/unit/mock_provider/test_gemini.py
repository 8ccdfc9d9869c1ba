from typing import Any

import orjson
import pytest

from edgeproxy.mock_provider import gemini
from edgeproxy.mock_provider.directives import behaviour_of
from edgeproxy.mock_provider.endpoint import Incoming, Problem
from edgeproxy.mock_provider.exchange import Exchange, Tokens

TOOLS = [{"functionDeclarations": [{"name": "look_up"}]}]


def incoming(path_model: str, /, alt: str = "sse", **fields: object) -> Incoming:
    body = {"contents": [{"parts": [{"text": "a b c"}]}], **fields}
    return Incoming(orjson.dumps(body), path_model=path_model, query={"alt": alt})


def ask(model: str, **fields: object) -> Exchange:
    return gemini.read_streamed(incoming(model, **fields))


def ask_array(model: str) -> Exchange:
    return gemini.read_streamed(incoming(model, alt="json"))


def objects_of(exchange: Exchange) -> list[dict[str, Any]]:
    events = list(gemini.events(exchange))
    assert all(event.startswith(b"data: {") and event.endswith(b"}\r\n\r\n") for event in events)
    assert all(event.count(b"\n") == 2 for event in events)
    return [orjson.loads(event.removeprefix(b"data: ")) for event in events]


def text_of(answer: dict[str, Any]) -> str:
    return "".join(part["text"] for part in answer["candidates"][0]["content"].get("parts", ()))


def test_the_model_is_the_paths_and_nothing_in_the_body_streams() -> None:
    exchange = gemini.read(incoming("models/gemini-mock:chunks-2", model="other:chunks-9", stream=True))
    assert (exchange.served_model, exchange.tokens, exchange.streamed) == ("gemini-mock", Tokens(3, output=2), False)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]"])
def test_a_body_that_is_no_object_is_an_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"not JSON|not an object"):
        gemini.read(Incoming(raw, path_model="g"))


def test_counts_grow_with_every_object_and_nothing_follows_the_last() -> None:
    objects = objects_of(ask("g:chunks-3.reasoning-4.cached-5"))
    usages = [each["usageMetadata"] for each in objects]
    assert [usage["candidatesTokenCount"] for usage in usages] == [1, 2, 3]
    assert [usage["totalTokenCount"] for usage in usages] == [13, 14, 15]
    for usage in usages:
        assert (usage["promptTokenCount"], usage["cachedContentTokenCount"], usage["thoughtsTokenCount"]) == (8, 5, 4)
    assert [each["candidates"][0].get("finishReason") for each in objects] == [None, None, "STOP"]
    assert {(each["modelVersion"], each["responseId"]) for each in objects} == {("g", "Mock0123456789abcdefgh")}


def test_what_tools_read_stands_beside_the_prompt() -> None:
    usage = objects_of(ask("g:chunks-1.tool-use-prompt-7"))[-1]["usageMetadata"]
    assert (usage["promptTokenCount"], usage["toolUsePromptTokenCount"], usage["totalTokenCount"]) == (3, 7, 11)
    assert ask("g:tool-use-prompt-7").tokens.input_total == 10


def test_a_count_of_zero_is_absent() -> None:
    (answer,) = objects_of(ask("g:chunks-0.reasoning-2"))
    usage = answer["usageMetadata"]
    assert usage.keys().isdisjoint({"candidatesTokenCount", "cachedContentTokenCount", "toolUsePromptTokenCount"})
    assert (usage["thoughtsTokenCount"], usage["totalTokenCount"]) == (2, 5)
    assert answer["candidates"][0]["content"] == {"role": "model"}


def test_counts_can_start_again_and_the_last_object_has_the_whole() -> None:
    usages = [each["usageMetadata"] for each in objects_of(ask("g:chunks-6.hops"))]
    assert [usage["candidatesTokenCount"] for usage in usages] == [1, 2, 3, 1, 2, 6]
    assert [usage["promptTokenCount"] for usage in usages] == [3, 3, 3, 1, 1, 3]


def test_objects_with_a_traffic_type_only_can_stand_between() -> None:
    objects = objects_of(ask("g:chunks-3.traffic"))
    assert [each["usageMetadata"] for each in objects[1::2]] == [{"trafficType": "ON_DEMAND"}] * 2
    assert objects[-1]["usageMetadata"]["candidatesTokenCount"] == 3


def test_an_array_is_pretty_printed_and_says_the_same() -> None:
    pieces = list(gemini.events(ask_array("g:chunks-3")))
    assert pieces[0].startswith(b'[{\n  "candidates"')
    assert all(piece.startswith(b"\n,\r\n{\n") for piece in pieces[1:-1])
    assert pieces[-1] == b"\n]"
    assert orjson.loads(b"".join(pieces)) == objects_of(ask("g:chunks-3"))


def test_the_type_tells_an_array_from_events() -> None:
    assert gemini.content_type(ask("g")) == "text/event-stream"
    assert gemini.content_type(ask_array("g")) == "application/json; charset=UTF-8"
    assert gemini.content_type(gemini.read(incoming("g"))) == "application/json; charset=UTF-8"


def test_unary_says_the_same_as_the_stream() -> None:
    body = orjson.loads(gemini.unary(gemini.read(incoming("g:chunks-3.cached-2"))))
    objects = objects_of(ask("g:chunks-3.cached-2"))
    assert text_of(body) == "".join(map(text_of, objects)) == "Hello from the"
    assert body["usageMetadata"] == objects[-1]["usageMetadata"]
    assert "usageMetadata" not in orjson.loads(gemini.unary(gemini.read(incoming("g:no-usage"))))


def test_a_tool_call_is_one_part() -> None:
    exchange = ask("g:tool.chunks-3", tools=TOOLS)
    (answer,) = objects_of(exchange)
    (part,) = answer["candidates"][0]["content"]["parts"]
    assert part["functionCall"] == {"name": "look_up", "args": {"text": "Hello from the"}}
    assert answer["usageMetadata"]["candidatesTokenCount"] == 3


def test_candidates_and_searches_are_as_many_as_asked() -> None:
    answer = objects_of(ask("g:web-search-2.chunks-1", generationConfig={"candidateCount": 2}))[-1]
    assert [each["index"] for each in answer["candidates"]] == [0, 1]
    assert len(set(answer["candidates"][0]["groundingMetadata"]["webSearchQueries"])) == 2
    assert answer["usageMetadata"]["candidatesTokenCount"] == 2


def test_the_maximum_ends_the_answer() -> None:
    answer = objects_of(ask("g", generationConfig={"maxOutputTokens": 2}))[-1]
    assert answer["candidates"][0]["finishReason"] == "MAX_TOKENS"


def test_an_error_in_the_middle_is_an_object_or_a_tail() -> None:
    event = gemini.error_event(ask("g:error-after-1"))
    assert orjson.loads(event.removeprefix(b"data: "))["error"]["status"] == "UNAVAILABLE"
    tail = gemini.error_event(ask("g:error-after-1.raw-error"))
    assert tail.startswith(b'{\n  "error"')


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_array_stays_one_with_an_error_in_it(after: int) -> None:
    exchange = ask_array(f"g:error-after-{after}")
    body = b"".join(list(gemini.events(exchange))[:after]) + gemini.error_event(exchange)
    assert [("error" in each) for each in orjson.loads(body)] == [False] * after + [True]


def test_a_wrong_key_is_an_invalid_argument() -> None:
    refusal = gemini.refusal(Problem(401, "why", wrong_key=True))
    error = orjson.loads(refusal.body)["error"]
    assert (refusal.status, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert error["details"][0]["reason"] == "API_KEY_INVALID"


@pytest.mark.parametrize(
    ("status", "name"),
    [(404, "NOT_FOUND"), (429, "RESOURCE_EXHAUSTED"), (418, "FAILED_PRECONDITION"), (599, "INTERNAL")],
)
def test_errors_have_the_providers_shape(status: int, name: str) -> None:
    refusal = gemini.refusal(Problem(status, "why"))
    error = {"error": {"code": status, "message": "why", "status": name}}
    assert (refusal.status, orjson.loads(refusal.body)) == (status, error)
    assert orjson.loads(gemini.refusal(Problem(status, "why", array=True)).body) == [error]


def test_the_body_says_when_to_come_back() -> None:
    refusal = gemini.refusal(Problem(429, "why", behaviour_of("g:retry-after-34")))
    assert orjson.loads(refusal.body)["error"]["details"][0]["retryDelay"] == "34s"
    assert "retry-after" not in refusal.headers


def test_answers_have_no_request_id() -> None:
    headers = gemini.answer_headers(ask("g"))
    assert headers["x-gemini-service-tier"] == "standard"
    assert not [name for name in headers if "request-id" in name or "ratelimit" in name]
