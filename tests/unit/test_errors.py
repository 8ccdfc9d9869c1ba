import re
from collections import Counter

import pytest

from edgeproxy import errors
from edgeproxy.errors import (
    KINDS,
    NOT_IMPLEMENTED,
    RATE_LIMITED,
    ErrorKind,
    GatewayError,
    OperatorError,
    Source,
    StoreUnavailable,
    operator_line,
)


def test_every_kind_is_in_the_table_once():
    defined = [value for value in vars(errors).values() if isinstance(value, ErrorKind)]
    assert sorted(kind.code for kind in defined) == sorted(kind.code for kind in KINDS)
    assert max(Counter(kind.code for kind in KINDS).values()) == 1


# What clients and dashboards rely on: a code and its status do not change.
STATUSES = {
    "bad_http": 400,
    "invalid_json": 400,
    "invalid_field": 400,
    "wrong_path": 400,
    "invalid_api_key": 401,
    "https_required": 403,
    "model_not_allowed": 403,
    "path_not_found": 404,
    "model_not_found": 404,
    "method_not_allowed": 405,
    "cannot_be_metered": 400,
    "no_upper_bound": 400,
    "upgrade_refused": 426,
    "not_implemented": 501,
    "head_too_large": 431,
    "head_timeout": 408,
    "body_timeout": 408,
    "body_too_large": 413,
    "unsupported_encoding": 415,
    "rate_limited": 429,
    "budget_exhausted": 429,
    "balance_exhausted": 429,
    "request_exceeds_limit": 429,
    "concurrency_reached": 429,
    "internal_error": 500,
    "upstream_unreachable": 502,
    "upstream_failed": 502,
    "upstream_credentials": 502,
    "upstream_busy": 503,
    "counters_unavailable": 503,
    "overloaded": 503,
    "upstream_timeout": 504,
}


def test_codes_and_statuses_are_what_they_were():
    assert {kind.code: kind.status for kind in KINDS} == STATUSES


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_a_row_of_the_table_is_sensible(kind):
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)
    assert 400 <= kind.status < 600
    # Whose fault it is and the class of the status say the same.
    assert (kind.status < 500 or kind is NOT_IMPLEMENTED) == (kind.source is Source.CLIENT)
    assert kind.status in (502, 503, 504) or kind.source is not Source.UPSTREAM
    assert re.fullmatch(r"[A-Z][^\n]*\.", kind.message)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_what_waiting_heals_has_a_status_that_clients_retry(kind):
    if kind.retryable:
        assert kind.status in (408, 429) or kind.status >= 500
    elif kind.status >= 500:
        # Time does not heal these: the operator has to act, or the client to ask for something else.
        assert kind.code in ("upstream_credentials", "not_implemented")


def test_what_says_try_again_is_retryable():
    for kind in KINDS:
        if re.search(r"[Tt]ry again|[Ww]ait|Send it again", kind.message):
            assert kind.retryable, kind.code


def test_an_error_says_its_kind_and_nothing_else():
    error = GatewayError(RATE_LIMITED)
    assert (str(error), error.message, error.retry_after_ms) == ("rate_limited", RATE_LIMITED.message, None)
    precise = GatewayError(RATE_LIMITED, "More precisely.", 1500)
    assert (str(precise), precise.message, precise.retry_after_ms) == ("rate_limited", "More precisely.", 1500)


@pytest.mark.parametrize(("store", "setting"), [("redis", "stores.redis"), ("postgresql", "stores.postgres")])
def test_a_store_that_is_away_is_told_in_one_line_with_its_setting(store, setting):
    error = StoreUnavailable(store)
    assert error.store == str(error) == store
    line = operator_line(error)
    assert line.startswith(store)
    assert setting in line
    assert "\n" not in line


def test_a_store_says_whether_a_command_may_have_run():
    assert not StoreUnavailable("redis").may_have_run
    assert StoreUnavailable("redis", may_have_run=True).may_have_run


def test_an_error_for_the_operator_is_told_as_it_is():
    assert operator_line(OperatorError("workers must be 1 to 64")) == "workers must be 1 to 64"
