"""Roles are built from settings, serve while their block runs, and leave nothing behind."""

import asyncio
import dataclasses
import json
import socket
from pathlib import Path

import aiohttp
import pytest
from redis.asyncio import Redis

from edgeproxy import config
from edgeproxy.app import console_role, gateway_role, jobs_role, open_control, peppers
from edgeproxy.control.keys import create_key
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.metrics import Metrics
from edgeproxy.mock_provider.server import Options, running
from tests.support.certificates import make_pair
from tests.support.gateway import open_partitions
from tests.support.raw import Client


@pytest.fixture(autouse=True)
async def _opened(request: pytest.FixtureRequest) -> None:
    """Redis may be trusted, where a test has one: in production `jobs` says so."""
    if "redis_url" in request.fixturenames:
        async with Redis.from_url(request.getfixturevalue("redis_url")) as redis:
            await open_partitions(redis)


def settings_for(redis_url: str, postgres_url: str, folder: Path, mock_url: str, **more: str) -> config.Settings:
    (folder / "pepper").write_text("ab" * 32)
    (folder / "pepper").chmod(0o600)
    (folder / "secret").write_text("sk-operator")
    path = folder / "edgeproxy.toml"
    path.write_text(
        f"""
        [[provider]]
        name = "mock"
        dialect = "openai"
        base_url = "{mock_url}"
        secret_file = "{folder}/secret"
        [[model]]
        match = "*"
        provider = "mock"
        """
    )
    environ = {
        "EDGEPROXY_STORES_REDIS": redis_url,
        "EDGEPROXY_STORES_POSTGRES": postgres_url,
        "EDGEPROXY_SECRETS_PEPPER_FILE": str(folder / "pepper"),
        "EDGEPROXY_DATA_DIR": str(folder / "data"),
        "EDGEPROXY_BOUNDS_DRAIN_MS": "2000",
        **more,
    }
    return config.load(path, environ)


def listener() -> tuple[socket.socket, str]:
    sock = socket.create_server(("127.0.0.1", 0))
    return sock, f"http://127.0.0.1:{sock.getsockname()[1]}"


async def test_the_roles_together_do_the_main_job(redis_url: str, migrated_url: str, tmp_path: Path) -> None:
    async with running() as mock:
        settings = settings_for(redis_url, migrated_url, tmp_path, mock.url, EDGEPROXY_JOBS_FLUSH_AFTER_MS="1")
        api, api_url = listener()
        web, web_url = listener()
        async with (
            open_control(settings) as control,
            gateway_role(settings, api, Metrics()),
            console_role(settings, web, Metrics()),
            jobs_role(settings, Metrics()),
            aiohttp.ClientSession() as session,
        ):
            issued = await create_key(control, name="first", limits=["tokens=1000/1m"])
            body = {"model": "gpt-mock", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 9}
            headers = {"authorization": f"Bearer {issued.secret}"}
            async with session.post(f"{api_url}/v1/chat/completions", json=body, headers=headers) as answer:
                assert answer.status == 200
            async with session.get(f"{web_url}/api/v1/usage", headers=headers) as answer:
                usage = await answer.json()
            assert usage["totals"] == {"requests": 1, "input_tokens": 2, "output_tokens": 5}
            assert usage["windows"][0]["used"] == 7
            async with asyncio.timeout(10):
                while not usage["recent"]:
                    await asyncio.sleep(0.05)
                    async with session.get(f"{web_url}/api/v1/usage", headers=headers) as answer:
                        usage = await answer.json()
            assert usage["recent"][0]["output_tokens"] == 5
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", int(api_url.rpartition(":")[2]))


async def test_a_gateway_that_stops_lets_open_answers_finish(redis_url: str, migrated_url: str, tmp_path: Path) -> None:
    async with running() as mock:
        settings = settings_for(redis_url, migrated_url, tmp_path, mock.url)
        api, api_url = listener()
        async with open_control(settings) as control, aiohttp.ClientSession() as session:
            issued = await create_key(control, name="first")
            headers = {"authorization": f"Bearer {issued.secret}"}
            body = {"model": "gpt-mock:chunks-10.interval-ms-40", "messages": [], "stream": True}
            role = gateway_role(settings, api, Metrics())
            await role.__aenter__()
            async with session.post(f"{api_url}/v1/chat/completions", json=body, headers=headers) as answer:
                await answer.content.readany()
                stopping = asyncio.create_task(role.__aexit__(None, None, None))
                text = await answer.text()
                assert text.endswith("data: [DONE]\n\n")
            await stopping


