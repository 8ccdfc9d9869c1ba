"""The rules of the house, held by a test: who may import whom, what is banned, what every file must have.

Each rule is one function that yields what is wrong and what to do about it. Below the rules, every one of them is
shown a small bad example, so that none of them can go quiet.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "edgeproxy"

# Imports go down only; rooms on one floor do not import each other.
FLOORS = (
    ("__main__",),
    ("demo", "commands"),
    ("supervisor",),
    ("app",),
    ("gateway", "console", "jobs", "mock_provider", "checkup", "canary"),
    ("control",),
    ("hotstate", "store", "embedded", "tls"),
    ("providers", "config"),
    ("policy",),
    ("domain", "tables", "addresses"),
    ("errors", "metrics", "tasks"),
    ("logs",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(reversed(FLOORS)) for room in rooms}
FORBIDDEN_ROOMS = {
    "gateway": {"store", "control"},  # the way of a request never opens the database
    "console": {"hotstate", "providers"},  # pages read and write through control
    "mock_provider": {"providers", "hotstate", "domain"},  # what it counts is independent of what it checks
}
ONLY_ROOMS = {"providers": {"domain", "errors"}}
PURE_ROOMS = ("domain", "providers")  # bytes and times come in as arguments
IMPURE_MODULES = {
    *("aiohttp", "redis", "hiredis", "asyncpg", "sqlalchemy", "alembic", "click", "uvloop", "httptools", "structlog"),
    *("asyncio", "time", "random", "secrets", "os", "io", "pathlib", "socket", "ssl", "subprocess", "threading"),
    *("logging", "tempfile", "signal", "select", "prometheus_client"),
}
CLOCK_CALLS = {"now", "utcnow", "today", "uuid1", "uuid4"}

MAX_FUNCTION_LINES = 70
MAX_FILE_LINES = 450
BANNED_WORDS = {*("quota", "spend", "manager", "service", "util", "utils", "helper", "helpers", "core", "common")}
SPAWNER = "edgeproxy/tasks.py"

# Files where a broad except ends without raising, and why. The line itself carries a comment as well.
BROAD_EXCEPT = {
    "edgeproxy/__main__.py": "a mistake of ours ends in one line that quotes nothing, not in a traceback",
    "edgeproxy/gateway/handler.py": "a mistake of ours ends one request, not the worker",
    "edgeproxy/gateway/server.py": "a mistake of ours ends one connection, not the worker",
    "edgeproxy/gateway/heartbeats.py": "a mistake of ours over one request must not end the leases of all",
    "edgeproxy/gateway/unconfirmed.py": "a mistake of ours over one settlement must not hold up the others",
    "edgeproxy/console/routes.py": "a mistake of ours ends one request, not the process",
}
# Modules that register something when they are imported, and why.
REGISTERS = {"edgeproxy/__main__.py": "click's commands are put together where the program begins"}


@dataclass(frozen=True)
class Source:
    """One Python file of the package."""

    path: str  # from the root of the repository, with slashes
    text: str
    tree: ast.Module = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree", ast.parse(self.text))

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def room(self) -> str:
        return ([*self.module.split("."), ""])[1]

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))

    def imports(self) -> Iterator[tuple[int, str]]:
        """Every imported module, with its line; `from a import b` counts as `a` and as `a.b`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.lineno, node.module
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)

    def imported_rooms(self) -> Iterator[tuple[int, str]]:
        """Every other room of the package that is imported, with the line."""
        found = {(line, name.split(".")[1]) for line, name in self.imports() if name.startswith(f"{PACKAGE}.")}
        return ((line, room) for line, room in sorted(found) if room != self.room)

    def at(self, line: int, message: str) -> str:
        return f"{self.path}:{line}: {message}"


@cache
def sources() -> tuple[Source, ...]:
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    return tuple(Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths)


# --- Rules for one file -------------------------------------------------------------------------------------------


