import pytest

from edgeproxy.control.key_list import list_keys, resolve, show_key
from edgeproxy.control.key_rules import KeyChanges
from edgeproxy.control.keys import create_key, revoke_key, set_key
from edgeproxy.control.ledger import credit
from edgeproxy.domain.times import to_datetime
from edgeproxy.errors import OperatorError


@pytest.fixture
async def issued(control):
    return await create_key(control, name="build", limits=["tokens=1000/1h"], concurrency=2, models=["gpt-*"])


async def test_keys_are_listed_page_by_page_in_order_of_creation(control):
    made = sorted([(await create_key(control, name=f"k{n}")).key.id for n in range(5)])
    first = await list_keys(control, count=2)
    second = await list_keys(control, after=first.next, count=2)
    third = await list_keys(control, after=second.next, count=2)
    pages = [[row.key.id for row in page.rows] for page in (first, second, third)]
    assert pages == [made[:2], made[2:4], made[4:]]
    assert third.next is None


async def test_a_page_that_ends_with_the_last_key_says_so(control, issued):
    assert (await list_keys(control, count=1)).next is None


async def test_no_keys_are_an_empty_page(control):
    page = await list_keys(control)
    assert (page.rows, page.next) == ((), None)


@pytest.mark.parametrize("count", [0, -1, 501])
async def test_a_page_is_bounded(control, count):
    with pytest.raises(OperatorError, match="1 to 500"):
        await list_keys(control, count=count)


async def test_a_page_begins_after_an_id(control):
    with pytest.raises(OperatorError, match="after a key's id"):
        await list_keys(control, after="build")


async def test_a_row_tells_what_is_stored_and_what_is_counted(control, issued, request_with):
    event = await request_with(issued.key)
    (row,) = (await list_keys(control)).rows
    shown = row.to_json()
    assert shown == {
        "id": issued.key.id,
        "name": "build",
        "prefix": issued.key.prefix,
        "status": "active",
        "version": 1,
        "limits": ["tokens=1000/1h"],
        "concurrency": 2,
        "models": ["gpt-*"],
        "mode": "enforce",
        "reserve": "estimate",
        "on_limit": "refuse",
        "prepaid": False,
        "created": shown["created"],
        "expires": None,
        "revoked": None,
        "last_used": shown["last_used"],
        "totals": {"requests": 1, "input_tokens": 13, "output_tokens": 7},
        "balance": None,
    }
    assert shown["created"] <= shown["last_used"]
    assert shown["last_used"].endswith("Z")
    assert event.key_id == shown["id"]


async def test_a_key_that_was_never_used_says_so(control, issued):
    (row,) = (await list_keys(control)).rows
    assert row.to_json()["last_used"] is None
    assert row.to_json()["totals"] == {"requests": 0, "input_tokens": 0, "output_tokens": 0}


async def test_without_redis_what_is_stored_is_listed_all_the_same(control, control_without_redis, issued):
    await create_key(control, name="second")
    rows = (await list_keys(control_without_redis)).rows
    assert [row.to_json()["totals"] for row in rows] == [None, None]
    details = (await show_key(control_without_redis, issued.key.id)).to_json()
    assert (details["windows"], details["open"], details["last_used"]) == (None, None, None)


async def test_a_key_is_shown_with_its_windows_and_what_is_stored_by_day(control, issued, request_with, flusher):
    await request_with(issued.key, cache_write=4)
    await request_with(issued.key, settle=False)
    await flusher.flush_once()
    shown = (await show_key(control, "build")).to_json()
    (window,) = shown["windows"]
    reset_ms = window.pop("reset_ms")
    assert 0 < reset_ms <= 3_660_000
    assert window == {"dimension": "tokens", "limit": 1000, "window": "1h", "used": 44, "remaining": 956}
    assert shown["open"] == 1
    stored = {"requests": 1, "input_tokens": 17, "output_tokens": 7}
    assert shown["stored"] == stored
    today = to_datetime(control.now_ms()).date().isoformat()
    apart = {"cache_read_tokens": 3, "cache_write_tokens": 4, "reasoning_tokens": 2}
    assert shown["daily"] == [{"day": today, "model": "gpt-mock"} | stored | apart]


async def test_a_prepaid_key_is_shown_with_what_is_left_and_what_is_held(control, request_with):
    prepaid = (await create_key(control, name="prepaid", prepaid=True)).key
    assert (await show_key(control, "prepaid")).to_json()["balance"] == {"left": 0, "held": 0}
    await credit(control, "prepaid", 100)
    await request_with(prepaid, input_uncached=20, cache_read=0, output=10)
    await request_with(prepaid, settle=False, input_uncached=5, cache_read=0, output=1)
    (row,) = (await list_keys(control)).rows
    assert row.to_json()["balance"] == {"left": 64, "held": 6}


async def test_a_key_is_active_until_it_expires_or_is_revoked(control, issued):
    expires_ms = control.now_ms() + 60_000
    row = await set_key(control, issued.key.id, KeyChanges(expires_ms=expires_ms))
    assert row.status == "active"
    assert type(row)(row.key, row.counted, expires_ms).status == "expired"
    assert (await revoke_key(control, issued.key.id)).status == "revoked"


async def test_a_key_is_meant_by_id_prefix_or_name(control, issued):
    for ref in (issued.key.id, issued.key.id.upper(), issued.key.prefix, "build"):
        assert await resolve(control, ref) == issued.key.id


async def test_a_name_of_two_keys_is_ambiguous(control, issued):
    await create_key(control, name="build")
    with pytest.raises(OperatorError, match="several keys have this name; give the id"):
        await resolve(control, "build")
    assert await resolve(control, issued.key.prefix) == issued.key.id


async def test_a_secret_given_by_mistake_is_not_repeated(control, issued):
    with pytest.raises(OperatorError, match="no key has this") as caught:
        await show_key(control, issued.secret)
    assert issued.secret not in str(caught.value)
