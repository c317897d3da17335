"""No output shows a secret of any setting, in any common encoding."""

import asyncio
import html
import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from forwarder.config.settings import Settings
from forwarder.errors import SettingsError
from forwarder.redaction import redact
from support import events
from support.azurite import azurite
from support.environment import APP, Environment
from support.harness import free_port
from support.process import Forwarder
from support.webhook import Response

MESSAGE = events.envelope(events.typical_events()[:22])
KEY = b64encode(b"a key of an event hub's policy!!").decode()
QUERY = "t0k3n/in+the=query"
HEADER = 'k3y "in" a <header>'
PASSWORD = "p4ss&w0rd"  # noqa: S105  made up
TOKEN = "dG9rZW4taW4tYS1maWxl"  # noqa: S105  made up
ACCOUNT_KEY = b64encode(b"the storage account's").decode()
SIGNATURE = "c2lnbmF0dXJlLW9mLXRoZS10ZXN0"
BASIC = b64encode(f"me:{PASSWORD}".encode()).decode()
SECRETS = (KEY, QUERY, HEADER, PASSWORD, TOKEN, ACCOUNT_KEY, SIGNATURE, BASIC)
COMMANDS = ("check", "check --json", "replay", "policy explain --hub 9 --policy quiet")


def encodings(secret: str) -> Iterator[str]:
    """Yield the common encodings of a secret."""
    yield secret
    yield quote(secret, safe="")
    yield "".join(f"%{byte:02x}" for byte in secret.encode())
    yield json.dumps(secret)[1:-1]
    yield json.dumps(json.dumps(secret))[3:-3]
    yield "".join(f"\\u{ord(char):04x}" for char in secret)
    yield html.escape(secret)
    yield "".join(f"&#{ord(char)};" for char in secret)
    for before in range(3):  # base64 of a longer text, at each alignment
        yield b64encode(b"-" * before + secret.encode() + b"-").decode()


def leaks(shown: str, secrets: Iterable[str] = SECRETS) -> list[str]:
    """Return the encoded secrets in a text; the ends of base64 depend on the surrounding bytes."""
    found = [one for secret in secrets for one in encodings(secret)]
    return [one for one in found if one in shown or (len(one) > 16 and one[4:-4] in shown)]


async def all_output(forwarder: Forwarder, commands: Iterable[str] = COMMANDS) -> str:
    """Return its HTTP responses, its output and the output of these commands."""
    pages = [
        (await forwarder.get(path))[1] for path in ("/metrics", "/readyz", "/livez", "/status")
    ]
    url, accept = f"http://127.0.0.1:{forwarder.port}/status", {"Accept": "text/html"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=accept) as response:
        pages.append(await response.text())
    forwarder.terminate()
    await forwarder.wait()

    async def output_of(command: str) -> str:
        async with Forwarder(forwarder.environment, *command.split(), app=APP) as running:
            await running.wait()
            return f"{running.output}\n{running.stderr}"

    outputs = await asyncio.gather(*map(output_of, commands))
    return "\n".join([*pages, forwarder.output, forwarder.stderr, *outputs])


def secret_settings(env: Environment, tmp_path: Path, login: str) -> dict[str, str]:
    """Publish a message; return settings with a secret wherever one is possible."""
    env.hub.publish(0, MESSAGE)
    env.server.keys = {"Root": KEY}
    settings = {
        "VerboseLevel": "4",
        "LogFormat": "text" if login == "url" else "json",
        "ShutdownGrace": "0.1",
        "EhubNamespaceConnectionString": env.server.connection_string(),
        "WebSinkURL": f"{env.webhook.url}?token={quote(QUERY, safe='')}",
        "WebSinkHeaders": json.dumps({"A-Key": HEADER}),
    }
    if login == "url":
        user = f"//me:{quote(PASSWORD)}@"
        settings["WebSinkURL"] = settings["WebSinkURL"].replace("//", user)
    else:
        (tmp_path / "token").write_text(TOKEN)
        settings["WebSinkTokenFile"] = str(tmp_path / "token")
    return settings


@pytest.mark.parametrize("login", ["url", "token"])
async def test_no_secret_is_shown_in_normal_operation(
    env: Environment, tmp_path: Path, login: str
) -> None:
    settings = secret_settings(env, tmp_path, login)
    async with azurite() as store:
        settings["BlobStorageConnectionString"] = store.connection_string
        async with env.forwarder(None, **settings) as forwarder:
            await env.webhook.until(lambda: env.webhook.total == 22)
            shown = await all_output(forwarder)
    sent = str(dict(env.webhook.posts[0].headers))
    assert (BASIC if login == "url" else TOKEN) in sent
    account_key = re.search("AccountKey=([^;]+)", store.connection_string)
    assert account_key
    assert leaks(shown, [*SECRETS, account_key[1]]) == []


