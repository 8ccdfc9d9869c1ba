import orjson

from edgeproxy.mock_provider import gemini_embeddings
from edgeproxy.mock_provider.endpoint import Incoming
from edgeproxy.mock_provider.exchange import Exchange, Tokens

CONTENT = {"content": {"parts": [{"text": "a b c"}]}}


def ask(model: str, **fields: object) -> Exchange:
    return gemini_embeddings.read(Incoming(orjson.dumps(fields), path_model=model))


def test_only_input_is_billed() -> None:
    assert ask("e:cached-7.reasoning-3", **CONTENT).tokens == Tokens(3)


def test_usage_spells_its_details_in_its_own_way() -> None:
    body = orjson.loads(gemini_embeddings.embedded(ask("e", **CONTENT)))
    assert body["embedding"]["values"]
    assert body["usageMetadata"]["promptTokenCount"] == 3
    assert body["usageMetadata"]["promptTokenDetails"] == [{"modality": "TEXT", "tokenCount": 3}]


def test_an_older_model_has_no_usage() -> None:
    assert "usageMetadata" not in orjson.loads(gemini_embeddings.embedded(ask("e:no-usage", **CONTENT)))


def test_a_batch_has_a_vector_for_each_request() -> None:
    body = orjson.loads(gemini_embeddings.embedded_batch(ask("e", requests=[CONTENT, CONTENT])))
    assert (len(body["embeddings"]), body["usageMetadata"]["promptTokenCount"]) == (2, 6)
    assert orjson.loads(gemini_embeddings.embedded_batch(ask("e", requests="what")))["embeddings"] == []


def test_tokens_can_be_counted_beforehand() -> None:
    contents = [{"parts": [{"text": "a b"}]}]
    assert orjson.loads(gemini_embeddings.counted(ask("g", contents=contents)))["totalTokens"] == 2
