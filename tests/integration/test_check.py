"""The check says what works, what not and why, and changes nothing."""

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
from support.webhook import Answer, Webhook

HUB = "insights-logs-kube-audit"
TEXT = "Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=reader;SharedAccessKey=a2V5"
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
    """Run it; its exit status, and its results by step."""
    async with Forwarder(environment, "check", "--json", *arguments) as command:
        status = await command.wait(62)
        assert command.stderr == ""
        report = json.loads("\n".join(command.lines))
    assert report["ok"] is (status == 0)
    return status, {step["step"]: step for step in report["steps"]}


def failed(report: Report) -> dict[str, str]:
    """Return what failed, or is doubtful, by step."""
    return {name: one["found"] for name, one in report.items() if one["state"] in ("FAIL", "warn")}


async def test_all_parts_answer_and_nothing_changes(
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
async def test_a_running_forwarder_is_seen_and_not_disturbed(
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
            reading = set(server.receivers)
            status, report = await check(environment)
            assert (status, failed(report)) == (0, {})
            assert set(server.receivers) == reading
            assert await stored() == before
            assert webhook.duplicates == 0
            assert report["consumer group"]["found"] == "'$Default' is being read, by a forwarder"
            assert report["messages"]["found"].startswith("4 in the hub, 0 behind the checkpoints;")
            assert report["categories"]["state"] == "skipped"
            assert report["checkpoints"]["found"] == "2 of this hub and consumer group"


async def test_messages_behind_the_checkpoints_are_counted(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    """The store is read although a forwarder has it locked, and not a byte of it is changed."""
    fill(server, 100)
    names = ("fully_qualified_namespace", "eventhub_name", "consumer_group", "partition_id")
    with closing(EmbeddedCheckpointStore(tmp_path / "checkpoints.db")) as store:
        for place, number in (f"127.0.0.1:{server.port}/{HUB}/$Default/0", 2), ("old/hub/g/0", 9):
            row = dict(zip(names, place.split("/"), strict=True))
            await store.update_checkpoint({**row, "sequence_number": number, "offset": "1"})
    with closing(sqlite3.connect(tmp_path / "checkpoints.db", isolation_level=None)) as database:
        before = held(tmp_path)  # before the lock: whoever closes the file drops it
        database.execute("BEGIN EXCLUSIVE")
        _, report = await check(settings(server, webhook.url, tmp_path))
        assert held(tmp_path) == before
    assert report["messages"]["found"].startswith("10 in the hub, 7 behind the checkpoints;")
    assert report["checkpoints"]["found"] == "1 of this hub and consumer group"


async def test_a_store_that_a_forwarder_creates_meanwhile_is_no_failure(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    """A file without a table yet, and one of whose two pages the first is written."""
    path = tmp_path / "checkpoints.db"
    path.touch()
    environment = settings(server, webhook.url, tmp_path)
    assert (await check(environment))[1]["checkpoints"]["state"] == "ok"
    EmbeddedCheckpointStore(path).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096])
    store = StoreCheck(Settings.from_env(environment), None)
    asyncio.get_running_loop().call_later(0.2, path.write_bytes, whole)
    await store.run(time.monotonic() + 10)
    assert store.findings.get_nowait()
    name, finding = store.findings.get_nowait() or ("", None)
    assert (name, finding and finding.state) == ("checkpoints", "ok")


def held(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.iterdir()}


async def test_other_categories_alone_are_worth_a_word(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    server.hubs[HUB].publish(0, b'{"records":[{"category":"guard","properties":{"log":"{}"}}]}')
    status, report = await check(settings(server, webhook.url, tmp_path))
    assert status == 0
    said = "guard 1 in 1 messages, none of kube-audit, kube-audit-admin"
    assert failed(report) == {"categories": said}


async def test_a_policy_without_listen_is_named(webhook: Webhook, tmp_path: Path) -> None:
    keys, claims = {"writer": "d3JpdGVy"}, {"writer": {"Send"}}
    async with Server({HUB: 1}, keys=keys, claims=claims) as server:
        status, report = await check(settings(server, webhook.url, tmp_path))
    assert status == 1
    assert failed(report) == {
        "consumer group": f"policy 'writer' may not read hub '{HUB}' of 127.0.0.1"
    }
    assert "--rights Listen" in report["consumer group"]["do"]


@pytest.mark.parametrize(("minutes", "state"), [(90, "FAIL"), (-6, "warn"), (4, "ok")])
async def test_a_clock_that_is_wrong_is_named_by_its_minutes(
    server: Server, webhook: Webhook, tmp_path: Path, minutes: int, state: str
) -> None:
    fill(server)
    server.faults.clock = minutes * 60
    _, report = await check(settings(server, webhook.url, tmp_path))
    assert report["hub login"]["state"] == state
    way = "behind" if minutes > 0 else "ahead of"
    found = f"the clock of this node is {abs(minutes)} minutes {way} that of 127.0.0.1"
    assert (found == report["hub login"]["found"]) == (state != "ok")


def tls(ca: trustme.CA, host: str, valid: timedelta = timedelta(days=90)) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(host, not_after=datetime.now(UTC) + valid).configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("", "TLSv1.3, certificate valid for "),
        ("name", "the certificate of {} is for another name"),
        ("ca", "the certificate of {} is signed by an unknown CA"),
        ("date", "the certificate of {} has expired"),
    ],
)
async def test_tls_of_hub_and_sink_is_looked_at(tmp_path: Path, wrong: str, said: str) -> None:
    """The client goes to port 5671 of whatever host: an address of this machine's own."""
    host, ca = f"127.5.67.{len(wrong) + 1}", trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    issuer, name = trustme.CA() if wrong == "ca" else ca, "name.example" if wrong == "name" else ""
    valid = timedelta(days=-1 if wrong == "date" else 90)
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
    assert report["hub TLS"]["found"].startswith(said.format(f"{host}:5671"))
    assert report["sink TLS"]["found"].startswith(said.format(f"127.0.0.1:{webhook.port}"))
    assert status == (1 if wrong else 0)
    assert set(failed(report)) == ({"hub TLS", "sink TLS"} if wrong else set())
    assert report["hub login"]["state"] == ("skipped" if wrong else "ok")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(503, body="busy"), "answers 503 busy"),
        (Answer(400, body="no"), "refuses an empty list: 400 no"),
        (Answer(302), "answers 302: redirects are never followed"),
        (Answer(delay=math.inf), "no answer in 0.5 s"),
    ],
)
async def test_what_the_sink_answers_is_judged_as_ever_and_may_be_left_out(
    server: Server, webhook: Webhook, tmp_path: Path, answer: Answer, said: str
) -> None:
    fill(server)
    webhook.rule = lambda _: answer
    environment = settings(server, webhook.url, tmp_path, WebSinkTimeout="0.5")
    status, report = await check(environment)
    assert (status, failed(report)) == (1, {"sink POST": said})
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


