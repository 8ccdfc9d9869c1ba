import orjson
import pytest

from edgeproxy.mock_provider.exchange import Exchange, Finish, Tokens, count_words, exchange_of


def ask(model: str = "m", **fields: object) -> Exchange:
    return exchange_of(orjson.dumps({"model": model, "messages": [{"role": "user", "content": "one two"}], **fields}))


def test_input_is_the_words_of_system_and_messages() -> None:
    body = {
        "system": [{"type": "text", "text": "be brief"}],
        "messages": [
            {"role": "user", "content": "one two three"},
            {"role": "user", "content": [{"type": "text", "text": "four"}, {"type": "image", "source": {}}]},
            {"role": "assistant", "content": None},
            "not a message",
        ],
    }
    assert count_words(body) == 6
    assert count_words({"system": "a b"}) == 2
    assert count_words({"messages": "what"}) == 0


def test_output_is_the_number_of_chunks() -> None:
    exchange = ask("m:chunks-7")
    assert exchange.tokens == Tokens(input_uncached=2, output=7)
    assert len(list(exchange.texts())) == 7


def test_directives_set_each_kind_of_token() -> None:
    tokens = ask("m:input-11.output-13.cached-17.cache-write-19.reasoning-23").tokens
    assert tokens == Tokens(11, 17, 19, 13, 23)
    assert (tokens.input_total, tokens.output_total) == (47, 36)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_requests_own_maximum_cuts_the_answer(field: str) -> None:
    exchange = ask("m:chunks-9", **{field: 4})
    assert (exchange.tokens.output, exchange.finish) == (4, Finish.LENGTH)
    assert ask("m:chunks-9", **{field: 0}).tokens.output == 0
    assert ask("m:chunks-9", **{field: 9}).finish is Finish.STOP


@pytest.mark.parametrize(
    "tools", [[{"type": "function", "function": {"name": "look_up"}}], [{"name": "look_up", "input_schema": {}}]]
)
def test_a_tool_call_needs_a_tool_and_its_arguments_are_json(tools: list[object]) -> None:
    exchange = ask("m:tool.chunks-4", tools=tools)
    assert (exchange.finish, exchange.tool_name) == (Finish.TOOL, "look_up")
    assert orjson.loads("".join(exchange.texts())) == {"text": "Hello from the mock"}


@pytest.mark.parametrize("tools", [None, [], ["look_up"], [{"type": "web_search"}]])
def test_without_a_named_tool_the_answer_is_text(tools: object) -> None:
    assert ask("m:tool", tools=tools).finish is Finish.STOP


def test_only_true_streams_and_only_true_asks_for_usage() -> None:
    exchange = ask(stream=True, stream_options={"include_usage": True})
    assert exchange.streamed
    assert exchange.include_usage
    exchange = ask(stream="yes", stream_options=[])
    assert not exchange.streamed
    assert not exchange.include_usage


def test_big_fills_each_delta_and_the_name_loses_its_directives() -> None:
    exchange = ask("gpt-5.6:chunks-2.big-4096")
    assert [len(text) for text in exchange.texts()] == [4096, 4096]
    assert exchange.served_model == "gpt-5.6"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"{}", b'{"model":7}', b'{"model":"m:what"}', b"\xff"])
def test_what_cannot_be_understood_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"not JSON|model"):
        exchange_of(raw)
