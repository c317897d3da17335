"""Every response of a sink has one outcome, and none of them loses an event."""

import asyncio
import math
import re
import ssl
import time
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from forwarder.errors import FaultError, MisconfiguredError, Rejected, RetryableError
from forwarder.sink.response import classify
from support import events
from support.inprocess import delivering
from support.webhook import Response, Webhook

ONE_PER_POST = {"WebSinkMaxEvents": "1", "WebSinkConcurrency": "100"}
"""One event per POST, all at once."""
ACCEPTED = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

Respond = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def new_message(number: int) -> events.Message:
    """Return a message of this many small events."""
    return next(events.messages(number, per_message=number, events=events.typical_events()))


def authorizations(webhook: Webhook) -> list[str | None]:
    return [post.headers.get("Authorization") for post in webhook.posts]


@asynccontextmanager
async def raw_sink(respond: Respond) -> AsyncIterator[str]:
    """Accept connections, read one request from each and call `respond`; yield the URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            await respond(await reader.readexactly(int(length[1] if length else 0)), writer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/k8s_audit"


def test_each_status_has_one_outcome() -> None:
    outcomes: dict[type[Exception] | None, set[int]] = {}
    for status in range(200, 600):
        try:
            classify(status, b"", "")
        except (Rejected, RetryableError) as error:
            outcomes.setdefault(type(error), set()).add(status)
        else:
            outcomes.setdefault(None, set()).add(status)
    misconfigured = outcomes.pop(MisconfiguredError)
    assert outcomes == {
        None: {*range(200, 300)},
        FaultError: {500, 501, 505},
        RetryableError: {408, 425, 429, *range(500, 600)} - {500, 501, 505},
        Rejected: {400, 413, 415, 422},
    }
    assert misconfigured >= {*range(300, 400), 401, 403, 404, 405, 410}


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_2xx_status_accepts_the_events(
    webhook: Webhook, tmp_path: Path, status: int
) -> None:
    webhook.rule = lambda _: status
    message = new_message(3)
    async with delivering(webhook.url, tmp_path, **ONE_PER_POST) as delivery:
        await delivery.submit(message.body)
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 3}
        assert await delivery.total("posts_total", status=str(status)) == 3
        assert await delivery.total("post_seconds_count") == 3
    assert webhook.statuses == {status: 3}


async def test_events_that_a_busy_or_failing_sink_did_not_accept_are_retried(
    webhook: Webhook, tmp_path: Path
) -> None:
    busy = [408, 425, 429, 500, 502, 503, 504, 599]
    responses: list[Response | int] = [
        *busy,
        Response(429, {"Retry-After": "0"}),
        Response(429, {"Retry-After": "Mon, 23 Nov 2026 09:14:10 GMT"}),
        Response(503, {"Retry-After": "soon"}),
        Response(drop=True),
        Response(delay=math.inf),
    ]
    message = new_message(len(responses))
    pending = dict(zip(message.events, responses, strict=True))
    webhook.rule = lambda post: pending.pop(post.body, None)
    async with delivering(webhook.url, tmp_path, WebSinkTimeout="0.5", **ONE_PER_POST) as delivery:
        await delivery.submit(message.body)
        await delivery.drain()
        samples = await delivery.metrics()
        assert await delivery.outcomes() == {"delivered": len(responses)}
        assert delivery.dead_letters() == []
    assert webhook.accepted == {events.key(event): 1 for event in message.events}
    expected = Counter(map(str, [*busy, 429, 429, 503])) + Counter(timeout=1, connection=1)
    assert {
        dict(labels)["reason"]: value
        for (name, labels), value in samples.items()
        if name == "aks_audit_post_retries_total"
    } == expected
    assert samples.total("aks_audit_posts_total", status="error") == 2
    assert samples.total("aks_audit_posts_total", status="429") == 3
    assert samples.total("aks_audit_posts_total", status="200") == len(responses)


_SLOW_CLOCK = {
    "Date": "Mon, 23 Nov 2099 09:14:10 GMT",
    "Retry-After": "Mon, 23 Nov 2099 09:14:11 GMT",
}


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, _SLOW_CLOCK])
async def test_retry_after_delays_the_retry(
    webhook: Webhook, tmp_path: Path, status: int, headers: dict[str, str]
) -> None:
    webhook.responses.append(Response(status, headers))
    async with delivering(webhook.url, tmp_path, **ONE_PER_POST) as delivery:
        await delivery.submit(new_message(1).body)
        await delivery.drain()
    first, second = webhook.posts
    assert second.at - first.at >= 1


def test_retry_after_is_limited_to_five_minutes() -> None:
    with pytest.raises(RetryableError) as caught:
        classify(429, b"", "3600")
    assert caught.value.after == 300


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 200 OK\r\nX-Large: %b\r\n\r\n" % (b"x" * 100_000),
    ],
    ids=["empty", "status line", "bad chunk", "ssh", "tls alert", "large header"],
)
async def test_a_response_that_is_not_http_is_retried(tmp_path: Path, response: bytes) -> None:
    posted: list[bytes] = []

    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        posted.append(body)
        writer.write(response if len(posted) == 1 else ACCEPTED)

    message = new_message(1)
    async with raw_sink(respond) as url, delivering(url, tmp_path, **ONE_PER_POST) as delivery:
        await delivery.submit(message.body)
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 1}
        assert await delivery.total("posts_total", status="error") == 1
        assert await delivery.total("post_retries_total", reason="connection") == 1
    assert posted == [*message.events] * 2


async def test_an_unreachable_sink_receives_every_event_after_it_recovers(
    webhook: Webhook, tmp_path: Path
) -> None:
    await webhook.stop()
    message = new_message(30)
    async with delivering(webhook.url, tmp_path, WebSinkMaxEvents="10") as delivery:
        await delivery.submit(message.body)
        await delivery.until(lambda: delivery.entries("sink down"))
        assert await delivery.total("sink_up") == 0
        assert "refuses connections" in delivery.entries("sink down")[0]["reason"]
        assert await delivery.total("posts_total", status="error") >= 3
        await webhook.start()
        await delivery.drain()
        assert await delivery.total("sink_up") == 1
        assert len(delivery.entries("sink down")) == len(delivery.entries("sink up")) == 1
        assert await delivery.outcomes() == {"delivered": 30}
    assert webhook.accepted == {events.key(event): 1 for event in message.events}


async def test_a_timeout_of_the_sink_is_logged_with_its_setting(
    webhook: Webhook, tmp_path: Path
) -> None:
    webhook.rule = lambda _: Response(delay=math.inf)
    async with delivering(webhook.url, tmp_path, WebSinkTimeout="0.2", **ONE_PER_POST) as delivery:
        await delivery.submit(new_message(3).body)
        await delivery.until(lambda: delivery.entries("sink down"))
        reason = delivery.entries("sink down")[0]["reason"]
        assert reason.startswith("no answer in 0.2 s; ")
        assert "see WebSinkTimeout" in reason
        webhook.rule = None
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 3}


@pytest.mark.parametrize("head", [b"", b"Content-Length: 1000000000000\r\n"])
async def test_an_endless_response_body_is_not_read_completely(tmp_path: Path, head: bytes) -> None:
    written, posted = 0, 0

    async def respond(_: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal written, posted
        posted += 1
        writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n" % head)
        while True:
            writer.write(bytes(65_536))
            await writer.drain()
            written += 65_536

    async with raw_sink(respond) as url, delivering(url, tmp_path, **ONE_PER_POST) as delivery:
        for _ in range(2):
            await delivery.submit(new_message(1).body)
            await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 2}
        assert await delivery.total("post_retries_total") == 0
    assert posted == 2
    assert written < 32 * 2**20  # what the sockets of two requests buffer


@pytest.mark.parametrize("status", [400, 413, 415, 422])
async def test_a_rejected_list_is_halved_until_the_bad_events_are_isolated(
    webhook: Webhook, tmp_path: Path, status: int
) -> None:
    message = new_message(64)
    bad = [message.events[17], message.events[63]]
    webhook.rule = lambda post: (
        Response(status, body="bad \n event" + "!" * 10_000)
        if any(event in post.body for event in bad)
        else None
    )
    async with delivering(webhook.url, tmp_path) as delivery:
        await delivery.submit(b'{"records":[]}')
        await delivery.submit(message.body)
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 62, "dead_lettered": 2}
        assert await delivery.total("post_retries_total") == 0
        assert await delivery.total("sink_up") == 1
        records = delivery.dead_letters()
    assert webhook.accepted == {
        events.key(event): 1 for event in message.events if event not in bad
    }
    assert [record["body"].encode() for record in records] == bad
    for record in records:
        assert record["reason"].startswith(f"refused by the sink: {status} bad event!")
        assert len(record["reason"]) < 300
        assert (record["partition"], record["sequenceNumber"]) == ("0", 1)
    assert len(webhook.posts) <= 1 + 2 * 2 * math.log2(64)


REMEDIES = {
    **dict.fromkeys((301, 302, 307, 308), "never followed; give the final address as WebSinkURL"),
    401: "wants credentials; see WebSinkTokenFile, WebSinkHeaders",
    403: "forbids this client; see WebSinkTokenFile, WebSinkHeaders",
    404: "nothing at this path; correct the path in WebSinkURL",
    405: "takes no POST; correct the path in WebSinkURL",
    410: "is gone; correct the path in WebSinkURL",
    418: "see WebSinkURL",
}


@pytest.mark.parametrize("status", REMEDIES)
async def test_a_misconfigured_sink_is_retried_and_its_remedy_is_logged(
    webhook: Webhook, tmp_path: Path, status: int
) -> None:
    elsewhere = webhook.url.replace("k8s_audit", "elsewhere")
    webhook.rule = lambda _: Response(status, {"Location": elsewhere}, body="other")
    message = new_message(20)
    async with delivering(webhook.url, tmp_path, WebSinkMaxEvents="5") as delivery:
        await delivery.submit(message.body)
        await webhook.until(lambda: webhook.statuses[status] >= 4)
        assert [entry["level"] for entry in delivery.entries("sink down")] == ["error"]
        reason = delivery.entries("sink down")[0]["reason"]
        assert reason.startswith(f"{status}: " if status in {401, 403} else f"{status} other: ")
        assert REMEDIES[status] in reason
        assert await delivery.total("sink_up") == 0
        assert await delivery.total("post_retries_total", reason=str(status)) >= 3
        webhook.rule = None
        await delivery.drain()
        assert await delivery.total("sink_up") == 1
        assert await delivery.outcomes() == {"delivered": 20}
        assert delivery.dead_letters() == []
    assert webhook.accepted == {events.key(event): 1 for event in message.events}
    assert {(post.method, post.path) for post in webhook.posts} == {("POST", "/k8s_audit")}


@pytest.mark.parametrize("max_events", ["1", "100"])
async def test_a_sink_that_rejects_everything_causes_a_fixed_number_of_dead_letters(
    webhook: Webhook, tmp_path: Path, max_events: str
) -> None:
    webhook.rule = lambda _: 400
    message = new_message(40)
    variables = {"WebSinkMaxRejects": "6", "WebSinkMaxEvents": max_events}
    async with delivering(webhook.url, tmp_path, **variables) as delivery:
        await delivery.submit(message.body)
        await delivery.until(lambda: delivery.entries("sink down"))
        assert "WebSinkMaxRejects" in delivery.entries("sink down")[0]["reason"]
        assert await delivery.total("sink_up") == 0
        posts = len(webhook.posts)
        await webhook.until(lambda: len(webhook.posts) > posts + 1)
        await delivery.until(lambda: len(delivery.dead_letters()) >= 6)
        assert len(delivery.dead_letters()) == 6
        assert await delivery.total("post_retries_total", reason="rejects") > 0
        webhook.rule = None
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 34, "dead_lettered": 6}
        records = [record["body"].encode() for record in delivery.dead_letters()]
    assert sorted([*webhook.bytes.values(), *records]) == sorted(message.events)
    assert webhook.duplicates == 0


async def test_rejections_between_acceptances_do_not_count_as_misconfiguration(
    webhook: Webhook, tmp_path: Path
) -> None:
    message = new_message(30)
    bad = {event for index, event in enumerate(message.events) if index % 3}
    webhook.rule = lambda post: 400 if post.body in bad else None
    variables = {"WebSinkMaxRejects": "2", "WebSinkMaxEvents": "1", "WebSinkConcurrency": "1"}
    async with delivering(webhook.url, tmp_path, **variables) as delivery:
        await delivery.submit(message.body)
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 10, "dead_lettered": 20}
        assert not delivery.entries("sink down")


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return path


def server_tls(ca: trustme.CA, host: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(host).configure_cert(context)
    return context


async def test_https_with_a_custom_ca(ca: trustme.CA, ca_file: Path, tmp_path: Path) -> None:
    async with (
        Webhook(tls=server_tls(ca)) as webhook,
        delivering(webhook.url, tmp_path, WebSinkCAFile=str(ca_file)) as delivery,
    ):
        await delivery.submit(new_message(3).body)
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 3}


@pytest.mark.parametrize("mismatch", ["ca", "host"])
async def test_an_untrusted_sink_certificate_is_refused_and_logged(
    ca: trustme.CA, ca_file: Path, tmp_path: Path, mismatch: str
) -> None:
    tls = server_tls(ca, "sink.example") if mismatch == "host" else server_tls(trustme.CA())
    async with (
        Webhook(tls=tls) as webhook,
        delivering(webhook.url, tmp_path, WebSinkCAFile=str(ca_file), **ONE_PER_POST) as delivery,
    ):
        await delivery.submit(new_message(3).body)
        await delivery.until(lambda: delivery.entries("sink down"))
        message = {"ca": "is signed by an unknown CA", "host": "is for another name"}[mismatch]
        assert message in delivery.entries("sink down")[0]["reason"]
        assert await delivery.total("sink_up") == 0
        assert not webhook.posts
        assert not delivery.dead_letters()


async def test_a_missing_client_certificate_is_logged_with_its_settings(
    ca: trustme.CA, ca_file: Path, tmp_path: Path
) -> None:
    tls = server_tls(ca)
    tls.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(tls)
    async with (
        Webhook(tls=tls) as webhook,
        delivering(webhook.url, tmp_path, WebSinkCAFile=str(ca_file), **ONE_PER_POST) as delivery,
    ):
        await delivery.submit(new_message(3).body)
        await delivery.until(lambda: delivery.entries("sink down"))
        assert (
            "set WebSinkCertFile and WebSinkKeyFile" in delivery.entries("sink down")[0]["reason"]
        )


@pytest.mark.parametrize("has_certificate", [True, False])
async def test_a_sink_that_requires_a_client_certificate_accepts_only_clients_with_one(
    ca: trustme.CA, ca_file: Path, tmp_path: Path, *, has_certificate: bool
) -> None:
    tls = server_tls(ca)
    tls.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(tls)
    client = ca.issue_cert("forwarder")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(part.bytes() for part in client.cert_chain_pems))
    client.private_key_pem.write_to_path(key)
    variables = {"WebSinkCAFile": str(ca_file)}
    if has_certificate:
        variables |= {"WebSinkCertFile": str(certificate), "WebSinkKeyFile": str(key)}
    async with (
        Webhook(tls=tls) as webhook,
        delivering(webhook.url, tmp_path, **variables, **ONE_PER_POST) as delivery,
    ):
        await delivery.submit(new_message(3).body)
        if has_certificate:
            await delivery.drain()
            assert await delivery.outcomes() == {"delivered": 3}
        else:
            await delivery.until(lambda: delivery.entries("sink down"))
            assert webhook.posts == []


async def test_a_changed_token_file_is_reloaded(webhook: Webhook, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first-token\n")
    async with delivering(webhook.url, tmp_path, WebSinkTokenFile=str(token)) as delivery:
        await delivery.submit(new_message(1).body)
        await delivery.drain()
        replaced = tmp_path / "replaced"
        replaced.write_text("other-token")
        replaced.replace(token)  # as the kubelet does
        await delivery.submit(new_message(1).body)
        await delivery.drain()
        token.unlink()
        for _ in range(3):
            await delivery.submit(new_message(1).body)
            await delivery.drain()
        assert len(delivery.entries("token file cannot be read")) == 1
        assert "-token" not in delivery.output
    assert authorizations(webhook) == ["Bearer first-token", *["Bearer other-token"] * 4]


async def test_each_post_has_the_extra_headers_and_the_exact_content_type(
    webhook: Webhook, tmp_path: Path
) -> None:
    headers = '{"X-Cluster": "prod", "Authorization": "Splunk s3cret"}'
    async with delivering(webhook.url, tmp_path, WebSinkHeaders=headers) as delivery:
        await delivery.submit(new_message(1).body)
        await delivery.drain()
        assert "s3cret" not in delivery.output
    sent = webhook.posts[0].headers
    assert sent["Content-Type"] == "application/json"
    assert (sent["X-Cluster"], sent["Authorization"]) == ("prod", "Splunk s3cret")


async def test_a_user_in_the_url_becomes_basic_authentication_and_is_never_logged(
    webhook: Webhook, tmp_path: Path
) -> None:
    url = webhook.url.replace("//", "//falco:pa%40ss@") + "?key=abc"
    async with delivering(url, tmp_path, VerboseLevel="4", **ONE_PER_POST) as delivery:
        webhook.rule = lambda _: 401
        await delivery.submit(new_message(3).body)
        await delivery.until(lambda: delivery.entries("sink down"))
        webhook.rule = None
        await delivery.drain()
        assert {entry["url"] for entry in delivery.entries("post")} == {webhook.url}
        assert not any(secret in delivery.output for secret in ("falco", "pa%40ss", "pa@ss", "abc"))
    assert set(authorizations(webhook)) == {"Basic " + b64encode(b"falco:pa@ss").decode()}


@pytest.mark.parametrize(
    ("source", "status"), [("token", 401), ("token", 302), ("url", 403), ("headers", 503)]
)
async def test_credentials_echoed_by_the_sink_reach_neither_the_log_nor_dead_letters(
    webhook: Webhook, tmp_path: Path, source: str, status: int
) -> None:
    token = tmp_path / "token"
    token.write_text("s3cr3t-token")
    url = webhook.url.replace("//", "//falco:s3cr3t@") if source == "url" else webhook.url
    variables = {
        "token": {"WebSinkTokenFile": str(token)},
        "url": {},
        "headers": {"WebSinkHeaders": '{"Authorization": "Splunk s3cr3t-key"}'},
    }[source]
    message = new_message(4)
    webhook.rule = lambda post: Response(
        400 if post.body == message.events[0] else status,
        body=f"not for {post.headers['Authorization']}",
    )
    async with delivering(url, tmp_path, **variables, **ONE_PER_POST) as delivery:
        await delivery.submit(message.body)
        await delivery.until(lambda: delivery.entries("sink down") and delivery.dead_letters())
        shown = delivery.output + str(delivery.dead_letters())
    assert "not for" in shown
    for authorization in authorizations(webhook):
        assert str(authorization).split()[1] not in shown


class Secret:
    """A Secret as the kubelet mounts it: an update swaps a symbolic link."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._versions = 0

    @property
    def settings(self) -> dict[str, str]:
        names = {
            "WebSinkCAFile": "ca.crt",
            "WebSinkCertFile": "tls.crt",
            "WebSinkKeyFile": "tls.key",
        }
        return {name: str(self._folder / "..data" / file) for name, file in names.items()}

    def write(self, ca: trustme.CA, expiry: datetime | None = None) -> None:
        """Write the CA and a client certificate that it issued."""
        self._versions += 1
        version = self._folder / f"..{self._versions}"
        version.mkdir()
        client = ca.issue_cert("forwarder", not_after=expiry)
        ca.cert_pem.write_to_path(version / "ca.crt")
        (version / "tls.crt").write_bytes(b"".join(one.bytes() for one in client.cert_chain_pems))
        client.private_key_pem.write_to_path(version / "tls.key")
        link = self._folder / "..data_tmp"
        link.symlink_to(version.name)
        link.replace(self._folder / "..data")

    def encrypt(self) -> None:
        """Encrypt the key with a pass phrase."""
        file = Path(self.settings["WebSinkKeyFile"])
        key = load_pem_private_key(file.read_bytes(), None)
        encrypted = BestAvailableEncryption(b"a pass phrase")
        form = Encoding.PEM, PrivateFormat.TraditionalOpenSSL
        file.write_bytes(key.private_bytes(*form, encrypted))


