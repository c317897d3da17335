"""The hub: the way to it, the login, and what waits in it."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from azure.eventhub._pyamqp.error import AMQPLinkError
from azure.eventhub.aio import EventHubConsumerClient
from azure.eventhub.exceptions import EventHubError

from forwarder.audit.records import categories
from forwarder.commands.check.reach import clock_ahead, way
from forwarder.commands.check.store import StoreCheck
from forwarder.commands.check.walk import Finding, Part, Steps
from forwarder.config.network import hub_proxy, trusted
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.diagnosis.causes import Diagnosis
from forwarder.hub.client import SHARED, open_link, peek
from forwarder.hub.monitor import QUIET

_CLOCK_OFF: Final = 300.0  # seconds
_PEEKED: Final = 4  # partitions
_MESSAGES: Final = 5  # of each
_PEEK_SECONDS: Final = 5.0


class HubCheck(Part):
    """Steps to the hub; the store has the checkpoints that messages may be behind."""

    def __init__(
        self, settings: Settings, client: EventHubConsumerClient, store: StoreCheck
    ) -> None:
        super().__init__(settings, causes.of_hub)
        self._client, self._store = client, store
        self._missing: Diagnosis | None = None
        self._ids: list[str] = []
        self._partitions: list[dict[str, Any]] = []
        self._host, self._port = host, port = causes.hub_address(settings)
        self._tls = partial(trusted, settings.trusted_ca_file)
        self._emulator = bool(settings.hub_connection and settings.hub_connection.emulator)
        way_there: Steps = {}
        # Through a proxy, the login tells where the way ends.
        if settings.hub_transport == "amqp" or not hub_proxy(settings, host, port):
            way_there = way("hub", host, port, None if self._emulator else self._tls)
        self.steps = {
            **way_there,
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
            self._missing = causes.of_hub(error, self.settings)
            if self._missing.kind != "hub":
                if wrong := await clock:
                    return wrong._replace(state="FAIL")
                raise
        if wrong := await clock:
            return wrong
        connection = self.settings.hub_connection
        if not connection:
            return f"by Microsoft Entra ID {self.settings.client_id}".rstrip()
        return f"by policy '{connection.policy}'" if connection.policy else "by a signature"

    async def _clock(self) -> Finding | None:
        """Compare the clock with that of the namespace's HTTP endpoint."""
        scheme, port = ("http", self._port) if self._emulator else ("https", 443)
        url = f"{scheme}://{self._host}:{port}/"
        ahead = await clock_ahead(url, self._tls(), hub_proxy(self.settings, self._host, port))
        if abs(ahead) < _CLOCK_OFF:
            return None
        way = "ahead of" if ahead > 0 else "behind"
        return Finding(
            "warn",
            f"the clock of this node is {abs(ahead) / 60:,.0f} minutes {way} that of {self._host}",
            "set it by NTP: logins and the age of events depend on it",
        )

    async def _hub(self) -> Finding | str:
        if why := self._missing:
            return Finding("FAIL", why.what, why.remedy)
        return f"'{self.settings.event_hub_name}' has {len(self._ids)} partitions"

    async def _group(self) -> str:
        name = self.settings.consumer_group
        try:
            link = await open_link(self._client, self._ids[0])
        except AMQPLinkError as error:
            if error.condition not in SHARED:
                raise
            return f"'{name}' is being read, by a forwarder"
        await link.close()
        return f"'{name}' may be read; partition {self._ids[0]} has no reader at the moment"

    async def _messages(self) -> Finding | str:
        asked = (self._client.get_partition_properties(number) for number in self._ids)
        self._partitions = await asyncio.gather(*asked)
        await self._store.done.wait()
        stored = self._store.found
        total = waiting = 0
        for found in self._partitions:
            first, last = found["beginning_sequence_number"], found["last_enqueued_sequence_number"]
            held = 0 if found["is_empty"] else last - first + 1
            total += held
            waiting += min(held, max(0, last - (stored or {}).get(found["id"], first - 1)))
        newest = max(found["last_enqueued_time_utc"] for found in self._partitions)
        age = (datetime.now(UTC) - newest).total_seconds()
        if age > QUIET.total_seconds():
            silent = causes.of_silence(newest, self.settings.event_hub_name)
            return Finding("warn", silent.what, silent.remedy)
        behind = f"{waiting:,} behind the checkpoints" if stored else "no checkpoint"
        behind = "checkpoints are not visible here" if stored is None else behind
        return f"{total:,} in the hub, {behind}; the newest came {max(0, age):,.0f} s ago"

    async def _categories(self) -> Finding | str:
        filled = [found for found in self._partitions if not found["is_empty"]]
        filled.sort(key=lambda found: found["last_enqueued_time_utc"], reverse=True)
        if not filled:
            return Finding("skipped", "there is no message to look into")
        look = (peek(self._client, found, _MESSAGES, _PEEK_SECONDS) for found in filled[:_PEEKED])
        seen = await asyncio.gather(*look)
        messages = [body for bodies in seen if bodies is not None for body in bodies]
        if None in seen and not messages:
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
