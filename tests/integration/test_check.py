"""`check` reports what works, what fails and why, and changes nothing."""

import asyncio
import functools
import json
import math
import os
import pty
import sqlite3
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from azure.core.exceptions import HttpResponseError
from azure.eventhub._pyamqp.error import AMQPLinkError
from azure.eventhub.exceptions import AuthenticationError, ConnectError

from forwarder.checkpoints.sqlite import EmbeddedCheckpointStore
from forwarder.commands.check.store import StoreCheck
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.redaction import redact
from support import events, stores
from support.azurite import azurite
from support.eventhubs import Server
from support.harness import free_port
from support.process import Forwarder
from support.webhook import Response, Webhook

HUB = "insights-logs-kube-audit"
CONNECTION_STRING = (
    "Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=reader;SharedAccessKey=a2V5"
)
OWN_HUB = f"--namespace-name ns --eventhub-name {HUB} --name "
OWN_POLICY = f"{OWN_HUB}reader"
Report = dict[str, dict[str, str]]


def fill(server: Server, count: int = 40) -> None:
    for number, message in enumerate(events.messages(count, per_message=10)):
        server.hubs[HUB].publish(number % 2, message.body)


def settings(server: Server, url: str, state: Path, **variables: str) -> dict[str, str]:
    return {
        "EhubNamespaceConnectionString": server.connection_string(),
        "WebSinkURL": url,
        "StateDirectory": str(state),
        **variables,
    }


async def check(environment: Mapping[str, str], *arguments: str) -> tuple[int, Report]:
    """Run `check`; return its exit status and its results by step."""
    async with Forwarder(environment, "check", "--json", *arguments) as command:
        status = await command.wait(62)
        assert command.stderr == ""
        report = json.loads("\n".join(command.lines))
    assert report["ok"] is (status == 0)
    return status, {step["step"]: step for step in report["steps"]}


def failed(report: Report) -> dict[str, str]:
    """Return the failures and warnings by step."""
    return {name: one["found"] for name, one in report.items() if one["state"] in ("FAIL", "warn")}


