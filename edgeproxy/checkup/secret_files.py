"""Who can read and change the files that hold secrets: the pepper, our providers' secrets, passwords of stores.

Only modes and owners are looked at, and whether a secret is there; what is in the files is told to nobody.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from edgeproxy.checkup.findings import Finding, error, of_error, ok, warning
from edgeproxy.config import EMBEDDED, Settings, provider_secret
from edgeproxy.errors import OperatorError

_OTHERS, _GROUP = 0o007, 0o070


def modes(settings: Settings, configuration: Path | None) -> Iterator[Finding]:
    """No secret's file is open to others. `configuration` counts as one when it holds a store's password."""
    paths = list(dict.fromkeys(path.resolve() for path in _paths(settings, configuration)))
    found = [finding for path in paths for finding in _of_file(path)]
    yield from found or [ok(f"{len(paths)} looked at, none is open to others")]


def _paths(settings: Settings, configuration: Path | None) -> Iterator[Path]:
    secrets = settings.secrets
    yield from (Path(name) for name in (secrets.pepper_file, secrets.previous_pepper_file) if name)
    yield from (Path(provider.secret_file) for provider in settings.provider if provider.secret_file)
    own = settings.data_dir / "secrets"
    if os.access(own, os.R_OK | os.X_OK) and own.is_dir():
        yield own
        yield from sorted(own.iterdir())
    if configuration is not None and _holds_password(configuration, settings):
        yield configuration


def _of_file(path: Path) -> Iterator[Finding]:
    try:
        status = path.stat()
    except OSError as failed:
        yield error(
            f"{path} cannot be looked at ({failed.strerror})", "check that it is there, and who owns its folder"
        )
        return
    mode = stat.S_IMODE(status.st_mode)
    remedy = f"chmod {'700' if stat.S_ISDIR(status.st_mode) else '600'} '{path}'"
    if mode & _OTHERS:
        yield error(f"{path} is open to every user of this machine (mode {mode:03o})", remedy)
    elif mode & _GROUP:
        yield warning(f"{path} is open to its group (mode {mode:03o})", remedy)
    # Root may be looking on behalf of any user; a user is to trust itself and root only.
    if os.geteuid() not in (0, status.st_uid) and status.st_uid != 0:
        yield warning(f"{path} belongs to another user, who can change it", f"chown it to uid {os.geteuid()}")


def _holds_password(configuration: Path, settings: Settings) -> bool:
    addresses = (settings.stores.redis, settings.stores.postgres)
    passwords = [urlsplit(address).password for address in addresses if address != EMBEDDED]
    text = configuration.read_text(encoding="utf-8", errors="replace")
    return any(password and password in text for password in passwords)


def provider_secrets(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Every provider that models use has a secret of ours."""
    served = {model.provider for model in settings.model}
    for provider in settings.provider:
        if provider.name not in served:
            continue
        try:
            provider_secret(provider, environ)
        except OperatorError as raised:
            yield of_error(raised)
        else:
            yield ok(f"{provider.name}: there is one")
