"""TLS on both sides. Certificates of our own listeners are read, tried, and replaced while connections go on.

TLS 1.2 or newer, Python's own choice of ciphers (all with forward secrecy), and HTTP/1.1 as the one protocol. A pair of
files is tried before it is used, by shaking hands with ourselves as a client would: what no client could accept never
gets as far as a listener. A key never appears in an error.
"""

import contextlib
import ssl
import stat
from pathlib import Path
from typing import Any

from edgeproxy.config import Listen, Provider, certificate_files
from edgeproxy.errors import OperatorError

_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
_MISMATCH = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED")  # the latter for keys of different kinds


class Certificates:
    """The certificate of one listener, `api` or `web`, if it has one.

    `context` is the listener's for good, None where plain HTTP is spoken. The certificate that a new connection gets is
    looked up in the middle of its handshake, so that replacing it is one assignment: never is half of a new pair
    served, and no connection ends.
    """

    def __init__(self, listen: Listen, name: str) -> None:
        """Read and try the files. Raises OperatorError."""
        self._name = name
        self.context: ssl.SSLContext | None = None
        if any(certificate_files(listen, name)):
            self._latest = _load(listen, name)
            self.context = _bare_context()
            self.context.sni_callback = self._choose  # also called for a client that names no server

    def reload(self, listen: Listen) -> None:
        """Serve what the files hold now to new connections. Raises OperatorError, and changes nothing then."""
        if any(certificate_files(listen, self._name)) != (self.context is not None):
            raise OperatorError(f"listen.{self._name}: changing between http and https needs a restart")
        if self.context is not None:
            self._latest = _load(listen, self._name)

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._latest


def _bare_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load(listen: Listen, name: str) -> ssl.SSLContext:
    """Return a context with the pair of a listener. Raises OperatorError."""
    certificate, key = certificate_files(listen, name)
    where = f"listen.{name}_certificate {certificate} and its key {key}"
    _check_files(name, Path(certificate), Path(key))
    context = _bare_context()
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        reason = "are no certificate and private key in PEM, not encrypted; check both files"
        if error.reason in _MISMATCH:
            reason = "do not belong together; name the key that the certificate was made for"
        elif error.reason:
            reason = f"cannot be used ({error.reason}); make new ones"
        raise OperatorError(f"{where} {reason}") from None
    client = unnamed_client()
    try:
        client.load_verify_locations(certificate)
        seen_by(client, context)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _EXPIRED:
            raise OperatorError(f"listen.{name}_certificate {certificate} has expired; renew it") from None
        if error.verify_code == _NOT_YET_VALID:
            raise OperatorError(f"listen.{name}_certificate {certificate} is not valid yet; check the clock") from None
        raise OperatorError(f"{where} would be refused by clients: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise OperatorError(f"{where} cannot be used ({error.reason}); make new ones") from None
    return context


def _check_files(name: str, certificate: Path, key: Path) -> None:
    """Refuse what cannot be read, and a key that others can read. Raises OperatorError."""
    for setting, path in ((f"listen.{name}_certificate", certificate), (f"listen.{name}_private_key", key)):
        try:
            with path.open("rb"):
                mode = path.stat()
        except OSError as error:
            raise OperatorError(f"{setting}: cannot read {path} ({error.strerror})") from None
    # As PostgreSQL has it: a key of root's may be shared with a group, such as Debian's ssl-cert.
    allowed = 0o740 if mode.st_uid == 0 else 0o700
    if stat.S_IMODE(mode.st_mode) & ~allowed:
        raise OperatorError(f"listen.{name}_private_key {key} is open to other users; run: chmod 600 '{key}'")


def _no_password() -> bytes:
    """Answer OpenSSL, which would otherwise ask on the terminal."""
    return b""


def for_provider(provider: Provider) -> ssl.SSLContext:
    """Return what checks a provider's certificate: its name, its dates, who signed it. Raises OperatorError."""
    try:
        return ssl.create_default_context(cafile=provider.ca_file or None)
    except OSError:  # no such file, or no certificate in it
        where = f"provider {provider.name!r}: no certificates in ca_file {provider.ca_file}"
        raise OperatorError(f"{where}; name a PEM file with those to trust") from None


def unnamed_client() -> ssl.SSLContext:
    """Return a client that trusts nobody yet, and takes any name: only real clients know what they call us."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # what it trusts need not be a root
    return context


def seen_by(client: ssl.SSLContext, listener: ssl.SSLContext) -> dict[str, Any]:
    """Shake hands with ourselves, with no network in between; return the certificate as the client gets it.

    Raises ssl.SSLCertVerificationError when the client refuses it, ssl.SSLError when there is no understanding.
    """
    to_listener, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_listener)
    there = listener.wrap_bio(to_listener, to_client, server_side=True)
    for side in (here, there, here):  # hello; answer with the certificate; verdict
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return here.getpeercert() or {}
