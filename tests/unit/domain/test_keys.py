import json
import re
import string

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeproxy.domain.keys import (
    KeyId,
    KeyRecord,
    KeyStatus,
    decode_record,
    digest,
    display_prefix,
    encode_record,
    is_well_formed,
    issue_secret,
    partition_of,
    pepper_fingerprint,
)
from edgeproxy.domain.limits import MAX_AMOUNT, Dimension, Limit

PREFIX = "ep-"
SECRETS = st.builds(issue_secret, st.just(PREFIX), st.binary(min_size=32, max_size=32))
PEPPERS = st.binary(min_size=32, max_size=32)
PRINTABLE = [chr(code) for code in range(33, 127)]
WHOLE = st.integers(0, 2**53)
LIMITS = st.builds(
    Limit, st.sampled_from(Dimension), st.integers(0, MAX_AMOUNT), st.integers(1, 366 * 86_400).map(lambda s: s * 1000)
)
RECORDS = st.builds(
    KeyRecord,
    id=st.text(max_size=40).map(KeyId),
    version=WHOLE,
    status=st.sampled_from(KeyStatus),
    partition=st.integers(0, 63),
    limits=st.lists(LIMITS, max_size=4).map(tuple),
    concurrency=st.none() | WHOLE,
    expires_ms=st.none() | WHOLE,
    models=st.lists(st.text(max_size=10), max_size=3).map(tuple),
)
RECORD = KeyRecord(
    id=KeyId("01890000-0000-7000-8000-000000000000"),
    version=3,
    status=KeyStatus.ACTIVE,
    partition=7,
    limits=(Limit(Dimension.REQUESTS, 60, 60_000),),
    concurrency=8,
    expires_ms=1_750_000_000_000,
    models=("claude-*", "gpt-4?"),
)
CONTENT = "Zq7-not-ours"


# --- secrets


@given(st.binary(min_size=32, max_size=32), st.sampled_from(["ep-", "k", "a_b-c", "0123456789abcdef"]))
def test_an_issued_secret_is_well_formed_and_one_word(random_bytes, prefix):
    secret = issue_secret(prefix, random_bytes)
    assert is_well_formed(secret, prefix)
    assert re.fullmatch(re.escape(prefix) + "[0-9A-Za-z]{49}", secret)


@given(PEPPERS, PEPPERS)
def test_different_random_bytes_make_different_secrets(one, other):
    assert (issue_secret(PREFIX, one) == issue_secret(PREFIX, other)) == (one == other)


def test_the_extremes_of_randomness_fit():
    for byte in (b"\x00", b"\xff"):
        assert is_well_formed(issue_secret(PREFIX, byte * 32), PREFIX)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_another_number_of_random_bytes_is_refused(length):
    with pytest.raises(ValueError, match="32 random bytes"):
        issue_secret(PREFIX, b"x" * length)


@settings(max_examples=20)
@given(SECRETS)
def test_the_checksum_finds_every_change_of_one_character(secret):
    for at in range(len(secret)):
        for other in PRINTABLE:
            if other != secret[at]:
                assert not is_well_formed(secret[:at] + other + secret[at + 1 :], PREFIX)


@given(SECRETS)
def test_the_checksum_finds_every_swap_of_neighbours(secret):
    for at in range(len(secret) - 1):
        swapped = secret[:at] + secret[at + 1] + secret[at] + secret[at + 2 :]
        assert is_well_formed(swapped, PREFIX) is (swapped == secret)


@given(SECRETS, st.integers(0, 60), st.sampled_from([*string.ascii_letters, " ", "\n", "é", "\ud800", "\0"]))
def test_more_or_less_or_other_letters_are_not_well_formed(secret, at, letter):
    assert not is_well_formed(secret[:at] + letter + secret[at:], PREFIX)
    assert not is_well_formed(secret[:at] + secret[at + 1 :], PREFIX) or at >= len(secret)
    assert not is_well_formed(secret.swapcase(), PREFIX)


@given(SECRETS, st.sampled_from(["", "e", "ep", "ep_", "EP-", "sk-", "ep--"]))
def test_a_secret_of_another_prefix_is_not_well_formed(secret, prefix):
    assert not is_well_formed(secret, prefix)
    assert not is_well_formed(prefix + secret.removeprefix(PREFIX), PREFIX)


@given(st.text(st.characters(), max_size=70) | st.text(max_size=52, min_size=52))
def test_any_text_is_judged_without_an_error(text):
    assert not is_well_formed(text, PREFIX)


@pytest.mark.claims("OL-5b")
def test_what_is_shown_of_a_secret_leaves_most_of_it_unknown():
    secret = issue_secret(PREFIX, bytes(range(32)))
    assert display_prefix(secret, PREFIX) == secret[:11]


# --- digests


@given(SECRETS, PEPPERS, PEPPERS)
def test_a_digest_depends_on_the_secret_and_the_pepper(secret, pepper, other):
    assert re.fullmatch("[0-9a-f]{64}", digest(secret, pepper))
    assert (digest(secret, pepper) == digest(secret, other)) == (pepper == other)
    assert digest(secret, pepper) != digest(secret + "0", pepper)


