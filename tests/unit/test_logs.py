import ast
import io
import json
import logging
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edgeproxy import logs
from edgeproxy.config import Bounds
from edgeproxy.gateway.server import Server
from edgeproxy.metrics import Metrics


def test_an_event_is_one_line_of_json_on_standard_error(capsys):
    logs.event("task_failed", task="flush", error="ValueError", count=3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    row = json.loads(captured.err)
    at = datetime.fromisoformat(row.pop("timestamp"))
    assert row == {"event": "task_failed", "task": "flush", "error": "ValueError", "count": 3}
    assert timedelta(0) <= datetime.now(UTC) - at < timedelta(minutes=1)


@pytest.mark.parametrize("value", ["a\nb", "a\r\nb", '"}\n{"event": "forged"', "\x1b[31m", "\u2028", "\0", "😀"])
def test_a_value_cannot_break_out_of_its_line(capsys, value):
    logs.event("task_failed", task=value)
    written = capsys.readouterr().err
    assert len(written.splitlines()) == 1
    assert json.loads(written)["task"] == value
    assert "\x1b" not in written


def write(how, name, **fields):
    """By either way that there is."""
    if how is logs.line:
        logs.line(name, fields)
    else:
        logs.event(name, **fields)


BOTH = pytest.mark.parametrize("how", [logs.event, logs.line])


@BOTH
@pytest.mark.parametrize("field", ["body", "header", "key", "message", "exception", "path", "query", "ip", "event_"])
def test_a_field_that_nobody_declared_is_an_error_and_is_not_written(capsys, how, field):
    with pytest.raises(ValueError, match=f"not declared: {field}$"):
        write(how, "request_failed", error="ValueError", **{field: "Zq7-secret"})
    assert capsys.readouterr().err == ""


@BOTH
def test_all_declared_fields_can_be_written(capsys, how):
    write(how, "anything", **dict.fromkeys(logs.FIELDS, 1))
    assert json.loads(capsys.readouterr().err).keys() == {"event", "timestamp", *logs.FIELDS}


def test_a_quick_line_is_like_any_other(capsys):
    rows = []
    for how in (logs.event, logs.line):
        write(how, "request_finished", status=200, model="gpt-*", estimated=True)
        written = capsys.readouterr().err
        assert written.count("\n") == 1
        row = json.loads(written)
        at = datetime.fromisoformat(row.pop("timestamp"))
        assert timedelta(0) <= datetime.now(UTC) - at < timedelta(minutes=1)
        rows.append(row)
    assert rows[0] == rows[1] == {"event": "request_finished", "status": 200, "model": "gpt-*", "estimated": True}


def test_a_standard_error_that_nobody_reads_fails_no_request(monkeypatch):
    class Gone(io.StringIO):
        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    logs.line("request_finished", {"status": 200})


def test_every_field_says_what_it_holds():
    assert all(logs.FIELDS.values())
    assert not logs.FIELDS.keys() & {"event", "timestamp"}


def test_standard_error_is_looked_up_each_time(monkeypatch, tmp_path):
    for name in ("one", "two"):
        with (tmp_path / name).open("w") as stream:
            monkeypatch.setattr("sys.stderr", stream)
            logs.event(name)
    assert json.loads((tmp_path / "one").read_text())["event"] == "one"
    assert json.loads((tmp_path / "two").read_text())["event"] == "two"


@pytest.fixture
def library():
    """The logger of a library, after its texts were taken over; what pytest itself listens with comes back."""
    top = logging.getLogger()
    handlers, level = top.handlers[:], top.level
    top.handlers.clear()  # not closed: they are pytest's
    logs.take_over_libraries()
    yield logging.getLogger("some.library")
    logging.captureWarnings(capture=False)
    top.handlers[:] = handlers
    top.setLevel(level)


def rows(capsys):
    written = capsys.readouterr()
    assert written.out == ""
    assert "Zq7" not in written.err
    found = [json.loads(line) for line in written.err.splitlines()]
    assert all(row.pop("timestamp") for row in found)
    return found


def test_what_a_library_logs_is_told_without_its_text(capsys, library):
    library.warning("Zq7 %s", "Zq7-value", extra={"Zq7": "Zq7"})
    library.error("Zq7")
    told = {"event": "library_warning", "library": "some.library"}
    assert rows(capsys) == [{**told, "error": "WARNING"}, {**told, "error": "ERROR"}]


def test_an_exception_in_a_library_is_told_by_its_type_alone(capsys, library):
    try:
        int("Zq7-text")
    except ValueError:
        library.exception("Zq7")
    library.error("Zq7", exc_info=True)
    assert [row["error"] for row in rows(capsys)] == ["ValueError", "ERROR"]


def test_a_warning_is_told_without_its_text(capsys, library):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logs.take_over_libraries()
        warnings.warn("Zq7", UserWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    assert rows(capsys) == [{"event": "library_warning", "library": "py.warnings", "error": "WARNING"}]


def test_what_libraries_chat_about_is_not_told(capsys, library):
    library.info("Zq7")
    library.debug("Zq7")
    assert rows(capsys) == []


def test_a_silent_logger_says_nothing_to_nobody(capsys, library):
    logs.silent().error("Zq7", exc_info=ValueError("Zq7"))
    assert rows(capsys) == []


SERVERS = ("web.Server", "web.AppRunner", "web.ServerRunner", "web.run_app")


def made_servers(source):
    """Keyword arguments of each call that makes a server of aiohttp's."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in SERVERS:
            yield {each.arg: ast.unparse(each.value) for each in node.keywords}


def test_no_server_of_aiohttps_logs_anything():
    sources = [path.read_text() for path in Path(logs.__file__).parent.rglob("*.py")]
    made = [arguments for source in sources for arguments in made_servers(source)]
    assert len(made) >= 4
    for arguments in made:
        assert arguments.get("access_log") == "None", arguments
        assert arguments.get("logger") in ("logs.silent()", "silent"), arguments


def test_a_server_that_would_log_is_found():
    assert list(made_servers("web.AppRunner(app, logger=x)")) == [{"logger": "x"}]


async def test_the_gateways_own_server_logs_nothing():
    connection = Server(lambda _: None, Bounds(), Metrics())()
    assert connection.logger.disabled
    assert connection.access_logger is None


def test_taking_over_replaces_what_listened_before(capsys, library):
    logging.getLogger().addHandler(logging.StreamHandler())
    logs.take_over_libraries()
    library.warning("Zq7")
    assert len(rows(capsys)) == 1