def imports_go_down(source: Source) -> Iterator[str]:
    for line, room in source.imported_rooms():
        if source.room not in FLOOR_OF:
            yield source.at(line, f"the room {source.room!r} has no floor; give it one in FLOORS, or move the file")
        elif room in FLOOR_OF and FLOOR_OF[room] >= FLOOR_OF[source.room]:
            yield source.at(line, f"{source.room} must not import {room}: move what both need to a floor below")


def strict_rooms_import_less(source: Source) -> Iterator[str]:
    for line, room in source.imported_rooms():
        if room not in ONLY_ROOMS.get(source.room, {room}) or room in FORBIDDEN_ROOMS.get(source.room, ()):
            yield source.at(line, f"{source.room} must not import {room}; see FORBIDDEN_ROOMS and ONLY_ROOMS")


def pure_rooms_stay_pure(source: Source) -> Iterator[str]:
    if source.room not in PURE_ROOMS:
        return
    for line, name in source.imports():
        if name.split(".")[0] in IMPURE_MODULES:
            yield source.at(line, f"{source.room} is pure: take bytes and times as arguments instead of {name}")
    for node in source.nodes(ast.Call):
        assert isinstance(node, ast.Call)
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in CLOCK_CALLS or called == "open":
            yield source.at(node.lineno, f"{source.room} is pure: take the result of {called}() as an argument")


def no_relative_imports(source: Source) -> Iterator[str]:
    for node in source.nodes(ast.ImportFrom):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield source.at(node.lineno, "write the whole name: relative imports hide the edges between rooms")


def tasks_are_spawned(source: Source) -> Iterator[str]:
    if source.path == SPAWNER:
        return
    for node in ast.walk(source.tree):
        name = getattr(node, "attr", None) or getattr(node, "id", None)
        if name in ("create_task", "ensure_future"):
            yield source.at(getattr(node, "lineno", 0), f"use tasks.spawn(name, ...) instead of {name}")


def no_banned_statements(source: Source) -> Iterator[str]:
    for node in source.nodes(ast.Call, ast.Global):
        if isinstance(node, ast.Global):
            yield source.at(node.lineno, "no `global`: pass the value, or make it the field of an object with an owner")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield source.at(node.lineno, "no print: click.echo on the command line, logs.event elsewhere")
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "post"
            and not (node.args or node.keywords)
        ):
            yield source.at(node.lineno, "no request.post(): it spools bodies to disk")


def no_silent_except(source: Source) -> Iterator[str]:
    lines = source.text.splitlines()
    for node in source.nodes(ast.ExceptHandler):
        assert isinstance(node, ast.ExceptHandler)
        if node.type is None:
            yield source.at(node.lineno, "no bare except: name what is expected")
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = any(getattr(each, "id", "") in ("Exception", "BaseException") for each in caught)
        raised = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        if broad and not raised and not (source.path in BROAD_EXCEPT and "#" in lines[node.lineno - 1]):
            yield source.at(node.lineno, "a broad except raises again, or has a comment and a reason in BROAD_EXCEPT")


def no_banned_words(source: Source) -> Iterator[str]:
    names = [(1, part) for part in PurePosixPath(source.path).with_suffix("").parts[1:]]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append((node.lineno, node.name))
        elif isinstance(node, ast.arg):
            names.append((node.lineno, node.arg))
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.id if isinstance(node, ast.Name) else node.attr))
        elif isinstance(node, ast.alias) and node.asname:
            names.append((node.lineno, node.asname))
    for line, name in names:
        for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name):
            if word.lower() in BANNED_WORDS:
                yield source.at(line, f"{name}: say what it is for instead of {word.lower()!r}")


def has_a_module_docstring(source: Source) -> Iterator[str]:
    if not ast.get_docstring(source.tree):
        yield source.at(1, "begin with a docstring: what the room is for and what it must not do")


def fits_a_screen(source: Source) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield source.at(1, f"{lines} lines; split it: one file has one reason to change (at most {MAX_FILE_LINES})")
    for node in source.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION_LINES:
            yield source.at(node.lineno, f"{node.name} has {length} lines; split it (at most {MAX_FUNCTION_LINES})")


