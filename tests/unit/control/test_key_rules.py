from dataclasses import replace

import pytest

from edgeproxy.control.key_rules import (
    KeyChanges,
    checked_concurrency,
    checked_expiry,
    checked_limits,
    checked_models,
    checked_name,
    checked_whole,
)
from edgeproxy.domain.keys import KeyId, KeyStatus, Mode, OnLimit, Reserve
from edgeproxy.domain.limits import format_limit, parse_limits
from edgeproxy.errors import OperatorError
from edgeproxy.store.keys import StoredKey

NOW_MS = 1_750_000_000_000


def key_with(*limits):
    return StoredKey(KeyId("k"), "n", "p", "d", KeyStatus.ACTIVE, 1, parse_limits(limits), None, (), NOW_MS)


@pytest.mark.parametrize("name", ["x", "x" * 200, "build server (blue), ключ 🔑"])
def test_a_name_is_the_operators_own_words(name):
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", " x", "x ", "x" * 201, "two\nlines", "tab\t", "nul\0", "esc\x1b[31m", "\ud800", "zero\u200bwidth"],
    ids=ascii,
)
def test_a_name_that_would_spoil_a_list_is_refused(name):
    with pytest.raises(OperatorError, match="1 to 200 printable characters"):
        checked_name(name)


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        (["tokens"], "write DIMENSION=AMOUNT/WINDOW"),
        (["words=1/1m"], "no dimension 'words'"),
        (["tokens=-1/1m"], "write DIMENSION"),
        (["tokens=1/0s"], "window"),
        (["tokens=1/400d"], "window"),
        (["tokens=9999999999999999/1m"], "amount"),
        (["tokens=1/1m", "tokens=2/60s"], "two limits for tokens per 1m"),
        ([f"tokens=1/{n}m" for n in range(1, 18)], "at most 16 limits"),
    ],
    ids=str,
)
def test_a_limit_that_cannot_be_counted_is_refused_in_one_line(texts, what):
    with pytest.raises(OperatorError, match=what) as caught:
        checked_limits(texts)
    assert "\n" not in str(caught.value)


def test_limits_are_read_in_order():
    assert [format_limit(limit) for limit in checked_limits(["tokens=5/5h", "requests=0/1m"])] == [
        "tokens=5/5h",
        "requests=0/1m",
    ]


@pytest.mark.parametrize("cap", [None, 1, 1_000_000])
def test_concurrency_is_a_number_or_no_cap(cap):
    assert checked_concurrency(cap) == cap


@pytest.mark.parametrize("cap", [0, -1, 1_000_001])
def test_a_cap_that_admits_nothing_or_anything_is_refused(cap):
    with pytest.raises(OperatorError, match="concurrency is 1 to"):
        checked_concurrency(cap)


@pytest.mark.parametrize("expires_ms", [None, NOW_MS + 1, 253_402_300_799_999])
def test_a_key_expires_in_the_future_or_never(expires_ms):
    assert checked_expiry(expires_ms, NOW_MS) == expires_ms


@pytest.mark.parametrize("expires_ms", [NOW_MS, 0, -1, 253_402_300_800_000, 2**63])
def test_an_expiry_that_is_past_or_beyond_the_calendar_is_refused(expires_ms):
    with pytest.raises(OperatorError, match="in the future"):
        checked_expiry(expires_ms, NOW_MS)


def test_model_patterns_are_kept_in_order_and_once():
    patterns = ["claude-*", "openai/gpt-4o:free", "*", "claude-*", "x" * 64]
    assert checked_models(patterns) == ("claude-*", "openai/gpt-4o:free", "*", "x" * 64)


@pytest.mark.parametrize("pattern", ["", "x" * 65, "a b", "gpt-[45]", "gpt?", "modèle", "a\n", "a,b"], ids=ascii)
def test_a_pattern_that_no_model_name_matches_is_refused(pattern):
    with pytest.raises(OperatorError, match="model pattern"):
        checked_models(["gpt-*", pattern])


def test_patterns_are_bounded():
    with pytest.raises(OperatorError, match="at most 100"):
        checked_models(f"m{n}" for n in range(101))


