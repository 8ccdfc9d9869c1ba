"""Where the embedded servers keep their things, and as whom they run.

PostgreSQL refuses to run as root, and Redis should not. So as root both run under an unprivileged account that the
machine already has. Where that account cannot reach the data directory (a checkout in root's home), the stores lie
under /var/lib/edgeproxy instead, and a file in the data directory says where. Nothing is opened to anybody for it.
"""

import hashlib
import os
import pwd
import secrets
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from edgeproxy.errors import OperatorError

SHARED = Path("/var/lib/edgeproxy")
STORES_ELSEWHERE = "stores_are_in"

# The first that exists runs the servers of root: made for this, made for one of them, made for nothing else.
_ACCOUNTS = ("edgeproxy", "postgres", "nobody")


class RunAs(TypedDict, total=False):
    """Arguments of subprocess that change the user; empty for whoever is not root."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged account of this machine."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Placement:
    """`stores` holds a folder per server, `runtime` is ours and holds `sockets`, the only way in.

    `account` is who runs the servers, None when we run them as ourselves.
    """

    account: Account | None
    stores: Path
    runtime: Path
    shared: Path

    @property
    def sockets(self) -> Path:
        """The folder of the sockets, which belongs to the account."""
        return self.runtime / "s"

    @property
    def run_as(self) -> RunAs:
        """How subprocess starts something as the account."""
        return run_as(self.account)

    def own_folder(self, path: Path) -> Path:
        """Make `path` a private folder of the account, and return it."""
        path.mkdir(mode=0o700, exist_ok=True)
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)
        return path

    def own_file(self, path: Path, text: str) -> Path:
        """Write a private file of the account, and return its path."""
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            # By descriptor: the folder is the account's, which could put a link to another file in the path's place.
            if self.account is not None:
                os.fchown(descriptor, self.account.uid, self.account.gid)
        return path

    def make_runtime(self) -> None:
        """Make the runtime folder. Raises OperatorError when somebody else's lies in its place."""
        self.runtime.mkdir(mode=0o700 if self.account is None else 0o711, exist_ok=True)
        found = self.runtime.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise OperatorError(f"{self.runtime} belongs to somebody else; remove it")
        # mkdir is subject to the umask; as root the account has to pass through.
        self.runtime.chmod(0o700 if self.account is None else 0o711)
        self.own_folder(self.sockets)

    def remove_runtime(self) -> None:
        """Remove the runtime folder; what is left in it belongs to servers that have ended."""
        shutil.rmtree(self.runtime, ignore_errors=True)


def run_as(account: Account | None) -> RunAs:
    """Return the arguments of subprocess that start something as `account`, with no other group."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def make_data_dir(data_dir: Path) -> Path:
    """Make the data directory if it is not there, and return its absolute path. Raises OperatorError."""
    try:
        path = data_dir.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Root's servers run as somebody else, who has to pass through; what lies in it has modes of its own.
        path.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"cannot use data_dir {data_dir} ({error.strerror}); set data_dir") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise OperatorError(f"data_dir {path} belongs to another user; run as that user, or set data_dir")
    return path


def place(data_dir: Path, shared: Path = SHARED) -> Placement:
    """Return where the stores of `data_dir` (absolute, existing) lie; decided once, at the first start.

    Raises OperatorError.
    """
    runtime = _runtime(data_dir)
    if os.geteuid() != 0:
        return Placement(None, data_dir, runtime, shared)
    account = _owner(data_dir) or _account()
    return Placement(account, _stores(data_dir, account, shared), runtime, shared)


def _stores(data_dir: Path, account: Account, shared: Path) -> Path:
    pointer = data_dir / STORES_ELSEWHERE
    if pointer.exists():
        elsewhere = Path(pointer.read_text(encoding="utf-8").strip())
        if not elsewhere.is_dir():
            raise OperatorError(f"the stores of {data_dir} are missing in {elsewhere}; bring them back from a backup")
        return elsewhere
    if can_enter(data_dir, account):
        return data_dir
    if any((data_dir / name).exists() for name in ("redis", "postgres")):
        raise OperatorError(f"uid {account.uid}, which owns the stores in {data_dir}, cannot enter it; chmod o+x it")
    return _elsewhere(data_dir, shared, pointer)


def _elsewhere(data_dir: Path, shared: Path, pointer: Path) -> Path:
    """Make a folder for the stores under `shared`, and leave a note on either side."""
    # The random part keeps it apart from what an earlier data directory of the same path left behind.
    name = f"{hashlib.sha256(bytes(data_dir)).hexdigest()[:8]}-{secrets.token_hex(4)}"
    stores = shared / name
    try:
        for folder in (shared, stores):
            make_passable(folder)
        (stores / "belongs_to").write_text(f"{data_dir}\n", encoding="utf-8")
        pointer.write_text(f"{stores}\n", encoding="utf-8")
    except OSError as error:
        raise OperatorError(
            f"cannot write {error.filename} ({error.strerror}); set data_dir to another folder"
        ) from None
    return stores


def make_passable(folder: Path) -> None:
    """Make a folder of ours that others may pass through, not list. One that is there keeps its mode."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)


def can_enter(folder: Path, account: Account) -> bool:
    """Whether `account` gets into `folder`. Asked of the system itself, which knows access lists and mounts too."""
    # The shell changes the folder after the change of user; subprocess would do it before.
    asked = ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)]
    return subprocess.run(asked, stderr=subprocess.DEVNULL, check=False, cwd="/", **run_as(account)).returncode == 0  # noqa: S603 - fixed text, the path is an argument


def _owner(data_dir: Path) -> Account | None:
    """Return who owns stores that exist already: they go on running as the same account."""
    for name in ("postgres", "redis"):
        if (data_dir / name).exists():
            found = (data_dir / name).stat()
            return Account(found.st_uid, found.st_gid) if found.st_uid else None
    return None


def _account() -> Account:
    for name in _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise OperatorError("no unprivileged user for the embedded stores; start as an ordinary user, or name the stores")


def _runtime(data_dir: Path) -> Path:
    """Return a path that is the same at every start of this user with this data directory.

    It is short, because the address of a Unix socket holds 107 bytes only: TMPDIR and data directories can be longer.
    """
    base = Path("/run") if os.geteuid() == 0 and os.access("/run", os.W_OK) else Path("/tmp")  # noqa: S108 - checked to be ours
    return base / f"edgeproxy-{os.geteuid()}-{hashlib.sha256(bytes(data_dir)).hexdigest()[:10]}"