def importing_does_nothing(source: Source) -> Iterator[str]:
    """No statement of a module that acts: the import hook below sees I/O, this sees registration and environment."""
    if "/migrations/" in source.path or source.path in REGISTERS:
        return  # migrations are scripts: alembic runs them
    for statement in source.tree.body:
        is_main = isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)
        acting = (ast.For, ast.While, ast.With, ast.Try, ast.Delete, ast.Await)
        called = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
        reads = not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and any(
            text in ast.unparse(statement) for text in ("os.environ", "getenv")
        )
        if not is_main and (called or reads or isinstance(statement, acting)):
            yield source.at(statement.lineno, "importing does nothing: move this into a function that somebody calls")


FILE_RULES: tuple[Callable[[Source], Iterator[str]], ...] = (
    imports_go_down,
    strict_rooms_import_less,
    pure_rooms_stay_pure,
    no_relative_imports,
    tasks_are_spawned,
    no_banned_statements,
    no_silent_except,
    no_banned_words,
    has_a_module_docstring,
    fits_a_screen,
    importing_does_nothing,
)


@pytest.mark.parametrize("rule", FILE_RULES, ids=lambda rule: rule.__name__)
def test_every_source_file_keeps(rule: Callable[[Source], Iterator[str]]) -> None:
    wrong = [message for source in sources() for message in rule(source)]
    assert not wrong, "\n" + "\n".join(wrong)


