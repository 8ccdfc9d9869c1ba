"""Secrets of our own, made once under `data_dir/secrets`: the pepper and the passwords of the embedded servers.

A secret is 32 random bytes, written as 64 hexadecimal digits in a file that only its owner can read. It never appears
in an argument, an environment variable, a log line or an error.
"""

import os
import secrets
import stat
from pathlib import Path

from edgeproxy.errors import OperatorError

PEPPER = "pepper"
REDIS_PASSWORD = "redis_password"  # noqa: S105 - the name of a file
POSTGRES_PASSWORD = "postgres_password"  # noqa: S105 - the name of a file

_SECRET_BYTES = 32


def own_secret(data_dir: Path, name: str) -> Path:
    """Return the file of the secret `name`, made if this is the first start.

    Two processes that come first at the same time end with the same secret. Raises OperatorError.
    """
    path = data_dir / "secrets" / name
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            _create(path)
    except OSError as error:
        raise OperatorError(f"cannot write {path} ({error.strerror}); check who owns data_dir") from None
    read_secret(path)
    return path


def read_secret(path: Path) -> str:
    """Return the 64 hexadecimal digits in `path`. Raises OperatorError when others can read it or it holds none."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise OperatorError(f"{path} is open to other users; run: chmod 600 '{path}'")
        text = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise OperatorError(f"cannot read the secret in {path} ({error.strerror})") from None
    except UnicodeDecodeError:
        text = ""
    if len(text) != 2 * _SECRET_BYTES or not set(text) <= set("0123456789abcdefABCDEF"):
        raise OperatorError(f"{path} must hold 64 hexadecimal digits, as openssl rand -hex 32 makes them")
    return text


def read_pepper(path: Path) -> bytes:
    """Return the 32 bytes that key digests are computed with. Raises OperatorError."""
    return bytes.fromhex(read_secret(path))


def _create(path: Path) -> None:
    """Write a new secret to `path`, whole or not at all; one that another process made meanwhile stays."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_SECRET_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link refuses an existing name where a rename would replace it, and keys issued meanwhile would be lost.
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
