import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.errors import GatewayError
from edgeproxy.providers.fields import (
    MAX_COUNT,
    count,
    count_member,
    estimate_input_tokens,
    estimate_output_tokens,
    flag_member,
    has_count,
    is_count,
    list_member,
    names_in,
    read_object,
    text_member,
)

SECRET = "Zq7-content-of-a-client"
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def refusal(function, *arguments):
    with pytest.raises(GatewayError) as caught:
        function(*arguments)
    assert caught.value.kind.status == 400
    assert SECRET not in caught.value.message
    assert SECRET not in str(caught.value)
    return caught.value


# --- the object


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"1",
        b"{}{}",
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        json.dumps({"a": SECRET}).encode()[:-1],
        "{}".encode("utf-16"),
    ],
)
def test_what_is_no_json_object_is_refused(body):
    assert refusal(read_object, body, ("model",)).kind.code == "invalid_json"


@given(st.binary(max_size=40))
def test_garbage_is_read_or_refused_and_nothing_else(body):
    with suppress(GatewayError):
        assert isinstance(read_object(body, ("model",)), dict)


def test_a_field_that_stands_twice_is_refused_by_name():
    error = refusal(read_object, f'{{"model":"{SECRET}","model":"b"}}'.encode(), ("stream", "model"))
    assert error.kind.code == "invalid_field"
    assert "'model'" in error.message


def test_only_fields_that_are_read_may_not_stand_twice():
    assert read_object(b'{"x":1,"x":2}', ("model",)) == {"x": 2}


# --- its members


def test_members_of_the_right_type_come_through():
    value = {"model": "m", "stream": True, "n": 0, "messages": [], "off": False, "max": 2**53, "none": None}
    assert text_member(value, "model") == "m"
    assert flag_member(value, "stream") is True
    assert flag_member(value, "off") is False
    assert flag_member(value, "none") is False
    assert flag_member(value, "absent") is False
    assert count_member(value, "n") == 0
    assert count_member(value, "max") == 2**53
    assert count_member(value, "none") is None
    assert count_member(value, "absent") is None
    assert list_member(value, "messages") == []


@pytest.mark.parametrize(
    ("read", "bad"),
    [
        (text_member, [None, "", 1, True, [SECRET], {"a": SECRET}]),
        (flag_member, [0, 1, "true", "", [SECRET], {}]),
        (count_member, [-1, 2**53 + 1, 1.0, 1.5, "1", True, False, [SECRET], {}]),
        (list_member, [None, "", SECRET, 1, {}, {"0": SECRET}]),
    ],
)
def test_members_of_another_type_are_refused_by_name(read, bad):
    for each in bad:
        assert "'field'" in refusal(read, {"field": each}, "field").message
    if read in (text_member, list_member):
        assert "'field'" in refusal(read, {}, "field").message


@given(JSON)
def test_any_value_is_read_or_refused_and_nothing_else(value):
    for read in (text_member, flag_member, count_member, list_member):
        with suppress(GatewayError):
            read({"field": value}, "field")


# --- estimates


@given(st.binary(max_size=200))
def test_an_estimate_of_input_is_about_a_quarter_of_the_bytes(body):
    assert estimate_input_tokens(body) == len(body) // 4 + 1


def test_a_picture_counts_as_a_picture_and_not_as_its_letters():
    prose = b'{"messages":[{"role":"user","content":"' + b"word " * 400 + b'"}]}'
    picture = b'{"url":"data:image/png;base64,' + b"iVBORw0KGgo" * 100_000 + b'"}'
    assert estimate_input_tokens(prose) == len(prose) // 4 + 1
    assert 1600 <= estimate_input_tokens(picture) <= 1700
    assert 3200 <= estimate_input_tokens(picture + picture) <= 3400
    assert estimate_input_tokens(b'{"base64":"' + b"A" * 2047 + b'"}') > 500


@pytest.mark.timeout(60)  # what is not linear here takes minutes
def test_a_body_made_to_be_slow_is_estimated_quickly():
    body = b"base64 " + (b"A" * 2047 + b" ") * 2000
    assert estimate_input_tokens(body) == len(body) // 4 + 1


@given(st.integers(0, 10_000), st.integers(0, 10**9), st.integers(0, 1000))
def test_an_estimate_of_output_is_never_negative_and_at_least_one_for_each_delta(deltas, size, framing):
    assert deltas <= estimate_output_tokens(deltas, size, framing) <= deltas + size // 4


def test_an_estimate_of_output_grows_with_what_is_not_framing():
    assert estimate_output_tokens(10, 10 * 240, 200) == 100
    assert estimate_output_tokens(10, 10 * 240, 240) == 10
    assert estimate_output_tokens(10, 10 * 204, 200) == 10
    assert estimate_output_tokens(0, 400, 200) == 100


# --- what providers report


@pytest.mark.parametrize("number", [-1, 1.5, "1", True, None, [1], {}, MAX_COUNT + 1, 2**70])
def test_what_is_no_count_counts_nothing(number):
    assert count({"n": number}, "n") == 0
    assert not is_count(number)


@pytest.mark.parametrize("value", [None, [], "n", 1, {}, {"m": 1}])
def test_a_count_that_is_not_there_is_nothing(value):
    assert count(value, "n") == 0


def test_a_count_may_be_as_large_as_redis_can_add_up():
    assert count({"n": MAX_COUNT}, "n") == MAX_COUNT
    assert is_count(MAX_COUNT)
    assert is_count(0)
    assert 4 * MAX_COUNT <= 2**53


def test_a_whole_number_may_be_written_as_a_fraction():
    assert count({"n": 3.0}, "n") == 3
    assert [has_count({"n": value}, "n") for value in (0, 0.0, 5, 2.0, None, "1", -1, 1.5)] == [True] * 4 + [False] * 4


@pytest.mark.parametrize("rows", [None, "model", {"model": "m"}, 1, [None, 1, "", {}, [], {"model": 1}]])
def test_what_names_no_model_names_none(rows):
    assert names_in(rows) == names_in(rows, "model") == ()


def test_models_are_named_by_strings_or_by_objects():
    assert names_in(["a", {"model": "b"}, "c"]) == ("a", "c")
    assert names_in(["a", {"model": "b"}, {"model": "c"}], "model") == ("b", "c")
