"""Certificates: what cannot be served is one line, and what is served can be replaced while connections go on."""

import os
import re
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from edgeproxy.config import Listen, Provider
from edgeproxy.errors import OperatorError
from edgeproxy.tls import Certificates, for_provider, seen_by, unnamed_client
from tests.support.certificates import CLIENT, DAY, Pair, make_pair, write_key


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path)


def refusal(listen: Listen, name: str = "api") -> str:
    with pytest.raises(OperatorError) as caught:
        Certificates(listen, name)
    line = str(caught.value)
    assert line.isprintable()
    assert "PRIVATE KEY" not in line
    return line


def greeted(server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLObject:
    """Shake hands in memory and exchange a word; return the client's side."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    accepted = server.wrap_bio(to_server, to_client, server_side=True)
    connected = client.wrap_bio(to_client, to_server, server_hostname="localhost", session=session)
    for step in (connected.do_handshake, accepted.do_handshake, connected.do_handshake, accepted.do_handshake):
        try:
            step()
        except ssl.SSLWantReadError:
            continue
    accepted.write(b"hello")
    assert connected.read(10) == b"hello"
    return connected


def serial(connection: ssl.SSLObject) -> int:
    certificate = connection.getpeercert()
    assert certificate is not None
    return int(str(certificate["serialNumber"]), 16)


@pytest.mark.parametrize("name", ["api", "web"])
def test_a_good_pair_is_served(pair: Pair, name: str) -> None:
    certificates = Certificates(pair.listen(name), name)
    assert certificates.context is not None
    assert serial(greeted(certificates.context, pair.client_context())) == pair.serial


def test_without_files_there_is_no_tls() -> None:
    assert Certificates(Listen(), "api").context is None


def test_keys_of_rsa_are_served_too(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, rsa_bits=2048)
    context = Certificates(pair.listen(), "api").context
    assert context is not None
    assert serial(greeted(context, pair.client_context())) == pair.serial


def test_certificate_and_key_may_be_in_one_file(pair: Pair) -> None:
    pair.key.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    both = str(pair.key)
    context = Certificates(Listen(api_certificate=both, api_private_key=both), "api").context
    assert context is not None
    greeted(context, pair.client_context())


# --- what is spoken


@pytest.mark.claims("OL-4a")
def test_tls_1_2_is_spoken_and_nothing_older(pair: Pair) -> None:
    context = Certificates(pair.listen(), "api").context
    assert context is not None
    client = pair.client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert greeted(context, client).version() == "TLSv1.2"
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_every_cipher_keeps_what_was_said_secret_when_the_key_leaks(pair: Pair) -> None:
    context = Certificates(pair.listen(), "api").context
    assert context is not None
    assert all(re.match("TLS_|ECDHE|DHE", cipher["name"]) for cipher in context.get_ciphers())


@pytest.mark.parametrize(("offered", "chosen"), [(["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)])
def test_http_1_1_is_the_only_protocol(pair: Pair, offered: list[str], chosen: str | None) -> None:
    context = Certificates(pair.listen(), "api").context
    assert context is not None
    client = pair.client_context()
    if offered:
        client.set_alpn_protocols(offered)
    assert greeted(context, client).selected_alpn_protocol() == chosen


# --- what is refused


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    assert "has expired; renew it" in refusal(make_pair(tmp_path, begins=-2 * DAY, ends=-DAY).listen())


def test_a_certificate_of_the_future_is_refused(tmp_path: Path) -> None:
    assert "not valid yet; check the clock" in refusal(make_pair(tmp_path, begins=DAY, ends=2 * DAY).listen())


def test_a_certificate_for_something_else_is_refused(tmp_path: Path) -> None:
    assert "would be refused by clients" in refusal(make_pair(tmp_path, purpose=CLIENT).listen())


def test_a_key_that_is_too_small_is_refused(tmp_path: Path) -> None:
    assert "KEY_TOO_SMALL" in refusal(make_pair(tmp_path, rsa_bits=1024).listen())


@pytest.mark.parametrize("rsa_bits", [0, 2048])
def test_a_key_of_another_certificate_is_refused(tmp_path: Path, pair: Pair, rsa_bits: int) -> None:
    other = make_pair(tmp_path, "other", rsa_bits=rsa_bits)
    assert "do not belong together" in refusal(Pair(pair.certificate, other.key, 0).listen())


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_password(pair: Pair) -> None:
    write_key(pair.key, ec.generate_private_key(ec.SECP256R1()), b"password")
    assert "not encrypted" in refusal(pair.listen())


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\0" * 100, b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_pem_is_refused(pair: Pair, content: bytes) -> None:
    good = pair.certificate.read_bytes()
    pair.certificate.write_bytes(content)
    assert "check both files" in refusal(pair.listen())
    pair.certificate.write_bytes(good)
    pair.key.write_bytes(content)
    assert "check both files" in refusal(pair.listen())


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o660, 0o620, 0o677])
def test_a_key_that_others_can_read_or_change_is_refused_with_the_remedy(pair: Pair, mode: int) -> None:
    pair.key.chmod(mode)
    assert f"run: chmod 600 '{pair.key}'" in refusal(pair.listen())


def test_a_group_may_read_a_key_of_roots_only(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.key.chmod(0o640)
    if os.geteuid() != 0:
        assert "open to other users" in refusal(pair.listen())
        return
    Certificates(pair.listen(), "api")
    os.chown(pair.key, 65534, 65534)
    assert "open to other users" in refusal(pair.listen())


@pytest.mark.parametrize("missing", ["certificate", "key"])
def test_a_file_that_is_not_there_is_named(pair: Pair, missing: str) -> None:
    path = getattr(pair, missing)
    path.unlink()
    assert f"cannot read {path} (No such file or directory)" in refusal(pair.listen())


def test_the_setting_is_named(pair: Pair) -> None:
    pair.key.chmod(0o644)
    assert refusal(pair.listen("web"), "web").startswith("listen.web_private_key ")


def test_a_client_sees_the_certificate_or_says_why_not(pair: Pair, tmp_path: Path) -> None:
    context = Certificates(pair.listen(), "api").context
    assert context is not None
    client = unnamed_client()
    with pytest.raises(ssl.SSLCertVerificationError):
        seen_by(client, context)
    client.load_verify_locations(pair.certificate)
    assert ("DNS", "localhost") in seen_by(client, context)["subjectAltName"]
    with pytest.raises(ssl.SSLCertVerificationError):
        seen_by(client, make_pair(tmp_path, "other").server_context())


# --- reload


def test_a_reload_serves_the_new_pair_to_new_connections(pair: Pair, tmp_path: Path) -> None:
    certificates = Certificates(pair.listen(), "api")
    context = certificates.context
    assert context is not None
    old_client, first = pair.client_context(), pair.serial
    before = greeted(context, old_client)
    renewed = make_pair(tmp_path, ends=30 * DAY)  # the same files
    certificates.reload(renewed.listen())
    assert serial(greeted(context, renewed.client_context())) == renewed.serial != first
    assert serial(before) == first
    with pytest.raises(ssl.SSLCertVerificationError):
        greeted(context, old_client)


def test_a_reload_may_name_other_files(pair: Pair, tmp_path: Path) -> None:
    certificates = Certificates(pair.listen(), "api")
    other = make_pair(tmp_path, "other")
    certificates.reload(other.listen())
    assert certificates.context is not None
    greeted(certificates.context, other.client_context())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_that_comes_back_after_a_reload_is_served(pair: Pair, tmp_path: Path, version: ssl.TLSVersion) -> None:
    certificates = Certificates(pair.listen(), "api")
    assert certificates.context is not None
    client = pair.client_context()
    client.maximum_version = version
    session = greeted(certificates.context, client).session
    make_again = make_pair(tmp_path, "other")
    certificates.reload(make_again.listen())
    client.load_verify_locations(make_again.certificate)
    greeted(certificates.context, client, session)


@pytest.mark.parametrize("broken", ["certificate", "key"])
def test_a_reload_of_something_bad_changes_nothing(pair: Pair, broken: str) -> None:
    certificates = Certificates(pair.listen(), "api")
    client = pair.client_context()
    getattr(pair, broken).write_bytes(b"nonsense")
    with pytest.raises(OperatorError, match="check both files"):
        certificates.reload(pair.listen())
    assert certificates.context is not None
    assert serial(greeted(certificates.context, client)) == pair.serial


def test_a_reload_does_not_change_between_http_and_https(pair: Pair) -> None:
    with pytest.raises(OperatorError, match="restart"):
        Certificates(pair.listen(), "api").reload(Listen())
    with pytest.raises(OperatorError, match="restart"):
        Certificates(Listen(), "api").reload(pair.listen())
    Certificates(Listen(), "api").reload(Listen())


# --- providers


def test_a_provider_has_to_have_the_right_name_and_an_authority_that_is_trusted(pair: Pair) -> None:
    known = for_provider(Provider("own", base_url="https://localhost", ca_file=str(pair.certificate)))
    unknown = for_provider(Provider("other", base_url="https://localhost"))
    assert serial(greeted(pair.server_context(), known)) == pair.serial
    assert (known.verify_mode, known.check_hostname) == (ssl.CERT_REQUIRED, True)
    with pytest.raises(ssl.SSLCertVerificationError):
        greeted(pair.server_context(), unknown)


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_authorities_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "authorities.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OperatorError, match=f"provider 'own': no certificates in ca_file {path}"):
        for_provider(Provider("own", base_url="https://provider.example", ca_file=str(path)))
