import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.features import Feature
from edgeproxy.domain.usage import Usage
from edgeproxy.providers.base import Body, Incoming
from edgeproxy.providers.unmetered import IDS, Paths, Row

PATHS = Paths(
    Row("/v1/batches", Feature.BATCHES),
    Row(f"/v1/batches{IDS}", Feature.BATCHES, creates=False),
    Row("/v1/batches/late", Feature.FILES),  # no path comes as far as this row
    Row("/v1/(?:files|uploads)", Feature.FILES),
)
CREATING = PATHS.find("/v1/batches").endpoint
LOOKING = PATHS.find("/v1/batches/b_1").endpoint


def facts(endpoint, method):
    return endpoint.read_request(Incoming(method, b"never read \xff", 12))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/batches", "batches"),
        ("/v1/batches/batch_9-Z", "batches"),
        ("/v1/batches/b/cancel", "batches"),
        ("/v1/batches/a/b/c", "batches"),
        ("/v1/batches/late", "batches"),
        ("/v1/uploads", "files"),
    ],
)
def test_the_first_row_that_fits_a_path_says_what_it_belongs_to(path, name):
    call = PATHS.find(path)
    assert (call.path, call.model, call.endpoint.name) == (path, "", name)


WAYS_OUT = [
    *("/", "/..", "/../chat/completions", "/b/..", "/./b", "/b.", "//b", "/b//c", "/b/", "/a/b/c/d"),
    *("/%2e%2e", "/b%2f..", "/%2e", "/b%00", "/b\\..", "/b?x=1", "/b#x", "/b;x", "/b:x", "/b{model}", "/b c"),
    *("/b\n", "/b\r\n", "\n", "/é", "/٣", "/😀", "/\u2028"),
]


@pytest.mark.parametrize("rest", WAYS_OUT)
def test_no_path_leads_out_of_a_collection(rest):
    assert PATHS.find(f"/v1/batches{rest}") is None


@pytest.mark.parametrize(
    "path", ["", "/", "/v1", "v1/batches", "/v1/batch", "/v1/batchesx", "/V1/batches", "/x/v1/files"]
)
def test_a_path_of_nobody_belongs_to_no_feature(path):
    assert PATHS.find(path) is None


@given(st.text(max_size=12) | st.text("ab/._%-", max_size=12))
def test_what_follows_a_collection_is_ids_and_nothing_else(rest):
    if PATHS.find(f"/v1/batches/{rest}") is not None:
        assert set(rest) <= {*string.ascii_letters, *string.digits, *"_-/"}
        assert all(rest.split("/"))
        assert rest.count("/") <= 2


def test_only_what_creates_something_costs():
    assert not facts(CREATING, "POST").is_free
    assert all(facts(CREATING, method).is_free for method in ("GET", "DELETE", "PATCH"))
    assert all(facts(LOOKING, method).is_free for method in ("GET", "POST", "DELETE", "PATCH"))


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_says_which_feature_it_needs_and_nothing_of_its_body(method):
    seen = facts(CREATING, method)
    assert (seen.model, seen.features) == ("batches", (Feature.BATCHES,))
    assert (seen.stream, seen.input_estimate, seen.output_max) == (False, 0, 0)


def test_a_body_is_handed_on_unread():
    assert CREATING.body is Body.ANY
    body = b"\xff{"
    seen = facts(CREATING, "POST")
    assert CREATING.outgoing_body(body, seen, "batches", ask_for_usage=False) is body


def test_what_is_kept_may_be_made_looked_at_changed_and_taken_away():
    assert set(CREATING.methods) == {"GET", "POST", "DELETE", "PATCH"}


def test_an_answer_is_charged_what_the_operator_says():
    reader = CREATING.reader(facts(CREATING, "POST"), "application/json", ask_for_usage=False, max_bytes=1)
    answer = b'{"usage":{"prompt_tokens":5}}'
    assert reader.feed(answer) is answer
    assert reader.usage(50) == Usage(50, estimated=True)
