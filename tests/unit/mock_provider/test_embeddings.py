import base64
import struct

import orjson
import pytest

from edgeproxy.mock_provider import embeddings
from edgeproxy.mock_provider.endpoint import Incoming
from edgeproxy.mock_provider.exchange import Exchange, Tokens


def ask(model: str = "m", **fields: object) -> Exchange:
    return embeddings.read(Incoming(orjson.dumps({"model": model, **fields})))


@pytest.mark.parametrize(
    ("inputs", "vectors", "tokens"),
    [("a b c", 1, 3), (["a b", "c"], 2, 3), ([7, 8, 9], 1, 3), ([[7, 8], [9]], 2, 3), ([], 1, 0), (None, 1, 0)],
)
def test_every_input_has_a_vector_and_only_input_is_billed(inputs: object, vectors: int, tokens: int) -> None:
    exchange = ask(input=inputs)
    assert exchange.tokens == Tokens(tokens)
    body = orjson.loads(embeddings.unary(exchange))
    assert [each["index"] for each in body["data"]] == list(range(vectors))
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_base64_packs_the_same_numbers() -> None:
    floats = orjson.loads(embeddings.unary(ask(input="a")))["data"][0]["embedding"]
    packed = orjson.loads(embeddings.unary(ask(input="a", encoding_format="base64")))["data"][0]["embedding"]
    assert list(struct.unpack("<3f", base64.b64decode(packed))) == floats


def test_no_usage_leaves_it_out() -> None:
    assert "usage" not in orjson.loads(embeddings.unary(ask("m:no-usage", input="a")))


def test_moderation_has_a_result_for_each_input() -> None:
    results = orjson.loads(embeddings.moderated(ask(input=["a", "b"])))["results"]
    assert [result["flagged"] for result in results] == [False, False]
