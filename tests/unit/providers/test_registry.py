import pytest

from edgeproxy import config
from edgeproxy.providers.base import MODELS, ListedModel
from edgeproxy.providers.registry import DIALECTS


def test_the_configuration_knows_the_dialects_that_there_are():
    assert set(config.DIALECTS) == set(DIALECTS)
    assert len(config.DIALECTS) == len(DIALECTS)


def test_every_dialect_goes_by_its_own_name():
    assert all(name == dialect.name for name, dialect in DIALECTS.items())


def test_every_dialect_sends_others_to_a_path_that_only_it_has():
    for dialect in DIALECTS.values():
        path = dialect.example_path.replace("{model}", "m")
        having = [
            name for name, other in DIALECTS.items() if (call := other.find(path)) and "POST" in call.endpoint.methods
        ]
        assert having == [dialect.name]


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_every_dialect_lists_its_models(dialect):
    models = [ListedModel("a", "p", 0), ListedModel("b/c", "p", 9)]
    assert b"b/c" in dialect.model_list(models, {})
    assert b"b/c" in dialect.model_card(models[1])
    assert dialect.model_list([], {})
    assert dialect.find("/v1/models").endpoint is MODELS
    assert dialect.find("/v1/models/x%2Fy").model == "x/y"
