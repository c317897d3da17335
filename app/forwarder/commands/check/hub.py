"""Checks the hub: the connection, the login, and the messages in it."""

import asyncio
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final

import aiohttp
from azure.eventhub.aio import EventHubConsumerClient
from azure.eventhub.exceptions import EventHubError

from forwarder.audit.records import categories
from forwarder.commands.check.steps import Check, Finding, Steps, connection_steps
from forwarder.commands.check.store import StoreCheck
from forwarder.config.network import proxy_for, trusted
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.hub.client import has_owner, peek
from forwarder.hub.monitor import QUIET

_CLOCK_OFF: Final = 300.0  # seconds
_CLOCK_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)
_PEEKED: Final = 4  # partitions
_MESSAGES: Final = 5  # per partition
_PEEK_SECONDS: Final = 5.0


class HubCheck(Check):
    """The steps for the hub; `store` provides the checkpoints to count messages behind them."""

    def __init__(
        self, settings: Settings, client: EventHubConsumerClient, store: StoreCheck
    ) -> None:
        super().__init__(settings, causes.of_hub)
        self._client, self._store = client, store
        self._missing: EventHubError | None = None
        self._ids: list[str] = []
        self._partitions: list[dict[str, Any]] = []
        self._host, self._port = address = causes.hub_address(settings)
        self._tls = partial(trusted, settings.trusted_ca_file)
        self._emulator = bool(settings.hub_connection and settings.hub_connection.emulator)
        connection: Steps = {}
        # With a proxy there is no direct connection to check; the login diagnoses the proxy.
        if settings.hub_transport == "amqp" or not proxy_for(settings, *address):
            tls = None if self._emulator else self._tls
            connection = connection_steps("hub", *address, tls)
        self.steps = {
            **connection,
            "hub login": self._login,
            "hub": self._hub,
            "consumer group": self._group,
            "messages": self._messages,
            "categories": self._categories,
        }

    async def _login(self) -> Finding | str:
        clock = asyncio.create_task(self._clock())
        try:
            self._ids = (await self._client.get_eventhub_properties())["partition_ids"]
        except EventHubError as error:
            if causes.of_hub(error, self.settings).kind != "hub":
                if wrong := await clock:
                    return wrong._replace(state="FAIL")
                raise
            self._missing = error
        if wrong := await clock:
            return wrong
        connection = self.settings.hub_connection
        if not connection:
            return f"by Microsoft Entra ID {self.settings.client_id}".rstrip()
        return f"by policy '{connection.policy}'" if connection.policy else "by a signature"

    async def _clock(self) -> Finding | None:
        """Compare the clock with the Date header of the namespace's HTTP endpoint, if any."""
        scheme, port = ("http", self._port) if self._emulator else ("https", 443)
        url, proxy = f"{scheme}://{self._host}:{port}/", proxy_for(self.settings, self._host, port)
        ahead = 0.0
        with suppress(aiohttp.ClientError, OSError, ValueError, KeyError):
            async with (
                aiohttp.ClientSession(timeout=_CLOCK_TIMEOUT) as session,
                session.get(url, ssl=self._tls(), proxy=proxy, allow_redirects=False) as response,
            ):
                hub_time = parsedate_to_datetime(response.headers["Date"])
                ahead = time.time() - hub_time.timestamp()
        if abs(ahead) < _CLOCK_OFF:
            return None
        side = "ahead of" if ahead > 0 else "behind"
        return Finding(
            "warn",
            f"the clock of this node is {abs(ahead) / 60:,.0f} minutes {side} that of {self._host}",
            "set it by NTP: logins and the age of events depend on it",
        )

    async def _hub(self) -> str:
        if self._missing:
            raise self._missing
        return f"'{self.settings.event_hub_name}' has {len(self._ids)} partitions"

    async def _group(self) -> str:
        name, number = self.settings.consumer_group, self._ids[0]
        if await has_owner(self._client, number):
            return f"'{name}' is being read, by a forwarder"
        return f"'{name}' may be read; partition {number} has no reader at the moment"

    async def _messages(self) -> Finding | str:
        properties = map(self._client.get_partition_properties, self._ids)
        self._partitions = await asyncio.gather(*properties)
        await self._store.done.wait()
        stored = self._store.checkpoints
        total = waiting = 0
        for p in self._partitions:
            first, last = p["beginning_sequence_number"], p["last_enqueued_sequence_number"]
            count = 0 if p["is_empty"] else last - first + 1
            total += count
            done = (stored or {}).get(p["id"], first - 1)
            waiting += min(count, max(0, last - done))
        newest = max(p["last_enqueued_time_utc"] for p in self._partitions)
        age = (datetime.now(UTC) - newest).total_seconds()
        if age > QUIET.total_seconds():
            silent = causes.of_silence(newest, self.settings.event_hub_name)
            return Finding("warn", silent.what, silent.remedy)
        behind = f"{waiting:,} behind the checkpoints" if stored else "no checkpoint"
        if stored is None:
            behind = "checkpoints are not visible here"
        return f"{total:,} in the hub, {behind}; the newest came {max(0, age):,.0f} s ago"

    async def _categories(self) -> Finding | str:
        filled = [p for p in self._partitions if not p["is_empty"]]
        filled.sort(key=lambda p: p["last_enqueued_time_utc"], reverse=True)
        if not filled:
            return Finding("skipped", "there is no message to look into")
        peeks = (peek(self._client, p, _MESSAGES, _PEEK_SECONDS) for p in filled[:_PEEKED])
        peeked = await asyncio.gather(*peeks)
        messages = [body for bodies in peeked for body in bodies or ()]
        if None in peeked and not messages:
            return Finding("skipped", "a forwarder reads the partitions: see its log and metrics")
        if not messages:
            return Finding(
                "warn",
                f"nothing came in {_PEEK_SECONDS:g} s although messages are there",
                "try again; if it lasts, see the state of the namespace in the Azure portal",
            )
        counts = Counter(name for body in messages for name in categories(body))
        text = ", ".join(f"{name or 'unreadable'} {n}" for name, n in counts.most_common())
        text = f"{text or 'no records'} in {len(messages)} messages"
        if counts.keys() & self.settings.categories:
            return text
        return Finding(
            "warn",
            f"{text}, none of {', '.join(sorted(self.settings.categories))}",
            "turn on kube-audit or kube-audit-admin in the diagnostic setting of the cluster, or "
            "see Categories (eventHub.categories)",
        )
