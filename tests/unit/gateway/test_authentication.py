"""Who is let in, and that those who are not learn nothing from how they are turned away."""

import dataclasses
import time

import pytest

from edgeproxy.domain.keys import KeyStatus, digest, issue_secret
from edgeproxy.gateway.authentication import Authentication
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.commands import HotState
from tests.support.gateway import PEPPER, Gateway, chat, message

CHAT = "/v1/chat/completions"


async def refused(gateway: Gateway, headers: dict[str, str], path: str = CHAT) -> tuple[bytes, dict[str, str]]:
    async with gateway.session.post(gateway.url + path, json=chat(), headers=headers) as answer:
        assert answer.status == 401
        shown = {name: value for name, value in answer.headers.items() if "request-id" not in name.lower()}
        return await answer.read(), shown


@pytest.mark.claims("OL-8a")
async def test_missing_malformed_unknown_expired_and_revoked_keys_get_one_answer(gateway: Gateway) -> None:
    good = await gateway.issue()
    expired = await gateway.issue(expires_ms=int(time.time() * 1000) - 1)
    revoked = await gateway.issue()
    record = dataclasses.replace(gateway.records[revoked], version=2, status=KeyStatus.REVOKED)
    await gateway.publish(revoked, record)
    unknown = issue_secret("ep-", bytes(32))
    bad = ["", "x", good[:-1], good[:-1] + ("0" if good[-1] != "0" else "1"), good + "0", "sk-" + good[3:], "ep-é"]
    answers = [await refused(gateway, {})]
    answers += [await refused(gateway, {"authorization": f"Bearer {each}"}) for each in bad]
    answers += [await refused(gateway, {"x-api-key": each}) for each in bad]
    answers += [await refused(gateway, {"authorization": f"Basic {good}"})]
    for each in (unknown, expired, revoked):
        answers += [await refused(gateway, {"authorization": f"Bearer {each}"}) for _ in range(2)]
    bodies, headers = zip(*answers, strict=True)
    assert len(set(bodies)) == 1
    assert all(each == headers[0] for each in headers)
    assert gateway.mock.counts.total.requests == 0


async def test_garbage_never_reaches_redis(gateway: Gateway) -> None:
    good = await gateway.issue()
    for number in range(20):
        wrong = chr(ord("A") + number) + good[4:]
        if f"ep-{wrong}" == good:
            continue
        await refused(gateway, {"authorization": f"Bearer ep-{wrong}"})
    assert gateway.metrics.registry.get_sample_value("edgeproxy_redis_round_trip_seconds_count") == 0


async def test_unknown_revoked_and_expired_keys_cost_one_round_trip_each(gateway: Gateway) -> None:
    def round_trips() -> float:
        return gateway.metrics.registry.get_sample_value("edgeproxy_redis_round_trip_seconds_count") or 0

    expired = await gateway.issue(expires_ms=1)
    revoked = await gateway.issue()
    async with gateway.post(CHAT, revoked, chat()) as answer:  # now the worker holds it
        assert answer.status == 200
    record = dataclasses.replace(gateway.records[revoked], version=2, status=KeyStatus.REVOKED)
    await gateway.publish(revoked, record)
    async with gateway.post(CHAT, revoked, chat()) as answer:  # it learns of it
        assert answer.status == 401
    for secret in (issue_secret("ep-", bytes(32)), expired, revoked):
        before = round_trips()
        await refused(gateway, {"authorization": f"Bearer {secret}"})
        assert round_trips() == before + 1


async def test_a_key_may_come_in_either_header_and_beside_garbage(gateway: Gateway) -> None:
    secret = await gateway.issue()
    for headers in (
        {"authorization": f"bearer  {secret}"},
        {"x-api-key": secret},
        {"authorization": "Bearer sk-ant-other", "x-api-key": secret},
    ):
        async with gateway.session.post(gateway.url + CHAT, json=chat(), headers=headers) as answer:
            assert answer.status == 200


async def test_a_key_expires_while_a_worker_holds_it(gateway: Gateway) -> None:
    secret = await gateway.issue(expires_ms=int(time.time() * 1000) + 700)
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 200
    deadline = time.monotonic() + 5
    status = 200
    while status == 200 and time.monotonic() < deadline:
        async with gateway.post(CHAT, secret, chat()) as answer:
            status = answer.status
    assert status == 401


async def test_a_record_without_counters_admits_nothing(gateway: Gateway) -> None:
    secret = await gateway.issue()
    record = gateway.records[secret]
    await gateway.redis.delete(keyspace.state(record.partition, record.id))
    async with gateway.post("/v1/messages", secret, message()) as answer:
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
    await gateway.redis.set(keyspace.key_record(digest(secret, PEPPER)), b"not a record")
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 503
    assert gateway.mock.counts.total.requests == 0


async def test_the_first_secret_counts_whichever_key_is_remembered(gateway: Gateway) -> None:
    first, second = await gateway.issue(), await gateway.issue()
    rows = [
        ({"authorization": f"Bearer {first}"}, first),
        ({"x-api-key": second}, second),
        ({"authorization": f"Bearer {first}", "x-api-key": second}, first),
        ({"authorization": "Bearer junk", "x-api-key": second}, second),
        ({"authorization": f"Basic {first}", "x-api-key": second}, second),
        ({"x-api-key": "junk", "x-goog-api-key": first}, first),
    ]
    for headers, secret in rows:
        before = (await gateway.usage(secret)).totals.requests
        async with gateway.session.post(gateway.url + CHAT, json=chat(), headers=headers) as answer:
            assert answer.status == 200
            await answer.read()
        assert (await gateway.usage(secret)).totals.requests == before + 1


async def test_a_worker_remembers_no_more_keys_than_its_setting(gateway: Gateway, redis_url: str) -> None:
    secrets = [await gateway.issue() for _ in range(5)]
    hot = HotState(gateway.settings.stores, gateway.metrics.redis_seconds)
    await hot.start()
    await hot.watch.until_open(10)
    try:
        authentication = Authentication(hot, (PEPPER,), "ep-", cache_size=2)
        for secret in secrets:
            known = await authentication.authenticate({"x-api-key": secret})
            assert known.record == gateway.records[secret]
        assert len(authentication._cache) == 2
    finally:
        await hot.close()


async def test_keys_under_the_previous_pepper_go_on_working(gateway: Gateway, redis_url: str) -> None:
    secret = await gateway.issue()
    hot = HotState(gateway.settings.stores, gateway.metrics.redis_seconds)
    await hot.start()
    await hot.watch.until_open(10)
    try:
        authentication = Authentication(hot, (bytes(32), PEPPER), "ep-", cache_size=2)
        for _ in range(2):
            assert (await authentication.authenticate({"x-api-key": secret})).record == gateway.records[secret]
    finally:
        await hot.close()
