"""The rules of the house for files: one test per source, script headers, dependencies with reasons, clean text.

What holds for Python code is in test_tidy.py. Here, too, each rule is shown a bad example.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "edgeproxy"

# Source files without a test file of their own, and why.
UNTESTED: dict[str, str] = {}

MARKS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
# Text that belongs to a machine or to nobody who reads this repository. Written in halves: this file is read, too.
FORBIDDEN_TEXT = [
    re.compile(pattern)
    for pattern in (
        r"(?<![\w.~])/ro" + r"ot(?![\w-])",
        r"(?<![\w.])/wo" + r"rk/",
        r"/t" + r"mp/te" + r"am",
        r"(?<![\w.])/ho" + r"me/\w",
        r"pypi\." + r"org|files\.pythonhosted\." + r"org|registry\.npmjs\." + r"org|proxy\.golang\." + r"org",
        r"(?i)\b(later|next|this|another) iss" + r"ue\b",
        r"(?i)\biss" + r"ue #?\d",
    )
]
TEXT_SUFFIXES = {*(".py", ".lua", ".sql", ".md", ".toml", ".txt", ".yaml", ".yml", ".cfg", ".ini", ".mako", ".sh", "")}
MADE_HERE = {"__pycache__", "node_modules"}  # by tools, in a checkout
FOLDERS = (".ci", "config", "docs", "edgeproxy", "loadtests", "tests")


def unmirrored(source_paths: Iterable[str], test_paths: Iterable[str]) -> Iterator[str]:
    """Say which sources have no test file, or two, and which unit tests have no source."""
    tests = set(test_paths)
    wanted = set()
    for path in source_paths:
        if path.endswith("__init__.py") or "/migrations/" in path or path in UNTESTED:
            continue
        pure = PurePosixPath(path)
        mirror = (PurePosixPath(*pure.parent.parts[1:]) / f"test_{pure.stem.strip('_')}.py").as_posix()
        homes = [f"tests/{kind}/{mirror}" for kind in ("unit", "integration")]
        wanted.update(homes)
        if len(tests.intersection(homes)) != 1:
            yield f"{path}: wants exactly one test file, {homes[0]} or {homes[1]}"
    for orphan in sorted(path for path in tests - wanted if path.startswith("tests/unit/")):
        yield f"{orphan}: tests no file of the package; name it after its source, or move it out of tests/unit"


def test_every_source_file_has_one_test_file() -> None:
    sources = (path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*.py"))
    tests = (path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py"))
    wrong = list(unmirrored(sources, tests))
    assert not wrong, "\n" + "\n".join(wrong)


def test_a_missing_double_or_orphaned_test_file_is_found() -> None:
    paths = [
        "edgeproxy/__main__.py",
        "edgeproxy/a/b.py",
        "edgeproxy/a/__init__.py",
        "edgeproxy/store/migrations/env.py",
    ]
    complete = ["tests/unit/test_main.py", "tests/integration/a/test_b.py", "tests/test_tidy.py"]
    assert not list(unmirrored(paths, complete))
    assert len(list(unmirrored(paths, complete[:1]))) == 1
    assert len(list(unmirrored(paths, [*complete, "tests/unit/a/test_b.py"]))) == 1
    assert len(list(unmirrored(paths, [*complete, "tests/unit/a/test_c.py"]))) == 1


def lua_header(name: str, text: str, *, shared: bool) -> Iterator[str]:
    header = "\n".join(
        line for line in text.split("\n\n-- include", maxsplit=1)[0].splitlines() if line.startswith("--")
    )
    if text.startswith("#!"):
        yield f"{name}: no shebang line: Redis 6.2 does not know it"
    if not text.startswith(f"-- {name}"):
        yield f"{name}: begin with `-- {name}: ` and what the script does"
    for word in () if shared else (r"KEYS\b", r"ARGV\b", r"(REPLY|Returns)\b"):
        if not re.search(rf"^--\s+{word}", header, re.MULTILINE):
            yield f"{name}: the header names KEYS, ARGV with units and what comes back"


def test_every_lua_script_says_what_it_takes_and_returns() -> None:
    scripts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / PACKAGE).rglob("*.lua")}
    shared = {
        f"{name}.lua" for text in scripts.values() for name in re.findall(r"^-- include (\w+)$", text, re.MULTILINE)
    }
    wrong = [each for name, text in scripts.items() for each in lua_header(name, text, shared=name in shared)]
    assert scripts
    assert not wrong, "\n" + "\n".join(wrong)


def test_a_lua_script_without_a_header_is_found() -> None:
    good = "-- a.lua: does it.\n--\n-- KEYS  1 x\n-- ARGV  1 y, ms\n-- REPLY status\n\nreturn 1"
    assert not list(lua_header("a.lua", good, shared=False))
    assert list(lua_header("a.lua", "return 1", shared=True))
    assert list(lua_header("a.lua", "#!lua name=x\n" + good, shared=False))
    for line in good.splitlines()[2:5]:
        assert len(list(lua_header("a.lua", good.replace(line, "--"), shared=False))) == 1


def loose_dependencies(pyproject: str) -> Iterator[str]:
    for line in pyproject.splitlines():
        quoted = re.match(r'\s*(?:requires = \[)?"([a-z][A-Za-z0-9_.\[\]-]*)\s*(?:[=<>~!;].*?)?"\]?,?\s*(#.*)?$', line)
        if quoted and not re.search(r"==\d", line):
            yield f"{quoted[1]}: pin it exactly, name==version"
        if quoted and not (quoted[2] or "").strip("# "):
            yield f"{quoted[1]}: say in a comment on its line why it is there"


def declared_dependencies() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]


def test_every_dependency_is_pinned_and_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.scripts]")[0]
    wrong = list(loose_dependencies(text))
    assert not wrong, "pyproject.toml:\n" + "\n".join(wrong)
    assert len(declared_dependencies()) > 10


def test_a_loose_dependency_is_found() -> None:
    assert not list(loose_dependencies('  "redis==8.1.0",  # hot state\n  "a==1; python_version < \'3.13\'",  # why'))
    for loose in ('"redis",  # why', '"redis>=8",  # why', '"redis==8.1.0",', '"redis==8.1.0",  #'):
        assert len(list(loose_dependencies(f"  {loose}"))) == 1


def plain_name(requirement: str) -> str:
    """The requirement without extras and markers, in the one spelling that tools agree on."""
    name, _, version = re.sub(r"\[.*\]", "", requirement.partition(";")[0].strip()).partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def test_constraints_name_one_version_of_everything() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert not [line for line in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][^ ;]*( *;.*)?", line)]
    pinned = {plain_name(line) for line in pins}
    wanted = {plain_name(each) for each in declared_dependencies()}
    assert not wanted - pinned, f"pyproject.toml asks for what constraints.txt does not pin: {sorted(wanted - pinned)}"


def wrong_text(path: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if mark := MARKS.search(line):
            yield f"{path}:{number}: {mark[0]}: do it, or write down elsewhere that it is to be done"
        if any(pattern.search(line) for pattern in FORBIDDEN_TEXT):
            yield f"{path}:{number}: this names a place or a thing that a reader of this repository does not have"


def committed_files() -> Iterator[Path]:
    yield from (path for path in ROOT.iterdir() if path.is_file())
    for folder in FOLDERS:
        found = (path for path in (ROOT / folder).rglob("*") if not MADE_HERE.intersection(path.parts))
        yield from (path for path in found if path.is_file())


def test_no_file_holds_marks_or_speaks_of_other_places() -> None:
    texts = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8", errors="replace")
        for path in committed_files()
        if path.suffix in TEXT_SUFFIXES
    }
    assert f"{PACKAGE}/__init__.py" in texts
    wrong = [each for path, text in texts.items() for each in wrong_text(path, text)]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "# TO" + "DO: later",
        "x = 1  # XX" + "X",
        "cd /ro" + "ot && ls",
        "see /wo" + "rk/notes",
        "/ho" + "me/alice/data",
        "index = 'https://py" + "pi.org/simple'",
        "comes in a later iss" + "ue",
    ],
)
def test_wrong_text_is_found(text: str) -> None:
    assert list(wrong_text("a.md", text))


def test_ordinary_text_passes() -> None:
    assert not list(wrong_text("a.md", "the root of /v1/work, hacking at a todo list, github issues, ~/home"))