BAD: list[tuple[Callable[[Source], Iterator[str]], str, str]] = [
    (imports_go_down, "domain/limits.py", "from edgeproxy.gateway.handler import handle"),
    (imports_go_down, "gateway/handler.py", "import edgeproxy.console.routes"),
    (imports_go_down, "hotstate/events.py", "from edgeproxy import store"),
    (imports_go_down, "gateway/handler.py", "def f():\n    from edgeproxy.app import gateway_role"),
    (imports_go_down, "newroom/thing.py", "from edgeproxy.domain import usage"),
    (strict_rooms_import_less, "gateway/handler.py", "from edgeproxy.store.database import connect"),
    (strict_rooms_import_less, "gateway/handler.py", "from edgeproxy import control"),
    (strict_rooms_import_less, "console/routes.py", "from edgeproxy.hotstate.events import read"),
    (strict_rooms_import_less, "providers/openai.py", "from edgeproxy.metrics import REQUESTS"),
    (pure_rooms_stay_pure, "domain/limits.py", "import time"),
    (pure_rooms_stay_pure, "providers/sse.py", "from asyncio import sleep"),
    (pure_rooms_stay_pure, "domain/keys.py", "from datetime import datetime\nx = lambda: datetime.now()"),
    (no_relative_imports, "domain/keys.py", "from . import limits"),
    (no_relative_imports, "domain/keys.py", "from .limits import Limit"),
    (tasks_are_spawned, "jobs/flush.py", "import asyncio\nasyncio.create_task(f())"),
    (tasks_are_spawned, "jobs/flush.py", "from asyncio import ensure_future as go\nspawn = loop.ensure_future"),
    (no_banned_statements, "jobs/flush.py", "def f():\n    global x"),
    (no_banned_statements, "jobs/flush.py", "print('x')"),
    (no_banned_statements, "console/routes.py", "async def f(request):\n    await request.post()"),
    (no_silent_except, "jobs/flush.py", "try:\n    f()\nexcept:\n    raise"),
    (no_silent_except, "jobs/flush.py", "try:\n    f()\nexcept Exception:  # because\n    pass"),
    (no_silent_except, "jobs/flush.py", "try:\n    f()\nexcept (OSError, BaseException):\n    pass"),
    (no_silent_except, "gateway/handler.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (no_banned_words, "gateway/utils.py", ""),
    (no_banned_words, "jobs/flush.py", "class FlushManager: ..."),
    (no_banned_words, "jobs/flush.py", "def f(daily_quota): ..."),
    (no_banned_words, "jobs/flush.py", "import x as HTTPService"),
    (no_banned_words, "jobs/flush.py", "self.core_limit = 1"),
    (has_a_module_docstring, "jobs/flush.py", "import re"),
    (fits_a_screen, "jobs/flush.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
    (fits_a_screen, "jobs/flush.py", "async def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
    (importing_does_nothing, "jobs/flush.py", "register(f)"),
    (importing_does_nothing, "jobs/flush.py", "import os\nHOME = os.environ['HOME']"),
    (importing_does_nothing, "jobs/flush.py", "for x in y: pass"),
]
GOOD = """'''What it is for.'''
from edgeproxy.domain.limits import Limit
from edgeproxy.errors import OperatorError
COMMONPLACE = 1
class Limits:
    x = Limit()
async def f(session):
    try:
        await session.post("/v1", data=b"")
    except Exception:
        raise OperatorError("x") from None
if __name__ == "__main__":
    f(None)
"""


@pytest.mark.parametrize(("rule", "path", "text"), BAD)
def test_every_rule_finds_a_bad_example(rule: Callable[[Source], Iterator[str]], path: str, text: str) -> None:
    assert list(rule(Source(f"{PACKAGE}/{path}", text)))


@pytest.mark.parametrize("rule", FILE_RULES, ids=lambda rule: rule.__name__)
def test_every_rule_has_a_bad_example_and_lets_good_code_pass(rule: Callable[[Source], Iterator[str]]) -> None:
    assert rule in [bad[0] for bad in BAD]
    assert not list(rule(Source(f"{PACKAGE}/gateway/admission.py", GOOD)))


# --- Rules for all modules together ---------------------------------------------------------------------------------


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Import cycles, each as the modules on it."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append([*trail[trail.index(module) :], module])
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_there_are_no_import_cycles() -> None:
    modules = {source.module for source in sources()}
    graph = {
        source.module: {name for _, name in source.imports() if name in modules} - {source.module}
        for source in sources()
    }
    wrong = [" -> ".join(cycle) for cycle in cycles(graph)]
    assert not wrong, "break the cycle: move what both need to a file below\n" + "\n".join(wrong)


def test_a_cycle_is_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


# A process that imports every module, with everything forbidden that reaches beyond the process.
IMPORTER = """
import importlib, os, sys
forbidden = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.mkdir", "os.remove", "os.rename",
             "os.rmdir", "os.chmod", "shutil.", "tempfile.", "sqlite3.")
def hook(event, args):
    writes = event == "open" and ((isinstance(args[1], str) and set(args[1]) & set("wax+"))
                                  or (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)))
    if writes or event.startswith(forbidden):
        sys.stderr.write(f"importing {current} does {event} {args}: move it into a function\\n")
        os._exit(1)
warm, names = sys.argv[1].split(","), sys.argv[2].split(",")
for current in warm: importlib.import_module(current)
sys.addaudithook(hook)
for current in names: importlib.import_module(current)
"""


def imported(names: Iterable[str], warm: Iterable[str], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Import modules in a new process. What libraries do while they are imported is not ours: `warm` comes before."""
    command = [sys.executable, "-B", "-c", IMPORTER, ",".join(warm), ",".join(names)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60, check=False)


def third_party() -> set[str]:
    ours = {name.split(".")[0] for source in sources() for _, name in source.imports()}
    return {name for name in ours if name not in sys.stdlib_module_names and name != PACKAGE} | {"asyncio"}


def test_importing_every_module_touches_nothing() -> None:
    names = [s.module for s in sources() if "/migrations/" not in s.path]
    result = imported(names, sorted(third_party()))
    assert result.returncode == 0, result.stderr


def test_an_import_that_acts_is_found(tmp_path: Path) -> None:
    (tmp_path / "writes.py").write_text("open('x', 'w')")
    (tmp_path / "connects.py").write_text("import socket\nsocket.socket()")
    (tmp_path / "reads.py").write_text("open(__file__).close()")
    assert "importing writes does open" in imported(["writes"], ["os"], tmp_path).stderr
    assert "importing connects does socket" in imported(["connects"], ["socket"], tmp_path).stderr
    assert imported(["reads"], ["os"], tmp_path).returncode == 0
