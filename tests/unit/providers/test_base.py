import orjson
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.providers.base import MODELS, Body, Endpoint, RequestFacts

ENDPOINT = Endpoint()
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def facts(model, span=None):
    return RequestFacts(model=model, stream=False, input_estimate=1, output_max=None, model_span=span)


def test_most_operations_are_a_post_of_json():
    assert (ENDPOINT.methods, ENDPOINT.body) == (("POST",), Body.JSON)


def test_most_requests_cost_something_and_hide_nothing():
    plain = facts("m")
    assert not plain.is_free
    assert not plain.long_cache
    assert plain.features == ()
    assert plain.usage_requested  # only a dialect whose streams have to be asked says no


@given(NAMES, NAMES)
def test_the_model_of_a_json_body_is_replaced_and_nothing_else(model, other):
    body = b' { "x" : {"model": 1} , "model" :%b, "y":1.50 } ' % orjson.dumps(model)
    sent = ENDPOINT.outgoing_body(body, facts(model), other, ask_for_usage=False)
    if model == other:
        assert sent is body
    else:
        assert sent == b' { "x" : {"model": 1} , "model" :%b, "y":1.50 } ' % orjson.dumps(other)


@given(st.binary(max_size=20), NAMES, st.binary(max_size=20), NAMES)
def test_the_model_of_a_form_is_replaced_where_it_stands_and_nothing_else(before, model, after, other):
    start = len(before)
    end = start + len(model.encode())
    body = before + model.encode() + after
    sent = ENDPOINT.outgoing_body(body, facts(model, (start, end)), other, ask_for_usage=False)
    if model == other:
        assert sent is body
    else:
        assert sent == before + other.encode() + after


def test_usage_is_asked_for_only_where_a_dialect_knows_how():
    body = b'{"model":"m"}'
    assert ENDPOINT.outgoing_body(body, facts("m"), "m", ask_for_usage=True) is body


def test_models_are_read_and_never_asked_of_a_provider():
    assert MODELS.methods == ("GET", "HEAD")
    assert MODELS.body is Body.NONE
    assert MODELS.name == "models"
