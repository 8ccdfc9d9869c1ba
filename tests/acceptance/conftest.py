"""The program as its users run it, each test in a folder of its own, before one mock provider."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeproxy.embedded.placement import place
from tests.conftest import reachable_folder
from tests.support.processes import ANY_PORT, MODELS, Program, fetch, processes_with, program_in


@pytest.fixture(scope="session")
def mock_process() -> Iterator[str]:
    """Address of the mock provider that all tests share."""
    with (
        reachable_folder() as folder,
        program_in(folder).started("mock-provider", "--listen", "127.0.0.1:0") as started,
    ):
        yield started.listeners["mock"]


@pytest.fixture
def mock(mock_process: str) -> str:
    """Address of a mock provider that has served nothing yet."""
    fetch(f"{mock_process}/__reset", body={})
    return mock_process


@pytest.fixture(scope="session")
def first_start() -> Iterator[Path]:
    """A data directory as the first start leaves it: copying it is quicker than making it for each test."""
    with reachable_folder() as folder:
        program = program_in(folder)
        assert program.json("migrate")["applied"]
        yield program.data_dir


@contextmanager
def configured(data_dir: Path, mock: str) -> Iterator[Program]:
    """The program, configured for any free ports and two workers, in a folder whose name has a space."""
    folder = data_dir / "a folder"
    folder.mkdir(mode=0o711)
    program = program_in(folder)
    program.configure("workers = 2\n" + ANY_PORT + MODELS.format(mock=mock))
    yield program
    program.data_dir.mkdir(mode=0o711, exist_ok=True)
    runtime = place(program.data_dir).runtime
    assert not processes_with(str(folder)) + processes_with(str(runtime)), "a process was left behind"
    assert not runtime.exists(), "a runtime folder was left behind"


@pytest.fixture
def new_program(data_dir: Path, mock: str) -> Iterator[Program]:
    """The program before its first start."""
    with configured(data_dir, mock) as program:
        yield program


@pytest.fixture
def program(new_program: Program, first_start: Path) -> Program:
    """The program after its first start, without any key."""
    subprocess.run(["cp", "-a", first_start, new_program.data_dir], check=True)
    return new_program


@pytest.fixture(scope="module")
def unchanged_program(mock_process: str, first_start: Path) -> Iterator[Program]:
    """The same, for tests that change nothing and so need none of their own."""
    with reachable_folder() as folder, configured(folder, mock_process) as program:
        subprocess.run(["cp", "-a", first_start, program.data_dir], check=True)
        yield program
