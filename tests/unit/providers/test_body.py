import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgeproxy.errors import GatewayError
from edgeproxy.providers.body import (
    TooIntricateError,
    ambiguous_member,
    refuse_repeated_members,
    replace_member,
    top_level_members,
    with_number_at_most,
)

# Text with everything that a scanner of bytes could take for the structure of the object.
NASTY = st.text(st.sampled_from('{}[],:"\\/\n\t\r u0041modelé😀 '), max_size=12)
NAMES = st.one_of(st.sampled_from(["model", "n", "stream", "mo", "el", ""]), NASTY)
SCALARS = st.one_of(NASTY, st.integers(-(2**53), 2**53), st.booleans(), st.none(), st.floats(-1e9, 1e9))
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4))
)
WHITESPACE = st.text(" \n\r\t", max_size=3)


def hidden(name: str, escaped: list[bool]) -> str:
    """The name as a JSON string, some of its letters written as escapes."""
    parts = [
        f"\\u{ord(letter):04x}" if escape and letter.isascii() else json.dumps(letter)[1:-1]
        for letter, escape in zip(name, escaped + [False] * len(name), strict=False)
    ]
    return f'"{"".join(parts)}"'


@st.composite
def objects(draw, names=NAMES, min_size=0):
    """The members of an object, and the object written as nobody writes it, but as JSON allows."""
    members = draw(st.lists(st.tuples(names, VALUES), min_size=min_size, max_size=6))
    space = [draw(WHITESPACE) for _ in range(4)]
    pad = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r")]))
    texts = []
    for name, value in members:
        written = hidden(name, draw(st.lists(st.booleans(), max_size=3)))
        body = json.dumps(value, ensure_ascii=draw(st.booleans()), separators=pad)
        texts.append(f"{space[0]}{written}{space[1]}:{space[2]}{body}{space[3]}")
    return members, f"{space[1]}{{{','.join(texts) or space[0]}}}{space[2]}".encode()


@given(objects())
def test_every_member_is_found_where_it_lies(generated):
    members, body = generated
    found = list(top_level_members(body))
    assert [member.name for member in found] == [name for name, _ in members]
    for member, (_, value) in zip(found, members, strict=True):
        assert json.loads(body[member.start : member.end]) == value
        assert body[member.start : member.end].strip() == body[member.start : member.end]


def as_pairs(text: str | bytes) -> object:
    """The JSON value with objects as lists of pairs, so that order and repetition count."""
    return json.loads(text, object_pairs_hook=list)


OURS = st.sampled_from(["model", "n", "stream", "stream_options"])


@given(objects(), OURS, VALUES)
def test_replacing_changes_the_first_member_of_that_name_and_no_other_byte(generated, name, value):
    members, body = generated
    written = json.dumps(value).encode()
    changed = replace_member(body, name, written)
    expected = [(each, as_pairs(json.dumps(old))) for each, old in members]
    at = next((index for index, (each, _) in enumerate(members) if each == name), None)
    if at is None:
        first = body.index(b"{") + 1
        assert as_pairs(changed) == [(name, as_pairs(written)), *expected]
        assert (changed[:first], changed[len(changed) - len(body) + first :]) == (body[:first], body[first:])
    else:
        expected[at] = (name, as_pairs(written))
        member = list(top_level_members(body))[at]
        assert as_pairs(changed) == expected
        assert changed == body[: member.start] + written + body[member.end :]


@given(objects(names=st.one_of(OURS, NASTY)), st.permutations(["model", "n", "stream"]))
def test_a_name_that_stands_twice_is_found_however_it_is_written(generated, names):
    members, body = generated
    written = [name for name, _ in members]
    assert ambiguous_member(body, names) == next((name for name in names if written.count(name) > 1), None)


@pytest.mark.parametrize(
    "body",
    [
        rb'{"model":"a","model":"b"}',
        rb'{"model":"a", "x":[{"model":"n"}], "mod\u0065l":"b"}',
        rb'{"\u006D\u006fdel":1,"\u006d\u006Fdel":2}',
    ],
)
def test_the_spellings_of_a_name_that_stands_twice(body):
    assert ambiguous_member(body, ["stream", "model"]) == "model"


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"model":"model"}',
        b'{"model":"a","tools":[{"model":1,"x":{"model":2}}],"x":"\\"model\\":"}',
        b'{"x":{"model":1,"model":2},"model":3}',
    ],
)
def test_what_is_nested_or_a_value_is_no_member(body):
    assert ambiguous_member(body, ["model"]) is None


def test_a_member_is_replaced_however_its_name_is_written():
    assert replace_member(rb'{"a":1, "mod\u0065l" : "x"}', "model", b'"y"') == rb'{"a":1, "mod\u0065l" : "y"}'
    assert replace_member(rb'{"a":"\u0065", "n": [1,2]}', "n", b"{}") == rb'{"a":"\u0065", "n": {}}'


def test_a_member_is_added_where_there_is_none():
    assert replace_member(b" { }", "n", b"1") == b' {"n":1 }'
    assert replace_member(b'{ "a":1}', "n", b"1") == b'{"n":1, "a":1}'
    assert replace_member(b'{"a":{"n":2},"b":"n"}', "n", b"1") == b'{"n":1,"a":{"n":2},"b":"n"}'


