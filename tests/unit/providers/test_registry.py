from edgeproxy import config
from edgeproxy.providers.registry import DIALECTS


def test_the_configuration_knows_the_dialects_that_there_are():
    assert set(config.DIALECTS) == set(DIALECTS)
    assert len(config.DIALECTS) == len(DIALECTS)


def test_every_dialect_goes_by_its_own_name():
    assert all(name == dialect.name for name, dialect in DIALECTS.items())


def test_no_two_dialects_serve_one_path():
    paths = [path for dialect in DIALECTS.values() for path in dialect.paths]
    assert len(paths) == len(set(paths))
    assert all(path.startswith("/v1/") for path in paths)