async def test_an_answer_that_does_not_end_is_reset_and_counted_when_the_gateway_stops(
    redis_url: str, migrated_url: str, tmp_path: Path
) -> None:
    async with running() as mock:
        settings = settings_for(redis_url, migrated_url, tmp_path, mock.url, EDGEPROXY_BOUNDS_DRAIN_MS="200")
        api, api_url = listener()
        async with open_control(settings) as control, aiohttp.ClientSession() as session:
            issued = await create_key(control, name="first")
            headers = {"authorization": f"Bearer {issued.secret}"}
            body = {"model": "gpt-mock:stall-after-3", "messages": [], "stream": True}
            role = gateway_role(settings, api, Metrics())
            await role.__aenter__()
            async with session.post(f"{api_url}/v1/chat/completions", json=body, headers=headers) as answer:
                await answer.content.readany()
                await role.__aexit__(None, None, None)
                with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
                    await answer.read()
            (row,) = [row async for row in usage_rows(control)]
            assert row["estimated"] is True


async def test_a_gateway_in_a_hurry_does_not_wait_for_answers_and_counts_them(
    redis_url: str, migrated_url: str, tmp_path: Path
) -> None:
    async with running() as mock:
        settings = settings_for(redis_url, migrated_url, tmp_path, mock.url, EDGEPROXY_BOUNDS_DRAIN_MS="60000")
        api, api_url = listener()
        async with open_control(settings) as control, aiohttp.ClientSession() as session:
            issued = await create_key(control, name="first")
            headers = {"authorization": f"Bearer {issued.secret}"}
            body = {"model": "gpt-mock:stall-after-3", "messages": [], "stream": True}
            role = gateway_role(settings, api, Metrics())
            gateway = await role.__aenter__()
            async with session.post(f"{api_url}/v1/chat/completions", json=body, headers=headers) as answer:
                await answer.content.readany()
                stopping = asyncio.create_task(role.__aexit__(None, None, None))
                await asyncio.sleep(0.05)
                assert not stopping.done()
                gateway.hurry()
                await asyncio.wait_for(stopping, 10)
                with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
                    await answer.read()
            (row,) = [row async for row in usage_rows(control)]
            assert row["estimated"] is True


async def test_a_gateway_takes_new_requests_by_new_settings_and_old_ones_to_their_end(
    redis_url: str, migrated_url: str, tmp_path: Path
) -> None:
    async with running() as first, running(options=Options(expected_secret="sk-new")) as second:
        settings = settings_for(redis_url, migrated_url, tmp_path, first.url)
        api, api_url = listener()
        async with (
            open_control(settings) as control,
            gateway_role(settings, api, Metrics()) as gateway,
            aiohttp.ClientSession() as session,
        ):
            issued = await create_key(control, name="first")
            headers = {"authorization": f"Bearer {issued.secret}"}

            def post(model: str):
                body = {"model": model, "messages": [], "stream": True}
                return session.post(f"{api_url}/v1/chat/completions", json=body, headers=headers)

            async with post("gpt-mock:chunks-20.interval-ms-40") as old:
                await old.content.readany()
                settings = settings_for(redis_url, migrated_url, tmp_path, second.url)
                (tmp_path / "secret").write_text("sk-new")
                await gateway.reload(settings)
                async with post("gpt-mock") as new:
                    assert (new.status, second.counts.total.completed) == (200, 1)
                assert (await old.text()).endswith("data: [DONE]\n\n")
            assert first.counts.total.completed == 1
            (tmp_path / "secret").unlink()
            with pytest.raises(OperatorError, match="'mock'"):
                await gateway.reload(settings)
            async with post("gpt-mock") as unchanged:
                assert unchanged.status == 200


async def test_new_bounds_hold_for_new_connections_and_the_count_of_open_ones_goes_on(
    redis_url: str, migrated_url: str, tmp_path: Path
) -> None:
    settings = settings_for(redis_url, migrated_url, tmp_path, "http://127.0.0.1:1")
    api, api_url = listener()
    question = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    async with gateway_role(settings, api, Metrics()) as gateway, Client(api_url) as old:
        for _ in range(2):
            old.writer.write(question)
            assert (await old.reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
            bounds = dataclasses.replace(settings.bounds, max_client_connections=1)
            await gateway.reload(dataclasses.replace(settings, bounds=bounds))
        async with Client(api_url) as new:
            new.writer.write(question)
            assert (await new.reader.read()).startswith(b"HTTP/1.1 503")


async def test_a_gateway_that_is_to_stop_is_not_called_back_by_new_settings(
    redis_url: str, migrated_url: str, tmp_path: Path
) -> None:
    settings = settings_for(redis_url, migrated_url, tmp_path, "http://127.0.0.1:1")
    api, api_url = listener()
    async with gateway_role(settings, api, Metrics()) as gateway, aiohttp.ClientSession() as session:
        gateway.drain()
        await gateway.reload(settings)
        async with session.get(f"{api_url}/readyz") as answer:
            assert (answer.status, await answer.text()) == (503, "draining\n")


async def test_jobs_refuse_a_redis_that_forgets(
    redis_url: str, redis: Redis, migrated_url: str, tmp_path: Path
) -> None:
    settings = settings_for(redis_url, migrated_url, tmp_path, "http://127.0.0.1:1")
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(OperatorError, match="set maxmemory-policy noeviction"):
            async with jobs_role(settings, Metrics()):
                pytest.fail("they run")
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_jobs_go_on_by_new_settings(redis_url: str, migrated_url: str, tmp_path: Path) -> None:
    settings = settings_for(redis_url, migrated_url, tmp_path, "http://127.0.0.1:1")
    async with jobs_role(settings, Metrics()) as jobs:
        before = jobs._work
        await jobs.reload(settings)
        assert jobs._work is before
        await jobs.reload(dataclasses.replace(settings, jobs=config.Jobs(flush_batch=1)))
        assert before.done()
        assert not jobs._work.done()
    assert jobs._work.done()
    await jobs.reload(settings)
    assert jobs._work.done(), "what has ended does not begin again"


async def usage_rows(control):
    for partition in range(control.partitions):
        for _, fields in await control.caller._client.xrange(f"{{p{partition:02d}}}:events"):
            yield json.loads(fields[b"e"])


def test_without_a_pepper_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="pepper_file"):
        peppers(config.load(None, {}))
    absent = {"EDGEPROXY_SECRETS_PEPPER_FILE": str(tmp_path / "absent")}
    with pytest.raises(OperatorError):
        peppers(config.load(None, absent))


