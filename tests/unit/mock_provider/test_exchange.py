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
        ],
    }
    assert count_words(body) == 6
    assert count_words({"system": "a b"}) == 2
    assert count_words({"messages": [None, {"content": {"text": 1.5}}]}) == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"instructions": "be brief", "input": "one two"}, 4),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "one two"}]}]}, 2),
        ({"input": ["one two", "three"]}, 3),
        ({"input": [7, 8, 9]}, 3),
        ({"prompt": ["one", "two three"]}, 3),
        ({"systemInstruction": {"parts": [{"text": "a"}]}, "contents": [{"parts": [{"text": "b c"}]}]}, 3),
        ({"content": {"parts": [{"text": "one two"}]}}, 2),
        ({"requests": [{"content": {"parts": [{"text": "one"}]}}, {"content": {"parts": [{"text": "two"}]}}]}, 2),
    ],
)
def test_every_dialects_prompt_is_counted(body: dict[str, object], words: int) -> None:
    assert count_words(body) == words


def test_output_is_the_number_of_chunks() -> None:
    exchange = ask("m:chunks-7")
    assert exchange.tokens == Tokens(input_uncached=2, output=7)
    assert len(list(exchange.texts())) == 7


def test_directives_set_each_kind_of_token() -> None:
    tokens = ask("m:input-11.output-13.cached-17.cache-write-19.reasoning-23").tokens
    assert tokens == Tokens(11, 17, 19, 13, 23)
    assert (tokens.input_total, tokens.output_total) == (47, 36)


def test_what_is_kept_for_an_hour_is_part_of_what_is_written_and_tools_read_input() -> None:
    tokens = ask("m:input-10.cache-write-4.cache-write-1h-3.tool-use-prompt-5.web-search-2").tokens
    assert (tokens.cache_write, tokens.cache_write_1h, tokens.input_uncached, tokens.web_searches) == (7, 3, 15, 2)
    assert tokens.input_total == 22


def test_only_who_reports_a_charge_has_one() -> None:
    assert ask("m:chunks-8.web-search-1").tokens.cost_nanos == 0
    assert ask("m:chunks-8.web-search-1.xai").tokens.cost_nanos == 10 * 2_500 + 5_000_000
    assert ask("m:chunks-8.perplexity").tokens.cost_nanos == 10 * 2_500


def test_tokens_add_up() -> None:
    assert Tokens(1, 2, 3, 4, 5, 6, 7, 8) + Tokens(1, 1, 1, 1, 1, 1, 1, 1) == Tokens(2, 3, 4, 5, 6, 7, 8, 9)


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n": 0}, 1),
        ({"n": "3"}, 1),
        ({"n": 10**9}, 128),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [1, 2, 3]}, 1),
        ({"generationConfig": {"candidateCount": 2}}, 2),
    ],
)
def test_several_choices_are_several_times_the_output(fields: dict[str, object], choices: int) -> None:
    exchange = ask("m:chunks-5", **fields)
    assert exchange.choices == choices
    assert exchange.tokens.output == 5 * choices


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_the_requests_own_maximum_cuts_the_answer(field: str) -> None:
    exchange = ask("m:chunks-9", **{field: 4})
    assert (exchange.tokens.output, exchange.finish) == (4, Finish.LENGTH)
    assert ask("m:chunks-9", **{field: 0}).tokens.output == 0
    assert ask("m:chunks-9", **{field: 9}).finish is Finish.STOP


def test_geminis_maximum_is_among_its_settings() -> None:
    assert ask("m:chunks-9", generationConfig={"maxOutputTokens": 4}).tokens.output == 4
    assert ask("m:chunks-9", generationConfig=[]).tokens.output == 9


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "function": {"name": "look_up"}}],
        [{"name": "look_up", "input_schema": {}}],
        [{"type": "web_search"}, {"type": "function", "name": "look_up", "parameters": {}}],
        [{"functionDeclarations": [{"name": "look_up"}]}],
    ],
)
def test_a_tool_call_needs_a_tool_and_its_arguments_are_json(tools: list[object]) -> None:
    exchange = ask("m:tool.chunks-4", tools=tools)
    assert (exchange.finish, exchange.tool_name) == (Finish.TOOL, "look_up")
    assert orjson.loads("".join(exchange.texts())) == {"text": "Hello from the mock"}


@pytest.mark.parametrize("tools", [None, [], ["look_up"], [{"type": "web_search"}], [{"functionDeclarations": []}]])
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
    assert exchange.text == "x" * 8192


def test_the_answer_can_name_another_model() -> None:
    assert ask("gpt-5.6:alias").served_model == "gpt-5.6-2026-11-21"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"{}", b'{"model":7}', b'{"model":"m:what"}', b"\xff"])
def test_what_cannot_be_understood_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"not JSON|model"):
        exchange_of(raw)
