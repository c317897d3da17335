"""Certificates and terms of TLS as private CAs and old sinks have them: accepted, or named."""

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


class Made(NamedTuple):
    """How CA and certificate are made; by default as they should be."""

    plain: bool = False  # the CA has neither key usage nor identifiers, and nothing is critical
    bits: int = 2048
    starts: int = -1  # days from now
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH


def write(path: Path, made: Made) -> None:
    """Write ca.pem and server.pem, a certificate of this CA for 127.0.0.1 with its key."""
    authority = rsa.generate_private_key(65537, 2048)
    key = rsa.generate_private_key(65537, made.bits)
    now = datetime.now(UTC)

    def builder(name: str, public: rsa.RSAPublicKey, starts: int) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "company")]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=starts))
            .not_valid_after(now + timedelta(days=90))
        )

    ca = builder("company", authority.public_key(), -1)
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=None), not made.plain)
    leaf = builder("sink", key.public_key(), made.starts)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = leaf.add_extension(names, critical=False)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([made.usage]), critical=False)
    (path / "ca.pem").write_bytes(ca.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM))
    (path / "server.pem").write_bytes(
        leaf.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


@contextmanager
def server(path: Path, terms: Callable[[ssl.SSLContext], object]) -> Iterator[int]:
    """Listen on a port of 127.0.0.1; asyncio's own server closes without an alert."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_cert_chain(path / "server.pem")
    terms(context)

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
    """Let default contexts be those of Python 3.13 on each Python."""
    create = ssl.create_default_context

    def created(*arguments: object, **options: object) -> ssl.SSLContext:
        context = create(*arguments, **options)  # type: ignore[arg-type]  # passed on as it is
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", created)


@pytest.mark.usefixtures("strict")
async def test_a_ca_that_is_not_made_by_the_letter_of_the_standard_is_trusted(
    tmp_path: Path,
) -> None:
    """As those of firewalls that inspect TLS often are."""
    write(tmp_path, Made(plain=True))
    file = str(tmp_path / "ca.pem")
    with server(tmp_path, lambda _: None) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(port, ssl.create_default_context(cafile=file))
        await connect(port, trusted(Path(file)))
        for setting in ("WebSinkCAFile", "TrustedCAFile"):
            await connect(port, SinkTls(settings(port, **{setting: file})).context())


def only_old_ciphers(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-SHA:@SECLEVEL=0")


@pytest.mark.parametrize(
    ("made", "terms", "what", "remedy"),
    [
        (Made(starts=1), None, "is not valid yet", "check the clocks"),
        (Made(bits=1024), None, "is not accepted: EE certificate key too weak", "issue another"),
        (
            Made(usage=ExtendedKeyUsageOID.CLIENT_AUTH),
            None,
            "is not accepted: unsuitable certificate purpose",
            "issue another",
        ),
        (Made(), only_old_ciphers, "uses TLS, but no common version or cipher", "TLS 1.2"),
    ],
)
async def test_what_is_wrong_with_a_certificate_or_terms_is_not_taken_for_an_unknown_ca(
    made: Made,
    terms: Callable[[ssl.SSLContext], object] | None,
    what: str,
    remedy: str,
    tmp_path: Path,
) -> None:
    write(tmp_path, made)
    with server(tmp_path, terms or (lambda _: None)) as port:
        given = settings(port, WebSinkCAFile=str(tmp_path / "ca.pem"))
        with pytest.raises(ssl.SSLError) as error:
            await connect(port, SinkTls(given).context())
    found = causes.of_sink(error.value, given)
    assert what in found.what
    assert f"127.0.0.1:{port}" in found.what
    assert remedy in found.remedy
