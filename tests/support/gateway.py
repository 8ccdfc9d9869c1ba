"""A running gateway before a running mock provider, both in the test's own loop, on a real Redis."""

import asyncio
import json
import secrets
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import redis.asyncio as redis_asyncio

from edgeproxy import config
from edgeproxy.app import Running, gateway_role
from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus, digest, issue_secret, partition_of
from edgeproxy.domain.limits import parse_limit
from edgeproxy.domain.reservations import KeyUsage
from edgeproxy.domain.usage import UsageEvent, decode_event
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.publishing import Publishing
from edgeproxy.metrics import Metrics
from edgeproxy.mock_provider.server import Options, RunningMock, running
from edgeproxy.supervisor.listeners import url_of

PEPPER = bytes(range(32))
OPERATOR_SECRET = "sk-operator-secret"
PARTITIONS = 16
DIALECTS = ("openai", "anthropic", "gemini")
MODELS = (
    'match = "gpt-*"\nprovider = "openai"\nlist = ["gpt-mock", "gpt-other"]',
    'match = "whisper-*"\nprovider = "openai"',
    'match = "renamed"\nprovider = "openai"\nupstream_model = "gpt-real"',
    'match = "claude-*"\nprovider = "anthropic"\nlist = ["claude-mock", "claude-other"]\nmax_output_tokens = 64000',
    'match = "gemini-*"\nprovider = "gemini"\nlist = ["gemini-mock", "gemini-other"]',
    *(f'match = "recording:*"\nprovider = "{dialect}"' for dialect in DIALECTS),
)


@dataclass
class Gateway:
    """What a test needs of the gateway under test."""

    url: str
    settings: config.Settings
    mock: RunningMock
    metrics: Metrics
    redis: redis_asyncio.Redis
    session: aiohttp.ClientSession
    role: Running
    records: dict[str, KeyRecord] = field(default_factory=dict)

    async def issue(self, *limits: str, **settings: Any) -> str:
        """Publish a fresh key and return its secret."""
        secret = issue_secret("ep-", secrets.token_bytes(32))
        key_id = KeyId(str(uuid.uuid4()))
        record = KeyRecord(
            id=key_id,
            version=1,
            status=KeyStatus.ACTIVE,
            partition=partition_of(key_id, PARTITIONS),
            limits=tuple(parse_limit(limit) for limit in limits),
            concurrency=settings.get("concurrency"),
            expires_ms=settings.get("expires_ms"),
            models=settings.get("models", ()),
            **{name: settings[name] for name in ("mode", "reserve", "on_limit", "prepaid") if name in settings},
        )
        await self.publish(secret, record)
        return secret

    async def publish(self, secret: str, record: KeyRecord) -> None:
        await Publishing(Caller(self.redis)).publish(record, digest(secret, PEPPER))
        self.records[secret] = record

    async def usage(self, secret: str) -> KeyUsage:
        found = await Publishing(Caller(self.redis)).inspect(self.records[secret])
        assert found is not None
        return found

    async def events(self, secret: str) -> list[UsageEvent]:
        record = self.records[secret]
        rows = await self.redis.xrange(keyspace.events(record.partition))
        found = [decode_event(fields[b"e"]) for _, fields in rows]
        return [event for event in found if event.key_id == record.id]

    async def settled(self, secret: str) -> UsageEvent:
        """Return the event of the key's only request as soon as it is there."""
        async with asyncio.timeout(10):
            while not (found := await self.events(secret)):
                await asyncio.sleep(0.01)
        (event,) = found
        return event

    def post(self, path: str, secret: str, body: Any, **options: Any) -> Any:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {secret}", **options.pop("headers", {})}
        return self.session.post(self.url + path, data=raw, headers=headers, **options)


async def open_partitions(redis: redis_asyncio.Redis, count: int = PARTITIONS) -> None:
    """Say that Redis, as it is now, may be trusted: in production `jobs` does, after a comparison."""
    try:
        run_id = (await redis.info("server"))["run_id"]
    except redis_asyncio.ConnectionError:
        return  # the test wants it away
    for partition in range(count):
        await redis.set(keyspace.epoch(partition), json.dumps({"run_ids": [run_id], "opened_ms": 0}))


StartGateway = Callable[..., Awaitable[Gateway]]


def chat(model: str = "gpt-mock", **fields: Any) -> dict[str, Any]:
    """A chat completion request of three words."""
    return {"model": model, "messages": [{"role": "user", "content": "one two three"}], **fields}


def message(model: str = "claude-mock", **fields: Any) -> dict[str, Any]:
    """A Messages request of three words."""
    return {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": "one two three"}], **fields}


def generate(**fields: Any) -> dict[str, Any]:
    """A Gemini request of three words."""
    return {"contents": [{"role": "user", "parts": [{"text": "one two three"}]}], **fields}


@asynccontextmanager
async def run_gateway(
    redis_url: str,
    operator_secret: Path,
    pepper_file: Path,
    folder: Path,
    *,
    bounds: dict[str, Any] | None = None,
    stores: dict[str, Any] | None = None,
    listen: dict[str, Any] | None = None,
    base_url: str = "",
    provider: dict[str, Any] | None = None,
    recordings: Path | None = None,
) -> AsyncIterator[Gateway]:
    async with running(options=Options(expected_secret=OPERATOR_SECRET, recordings=recordings)) as mock:
        rows = {"secret_file": str(operator_secret), "base_url": base_url or mock.url, **(provider or {})}
        text = "\n".join(
            [
                f"data_dir = {json.dumps(str(folder / 'data'))}",
                "[listen]",
                *(f"{name} = {json.dumps(value)}" for name, value in (listen or {}).items()),
                "[stores]",
                *(f"{name} = {json.dumps(value)}" for name, value in (stores or {}).items()),
                "[bounds]",
                *(f"{name} = {json.dumps(value)}" for name, value in {"drain_ms": 500, **(bounds or {})}.items()),
                *(line for dialect in DIALECTS for line in _provider_table(dialect, rows)),
                *(f"[[model]]\n{line}" for line in MODELS),
            ]
        )
        path = folder / "edgeproxy.toml"
        path.write_text(text)
        settings = config.load(
            path, {"EDGEPROXY_STORES_REDIS": redis_url, "EDGEPROXY_SECRETS_PEPPER_FILE": str(pepper_file)}
        )
        sock = socket.create_server(("127.0.0.1", 0))
        url = url_of(sock, secure=bool(settings.listen.api_certificate))
        metrics = Metrics()
        async with redis_asyncio.Redis.from_url(redis_url) as client:
            await open_partitions(client)
        async with (
            gateway_role(settings, sock, metrics) as role,
            redis_asyncio.Redis.from_url(redis_url) as client,
            aiohttp.ClientSession() as session,
        ):
            yield Gateway(url, settings, mock, metrics, client, session, role)


def _provider_table(dialect: str, rows: dict[str, Any]) -> list[str]:
    return ["[[provider]]", f'name = "{dialect}"', f'dialect = "{dialect}"'] + [
        f"{name} = {json.dumps(value)}" for name, value in rows.items()
    ]