def test_what_was_issued_once_is_found_for_ever():
    secret = issue_secret(PREFIX, bytes(range(32)))
    assert secret == "ep-003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf3b9w8d"
    assert digest("x", bytes(32)) == "a1a6a467098b4405c0dba8cb861cb42960981a3d10b529797df1a646a0a5a98a"
    assert pepper_fingerprint(bytes(32)) == "32e9c75702378d889b751d42450fc542"
    assert partition_of(KeyId("k"), 16) == 8


@given(PEPPERS, PEPPERS)
def test_a_fingerprint_tells_peppers_apart_and_is_no_digest(pepper, other):
    assert re.fullmatch("[0-9a-f]{32}", pepper_fingerprint(pepper))
    assert (pepper_fingerprint(pepper) == pepper_fingerprint(other)) == (pepper == other)
    assert pepper.hex()[:32] != pepper_fingerprint(pepper)


@given(st.uuids(), st.integers(1, 64))
def test_a_key_has_one_partition(key_id, partitions):
    found = partition_of(KeyId(str(key_id)), partitions)
    assert 0 <= found < partitions
    assert found == partition_of(KeyId(str(key_id)), partitions)


def test_keys_spread_over_all_partitions():
    counts = [0] * 16
    for number in range(16_000):
        counts[partition_of(KeyId(str(number)), 16)] += 1
    assert min(counts) > 800
    assert max(counts) < 1200


# --- records


@given(RECORDS)
def test_a_record_comes_back_as_it_was(record):
    assert decode_record(encode_record(record)) == record


def refuse(raw):
    with pytest.raises(ValueError, match=r"^not a published key record$") as caught:
        decode_record(raw)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        CONTENT.encode(),
        b"\xff",
        b"null",
        b"7",
        b"[]",
        b"{}",
        json.dumps(CONTENT).encode(),
        json.dumps([CONTENT]).encode(),
        encode_record(RECORD)[:-1],
        b"[" * 100_000,
    ],
)
def test_what_is_no_record_is_refused_without_repeating_it(raw):
    refuse(raw)


BAD = {
    "id": [None, 1, True, [], {}],
    "version": [None, "3", -1, 1.0, True, [], 2**63],
    "status": [None, "", "Active", "deleted", 1, [], True],
    "partition": [None, "7", -1, 1.0, True, []],
    "limits": [
        None,
        "",
        "abc",
        {},
        7,
        [[]],
        [None],
        ["abc"],
        [["requests", 60]],
        [["requests", 60, 60_000, 1]],
        [["words", 60, 60_000]],
        [["requests", -1, 60_000]],
        [["requests", 1.5, 60_000]],
        [["requests", True, 60_000]],
        [["requests", "60", 60_000]],
        [["requests", 60, 60_001]],
        [["requests", 60, 0]],
        [["requests", 60, 60_000.0]],
        [[None, 60, 60_000]],
        [[[], 60, 60_000]],
    ],
    "concurrency": ["8", -1, 1.0, True, []],
    "expires_ms": ["8", -1, 1.5, True, []],
    "models": [None, "claude", {}, {"claude": 1}, [1], [None], ["a", ["b"]], 7],
    "mode": [None, "", "refuse", 1, []],
    "reserve": [None, "", "guess", 1, []],
    "on_limit": [None, "", "enforce", 1, []],
    "prepaid": [None, 0, 1, "true", []],
}


@pytest.mark.parametrize("name", BAD)
def test_every_field_of_a_record_has_to_be_there_and_of_its_type(name):
    row = orjson.loads(encode_record(RECORD))
    assert set(row) == set(BAD)
    refuse(orjson.dumps({each: value for each, value in row.items() if each != name}))
    for bad in BAD[name]:
        refuse(orjson.dumps(row | {name: bad}))


@given(st.binary(max_size=60))
def test_garbage_is_no_record(raw):
    refuse(raw)


@pytest.mark.parametrize(
    ("status", "expires_ms", "now_ms", "usable"),
    [
        (KeyStatus.ACTIVE, None, 0, True),
        (KeyStatus.ACTIVE, None, 2**60, True),
        (KeyStatus.ACTIVE, 100, 99, True),
        (KeyStatus.ACTIVE, 100, 100, False),
        (KeyStatus.ACTIVE, 100, 101, False),
        (KeyStatus.ACTIVE, 0, 0, False),
        (KeyStatus.REVOKED, None, 0, False),
        (KeyStatus.REVOKED, 100, 99, False),
    ],
)
def test_a_key_is_usable_until_it_expires_or_is_revoked(status, expires_ms, now_ms, usable):
    record = KeyRecord(KeyId("k"), 1, status, 0, (), None, expires_ms, ())
    assert record.is_usable(now_ms) is usable


@pytest.mark.parametrize(
    ("models", "model", "allowed"),
    [
        ((), "anything at all", True),
        (("claude-*",), "claude-sonnet", True),
        (("claude-*",), "claude-", True),
        (("claude-*",), "Claude-sonnet", False),
        (("claude-*",), "xclaude-sonnet", False),
        (("claude-*",), "claude", False),
        (("a", "b"), "b", True),
        (("a", "b"), "ab", False),
        (("*",), "", True),
        (("gpt-4o",), "gpt-4o\n", False),
        (("gpt.4o",), "gpt-4o", False),
    ],
)
def test_a_key_uses_the_models_that_its_patterns_match(models, model, allowed):
    record = KeyRecord(KeyId("k"), 1, KeyStatus.ACTIVE, 0, (), None, None, models)
    assert record.allows(model) is allowed
