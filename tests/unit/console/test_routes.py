import asyncio
import json
from dataclasses import replace

import pytest
from aiohttp import web

from edgeproxy.console import routes
from edgeproxy.console.routes import make_app, make_runner
from edgeproxy.control.keys import create_key, delete_key, revoke_key
from edgeproxy.store.database import connect


@pytest.fixture
async def issued(control):
    return await create_key(control, name="build", limits=["tokens=1000/1h"])


@pytest.fixture
async def client(control, aiohttp_client):
    return await aiohttp_client(make_app(control))


@pytest.mark.claims("OL-10a")
@pytest.mark.parametrize(
    "headers",
    [
        lambda secret: {"Authorization": f"Bearer {secret}"},
        lambda secret: {"authorization": f"bearer  {secret} "},
        lambda secret: {"x-api-key": secret},
        lambda secret: {"Authorization": "Basic eDp5", "x-api-key": secret},
    ],
    ids=["bearer", "lower case", "x-api-key", "another scheme beside"],
)
async def test_the_holder_of_a_key_sees_its_usage(client, issued, request_with, headers):
    await request_with(issued.key)
    answer = await client.get("/api/v1/usage", headers=headers(issued.secret))
    assert answer.status == 200
    assert answer.content_type == "application/json"
    body = await answer.json()
    assert body["key"]["id"] == issued.key.id
    assert body["totals"] == {"requests": 1, "input_tokens": 13, "output_tokens": 7}
    assert issued.secret not in await answer.text()


async def test_whoever_shows_no_good_key_gets_one_and_the_same_answer(client, control, issued):
    revoked, deleted = [await create_key(control, name=name) for name in ("revoked", "deleted")]
    await revoke_key(control, revoked.key.id)
    await delete_key(control, deleted.key.id)
    stranger = await create_key(replace(control, peppers=(bytes(32),)), name="of another installation")
    answers = []
    for headers in (
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": issued.secret},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": "Bearer nonsense", "x-api-key": issued.secret},
        {"x-api-key": "ключ"},
        {"x-api-key": issued.secret[:-1] + "!"},
        *({"x-api-key": each.secret} for each in (revoked, deleted, stranger)),
    ):
        answer = await client.get("/api/v1/usage", headers=headers)
        head = {name: value for name, value in answer.headers.items() if name != "Date"}
        answers.append((answer.status, await answer.read(), head))
    assert all(answer == answers[0] for answer in answers)
    status, body, head = answers[0]
    assert status == 401
    assert head["WWW-Authenticate"] == "Bearer"
    assert json.loads(body)["error"]["code"] == "invalid_api_key"


async def test_a_key_in_the_address_is_not_a_key(client, issued):
    answer = await client.get("/api/v1/usage", params={"key": issued.secret})
    assert answer.status == 401