async def test_a_web_page_in_place_of_the_sink_is_worth_a_word(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    fill(server)
    webhook.rule = lambda _: Answer(body="<!DOCTYPE html>\n<title>Sign in</title>")
    status, report = await check(settings(server, webhook.url, tmp_path))
    assert (status, [*failed(report)]) == (0, ["sink POST"])
    assert "answers with a web page" in report["sink POST"]["found"]
    assert "WebSinkURL" in report["sink POST"]["do"]


async def test_it_ends_within_a_minute_whatever_is_silent(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    server.faults.silence()
    webhook.rule = lambda _: Answer(delay=100)
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


async def test_a_bad_setting_is_named_as_elsewhere_and_nothing_is_asked(tmp_path: Path) -> None:
    async with Forwarder({"StateDirectory": str(tmp_path)}, "check") as command:
        assert await command.wait() == 2
    assert command.stderr.startswith("EhubNamespaceConnectionString: missing")
    assert command.lines == []


@pytest.mark.parametrize("output", ["terminal", "pipe"])
async def test_colours_are_for_a_terminal_alone(
    server: Server, webhook: Webhook, tmp_path: Path, output: str
) -> None:
    server.stop_listening()
    terminal = output == "terminal"
    near, far = pty.openpty() if terminal else os.pipe()
    environment = settings(server, webhook.url, tmp_path)
    async with Forwarder(environment) as other:  # for its environment
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "forwarder", "check", env=other.environment, stdout=far
        )
    os.close(far)
    read = functools.partial(os.read, near, 1 << 16)
    text = b""
    with suppress(OSError):  # a terminal's way to say that nobody is left
        while more := await asyncio.to_thread(read):
            text += more
    os.close(near)
    assert await process.wait() == 1
    assert (b"\033[1;31mFAIL   \033[0m hub TCP" in text) == terminal
    assert (b"\033" in text) == terminal
    assert b"1 failed: hub TCP" in text


# The service adds it to each text, with names that users chose: none of them is a cause.
TRACE = "TrackingId:0_B0, SystemTracker:not-found:eventhub:claims~1|offset, Reference:0_G0"


def _link(condition: str, text: str) -> AMQPLinkError:
    return AMQPLinkError(condition.encode(), description=text.encode())


def _status(text: str) -> AuthenticationError:
    return AuthenticationError(f"CBS Token authentication failed.\nStatus code: {text}")


@pytest.mark.parametrize(
    ("error", "login", "kind", "do"),
    [
        (_status("401\nDescription: InvalidSignature: x"), "key", "key", "--name reader"),
        (_status("401\nDescription: ExpiredToken: x"), "key", "clock", "NTP"),
        (_status("401\nDescription: InvalidAudience: x"), "key", "audience", "--name reader"),
        (_status("404\nDescription: The messaging entity"), "key", "hub", "eventhub list"),
        (_status("401\nDescription: Unauthorized"), "entra", "rights", "Data Receiver"),
        (ConnectError("'Listen' claim(s) are required"), "entra", "rights", "Data Receiver"),
        (ConnectError("'Listen' claim(s) are required"), "key", "rights", "rule create"),
        (_status("401\nDescription: Unauthorized"), "key", "refused", "network rules"),
        (ConnectError("'Listen' claim(s) are required"), "hub's key", "rights", OWN_HUB),
        (_status("401\nDescription: InvalidSignature: x"), "hub's key", "key", OWN_POLICY),
        (TimeoutError(), "key", "silent", "websockets"),
        (ExceptionGroup("", [ConnectionResetError(104, "reset")]), "key", "cut", "firewall"),
        (ValueError("what is this"), "key", "other", ""),
        (_link("amqp:not-found", "could not be found"), "key", "hub", "eventhub list"),
        (_link("amqp:not-found", "could not be found"), "group", "group", "consumer-group create"),
        (_link("com.microsoft:server-busy", f"Throttled. {TRACE}"), "key", "busy", "throughput"),
        (_link("com.microsoft:timeout", f"No answer. {TRACE}"), "key", "interrupted", "passes"),
        (_link("amqp:link:detach-forced", "by the broker"), "key", "interrupted", "passes"),
        (_status("429\nDescription: later"), "key", "busy", "none if it passes"),
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
def test_an_error_of_the_client_has_a_cause(
    error: Exception, login: str, kind: str, do: str
) -> None:
    ways = {
        "key": {"EhubNamespaceConnectionString": TEXT},
        "hub's key": {"EhubNamespaceConnectionString": f"{TEXT};EntityPath={HUB}"},
        "entra": {"EventHubNamespace": "ns.servicebus.windows.net"},
        "group": {"EhubNamespaceConnectionString": TEXT, "ConsumerGroup": "audit"},
    }
    found = causes.of_hub(error, Settings.from_env(ways[login]))
    assert found.kind == kind
    assert do in found.remedy
    assert "\n" not in str(found)


async def test_sigterm_ends_it_at_once(server: Server, webhook: Webhook, tmp_path: Path) -> None:
    server.faults.silence()
    async with Forwarder(settings(server, webhook.url, tmp_path), "check") as command:
        await command.until(
            lambda: any(line.startswith("ok      hub TCP") for line in command.lines)
        )
        command.terminate()
        async with asyncio.timeout(8):
            assert await command.wait() == 1


async def test_no_line_shows_a_secret(server: Server, tmp_path: Path) -> None:
    """Neither what the sink's URL holds, nor a header's value even where it is no secret."""
    url = f"http://someone:correct-horse-battery@127.0.0.1:{free_port()}/k8s_audit?token=abcdefgh1"
    environment = settings(server, url, tmp_path, WebSinkHeaders='{"X-From": "k8s_audit"}')
    async with Forwarder(environment, "check") as command:
        assert await command.wait() == 1
    shown = "\n".join([*command.lines, command.stderr])
    assert "sink TCP" in shown
    secrets = ("correct-horse", "abcdefgh1", "someone", "k8s_audit")
    assert [one for one in secrets if one in shown] == []


BLOCKED = {
    "address": "Ip has been prevented to connect to the endpoint. IP Filters: Event Hubs: ...",
    "public access": "Public network access is not allowed on the namespace 'x'.",
}


@pytest.mark.parametrize("answer", [401, "amqp:unauthorized-access"])
@pytest.mark.parametrize("text", BLOCKED.values(), ids=BLOCKED)
async def test_network_rules_of_the_namespace_are_named_and_no_command_changes_rights(
    server: Server, webhook: Webhook, tmp_path: Path, text: str, answer: int | str
) -> None:
    """The service answers the token so, or detaches the link that it came by."""
    server.faults.text = text
    server.faults.refuse("put-token", answer)
    environment = settings(server, webhook.url, tmp_path)
    async with Forwarder(environment) as forwarder:
        reason = (await forwarder.wait_for("hub does not answer"))["reason"]
    _, report = await check(environment)
    assert set(failed(report)) == {"hub login"}
    one = report["hub login"]
    assert f"{one['found']}; {one['do']}" == reason
    assert one["found"].startswith("127.0.0.1 refuses the address of this pod: its network rules")
    assert "az eventhubs namespace network-rule-set list" in one["do"]
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


async def test_a_share_without_locks_is_named_with_what_to_use_instead(
    server: Server, webhook: Webhook, tmp_path: Path
) -> None:
    """Azure Files shows SQLite a file that is locked for ever, as another connection does here."""
    fill(server)
    with closing(sqlite3.connect(tmp_path / "checkpoints.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        async with Forwarder(settings(server, webhook.url, tmp_path)) as forwarder:
            await forwarder.until(
                lambda: [one for one in forwarder.log if one["level"] == "error"], 60
            )
    reason = next(one["reason"] for one in forwarder.log if one["level"] == "error")
    assert "where SQLite cannot lock its file" in reason
    assert "use a disk (persistence.storageClass: managed-csi), or a storage account" in reason


async def test_a_pod_that_drains_says_so(server: Server, webhook: Webhook, tmp_path: Path) -> None:
    """As the old pod of a rollout does, when its sink is down."""
    fill(server)
    environment = settings(server, webhook.url, tmp_path, HttpPort=str(free_port()))
    webhook.rule = lambda _: Answer(delay=1000)
    async with Forwarder(environment) as forwarder:
        await forwarder.wait_for("hub message")
        assert "forwarder" not in (await check(environment, "--no-post"))[1]
        forwarder.terminate()
        await forwarder.wait_for("stopping")
        _, report = await check(environment, "--no-post")
    assert report["forwarder"]["state"] == "warn"
    assert "kubectl rollout status" in report["forwarder"]["do"]


def _stored(status: int, code: str, text: str) -> HttpResponseError:
    """Return an error of the storage client, as the service answers it."""
    error = HttpResponseError(f"{text}\nErrorCode:{code}")
    error.status_code, error.error_code = status, code  # type: ignore[attr-defined]
    return error


FIREWALL = "This request is not authorized to perform this operation."
AUTHENTICATE = "Server failed to authenticate the request."
TOO_OLD = "AuthenticationErrorDetail:Request date header too old: 'Thu, 26 Nov 2026 09:14:09 GMT'"


@pytest.mark.parametrize(
    ("error", "login", "kind", "remedy"),
    [
        (_stored(403, "AuthorizationFailure", FIREWALL), "key", "network rules", "network-rule"),
        (_stored(403, "AuthorizationFailure", FIREWALL), "entra", "network rules", "network-rule"),
        (_stored(403, "AuthenticationFailed", AUTHENTICATE), "key", "key", "show-connection"),
        (_stored(403, "AuthenticationFailed", f"{AUTHENTICATE}\n{TOO_OLD}"), "key", "clock", "NTP"),
        (
            _stored(403, "AuthorizationPermissionMismatch", FIREWALL[:-1] + " using this"),
            "entra",
            "rights",
            "'Storage Blob Data Contributor' --assignee c11e",
        ),
        (
            _stored(403, "AuthorizationPermissionMismatch", FIREWALL[:-1] + " using this"),
            "key",
            "rights",
            "SharedAccessSignature",
        ),
        (_stored(403, "KeyBasedAuthenticationNotPermitted", "No."), "key", "no keys", "BlobAcc"),
        (_stored(401, "InvalidAuthenticationInfo", "Issuer."), "entra", "issuer", "account show"),
        (_stored(403, "SomethingNew", "No."), "key", "refused", "network rules of the account"),
        (_stored(503, "ServerBusy", "Busy."), "key", "busy", "it is retried"),
    ],
    ids=str,
)
def test_an_error_of_the_store_has_a_cause(
    error: Exception, login: str, kind: str, remedy: str
) -> None:
    ways = {
        "key": {"BlobStorageConnectionString": "AccountName=a;AccountKey=YQ=="},
        "entra": {"BlobAccountUrl": "https://a.blob.core.windows.net", "AZURE_CLIENT_ID": "c11e"},
    }
    hub = {"EventHubNamespace": "ns.servicebus.windows.net"}
    found = causes.of_store(error, Settings.from_env(hub | ways[login]))
    assert found.kind == kind
    assert remedy in found.remedy


def test_redaction_leaves_causes_and_remedies_as_they_are() -> None:
    def leaves(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        else:
            for one in node.values() if isinstance(node, dict) else node:
                yield from leaves(one)

    texts = list(leaves(causes.TEXTS))
    assert len(texts) > 100
    assert [text for text in texts if redact(text) != text] == []
