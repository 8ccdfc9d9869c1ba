"""Roles are built from settings, serve while their block runs, and leave nothing behind."""

import asyncio
import json
import socket
from pathlib import Path

import aiohttp
import pytest

from edgeproxy import config
from edgeproxy.app import console_role, gateway_role, jobs_role, open_control, peppers
from edgeproxy.control.keys import create_key
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.metrics import Metrics
from edgeproxy.mock_provider.server import running


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


async def usage_rows(control):
    for partition in range(control.partitions):
        for _, fields in await control.streams._redis.xrange(f"{{p{partition:02d}}}:events"):
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
