"""Our listeners' certificates as clients will see them: a client shakes hands with each, with no network in between.

What a listener would refuse to start with is refused by the same code. Beyond that: how long it still holds, for which
names it is, and whether an authority that this machine knows vouches for it.
"""

import ssl
import time
from collections.abc import Iterator

from edgeproxy.checkup.findings import Finding, of_error, ok, warning
from edgeproxy.config import Listen, certificate_files
from edgeproxy.errors import OperatorError
from edgeproxy.tls import Certificates, seen_by, unnamed_client

_SOON_DAYS = 14
_DAY_S = 86_400


def certificates(listen: Listen) -> Iterator[Finding]:
    """Tell of the certificates of `api` and `web`, where they have one."""
    for name in ("api", "web"):
        try:
            context = Certificates(listen, name).context
        except OperatorError as raised:
            yield of_error(raised)
            continue
        if context is not None:
            yield from _judged(f"listen.{name}_certificate", certificate_files(listen, name)[0], context)


def _judged(setting: str, certificate: str, listener: ssl.SSLContext) -> Iterator[Finding]:
    trusting = unnamed_client()
    trusting.load_verify_locations(certificate)
    seen = seen_by(trusting, listener)
    names = ", ".join(value for _, value in seen.get("subjectAltName", ())) or "no name"
    left_days = int((ssl.cert_time_to_seconds(seen["notAfter"]) - time.time()) // _DAY_S)
    found = f"{setting} is for {names}, {left_days} days more"
    yield ok(found) if left_days >= _SOON_DAYS else warning(found, "renew it, and reload with SIGHUP")
    public = unnamed_client()
    public.load_default_certs()
    try:
        seen_by(public, listener)
    except ssl.SSLCertVerificationError:
        remedy = "add the intermediate certificates to the file, unless all clients trust another authority"
        yield warning(f"{setting} leads to no authority that this machine trusts", remedy)
