import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.identifiers import uuid7
from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.usage import Usage, UsageEvent, decode_event, encode_event, is_model_name, storable_model

CONTENT = "Zq7-what-a-client-wrote"
COUNTS = st.integers(0, 2**53 - 1)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, st.booleans())
EVENTS = st.builds(
    UsageEvent,
    id=st.builds(uuid7, st.integers(0, 2**48 - 1), st.integers(0, 2**74 - 1)),
    key_id=st.text(max_size=40).map(KeyId),
    model=st.text(max_size=20),
    status=COUNTS,
    usage=USAGES,
    latency_ms=COUNTS,
)
EVENT = UsageEvent(
    id=uuid7(1_750_000_000_123, 7),
    key_id=KeyId("01890000-0000-7000-8000-000000000000"),
    model="gpt-mock",
    status=200,
    usage=Usage(1, 2, 3, 4, 1, estimated=True),
    latency_ms=56,
)


@given(EVENTS)
def test_an_event_comes_back_as_it_was(event):
    assert decode_event(encode_event(event)) == event


def test_an_event_holds_counts_a_time_a_model_and_a_status():
    assert orjson.loads(encode_event(EVENT)) == {
        "id": EVENT.id,
        "key_id": EVENT.key_id,
        "model": "gpt-mock",
        "status": 200,
        "input_uncached": 1,
        "cache_read": 2,
        "cache_write": 3,
        "output": 4,
        "reasoning": 1,
        "estimated": True,
        "latency_ms": 56,
    }
    assert EVENT.at_ms == 1_750_000_000_123


def test_nothing_used_is_nothing():
    assert Usage() == Usage(0, 0, 0, 0, 0, estimated=False)
    assert Usage().amounts == Amounts(requests=1)
    assert (Usage().model, Usage().parts, Usage().tool_calls) == ("", (), ())
    assert Usage().cost_nanos is None  # not said is not nothing


def test_what_limits_count_is_one_request_with_all_of_its_input():
    assert EVENT.usage.input_total == 6
    assert EVENT.usage.amounts == Amounts(requests=1, input_tokens=6, output_tokens=4)


@given(COUNTS, COUNTS, COUNTS)
def test_what_is_cached_for_an_hour_is_a_part_of_what_is_cached(uncached, minutes, hour):
    usage = Usage(uncached, cache_write=minutes + hour, cache_write_1h=hour)
    assert usage.cache_write_5m == minutes
    assert usage.input_total == uncached + minutes + hour


def test_limits_count_neither_parts_nor_tools_nor_money():
    billed = Usage(1, 2, 3, 4, parts=(Usage(1, 2), Usage(cache_write=3, output=4)), tool_calls=(("web_search", 2),))
    assert billed.amounts == Usage(1, 2, 3, 4, cache_write_1h=3, cost_nanos=10**9, model="m").amounts
    assert billed.amounts == Amounts(requests=1, input_tokens=6, output_tokens=4)


def refuse(raw):
    with pytest.raises(ValueError, match=r"^[a-zA-Z0-9_, -]{1,80}$") as caught:
        decode_event(raw)
    assert CONTENT not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        CONTENT.encode(),
        b"\xff",
        b"null",
        b"1",
        b"[]",
        json.dumps(CONTENT).encode(),
        json.dumps([CONTENT]).encode(),
        json.dumps({CONTENT: CONTENT}).encode(),
        encode_event(EVENT)[:-1],
        encode_event(EVENT) + b"x",
        b"[" * 100_000,
    ],
)
def test_what_is_no_event_is_refused_without_repeating_it(raw):
    refuse(raw)


NAMES = list(orjson.loads(encode_event(EVENT)))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "estimated"])
def test_every_field_has_to_be_there_and_of_its_type(name):
    row = orjson.loads(encode_event(EVENT))
    refuse(orjson.dumps({each: value for each, value in row.items() if each != name}))
    is_text = isinstance(row[name], str)
    for bad in (None, [], {}, True, 1.0, -1, 2**53, *([7] if is_text else [CONTENT, "7"])):
        refuse(orjson.dumps(row | {name: bad}))


@pytest.mark.parametrize(
    "bad", [CONTENT, CONTENT + "x" * 9, "", EVENT.id.upper(), "{" + EVENT.id + "}", str(EVENT.key_id)[:-1]]
)
def test_an_id_that_is_none_of_ours_is_refused(bad):
    refuse(orjson.dumps(orjson.loads(encode_event(EVENT)) | {"id": bad}))


def test_only_a_plain_true_is_an_estimate():
    row = orjson.loads(encode_event(EVENT))
    for value, estimated in ((True, True), (False, False), (None, False), (1, False), ("true", False)):
        assert decode_event(orjson.dumps(row | {"estimated": value})).usage.estimated is estimated


@given(st.binary(max_size=60))
def test_garbage_is_refused(raw):
    refuse(raw)


@pytest.mark.parametrize("name", ["gpt-4o", "org/Model:v1.2_x-y", "a" * 64, "0"])
def test_an_accepted_model_is_stored_as_it_was_asked_for(name):
    assert is_model_name(name)
    assert storable_model(name, "pattern-*", accepted=True) == name
    assert storable_model(name, "pattern-*", accepted=False) == "pattern-*"


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a" * 65, "modèle", "gpt\n", "gpt\0", "a@example.com", "*", "x'; --", "😀", CONTENT + "?"]
)
def test_what_is_no_plain_name_is_never_stored(name):
    assert not is_model_name(name)
    assert storable_model(name, "pattern-*", accepted=True) == "pattern-*"


@given(st.text(max_size=80), st.booleans())
def test_what_is_stored_is_the_pattern_or_a_plain_name(name, accepted):
    stored = storable_model(name, "pattern-*", accepted=accepted)
    assert stored == "pattern-*" or (stored == name and name.isascii() and len(name) <= 64 and name.isprintable())


@pytest.mark.parametrize("other", [None, 1, True, b"gpt-4o", ["gpt-4o"], {"gpt-4o": 1}])
def test_what_is_no_text_is_no_name_of_a_model(other):
    assert not is_model_name(other)