@pytest.mark.parametrize(
    ("changes", "after"),
    [
        (KeyChanges(), ["requests=5/1m", "tokens=9/1h"]),
        (KeyChanges(limits=[]), []),
        (KeyChanges(limits=["tokens=1/1d"]), ["tokens=1/1d"]),
        (KeyChanges(add_limits=["tokens=1/1d"]), ["requests=5/1m", "tokens=9/1h", "tokens=1/1d"]),
        (KeyChanges(add_limits=["tokens=10/60m"]), ["requests=5/1m", "tokens=10/1h"]),
        (KeyChanges(remove_limits=["requests/60s"]), ["tokens=9/1h"]),
        (KeyChanges(remove_limits=["requests=7/1m", "tokens/1h"]), []),
        (KeyChanges(remove_limits=["requests/1m"], add_limits=["requests=1/1m"]), ["tokens=9/1h", "requests=1/1m"]),
    ],
    ids=repr,
)
def test_limits_change_one_by_one_or_all_together(changes, after):
    key = key_with("requests=5/1m", "tokens=9/1h")
    assert [format_limit(limit) for limit in changes.limits_of(key)] == after


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (KeyChanges(remove_limits=["tokens/1m"]), "no limit 'tokens/1m' to remove; it has requests=5/1m"),
        (KeyChanges(remove_limits=["tokens"]), "name it as DIMENSION/WINDOW"),
        (KeyChanges(remove_limits=[""]), "name it as DIMENSION/WINDOW"),
        (KeyChanges(limits=["nonsense"]), "write DIMENSION"),
        (KeyChanges(add_limits=[f"tokens=1/{n}h" for n in range(1, 17)]), "at most 16 limits"),
    ],
    ids=repr,
)
def test_a_change_of_limits_that_cannot_be_is_refused(changes, what):
    with pytest.raises(OperatorError, match=what):
        changes.limits_of(key_with("requests=5/1m"))


REQUESTS, INPUT, OUTPUT, TOKENS = "requests=1/1m", "input_tokens=1/1m", "output_tokens=1/1m", "tokens=1/1m"


@pytest.mark.parametrize(
    ("limits", "parts"),
    [
        ([], {}),
        ([REQUESTS], {"mode": Mode.OBSERVE}),
        ([], {"mode": Mode.OBSERVE, "concurrency": 1}),
        ([], {"mode": Mode.OBSERVE, "prepaid": True}),
        ([TOKENS], {"mode": Mode.OBSERVE, "reserve": Reserve.STRICT, "on_limit": OnLimit.SHRINK}),
        ([INPUT], {"reserve": Reserve.STRICT}),
        ([REQUESTS, OUTPUT], {"on_limit": OnLimit.SHRINK}),
        ([], {"prepaid": True, "reserve": Reserve.STRICT, "on_limit": OnLimit.SHRINK}),
    ],
    ids=str,
)
def test_what_a_key_is_told_to_do_has_something_to_work_on(limits, parts):
    key = replace(key_with(*limits), **parts)
    assert checked_whole(key) == key


@pytest.mark.parametrize(
    ("limits", "parts", "line"),
    [
        ([], {"mode": Mode.OBSERVE}, "mode observe needs a limit to observe; add one with --limit, or leave"),
        ([], {"reserve": Reserve.STRICT}, "reserve strict needs a limit of tokens to hold; add one such as --limit"),
        ([REQUESTS], {"reserve": Reserve.STRICT, "concurrency": 1}, "or leave it at estimate"),
        ([REQUESTS, INPUT], {"on_limit": OnLimit.SHRINK}, "on-limit shrink needs a limit of tokens or output_tokens"),
        ([], {"on_limit": OnLimit.SHRINK, "mode": Mode.ENFORCE}, "or leave it at refuse"),
    ],
    ids=str,
)
def test_what_nothing_would_enforce_is_refused_with_the_remedy(limits, parts, line):
    with pytest.raises(OperatorError, match=line) as caught:
        checked_whole(replace(key_with(*limits), **parts))
    assert "\n" not in str(caught.value)
