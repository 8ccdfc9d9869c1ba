"""Pages of listed origins may call the gateway; for all others nothing changes."""

import pytest

from tests.support.gateway import Gateway, StartGateway, chat, message

CHAT = "/v1/chat/completions"
PAGE = "https://app.example"
QUESTION = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}


@pytest.fixture
async def open_gateway(start_gateway: StartGateway) -> Gateway:
    return await start_gateway(listen={"cors_origins": [PAGE, "http://localhost:3000"]})


def of_cors(headers: object) -> dict[str, str]:
    assert isinstance(headers, object)
    return {name.lower(): value for name, value in headers.items() if name.lower().startswith(("access-", "vary"))}  # type: ignore[attr-defined]  # aiohttp's multidict


async def test_nothing_of_it_is_there_unless_it_was_asked_for(gateway: Gateway) -> None:
    secret = await gateway.issue()
    async with gateway.session.options(gateway.url + CHAT, headers=QUESTION) as answer:
        assert (answer.status, of_cors(answer.headers)) == (405, {})
    async with gateway.post(CHAT, secret, chat(), headers={"origin": PAGE}) as answer:
        assert (answer.status, of_cors(answer.headers)) == (200, {})


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
async def test_a_listed_page_is_told_what_it_may_do(open_gateway: Gateway, origin: str) -> None:
    async with open_gateway.session.options(open_gateway.url + CHAT, headers={**QUESTION, "origin": origin}) as answer:
        assert (answer.status, await answer.read()) == (200, b"")
        told = of_cors(answer.headers)
    assert told["access-control-allow-origin"] == origin
    assert told["vary"] == "Origin"
    assert "POST" in told["access-control-allow-methods"].split(", ")
    allowed = told["access-control-allow-headers"].split(", ")
    assert {"authorization", "content-type", "x-api-key", "x-goog-api-key", "anthropic-version"} <= set(allowed)
    assert int(told["access-control-max-age"]) > 0
    assert "access-control-allow-credentials" not in told
    assert "*" not in "".join(told.values())


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [
        (CHAT, {"origin": "https://other.example"}, 405),
        (CHAT, {"origin": "https://app.example.other.example"}, 405),
        (CHAT, {"origin": "http://app.example"}, 405),
        (CHAT, {"origin": "https://APP.example"}, 405),
        (CHAT, {"origin": "null"}, 405),
        (CHAT, {"origin": "*"}, 405),
        ("/v1/nowhere", {}, 404),
    ],
)
async def test_others_are_told_nothing(open_gateway: Gateway, path: str, more: dict[str, str], status: int) -> None:
    async with open_gateway.session.options(open_gateway.url + path, headers={**QUESTION, **more}) as answer:
        assert answer.status == status
        assert "access-control-allow-methods" not in answer.headers
        if more:
            assert of_cors(answer.headers) == {"vary": "Origin"}


async def test_options_without_the_question_is_no_preflight(open_gateway: Gateway) -> None:
    async with open_gateway.session.options(open_gateway.url + CHAT, headers={"origin": PAGE}) as answer:
        assert answer.status == 405


async def test_a_page_can_read_every_answer(open_gateway: Gateway) -> None:
    secret = await open_gateway.issue()
    for sent in (secret, "ep-wrong"):
        for path, body in ((CHAT, chat()), (CHAT, chat(stream=True)), ("/v1/messages", message())):
            async with open_gateway.post(path, sent, body, headers={"origin": PAGE}) as answer:
                assert answer.status == (200 if sent == secret else 401)
                assert answer.headers["access-control-allow-origin"] == PAGE
                shown = answer.headers["access-control-expose-headers"].split(", ")
                assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= set(shown)
    headers = {"origin": PAGE, "authorization": f"Bearer {secret}"}
    async with open_gateway.session.get(open_gateway.url + "/v1/models", headers=headers) as answer:
        assert answer.headers["access-control-allow-origin"] == PAGE


async def test_a_page_of_another_origin_gets_an_answer_that_its_browser_keeps_from_it(open_gateway: Gateway) -> None:
    secret = await open_gateway.issue()
    for headers in ({"origin": "https://other.example"}, {}):
        async with open_gateway.post(CHAT, secret, chat(), headers=headers) as answer:
            assert (answer.status, of_cors(answer.headers)) == (200, {"vary": "Origin"})
