"""Certificates and TLS settings of private CAs and old sinks are accepted, or reported."""

import asyncio
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import SHUT_RDWR, create_server
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from forwarder.config.network import trusted
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.sink.tls import SinkTls


class Issued(NamedTuple):
    """How CA and certificate are issued; the defaults are valid."""

    plain: bool = False  # the CA has no key usage, no identifiers and no critical extension
    bits: int = 2048
    not_before: int = -1  # days from now
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH


def write(path: Path, issued: Issued) -> None:
    """Write ca.pem, and server.pem: a certificate of this CA for 127.0.0.1 with its key."""
    authority = rsa.generate_private_key(65537, 2048)
    key = rsa.generate_private_key(65537, issued.bits)
    now = datetime.now(UTC)

    def builder(name: str, public: rsa.RSAPublicKey, not_before: int) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "company")]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=not_before))
            .not_valid_after(now + timedelta(days=90))
        )

    ca = builder("company", authority.public_key(), -1)
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=None), not issued.plain)
    leaf = builder("sink", key.public_key(), issued.not_before)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = leaf.add_extension(names, critical=False)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([issued.usage]), critical=False)
    (path / "ca.pem").write_bytes(ca.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM))
    (path / "server.pem").write_bytes(
        leaf.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


@contextmanager
def server(path: Path, configure: Callable[[ssl.SSLContext], object]) -> Iterator[int]:
    """Listen on a port of 127.0.0.1; asyncio's server would close without a TLS alert."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_cert_chain(path / "server.pem")
    configure(context)

    def serve(listening: ssl.SSLSocket) -> None:
        with suppress(OSError):
            while True:
                with suppress(ssl.SSLError):
                    listening.accept()[0].close()

    with context.wrap_socket(create_server(("127.0.0.1", 0)), server_side=True) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(SHUT_RDWR)
        thread.join()


def settings(port: int, **more: str) -> Settings:
    url = f"https://127.0.0.1:{port}/"
    return Settings.from_env({"EventHubNamespace": "a.example", "WebSinkURL": url, **more})


async def connect(port: int, context: ssl.SSLContext) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.transport.abort()


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make default contexts as strict as those of Python 3.13."""
    create = ssl.create_default_context

    def created(*arguments: object, **options: object) -> ssl.SSLContext:
        context = create(*arguments, **options)  # type: ignore[arg-type]  # passed through
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", created)


@pytest.mark.usefixtures("strict")
async def test_a_ca_that_violates_rfc_5280_is_trusted(tmp_path: Path) -> None:
    """CAs of firewalls that inspect TLS often do."""
    write(tmp_path, Issued(plain=True))
    file = str(tmp_path / "ca.pem")
    with server(tmp_path, lambda _: None) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(port, ssl.create_default_context(cafile=file))
        await connect(port, trusted(Path(file)))
        for setting in ("WebSinkCAFile", "TrustedCAFile"):
            await connect(port, SinkTls(settings(port, **{setting: file})).context())


def only_old_ciphers(context: ssl.SSLContext) -> None:
    """Accept only a cipher that clients never offer; Debian's Python still offers AES128-SHA."""
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("NULL-SHA256:@SECLEVEL=0")


@pytest.mark.parametrize(
    ("issued", "configure", "cause", "remedy"),
    [
        (Issued(not_before=1), None, "is not valid yet", "check the clocks"),
        (Issued(bits=1024), None, "is not accepted: EE certificate key too weak", "issue another"),
        (
            Issued(usage=ExtendedKeyUsageOID.CLIENT_AUTH),
            None,
            "is not accepted: unsuitable certificate purpose",
            "issue another",
        ),
        (Issued(), only_old_ciphers, "uses TLS, but no common version or cipher", "TLS 1.2"),
    ],
)
async def test_other_tls_errors_are_not_reported_as_an_unknown_ca(
    issued: Issued,
    configure: Callable[[ssl.SSLContext], object] | None,
    cause: str,
    remedy: str,
    tmp_path: Path,
) -> None:
    write(tmp_path, issued)
    with server(tmp_path, configure or (lambda _: None)) as port:
        given = settings(port, WebSinkCAFile=str(tmp_path / "ca.pem"))
        with pytest.raises(ssl.SSLError) as error:
            await connect(port, SinkTls(given).context())
    found = causes.of_sink(error.value, given)
    assert cause in found.what
    assert f"127.0.0.1:{port}" in found.what
    assert remedy in found.remedy