async def test_the_secret_of_a_provider_has_to_be_there(redis_url: str, migrated_url: str, tmp_path: Path) -> None:
    settings = settings_for(redis_url, migrated_url, tmp_path, "http://127.0.0.1:1")
    (tmp_path / "secret").unlink()
    api, _ = listener()
    with api, pytest.raises(OperatorError, match="'mock'"):
        async with gateway_role(settings, api, Metrics()):
            pass


async def test_a_process_does_not_live_on_without_its_jobs(
    redis_url: str, migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("canary-77")

    monkeypatch.setattr("edgeproxy.app.run_jobs", broken)
    settings = settings_for(redis_url, migrated_url, tmp_path, "http://127.0.0.1:1")
    with pytest.raises(OperatorError, match="background work"):
        async with jobs_role(settings, Metrics()), asyncio.timeout(10):
            await asyncio.Event().wait()


async def test_a_command_may_change_keys_while_redis_is_away_but_the_jobs_may_not(
    migrated_url: str, tmp_path: Path
) -> None:
    settings = settings_for("unix:///nonexistent/redis.sock", migrated_url, tmp_path, "http://127.0.0.1:1")
    async with open_control(settings, without_redis=True) as control:
        assert not (await create_key(control, name="later")).published
    with pytest.raises(StoreUnavailable):
        async with open_control(settings):
            pass


async def test_pages_are_served_over_tls_and_with_the_new_certificate_after_a_reload(
    redis_url: str, migrated_url: str, tmp_path: Path
) -> None:
    pair = make_pair(tmp_path)
    more = {f"EDGEPROXY_LISTEN_{name.upper()}": value for name, value in pair.settings("web").items()}
    settings = settings_for(redis_url, migrated_url, tmp_path, "http://127.0.0.1:1", **more)
    web, url = listener()
    async with console_role(settings, web, Metrics()) as console, aiohttp.ClientSession() as session:
        url = url.replace("http", "https")
        before = pair.client_context()
        async with session.get(f"{url}/healthz", ssl=before) as answer:
            assert answer.status == 200
        renewed = make_pair(tmp_path).client_context()
        await console.reload(settings)
        async with aiohttp.ClientSession() as later:
            async with later.get(f"{url}/healthz", ssl=renewed) as answer:
                assert answer.status == 200
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await later.get(f"{url}/healthz", ssl=before)
        async with session.get(f"{url}/healthz", ssl=before) as answer:  # on the connection that is open
            assert answer.status == 200


async def test_what_is_said_of_privacy_follows_a_reload(redis_url: str, migrated_url: str, tmp_path: Path) -> None:
    settings = settings_for(redis_url, migrated_url, tmp_path, "http://127.0.0.1:1")
    web, url = listener()
    async with console_role(settings, web, Metrics()) as console, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/privacy") as answer:
            before = await answer.text()
        other = dataclasses.replace(settings.provider[0], base_url="https://api.example.com")
        await console.reload(dataclasses.replace(settings, provider=(other,)))
        async with session.get(f"{url}/privacy") as answer:
            after = await answer.text()
    assert "api.example.com" not in before
    assert "api.example.com" in after


async def test_pages_are_served_in_clear_to_those_who_may_have_them_only(
    redis_url: str, migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"EDGEPROXY_LISTEN_TRUSTED_PROXIES": "192.0.2.7"}
    settings = settings_for(redis_url, migrated_url, tmp_path, "http://127.0.0.1:1", **more)
    web, url = listener()
    metrics = Metrics()
    async with console_role(settings, web, metrics):
        async with Client(url) as client:
            client.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.answer())[0].startswith(b"HTTP/1.1 200")
        monkeypatch.setattr("edgeproxy.domain.peers.Peers.may_speak_plain", lambda *_: False)
        async with Client(url) as client:
            assert await client.reader.read() == b""
    assert b'edgeproxy_connections_refused_total{reason="untrusted_peer"} 1.0' in metrics.render()