def client_tls(ca: trustme.CA) -> ssl.SSLContext:
    context = server_tls(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    return context


async def test_renewed_certificates_are_reloaded(tmp_path: Path) -> None:
    old, new, secret = trustme.CA(), trustme.CA(), Secret(tmp_path)
    secret.write(old)
    async with (
        Webhook(tls=client_tls(old)) as webhook,
        delivering(webhook.url, tmp_path / "state", **secret.settings) as delivery,
    ):
        await delivery.submit(new_message(3).body)
        await delivery.drain()
        await webhook.stop()
        webhook.tls = client_tls(new)
        await webhook.start()
        await delivery.submit(new_message(3).body)
        await delivery.wait_for("sink down")
        secret.write(new)
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 6}
        assert await delivery.total("sink_up") == 1


async def test_an_encrypted_renewed_key_does_not_prompt_for_its_pass_phrase(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ca, secret = trustme.CA(), Secret(tmp_path)
    secret.write(ca)
    async with (
        Webhook(tls=client_tls(ca)) as webhook,
        delivering(webhook.url, tmp_path / "state", **secret.settings) as delivery,
    ):
        secret.encrypt()
        await delivery.submit(new_message(3).body)
        await delivery.wait_for("sink certificate files cannot be read")
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 3}
    assert "pass phrase" not in capfd.readouterr().err