async def test_all_steps_succeed_and_nothing_is_changed(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    fill(server)
    async with azurite() as store:
        text = store.connection_string
        environment = settings(
            server, webhook.url, tmp_path / "state", BlobStorageConnectionString=text
        )
        status, report = await check(environment)
        assert (status, failed(report)) == (0, {})
        assert report["messages"]["found"].startswith("4 in the hub, no checkpoint; ")
        assert report["categories"]["found"] == "kube-audit 40 in 4 messages"
        assert report["store login"]["found"].endswith("not there yet, the forwarder creates it")
        async with stores.container(store) as container:
            assert not await container.exists()
    assert not (tmp_path / "state").exists()
    assert not server.receivers
    (post,) = webhook.posts
    assert json.loads(post.body)["items"] == []


@pytest.mark.parametrize("where", ["file", "account"])
async def test_a_running_forwarder_is_detected_and_not_affected(
    server: Server, webhook: Webhook, tmp_path: Path, where: str
) -> None:
    async with azurite() as store:
        more = (
            {"BlobStorageConnectionString": store.connection_string} if where == "account" else {}
        )
        environment = settings(server, webhook.url, tmp_path, CheckpointInterval="0.2", **more)
        async with Forwarder(environment) as forwarder:
            fill(server)
            await webhook.until(lambda: webhook.total == 40)
            await forwarder.until(lambda: len(server.receivers) == 2)

            async def stored() -> stores.Stored:
                found = stores.embedded(tmp_path)
                return await stores.shared(store) if where == "account" else found

            async with asyncio.timeout(90):
                while (before := await stored()) != {"0": 1, "1": 1}:  # noqa: ASYNC110 - a file
                    await asyncio.sleep(0.1)
            receivers = set(server.receivers)
            status, report = await check(environment)
            assert (status, failed(report)) == (0, {})
            assert set(server.receivers) == receivers
            assert await stored() == before
            assert webhook.duplicates == 0
            assert report["consumer group"]["found"] == "'$Default' is being read, by a forwarder"
            assert report["messages"]["found"].startswith("4 in the hub, 0 behind the checkpoints;")
            assert report["categories"]["state"] == "skipped"
            assert report["checkpoints"]["found"] == "2 of this hub and consumer group"


async def test_messages_behind_the_checkpoints_are_counted(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    """The store is read while a forwarder holds its lock, and is not modified."""
    fill(server, 100)
    names = ("fully_qualified_namespace", "eventhub_name", "consumer_group", "partition_id")
    with closing(EmbeddedCheckpointStore(tmp_path / "checkpoints.db")) as store:
        for name, number in (f"127.0.0.1:{server.port}/{HUB}/$Default/0", 2), ("old/hub/g/0", 9):
            row = dict(zip(names, name.split("/"), strict=True))
            await store.update_checkpoint({**row, "sequence_number": number, "offset": "1"})
    with closing(sqlite3.connect(tmp_path / "checkpoints.db", isolation_level=None)) as database:
        before = contents(tmp_path)  # before the lock: closing the file releases it
        database.execute("BEGIN EXCLUSIVE")
        _, report = await check(settings(server, webhook.url, tmp_path))
        assert contents(tmp_path) == before
    assert report["messages"]["found"].startswith("10 in the hub, 7 behind the checkpoints;")
    assert report["checkpoints"]["found"] == "1 of this hub and consumer group"


async def test_a_store_that_is_still_being_created_is_not_a_failure(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    """An empty file, and a file that has the first of its two pages."""
    path = tmp_path / "checkpoints.db"
    path.touch()
    environment = settings(server, webhook.url, tmp_path)
    assert (await check(environment))[1]["checkpoints"]["state"] == "ok"
    EmbeddedCheckpointStore(path).close()
    complete = path.read_bytes()
    path.write_bytes(complete[:4096])
    store = StoreCheck(Settings.from_env(environment), None)
    asyncio.get_running_loop().call_later(0.2, path.write_bytes, complete)
    await store.run(time.monotonic() + 10)
    assert store.findings.get_nowait()
    name, finding = store.findings.get_nowait() or ("", None)
    assert (name, finding and finding.state) == ("checkpoints", "ok")


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.iterdir()}


async def test_a_hub_without_audit_categories_is_a_warning(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    server.hubs[HUB].publish(0, b'{"records":[{"category":"guard","properties":{"log":"{}"}}]}')
    status, report = await check(settings(server, webhook.url, tmp_path))
    assert status == 0
    expected = "guard 1 in 1 messages, none of kube-audit, kube-audit-admin"
    assert failed(report) == {"categories": expected}


async def test_a_policy_without_the_listen_right_is_reported(
    webhook: Webhook, tmp_path: Path
) -> None:
    keys, claims = {"writer": "d3JpdGVy"}, {"writer": {"Send"}}
    async with Server({HUB: 1}, keys=keys, claims=claims) as server:
        status, report = await check(settings(server, webhook.url, tmp_path))
    assert status == 1
    assert failed(report) == {
        "consumer group": f"policy 'writer' may not read hub '{HUB}' of 127.0.0.1"
    }
    assert "--rights Listen" in report["consumer group"]["do"]


@pytest.mark.parametrize(("minutes", "state"), [(90, "FAIL"), (-6, "warn"), (4, "ok")])
async def test_clock_skew_is_reported_in_minutes(
    server: Server, webhook: Webhook, tmp_path: Path, minutes: int, state: str
) -> None:
    fill(server)
    server.faults.clock_offset = minutes * 60
    _, report = await check(settings(server, webhook.url, tmp_path))
    assert report["hub login"]["state"] == state
    direction = "behind" if minutes > 0 else "ahead of"
    found = f"the clock of this node is {abs(minutes)} minutes {direction} that of 127.0.0.1"
    assert (found == report["hub login"]["found"]) == (state != "ok")


def tls(ca: trustme.CA, host: str, valid: timedelta = timedelta(days=90)) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(host, not_after=datetime.now(UTC) + valid).configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("", "TLSv1.3, certificate valid for "),
        ("name", "the certificate of {} is for another name"),
        ("ca", "the certificate of {} is signed by an unknown CA"),
        ("date", "the certificate of {} has expired"),
    ],
)
async def test_tls_certificates_of_hub_and_sink_are_checked(
    tmp_path: Path, fault: str, expected: str
) -> None:
    """The client always uses port 5671, so each case has its own loopback address."""
    host, ca = f"127.5.67.{len(fault) + 1}", trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    issuer, name = trustme.CA() if fault == "ca" else ca, "name.example" if fault == "name" else ""
    valid = timedelta(days=-1 if fault == "date" else 90)
    async with (
        Server({HUB: 1}, host=host, port=5671, tls=tls(issuer, name or host, valid)) as server,
        Webhook(tls=tls(issuer, name or "127.0.0.1", valid)) as webhook,
    ):
        fill(server, 10)
        trusted = str(tmp_path / "ca.pem")
        environment = settings(
            server, webhook.url, tmp_path, WebSinkCAFile=trusted, SSL_CERT_FILE=trusted
        )
        status, report = await check(environment)
    assert report["hub TLS"]["found"].startswith(expected.format(f"{host}:5671"))
    assert report["sink TLS"]["found"].startswith(expected.format(f"127.0.0.1:{webhook.port}"))
    assert status == (1 if fault else 0)
    assert set(failed(report)) == ({"hub TLS", "sink TLS"} if fault else set())
    assert report["hub login"]["state"] == ("skipped" if fault else "ok")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (Response(503, body="busy"), "answers 503 busy"),
        (Response(400, body="no"), "refuses an empty list: 400 no"),
        (Response(302), "answers 302: redirects are never followed"),
        (Response(delay=math.inf), "no answer in 0.5 s"),
    ],
)
async def test_the_sinks_response_is_classified_and_the_post_can_be_skipped(
    server: Server, webhook: Webhook, tmp_path: Path, response: Response, expected: str
) -> None:
    fill(server)
    webhook.rule = lambda _: response
    environment = settings(server, webhook.url, tmp_path, WebSinkTimeout="0.5")
    status, report = await check(environment)
    assert (status, failed(report)) == (1, {"sink POST": expected})
    assert report["sink POST"]["do"]
    before = len(webhook.posts)
    same = f"{webhook.url}?another=query"
    status, report = await check(environment, "--no-post", "--sink", same)
    assert (status, failed(report)) == (0, {})
    status, report = await check(environment, "--no-post", "--sink", "http://elsewhere/audit")
    assert (status, *failed(report)) == (0, "sink URL")
    assert report["sink URL"]["state"] == "warn"
    assert "and the chart's webhook.url to http://elsewhere" in report["sink URL"]["found"]
    assert len(webhook.posts) == before