async def test_a_store_that_is_away_is_not_an_unknown_key(
    control, control_without_redis, issued, aiohttp_client, migrated_url
):
    pool = await connect(migrated_url)
    await pool.close()
    for broken in (control_without_redis, replace(control, database=pool)):
        client = await aiohttp_client(make_app(broken))
        answer = await client.get("/api/v1/usage", headers={"x-api-key": issued.secret})
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "5"
        assert (await answer.json())["error"]["code"] == "unavailable"
        assert (await client.get("/healthz")).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "path_not_found"),
        ("GET", "/api/v1/usage/", 404, "path_not_found"),
        ("GET", "/../etc/passwd", 404, "path_not_found"),
        ("POST", "/api/v1/usage", 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_served_is_said_so_in_json(client, method, path, status, code):
    answer = await client.request(method, path, data=b"x" * 1000)
    assert answer.status == status
    assert (await answer.json())["error"]["code"] == code
    assert ("Allow" in answer.headers) == (status == 405)


@pytest.mark.claims("OL-2b")
async def test_every_answer_may_not_be_kept_or_guessed_at_and_sets_no_cookie(client, issued):
    for path, headers in (
        ("/healthz", {}),
        ("/x", {}),
        ("/api/v1/usage", {}),
        ("/api/v1/usage", {"x-api-key": issued.secret}),
    ):
        answer = await client.get(path, headers=headers)
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Set-Cookie" not in answer.headers


@pytest.mark.claims("OL-2b")
@pytest.mark.parametrize("through", ["cookie", "header"])
async def test_an_answer_with_a_cookie_that_is_not_declared_does_not_leave(control, aiohttp_client, capfd, through):
    async def answer(_request):
        response = web.Response(text="hello")
        if through == "cookie":
            response.set_cookie("session", "canary")
        else:
            response.headers["Set-Cookie"] = "session=canary"
        return response

    app = make_app(control)
    app.router.add_get("/page", answer)
    received = await (await aiohttp_client(app)).get("/page")
    assert received.status == 500
    assert "Set-Cookie" not in received.headers
    written = capfd.readouterr().err
    assert json.loads(written)["error"] == "undeclared_cookie"
    assert "canary" not in written


@pytest.mark.claims("OM-3")
async def test_a_mistake_of_ours_is_answered_and_logged_without_a_word_of_it(client, issued, monkeypatch, capfd):
    async def fail(_control, secret):
        raise RuntimeError(f"while looking at {secret}")

    monkeypatch.setattr(routes, "usage_report", fail)
    answer = await client.get("/api/v1/usage", headers={"x-api-key": issued.secret})
    assert answer.status == 500
    assert (await answer.json())["error"]["code"] == "internal_error"
    written = capfd.readouterr().err
    assert json.loads(written)["error"] == "RuntimeError"
    assert issued.secret not in written + await answer.text()


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /api/v1/usage?prompt=canary HTTP/1.1\r\nHost: x\r\nx-api-key: canary\r\nbad header canary\r\n\r\n",
        b"canary canary canary\r\n\r\n",
        b"GET /" + b"canary" * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz?canary HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
    ids=["bad header", "no HTTP", "long line", "good"],
)
async def test_nothing_of_a_request_is_printed(control, raw, capfd, caplog, unused_tcp_port):
    runner = make_runner(control)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    reader, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port)
    writer.write(raw)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await runner.cleanup()
    captured = capfd.readouterr()
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 200", b"HTTP/1.0 400"))
    assert "canary" not in captured.out + captured.err + caplog.text


async def test_the_process_says_that_it_is_alive(client):
    answer = await client.get("/healthz")
    assert (answer.status, await answer.json()) == (200, {"status": "ok"})


async def test_it_is_ready_when_both_stores_answer_and_says_which_does_not(
    control, control_without_redis, aiohttp_client, migrated_url, monkeypatch
):
    pool = await connect(migrated_url)
    await pool.close()
    draining = asyncio.Event()
    draining.set()

    async def frozen(_control):
        await asyncio.sleep(60)

    for app, status, said in (
        (make_app(control), 200, "ok"),
        (make_app(control_without_redis), 503, "redis is away"),
        (make_app(replace(control, database=pool)), 503, "postgresql is away"),
        (make_app(control, draining), 503, "draining"),
    ):
        answer = await (await aiohttp_client(app)).get("/readyz")
        assert (answer.status, await answer.json()) == (status, {"status": said})
    monkeypatch.setattr(routes, "ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(routes, "stores_away", frozen)
    answer = await (await aiohttp_client(make_app(control))).get("/readyz")
    assert (answer.status, await answer.json()) == (503, {"status": "postgresql is away"})


async def test_a_store_that_is_frozen_is_told_in_time(client, control, issued, monkeypatch):
    monkeypatch.setattr(routes, "ANSWER_TIMEOUT_S", 0.2)
    headers = {"x-api-key": issued.secret}
    async with control.database.transaction() as connection:
        await connection.execute("LOCK TABLE keys IN ACCESS EXCLUSIVE MODE")
        answer = await client.get("/api/v1/usage", headers=headers)
        assert answer.status == 503
        assert answer.headers["Retry-After"] == str(routes.RETRY_AFTER_S)
    monkeypatch.undo()
    assert (await client.get("/api/v1/usage", headers=headers)).status == 200