async def test_an_expiring_client_certificate_is_logged_with_its_date(tmp_path: Path) -> None:
    ca, secret = trustme.CA(), Secret(tmp_path)
    expiry = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    secret.write(ca, expiry)
    async with (
        Webhook(tls=client_tls(ca)) as webhook,
        delivering(webhook.url, tmp_path / "state", **secret.settings) as delivery,
    ):
        file = secret.settings["WebSinkCertFile"]
        name = "tls_certificate_expiry_seconds"
        assert await delivery.total(name, file=file) == expiry.timestamp()
        year = timedelta(days=365).total_seconds()
        assert (
            await delivery.total(name, file=secret.settings["WebSinkCAFile"]) > time.time() + year
        )
        await delivery.submit(new_message(3).body)
        await delivery.drain()
        (entry,) = delivery.entries("client certificate expires")
        date = f"{expiry:%FT%TZ}"
        assert entry["reason"] == f"the client certificate in {file} expires on {date}"
        await asyncio.sleep(3)
        await webhook.stop()
        await webhook.start()
        await delivery.submit(new_message(3).body)
        down = await delivery.wait_for("sink down")
        assert down["reason"].startswith(f"the client certificate in {file} has expired on {date}")
        secret.write(ca)
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 6}
        assert await delivery.total(name, file=file) > time.time() + year


async def test_https_with_a_ca_in_trusted_ca_file(
    ca: trustme.CA, ca_file: Path, tmp_path: Path
) -> None:
    async with (
        Webhook(tls=server_tls(ca)) as webhook,
        delivering(webhook.url, tmp_path, TrustedCAFile=str(ca_file)) as delivery,
    ):
        await delivery.submit(new_message(3).body)
        await delivery.drain()
        assert await delivery.outcomes() == {"delivered": 3}
