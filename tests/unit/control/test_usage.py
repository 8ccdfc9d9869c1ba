from dataclasses import replace

import pytest

from edgeproxy.control import usage as module
from edgeproxy.control.key_rules import KeyChanges
from edgeproxy.control.keys import create_key, delete_key, revoke_key, set_key
from edgeproxy.control.ledger import credit
from edgeproxy.control.usage import usage_report
from edgeproxy.domain.times import rfc3339
from edgeproxy.errors import StoreUnavailable
from edgeproxy.store.database import connect


@pytest.fixture
async def issued(control):
    return await create_key(control, name="build", limits=["requests=50/1m", "tokens=1000/5h"])


@pytest.mark.claims("OL-3b", "OL-5c")
async def test_totals_and_windows_are_there_at_once_and_requests_after_the_flush(
    control, issued, request_with, flusher
):
    event = await request_with(issued.key, cache_write=4, estimated=True)
    report = await usage_report(control, issued.secret)
    assert report["key"] == {
        "id": issued.key.id,
        "prefix": issued.key.prefix,
        "name": "build",
        "created": rfc3339(issued.key.created_ms),
        "expires": None,
        "last_used": report["key"]["last_used"],
    }
    assert report["totals"] == {"requests": 1, "input_tokens": 17, "output_tokens": 7}
    assert [{k: v for k, v in window.items() if k != "reset_ms"} for window in report["windows"]] == [
        {"dimension": "requests", "limit": 50, "window": "1m", "used": 1, "remaining": 49},
        {"dimension": "tokens", "limit": 1000, "window": "5h", "used": 24, "remaining": 976},
    ]
    assert report["recent"] == []
    await flusher.flush_once()
    report = await usage_report(control, issued.secret)
    assert report["recent"] == [
        {
            "id": event.id,
            "at": rfc3339(event.at_ms),
            "model": "gpt-mock",
            "status": 200,
            "input_tokens": 17,
            "output_tokens": 7,
            "cache_read_tokens": 3,
            "cache_write_tokens": 4,
            "reasoning_tokens": 2,
            "latency_ms": 12,
            "estimated": True,
        }
    ]


async def test_the_holder_of_a_prepaid_key_sees_its_balance(control, issued, request_with):
    prepaid = await create_key(control, name="prepaid", prepaid=True)
    await credit(control, "prepaid", 30)
    await request_with(prepaid.key, input_uncached=20, cache_read=0, output=5)
    assert (await usage_report(control, prepaid.secret))["balance"] == {"left": 5, "held": 0}
    assert "balance" not in await usage_report(control, issued.secret)


async def test_the_latest_requests_come_first_and_are_bounded(control, issued, make_event, add_events, flusher):
    events = [make_event(issued.key.id, at_ms=control.now_ms() - n * 1000) for n in range(module.RECENT + 5)]
    await add_events(*events)
    await flusher.flush_once()
    report = await usage_report(control, issued.secret)
    assert [row["id"] for row in report["recent"]] == [event.id for event in events[: module.RECENT]]


async def test_a_key_that_may_expire_says_when(control, issued):
    expires_ms = control.now_ms() + 60_000
    await set_key(control, issued.key.id, KeyChanges(expires_ms=expires_ms))
    assert (await usage_report(control, issued.secret))["key"]["expires"] == rfc3339(expires_ms)


@pytest.mark.parametrize("secret", ["", "ep-", "nonsense", "ключ", "ep-" + "0" * 49, "\0"], ids=ascii)
async def test_what_is_no_key_has_no_report(control, issued, secret):
    assert await usage_report(control, secret) is None


async def test_a_well_formed_secret_that_nobody_issued_has_no_report(control, issued):
    stranger = await create_key(replace(control, peppers=(bytes(32),)), name="of another installation")
    assert await usage_report(control, stranger.secret) is None


async def test_a_revoked_an_expired_and_a_deleted_key_have_no_report(control, issued, monkeypatch):
    expires_ms = control.now_ms() + 60_000
    expiring = await create_key(control, name="expiring", expires_ms=expires_ms)
    assert await usage_report(control, expiring.secret)
    monkeypatch.setattr(type(control), "now_ms", lambda _self: expires_ms)
    assert await usage_report(control, expiring.secret) is None
    monkeypatch.undo()
    await revoke_key(control, issued.key.id)
    assert await usage_report(control, issued.secret) is None
    await delete_key(control, issued.key.id)
    assert await usage_report(control, issued.secret) is None


async def test_during_a_rotation_keys_of_both_peppers_are_known(control, issued):
    rotated = replace(control, peppers=(bytes(32), *control.peppers))
    fresh = await create_key(rotated, name="fresh")
    assert (await usage_report(rotated, issued.secret))["key"]["id"] == issued.key.id
    assert (await usage_report(rotated, fresh.secret))["key"]["id"] == fresh.key.id
    assert await usage_report(control, fresh.secret) is None


async def test_without_redis_it_is_unavailable_and_not_unknown(control_without_redis, issued):
    with pytest.raises(StoreUnavailable, match=r"^redis$"):
        await usage_report(control_without_redis, issued.secret)


async def test_without_postgresql_it_is_unavailable(control, issued, migrated_url):
    away = await connect(migrated_url)
    await away.close()
    with pytest.raises(StoreUnavailable, match=r"^postgresql$"):
        await usage_report(replace(control, database=away), issued.secret)
