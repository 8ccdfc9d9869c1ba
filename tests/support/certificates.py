"""Certificates for tests: of an authority that nobody knows, or of their own, for as long and as what is wanted."""

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from edgeproxy.config import Listen

DAY = dt.timedelta(days=1)
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path
    serial: int

    def settings(self, name: str = "api") -> dict[str, str]:
        """The settings of a listener that uses it."""
        return {f"{name}_certificate": str(self.certificate), f"{name}_private_key": str(self.key)}

    def listen(self, name: str = "api") -> Listen:
        """The same, as a table of its own."""
        return Listen(**self.settings(name))

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        """A client that trusts it."""
        return ssl.create_default_context(cafile=str(self.certificate))


def make_pair(
    folder: Path,
    name: str = "own",
    *,
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
    begins: dt.timedelta = -DAY,
    ends: dt.timedelta = DAY,
    purpose: ObjectIdentifier = SERVER,
    rsa_bits: int = 0,
) -> Pair:
    """Write a certificate that signs itself, valid from and until so long from now."""
    key = rsa.generate_private_key(65537, rsa_bits) if rsa_bits else ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    serial = x509.random_serial_number()
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), serial, now + begins, now + ends)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key", serial)
    write_key(pair.key, key)
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return pair


def write_key(
    path: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, password: bytes = b"", mode: int = 0o600
) -> None:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    encoded = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    path.write_bytes(encoded)
    path.chmod(mode)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
