"""The status page as JSON and as HTML."""

import asyncio
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import aiohttp
import pytest

from forwarder.server.history import History, State
from forwarder.server.page import page
from support import events
from support.eventhubs import Server
from support.harness import HUB
from support.inprocess import InProcess, forwarding
from support.webhook import Response, Webhook


def state(delivered: int, lag: int = 0) -> State:
    return State("0", lag=lag, oldest=0.0, checkpoint=None, delivered=delivered)


async def browse(running: InProcess) -> tuple[str, str]:
    """Return the page as a browser receives it, and its URL."""
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


async def test_the_page_shows_deliveries_and_failures_and_no_secret(
    webhook: Webhook, tmp_path: Path
) -> None:
    webhook.rule = lambda _: Response(409, body="<b>who</b> are you")
    async with Server({HUB: 2}) as server:
        hub = server.hubs[HUB]
        for message in events.messages(30, per_message=10):
            hub.publish(0, message.body)
        headers = '{"X-Secret": "do-not-show-this"}'
        url = f"{webhook.url}?key=nor-show-this"
        async with forwarding(server, url, tmp_path, WebSinkHeaders=headers) as running:
            await running.until(lambda: running.entries("sink down"))
            failing, _ = await browse(running)
            assert 'aks-audit: <span class="bad">not delivering</span>' in failing
            assert "&lt;b&gt;who&lt;/b&gt; are you" in failing
            webhook.rule = None
            await running.until(lambda: running.entries("sink up"))
            await webhook.until(lambda: webhook.total == 30)
            status = json.loads((await running.get("/status"))[1])
            assert (status["notLive"], status["notReady"]) == ([], [])
            assert status["state"] == "delivering"
            assert 1 <= status["postConcurrency"] <= 4
            components = ("hub", "sink", "checkpoints", "dead letters")
            assert status["components"] == dict.fromkeys(components, "healthy")
            first, second = status["partitions"]
            assert (first["partition"], first["delivered"]) == ("0", 30)
            assert (second["partition"], second["lag"]) == ("1", 0)
            assert [entry["message"] for entry in status["errors"]] == ["sink down"]
            assert status["settings"]["WebSinkURL"] == webhook.url
            assert status["settings"]["WebSinkHeaders"] == "set"
            assert status["settings"]["Categories"] == "kube-audit, kube-audit-admin"
            healthy, _ = await browse(running)
            assert 'aks-audit: <span class="good">delivering</span>' in healthy
            for text in (failing, healthy, json.dumps(status)):
                assert "do-not-show-this" not in text
                assert "nor-show-this" not in text
                assert not [key for key in server.keys.values() if key in text]
                assert not {"script", "link", "img"} & _Tags(text).tags
                assert not _Tags(text).addresses


def curve(history: History, now: float, *, delivered: int, lag: int = 0) -> list[list[float]]:
    """Return time, lag and rate of each point."""
    points = history.curve(now, state(delivered, lag))
    return [[now - one["secondsAgo"], one["lag"], one["rate"]] for one in points]


def test_a_curve_has_120_points_and_the_current_state() -> None:
    history = History()
    history.note(0, [state(100)])
    history.note(60, [state(700, lag=3)])
    expected = [[0, 0, 0], [60, 3, 10], [70, 9, 2]]
    assert curve(history, 70, delivered=720, lag=9) == expected
    assert curve(history, 61, delivered=790)[-1] == [61, 0, 10]  # too short for a rate
    for minute in range(2, 200):
        history.note(60 * minute, [state(700)])
    assert len(curve(history, 60 * 200, delivered=700)) == 121
    history.note(60 * 200, [])
    assert curve(history, 60 * 200, delivered=9) == [[60 * 200, 0, 0]]


def test_a_partition_that_is_claimed_again_starts_a_new_curve() -> None:
    history = History()
    history.note(0, [state(100)])
    history.note(60, [])
    history.note(120, [state(5)])
    assert curve(history, 120, delivered=5)[0] == [120, 0, 0]


def test_a_claim_between_two_points_causes_no_negative_rate() -> None:
    """The count restarts at 0, as it does when everything is reopened with a new client."""
    history = History()
    history.note(0, [state(0)])
    history.note(30, [state(600)])
    assert curve(history, 60, delivered=90) == [[0, 0, 0], [30, 0, 20], [60, 0, 3]]


def report(points: list[tuple[float, int]], word: str = "x") -> dict[str, object]:
    """Return a report on one partition, with points of (seconds ago, lag)."""
    hour = [{"secondsAgo": ago, "lag": lag, "oldest": 0.0, "rate": 0.0} for ago, lag in points]
    one = {"partition": "0", "lag": points[-1][1], "oldest": 0.0, "checkpoint": 7, "delivered": 1}
    return {
        "version": "1",
        "upSeconds": 1,
        "state": "not delivering",
        "postConcurrency": 4,
        "notLive": [word],
        "notReady": [],
        "components": {"hub": word},
        "partitions": [{**one, "lastHour": hour}],
        "errors": [{"timestamp": "now", "message": word, "reason": word}],
        "settings": {"EventHubName": word},
    }


def test_a_curve_spans_the_available_time_and_its_maximum_includes_the_current_value() -> None:
    text = page(report([(120, 0), (60, 20), (0, 5_000)]))
    lag = text.split("<polyline")[1].split('"')[1]
    assert [float(point.split(",")[0]) for point in lag.split()] == [0, 60, 120]
    assert [float(point.split(",")[1]) for point in lag.split()][-1] == 1
    assert "max 5,000" in text
    assert "last 2 min" in text


@pytest.mark.skipif(
    not shutil.which("chromium"), reason="Chromium is missing: apt-get install chromium"
)
async def test_a_browser_renders_the_page(webhook: Webhook, tmp_path: Path) -> None:
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
        assert await asyncio.wait_for(browser.wait(), 200) == 0
        assert picture.stat().st_size > 10_000


def test_values_on_the_page_are_escaped() -> None:
    text = page(report([(0, 0)], "<i>"))
    assert "i" not in _Tags(text).tags
    assert text.count("&lt;i&gt;") == 5