async def test_a_web_page_response_is_a_warning(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    fill(server)
    webhook.rule = lambda _: Response(body="<!DOCTYPE html>\n<title>Sign in</title>")
    status, report = await check(settings(server, webhook.url, tmp_path))
    assert (status, [*failed(report)]) == (0, ["sink POST"])
    assert "answers with a web page" in report["sink POST"]["found"]
    assert "WebSinkURL" in report["sink POST"]["do"]


async def test_check_ends_within_a_minute_when_nothing_responds(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    server.faults.silence()
    webhook.rule = lambda _: Response(delay=100)
    async with azurite() as store:
        store.pause()
        environment = settings(
            server,
            webhook.url,
            tmp_path,
            WebSinkTimeout="100",
            BlobStorageConnectionString=store.connection_string,
        )
        async with asyncio.timeout(60):
            status, report = await check(environment)
    assert status == 1
    assert set(failed(report)) == {"hub login", "store login", "sink POST"}
    assert {one["state"] for one in report.values()} == {"ok", "FAIL", "skipped"}


async def test_an_invalid_setting_is_reported_and_no_step_runs(tmp_path: Path) -> None:
    async with Forwarder({"StateDirectory": str(tmp_path)}, "check") as command:
        assert await command.wait() == 2
    assert command.stderr.startswith("EhubNamespaceConnectionString: missing")
    assert command.lines == []


@pytest.mark.parametrize("output", ["terminal", "pipe"])
async def test_only_a_terminal_gets_colours(
    server: Server, webhook: Webhook, tmp_path: Path, output: str
) -> None:
    server.stop_listening()
    terminal = output == "terminal"
    read_end, write_end = pty.openpty() if terminal else os.pipe()
    environment = settings(server, webhook.url, tmp_path)
    async with Forwarder(environment) as other:  # for its environment
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "forwarder", "check", env=other.environment, stdout=write_end
        )
    os.close(write_end)
    read = functools.partial(os.read, read_end, 1 << 16)
    text = b""
    with suppress(OSError):  # a terminal whose other end is closed
        while more := await asyncio.to_thread(read):
            text += more
    os.close(read_end)
    assert await process.wait() == 1
    assert (b"\033[1;31mFAIL   \033[0m hub TCP" in text) == terminal
    assert (b"\033" in text) == terminal
    assert b"1 failed: hub TCP" in text


# The service appends this to each text. Names that users chose must not match a cause.
TRACE = "TrackingId:0_B0, SystemTracker:not-found:eventhub:claims~1|offset, Reference:0_G0"


def _link(condition: str, text: str) -> AMQPLinkError:
    return AMQPLinkError(condition.encode(), description=text.encode())


def _cbs(text: str) -> AuthenticationError:
    return AuthenticationError(f"CBS Token authentication failed.\nStatus code: {text}")


@pytest.mark.parametrize(
    ("error", "login", "kind", "remedy"),
    [
        (_cbs("401\nDescription: InvalidSignature: x"), "key", "key", "--name reader"),
        (_cbs("401\nDescription: ExpiredToken: x"), "key", "clock", "NTP"),
        (_cbs("401\nDescription: InvalidAudience: x"), "key", "audience", "--name reader"),
        (_cbs("404\nDescription: The messaging entity"), "key", "hub", "eventhub list"),
        (_cbs("401\nDescription: Unauthorized"), "entra", "rights", "Data Receiver"),
        (ConnectError("'Listen' claim(s) are required"), "entra", "rights", "Data Receiver"),
        (ConnectError("'Listen' claim(s) are required"), "key", "rights", "rule create"),
        (_cbs("401\nDescription: Unauthorized"), "key", "refused", "network rules"),
        (ConnectError("'Listen' claim(s) are required"), "hub's key", "rights", OWN_HUB),
        (_cbs("401\nDescription: InvalidSignature: x"), "hub's key", "key", OWN_POLICY),
        (TimeoutError(), "key", "silent", "websockets"),
        (ExceptionGroup("", [ConnectionResetError(104, "reset")]), "key", "cut", "firewall"),
        (ValueError("what is this"), "key", "other", ""),
        (_link("amqp:not-found", "could not be found"), "key", "hub", "eventhub list"),
        (_link("amqp:not-found", "could not be found"), "group", "group", "consumer-group create"),
        (_link("com.microsoft:server-busy", f"Throttled. {TRACE}"), "key", "busy", "throughput"),
        (_link("com.microsoft:server-busy", "Throttled."), "claims", "busy", "throughput"),
        (_link("com.microsoft:timeout", f"No answer. {TRACE}"), "key", "interrupted", "passes"),
        (_link("amqp:link:detach-forced", "by the broker"), "key", "interrupted", "passes"),
        (_cbs("429\nDescription: later"), "key", "busy", "none if it passes"),
        (
            _link("com.microsoft:argument-out-of-range", "The specified partition is invalid"),
            "key",
            "partition",
            "none needed",
        ),
        (
            _link("amqp:resource-limit-exceeded", "ConnectionsQuotaExceeded for namespace x"),
            "key",
            "connections",
            "Basic allows 100",
        ),
        (
            _link("amqp:resource-limit-exceeded", "maximum number of receivers per partition"),
            "key",
            "readers",
            "nobody else reads",
        ),
    ],
    ids=str,
)
def test_client_errors_are_diagnosed(error: Exception, login: str, kind: str, remedy: str) -> None:
    logins = {
        "key": {"EhubNamespaceConnectionString": CONNECTION_STRING},
        "hub's key": {"EhubNamespaceConnectionString": f"{CONNECTION_STRING};EntityPath={HUB}"},
        "entra": {"EventHubNamespace": "ns.servicebus.windows.net"},
        "group": {"EhubNamespaceConnectionString": CONNECTION_STRING, "ConsumerGroup": "audit"},
        "claims": {"EhubNamespaceConnectionString": CONNECTION_STRING, "ConsumerGroup": "claims"},
    }
    found = causes.of_hub(error, Settings.from_env(logins[login]))
    assert found.kind == kind
    assert remedy in found.remedy
    assert "\n" not in str(found)


async def test_sigterm_ends_check_at_once(server: Server, webhook: Webhook, tmp_path: Path) -> None:
    server.faults.silence()
    async with Forwarder(settings(server, webhook.url, tmp_path), "check") as command:
        await command.until(
            lambda: any(line.startswith("ok      hub TCP") for line in command.lines)
        )
        command.terminate()
        async with asyncio.timeout(8):
            assert await command.wait() == 1


async def test_the_output_contains_no_secret(server: Server, tmp_path: Path) -> None:
    """It has no credentials from the sink's URL and no header value, secret or not."""
    url = f"http://someone:correct-horse-battery@127.0.0.1:{free_port()}/k8s_audit?token=abcdefgh1"
    environment = settings(server, url, tmp_path, WebSinkHeaders='{"X-From": "k8s_audit"}')
    async with Forwarder(environment, "check") as command:
        assert await command.wait() == 1
    output = "\n".join([*command.lines, command.stderr])
    assert "sink TCP" in output
    secrets = ("correct-horse", "abcdefgh1", "someone", "k8s_audit")
    assert [one for one in secrets if one in output] == []


BLOCKED = {
    "address": "Ip has been prevented to connect to the endpoint. IP Filters: Event Hubs: ...",
    "public access": "Public network access is not allowed on the namespace 'x'.",
}


@pytest.mark.parametrize("answer", [401, "amqp:unauthorized-access"])
@pytest.mark.parametrize("text", BLOCKED.values(), ids=BLOCKED)
async def test_network_rules_are_reported_and_no_remedy_changes_permissions(
    server: Server, webhook: Webhook, tmp_path: Path, text: str, answer: int | str
) -> None:
    """The service rejects the token with this text, or detaches the link with it."""
    server.faults.error_description = text
    server.faults.refuse("put-token", answer)
    environment = settings(server, webhook.url, tmp_path)
    async with Forwarder(environment) as forwarder:
        reason = (await forwarder.wait_for("hub does not answer"))["reason"]
    _, report = await check(environment)
    assert set(failed(report)) == {"hub login"}
    step = report["hub login"]
    assert f"{step['found']}; {step['do']}" == reason
    assert step["found"].startswith("127.0.0.1 refuses the address of this pod: its network rules")
    assert "az eventhubs namespace network-rule-set list" in step["do"]
    assert "authorization-rule" not in reason


@pytest.mark.parametrize("where", ["file", "account"])
async def test_dead_letters_are_counted_by_reason(
    server: Server, webhook: Webhook, tmp_path: Path, where: str
) -> None:
    async with azurite() as store:
        more = {"BlobStorageConnectionString": store.connection_string}
        environment = settings(
            server, webhook.url, tmp_path, **(more if where == "account" else {})
        )
        server.hubs[HUB].publish(0, b"\x1b[31mnot JSON")
        server.hubs[HUB].publish(0, b'{"records":[{"category":"kube-audit"}]}')
        fill(server)
        async with Forwarder(environment) as forwarder:
            await webhook.until(lambda: webhook.total == 40)
            forwarder.terminate()
            await forwarder.wait()
        status, report = await check(environment)
    assert status == 0
    found = report["dead letters"]
    assert found["state"] == "warn"
    assert found["found"].startswith("2 (1 ")
    assert "python -m forwarder replay" in found["do"]


async def test_a_file_share_without_locks_is_reported_with_alternatives(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    """On Azure Files, SQLite finds its file locked forever; here, another connection locks it."""
    fill(server)
    with closing(sqlite3.connect(tmp_path / "checkpoints.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        async with Forwarder(settings(server, webhook.url, tmp_path)) as forwarder:
            await forwarder.until(
                lambda: [one for one in forwarder.log if one["level"] == "error"], 60
            )
    reason = next(one["reason"] for one in forwarder.log if one["level"] == "error")
    assert "SQLite cannot lock its file" in reason
    assert "use a disk (persistence.storageClass: managed-csi), or a storage account" in reason


async def test_a_draining_pod_is_reported(server: Server, webhook: Webhook, tmp_path: Path) -> None:
    """The old pod of a rollout keeps draining while its sink is down."""
    fill(server)
    environment = settings(server, webhook.url, tmp_path, HttpPort=str(free_port()))
    webhook.rule = lambda _: Response(delay=1000)
    async with Forwarder(environment) as forwarder:
        await forwarder.wait_for("hub message")
        assert "forwarder" not in (await check(environment, "--no-post"))[1]
        forwarder.terminate()
        await forwarder.wait_for("stopping")
        _, report = await check(environment, "--no-post")
    assert report["forwarder"]["state"] == "warn"
    assert "kubectl rollout status" in report["forwarder"]["do"]


def _http(status: int, code: str, text: str) -> HttpResponseError:
    """Return the storage client's error for a response of the service."""
    error = HttpResponseError(f"{text}\nErrorCode:{code}")
    error.status_code, error.error_code = status, code  # type: ignore[attr-defined]
    return error


FIREWALL = "This request is not authorized to perform this operation."
AUTHENTICATE = "Server failed to authenticate the request."
TOO_OLD = "AuthenticationErrorDetail:Request date header too old: 'Thu, 26 Nov 2026 09:14:09 GMT'"


@pytest.mark.parametrize(
    ("error", "login", "kind", "remedy"),
    [
        (_http(403, "AuthorizationFailure", FIREWALL), "key", "network rules", "network-rule"),
        (_http(403, "AuthorizationFailure", FIREWALL), "entra", "network rules", "network-rule"),
        (_http(403, "AuthenticationFailed", AUTHENTICATE), "key", "key", "show-connection"),
        (_http(403, "AuthenticationFailed", f"{AUTHENTICATE}\n{TOO_OLD}"), "key", "clock", "NTP"),
        (
            _http(403, "AuthorizationPermissionMismatch", FIREWALL[:-1] + " using this"),
            "entra",
            "rights",
            "'Storage Blob Data Contributor' --assignee c11e",
        ),
        (
            _http(403, "AuthorizationPermissionMismatch", FIREWALL[:-1] + " using this"),
            "key",
            "rights",
            "SharedAccessSignature",
        ),
        (_http(403, "KeyBasedAuthenticationNotPermitted", "No."), "key", "no keys", "BlobAcc"),
        (_http(401, "InvalidAuthenticationInfo", "Issuer."), "entra", "issuer", "account show"),
        (_http(403, "SomethingNew", "No."), "key", "refused", "network rules of the account"),
        (_http(503, "ServerBusy", "Busy."), "key", "busy", "it is retried"),
    ],
    ids=str,
)
def test_store_errors_are_diagnosed(error: Exception, login: str, kind: str, remedy: str) -> None:
    logins = {
        "key": {"BlobStorageConnectionString": "AccountName=a;AccountKey=YQ=="},
        "entra": {"BlobAccountUrl": "https://a.blob.core.windows.net", "AZURE_CLIENT_ID": "c11e"},
    }
    hub = {"EventHubNamespace": "ns.servicebus.windows.net"}
    found = causes.of_store(error, Settings.from_env(hub | logins[login]))
    assert found.kind == kind
    assert remedy in found.remedy


def test_redaction_does_not_change_causes_and_remedies() -> None:
    def leaves(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        else:
            for one in node.values() if isinstance(node, dict) else node:
                yield from leaves(one)

    texts = list(leaves(causes.TEXTS))
    assert len(texts) > 100
    assert [text for text in texts if redact(text) != text] == []
