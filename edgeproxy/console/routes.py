"""The `web` listener: what is served where, who is asking, and what every answer carries.

No answer says why a key is turned away: missing, malformed, unknown, revoked and expired are one answer. Nothing of a
request is logged, and no exception text leaves.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from edgeproxy import logs, tasks
from edgeproxy.console.privacy import PAGE_POLICY, PrivacyPages
from edgeproxy.control.installation import Control, stores_away
from edgeproxy.control.usage import usage_report
from edgeproxy.errors import INTERNAL, INVALID_KEY, OperatorError, StoreUnavailable

RETRY_AFTER_S = 5  # a store that is restarted is back by then
ANSWER_TIMEOUT_S = 5.0  # a report takes milliseconds; a person who waits longer wants to know

COOKIES: tuple[str, ...] = ()  # those that pages may set, each declared in the inventory; an answer with another fails

T = TypeVar("T")

_CONTROL: web.AppKey[Control] = web.AppKey("control", Control)
_DRAINING: web.AppKey[asyncio.Event] = web.AppKey("draining", asyncio.Event)
_PRIVACY: web.AppKey[PrivacyPages] = web.AppKey("privacy", PrivacyPages)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(
    control: Control, draining: asyncio.Event | None = None, privacy: PrivacyPages | None = None
) -> web.Application:
    """Return the application over an installation that belongs to the caller, who sets `draining` before the end."""
    app = web.Application(middlewares=[_answered], client_max_size=1)  # no path takes a body
    app[_CONTROL] = control
    app[_DRAINING] = draining or asyncio.Event()
    if privacy is not None:
        app[_PRIVACY] = privacy
        app.router.add_get("/privacy", _privacy)
        app.router.add_get("/privacy.json", _privacy_json)
    app.router.add_get("/api/v1/usage", _usage)
    app.router.add_get("/healthz", _alive)
    app.router.add_get("/readyz", _ready)
    return app


def make_runner(
    control: Control, draining: asyncio.Event | None = None, privacy: PrivacyPages | None = None
) -> web.AppRunner:
    """Return what serves the application. aiohttp's own logs stay off: they print parts of requests."""
    silent = logs.silent()
    return web.AppRunner(make_app(control, draining, privacy), access_log=None, logger=silent, handle_signals=False)


async def _privacy(request: web.Request) -> web.Response:
    """Say to people what is kept of them."""
    headers = {"Content-Security-Policy": PAGE_POLICY}
    return web.Response(body=request.app[_PRIVACY].page, content_type="text/html", charset="utf-8", headers=headers)


async def _privacy_json(request: web.Request) -> web.Response:
    """Say the same to programs."""
    return web.Response(body=request.app[_PRIVACY].json, content_type="application/json")


async def _alive(_request: web.Request) -> web.Response:
    """Say that the process answers, whatever the stores do."""
    return _json(200, {"status": "ok"})


async def _ready(request: web.Request) -> web.Response:
    """Say whether what is asked here can be answered, and else what is missing."""
    missing = ["draining"] if request.app[_DRAINING].is_set() else []
    try:
        away = await _in_time(stores_away(request.app[_CONTROL]))
    except StoreUnavailable as frozen:
        away = [frozen.store]
    missing += [f"{store} is away" for store in away]
    return _json(503 if missing else 200, {"status": ", ".join(missing) or "ok"})


async def _usage(request: web.Request) -> web.Response:
    """Tell the holder of a key what it used and what is left."""
    secret = _secret_of(request)
    report = await _in_time(usage_report(request.app[_CONTROL], secret)) if secret else None
    if report is None:
        return _error(401, INVALID_KEY.code, INVALID_KEY.message, {"WWW-Authenticate": "Bearer"})
    return _json(200, report)


async def _in_time(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns. Raises StoreUnavailable when that takes too long: a store that is frozen is away.

    Work that was given up is not waited for: handing a connection back to a frozen server takes its own time.
    """
    task = tasks.spawn("usage report", work, is_awaited=True)
    try:
        done, _ = await asyncio.wait([task], timeout=ANSWER_TIMEOUT_S)
    finally:
        task.cancel()
    if not done:
        raise StoreUnavailable("postgresql")
    return task.result()


def _secret_of(request: web.Request) -> str:
    """Return the secret that the request shows, "" for none. A bearer counts before `x-api-key`."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return secret.strip()
    return request.headers.get("x-api-key", "").strip()


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every way out into an answer of ours, and give each the same headers."""
    try:
        response = await handler(request)
    except web.HTTPNotFound:
        response = _error(404, "path_not_found", "There is nothing at this path.")
    except web.HTTPMethodNotAllowed as error:
        allowed = {"Allow": ", ".join(sorted(error.allowed_methods))}
        response = _error(405, "method_not_allowed", "This path takes GET requests only.", allowed)
    except web.HTTPException as error:
        response = _error(error.status, "bad_request", "The request cannot be served.")
    except (StoreUnavailable, OperatorError):
        retry = {"Retry-After": str(RETRY_AFTER_S)}
        response = _error(503, "unavailable", "Usage cannot be read at the moment. Try again shortly.", retry)
    except Exception as error:  # noqa: BLE001 - the last way out: logged by type, answered without a word of it
        logs.event("console_failed", error=type(error).__name__)
        response = _error(500, INTERNAL.code, "The request failed here. Try again shortly.")
    if response.cookies.keys() - set(COOKIES) or "Set-Cookie" in response.headers:
        logs.event("console_failed", error="undeclared_cookie")
        response = _error(500, INTERNAL.code, "The request failed here. Try again shortly.")
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _json(status: int, body: object, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return _json(status, {"error": {"code": code, "message": message}}, headers)
