"""The status page answers at a look, in JSON and in a browser, without a secret."""

import asyncio
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import aiohttp
import pytest

from forwarder.server.history import History, Point, State
from forwarder.server.page import page
from support import events
from support.eventhubs import Server
from support.running import HUB, Running, forwarding
from support.webhook import Answer, Webhook


def state(delivered: int, lag: int = 0) -> State:
    return State("0", lag=lag, oldest=0.0, checkpoint=None, delivered=delivered)


async def browse(running: Running) -> tuple[str, str]:
    """Return the page as a browser gets it, and its address."""
    url = f"http://127.0.0.1:{running.settings.http_port}/status"
    accept = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=accept) as response:
        assert response.content_type == "text/html"
        return await response.text(), url


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]


async def test_says_what_flows_and_what_ails_and_no_secret(
    webhook: Webhook, tmp_path: Path
) -> None:
    webhook.rule = lambda _: Answer(401, body="<b>who</b> are you")
    async with Server({HUB: 2}) as server:
        hub = server.hubs[HUB]
        for message in events.messages(30, per_message=10):
            hub.publish(0, message.body)
        headers = '{"X-Secret": "do-not-show-this"}'
        url = f"{webhook.url}?key=nor-show-this"
        async with forwarding(server, url, tmp_path, WebSinkHeaders=headers) as running:
            await running.until(lambda: running.entries("sink down"))
            held, _ = await browse(running)
            assert 'aks-audit is <span class="bad">held off</span>' in held
            assert "&lt;b&gt;who&lt;/b&gt; are you" in held
            webhook.rule = None
            await running.until(lambda: running.entries("sink up"))
            await webhook.until(lambda: webhook.total == 30)
            status = json.loads((await running.get("/status"))[1])
            assert (status["notLive"], status["notReady"]) == ([], [])
            assert status["parts"] == dict.fromkeys(
                ("hub", "sink", "checkpoints", "dead letters"), ""
            )
            first, second = status["partitions"]
            assert (first["partition"], first["delivered"]) == ("0", 30)
            assert (second["partition"], second["lag"]) == ("1", 0)
            assert [entry["message"] for entry in status["errors"]] == ["sink down"]
            assert status["settings"]["WebSinkURL"] == webhook.url
            assert status["settings"]["WebSinkHeaders"] == "given"
            assert status["settings"]["Categories"] == "kube-audit, kube-audit-admin"
            well, _ = await browse(running)
            assert 'aks-audit is <span class="good">delivering</span>' in well
            for text in (held, well, json.dumps(status)):
                assert "do-not-show-this" not in text
                assert "nor-show-this" not in text
                assert not [key for key in server.keys.values() if key in text]
                assert not {"script", "link", "img"} & _Tags(text).tags
                assert not _Tags(text).addresses


def test_rates_are_of_the_time_between_two_points_and_old_points_go() -> None:
    history = History()
    history.note(0, [state(100)])
    history.note(29, [state(500)])
    history.note(60, [state(700, lag=3)])
    assert history.of("0") == [Point(0, 0.0, 0.0), Point(3, 0.0, 10.0)]
    for minute in range(2, 200):
        history.note(60 * minute, [state(700)])
    assert len(history.of("0")) == 120
    history.note(60 * 200, [])
    assert history.of("0") == []


def test_a_partition_that_comes_back_starts_its_curve_anew() -> None:
    history = History()
    history.note(0, [state(100)])
    history.note(60, [])
    history.note(120, [state(5)])
    assert history.of("0") == [Point(0, 0.0, 0.0)]


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium")
async def test_a_browser_draws_it(webhook: Webhook, tmp_path: Path) -> None:
    async with (
        Server({HUB: 2}) as server,
        forwarding(server, webhook.url, tmp_path / "state") as running,
    ):
        await running.until(lambda: running.entries("partition claimed")[1:])
        _, url = await browse(running)
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-sync",
        )
        quiet = ("--disable-background-networking", "--disable-component-update")
        picture = tmp_path / "status.png"
        browser = await asyncio.create_subprocess_exec(
            "chromium",
            *options,
            *quiet,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={picture}",
            "--window-size=375,1400",
            url,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert await asyncio.wait_for(browser.wait(), 60) == 0
        assert picture.stat().st_size > 10_000


def test_what_a_page_shows_is_escaped() -> None:
    text = page(
        {
            "version": "1",
            "upSeconds": 1,
            "notLive": ["<i>"],
            "notReady": [],
            "parts": {"hub": "<i>"},
            "partitions": [],
            "errors": [{"timestamp": "now", "message": "<i>", "reason": "<i>"}],
            "settings": {"EventHubName": "<i>"},
        }
    )
    assert "i" not in _Tags(text).tags
    assert text.count("&lt;i&gt;") == 5