@pytest.mark.parametrize(("status", "login"), [(400, "url"), (401, "token"), (503, "token")])
async def test_no_secret_is_shown_when_the_sink_echoes_it(
    env: Environment, tmp_path: Path, status: int, login: str
) -> None:
    settings = secret_settings(env, tmp_path, login)
    known = [KEY, QUERY, HEADER, *([PASSWORD, BASIC] if login == "url" else [TOKEN])]
    body = "|".join(one for secret in known for one in encodings(secret))
    env.webhook.rule = lambda _: Response(status, body=body)
    async with env.forwarder(None, **settings) as forwarder:
        await env.webhook.until(lambda: env.webhook.posts[5:])
        shown = await all_output(forwarder)
    assert leaks(shown) == []
    if status != 401:
        assert "***|***|***" in shown


@pytest.mark.parametrize("failure", ["unreachable", "no TLS", "no HTTP"])
async def test_no_secret_is_shown_when_the_sink_cannot_be_used(
    env: Environment, tmp_path: Path, failure: str
) -> None:
    settings = secret_settings(env, tmp_path, "url")
    if failure == "unreachable":
        await env.webhook.stop()
    elif failure == "no TLS":
        settings["WebSinkURL"] = settings["WebSinkURL"].replace("http:", "https:")
    else:  # the hub listens there
        url = re.sub(r":\d+/", f":{env.server.port}/", settings["WebSinkURL"])
        settings |= {"WebSinkURL": url, "WebSinkTimeout": "2"}
    async with env.forwarder(None, **settings) as forwarder:
        await forwarder.until(lambda: "sink down" in forwarder.output)
        shown = await all_output(forwarder)
    assert leaks(shown) == []


@pytest.mark.parametrize(
    ("token", "logged"),
    [
        (f"{TOKEN}\r\nX-B: {TOKEN}", "sink down"),
        (f"{TOKEN} \u2713", "token file cannot be read"),
    ],
    ids=["two lines", "not ASCII"],
)
async def test_no_secret_is_shown_when_the_token_cannot_be_sent(
    env: Environment, tmp_path: Path, token: str, logged: str
) -> None:
    settings = secret_settings(env, tmp_path, "token")
    (tmp_path / "token").write_text(token)
    async with env.forwarder(None, **settings) as forwarder:
        await forwarder.wait_for(logged)
        shown = await all_output(forwarder, ["check"])
    assert leaks(shown) == []


@pytest.mark.parametrize("failure", ["unreachable", "refuses the key"])
async def test_no_secret_is_shown_when_the_hub_cannot_be_read(
    env: Environment, tmp_path: Path, failure: str
) -> None:
    settings = secret_settings(env, tmp_path, "token")
    if failure == "unreachable":
        env.server.stop_listening()
    else:
        env.server.keys = {"Root": "YW5vdGhlcg=="}
    async with env.forwarder(None, **settings) as forwarder:
        await forwarder.wait_for("hub does not answer")
        shown = await all_output(forwarder, ["check"])
    assert leaks(shown) == []


SAS = f"sv=2024-11-04&ss=b&srt=sco&sp=rwl&se=2099-01-01&sig={SIGNATURE}"


@pytest.mark.parametrize(
    ("login", "failure"),
    [
        (f"AccountKey={ACCOUNT_KEY}", "unreachable"),
        (f"AccountKey={ACCOUNT_KEY}", "refuses the key"),
        (f"SharedAccessSignature={SAS}", "refuses the signature"),
    ],
    ids=["unreachable", "key", "signature"],
)
async def test_no_secret_is_shown_when_the_store_cannot_be_used(
    env: Environment, tmp_path: Path, login: str, failure: str
) -> None:
    settings = secret_settings(env, tmp_path, "token")
    async with azurite() as store:
        url = store.account_url
        if failure == "unreachable":
            url = url.replace(str(store.port), str(free_port()))
        settings["BlobStorageConnectionString"] = (
            f"AccountName=devstoreaccount1;BlobEndpoint={url};{login}"
        )
        async with env.forwarder(None, **settings) as forwarder:
            await forwarder.wait_for("checkpoints cannot be read")
            shown = await all_output(forwarder, ["check"])
    assert leaks(shown) == []


HUB_STRING = f"Endpoint=sb://a.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey={KEY}"
PASTED = {
    "a connection string": HUB_STRING,
    "one that lost its end": HUB_STRING[:-6],
    "a key": KEY,
    "a SAS": f"SharedAccessSignature sr=a&sig={quote(KEY, safe='')}&se=1&skn=n",
    "a header": json.dumps({"Authorization": f"Bearer {KEY}"}),
    "a URL": f"https://user:{quote(KEY, safe='')}@host/?code={quote(KEY, safe='')}",
}


@pytest.mark.parametrize("pasted", PASTED)
@pytest.mark.parametrize("suffix", ["", "_FILE"])
def test_no_secret_is_shown_when_it_is_pasted_into_any_variable(pasted: str, suffix: str) -> None:
    """Whether the value is accepted or refused, it is not repeated."""
    base = {"EhubNamespaceConnectionString": HUB_STRING}
    for name in Settings.variables():
        try:
            settings = Settings.from_env({**base, f"{name}{suffix}": PASTED[pasted]})
        except SettingsError as error:
            shown = "\n".join(error.problems)
        else:
            shown = redact(repr(settings))  # as every output is
        assert [one for one in encodings(KEY[:20]) if one in shown] == [], name