@pytest.mark.timeout(60)  # what is not linear here takes minutes
@pytest.mark.parametrize(
    "inside",
    [
        b"[" + b"0," * 500_000 + b"0]",
        b'"' + b"\\n" * 500_000 + b'"',
        b"[" * 900 + b"]" * 900,
        b"[" + b"[]," * 100_000 + b"0]",
    ],
    ids=["numbers", "escapes", "deep", "lists"],
)
def test_a_body_made_to_be_slow_is_walked_quickly(inside):
    body = b'{"n":1,"x":' + inside + b',"n":2}'
    assert ambiguous_member(body, ["n"]) == "n"


def test_a_body_of_nothing_but_brackets_is_not_walked_for_ever() -> None:
    doubt = b'{"model":"m","note":"\\u0041","x":[' + b",".join([b"[[[]]]"] * 200_000) + b"]}"
    with pytest.raises(TooIntricateError):
        ambiguous_member(doubt, ["model"])
    members = b'{"note":"\\u0041",' + b",".join(b'"k%d":0' % number for number in range(150_000)) + b"}"
    with pytest.raises(TooIntricateError):
        ambiguous_member(members, ["model"])
    conversation = b'{"note":"\\u0041","messages":[' + b",".join([b'{"role":"user","content":["x"]}'] * 20_000) + b"]}"
    assert ambiguous_member(conversation, ["model"]) is None


MAXIMUMS = ("max_completion_tokens", "max_tokens")
DECLARED = st.one_of(st.none(), st.integers(0, 2**53))


@st.composite
def objects_with_a_maximum(draw):
    """An object as nobody writes it, with maxima in it, and what these say; the same names lie inside others."""
    names = st.one_of(st.sampled_from(["model", "n"]), NASTY.filter(lambda name: name not in MAXIMUMS))
    _, raw = draw(objects(names=names))
    declared = draw(st.dictionaries(st.sampled_from(MAXIMUMS), DECLARED))
    inner = {"messages": [{"max_tokens": 9, "content": '"max_tokens":9'}], **declared}
    written = ", ".join(f"{hidden(name, [True])} : {json.dumps(value)}" for name, value in inner.items())
    at = raw.index(b"{") + 1
    comma = b"," if raw[at:].strip() != b"}" else b""
    return declared, raw[:at] + written.encode() + comma + raw[at:]


@given(objects_with_a_maximum(), st.integers(1, 2**53))
def test_a_number_is_lowered_in_place_and_nothing_else_changes(generated, number):
    declared, body = generated
    changed = with_number_at_most(body, MAXIMUMS, number)
    told = {name: value for name, value in declared.items() if value is not None}
    lowered = {name: value if 0 < value <= number else number for name, value in told.items()}
    if not told:
        lowered = {"max_completion_tokens": number}
    before, after = as_pairs(body), as_pairs(changed)
    if "max_completion_tokens" in lowered and "max_completion_tokens" not in declared:
        assert after[0] == ("max_completion_tokens", number)
        after = after[1:]
    assert after == [(name, lowered.get(name, value)) for name, value in before]


@given(objects_with_a_maximum(), st.integers(1, 2**53))
def test_the_bytes_around_a_lowered_number_stay(generated, number):
    declared, body = generated
    assume(any(value is not None for value in declared.values()))
    pieces, at = [], 0
    for member in top_level_members(body):
        value = declared.get(member.name) if member.name in MAXIMUMS else None
        if value is not None and not 0 < value <= number:
            pieces += [body[at : member.start], str(number).encode()]
            at = member.end
    assert with_number_at_most(body, MAXIMUMS, number) == b"".join([*pieces, body[at:]])


def test_a_number_that_is_small_enough_leaves_the_body_as_it_is():
    body = b'{ "max_tokens" : 5 , "x":1}'
    assert with_number_at_most(body, MAXIMUMS, 5) is body
    assert with_number_at_most(body, MAXIMUMS, 4) == b'{ "max_tokens" : 4 , "x":1}'


def test_numbers_may_be_written_as_text_or_with_a_point():
    assert with_number_at_most(b'{"m":"100"}', ("m",), 7) == b'{"m":7}'
    assert with_number_at_most(b'{"m":100.0}', ("m",), 7) == b'{"m":7}'
    assert with_number_at_most(b'{"m":"6"}', ("m",), 7) == b'{"m":"6"}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":1}',
        b'{"a":[{"b":{"type":"text","type":"image"}}]}',
        b'{"a":{"type":1,"\\u0074ype":2}}',
    ],
)
def test_a_member_that_stands_twice_anywhere_is_refused(body):
    with pytest.raises(GatewayError) as caught:
        refuse_repeated_members(body)
    assert caught.value.kind.status == 400


@given(objects())
def test_only_members_that_stand_twice_are_refused(generated):
    members, body = generated
    names = [name for name, _ in members]
    if len(set(names)) == len(names):
        refuse_repeated_members(body)
    else:
        with pytest.raises(GatewayError):
            refuse_repeated_members(body)


@pytest.mark.parametrize("inner", [b"1," * 1_000_001 + b"1", b"{}," * 600_000 + b"{}", b"[" * 900 + b"]" * 900])
def test_a_body_of_very_many_parts_is_refused_before_it_is_parsed_again(inner):
    body = b'{"a":[%b]}' % inner
    if len(inner) < 10_000:
        refuse_repeated_members(body)
    else:
        with pytest.raises(TooIntricateError):
            refuse_repeated_members(body)
