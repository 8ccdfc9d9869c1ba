"""Paths, methods and the dialects that errors are told in."""

import pytest

from edgeproxy.errors import METHOD_NOT_ALLOWED, PATH_NOT_FOUND, GatewayError
from edgeproxy.gateway import routes


@pytest.mark.parametrize(("path", "dialect"), [("/v1/chat/completions", "openai"), ("/v1/messages", "anthropic")])
def test_each_path_speaks_one_dialect(path: str, dialect: str) -> None:
    assert routes.find("POST", path).dialect.name == dialect
    assert routes.dialect_of_errors(path).name == dialect


@pytest.mark.parametrize("path", ["/", "", "/v1/messages/", "/V1/messages", "//v1/messages", "/v1/chat/completions%20"])
def test_nothing_but_the_exact_path_is_served(path: str) -> None:
    with pytest.raises(GatewayError) as caught:
        routes.find("POST", path)
    assert caught.value.kind is PATH_NOT_FOUND


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "post"])
def test_only_post_is_served(method: str) -> None:
    with pytest.raises(GatewayError) as caught:
        routes.find(method, "/v1/messages")
    assert caught.value.kind is METHOD_NOT_ALLOWED


def test_an_unknown_path_below_messages_is_refused_as_anthropics_clients_read_it() -> None:
    assert routes.dialect_of_errors("/v1/messages/batches").name == "anthropic"
    assert routes.dialect_of_errors("/v1/unknown").name == "openai"
