"""The hub: the way to it, the login, and what waits in it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from azure.eventhub._pyamqp.error import AMQPLinkError
from azure.eventhub.exceptions import EventHubError

from forwarder.audit.envelope import categories
from forwarder.commands.check import reach
from forwarder.commands.check.walk import SECONDS, BrokenError, Doubt, Found, Part, Skip
from forwarder.config.network import hub_proxy, trusted
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.diagnosis.causes import Diagnosis
from forwarder.hub.client import SHARED, attach, connect, peek
from forwarder.hub.monitor import QUIET

_CLOCK_OFF: Final = 300.0  # seconds
_PEEKED: Final = 4  # partitions
_MESSAGES: Final = 5  # of each
_PEEK_SECONDS: Final = 5.0


class HubCheck(Part):
    """Steps to the hub. `checkpoints`: sequence numbers by partition; None if not visible."""

    def __init__(
        self, settings: Settings, credential: Any, checkpoints: Awaitable[Mapping[str, int] | None]
    ) -> None:
        super().__init__(settings, causes.of_hub)
        self._checkpoints = checkpoints
        self._client = connect(settings, credential, retry_total=0)
        self.resources.append(self._client)
        self._at = self._host, self._port = causes.hub_address(settings)
        proxy = hub_proxy(settings, *self._at) if settings.hub_transport == "websockets" else None
        self._proxy = proxy
        self._first = (proxy.host or "", proxy.port or 0) if proxy else self._at
        self._emulator = bool(settings.hub_connection and settings.hub_connection.emulator)
        self._trusted = trusted(settings.trusted_ca_file)
        self._missing: Diagnosis | None = None
        self._ids: list[str] = []
        self._partitions: list[dict[str, Any]] = []
        self.steps = {
            "hub DNS": (self._dns, 5),
            "hub TCP": (self._tcp, SECONDS),
            "hub TLS": (self._tls, SECONDS),
            "hub login": (self._login, 15),
            "hub": (self._hub, SECONDS),
            "consumer group": (self._group, SECONDS),
            "messages": (self._messages, SECONDS),
            "categories": (self._categories, _PEEK_SECONDS + 7),
        }

    def _explain_first(self, error: BaseException) -> BrokenError:
        """Return the cause of an error before TLS, on the way to the proxy if there is one."""
        why = causes.of_hub(error, self.settings)
        if self._proxy:
            why = causes.of_network(error, "proxy", *self._first) or why
        return BrokenError(why.kind, why.what, why.remedy)

    async def _dns(self) -> str:
        try:
            found = await reach.resolved(*self._first)
        except OSError as error:
            raise self._explain_first(error) from None
        return f"by the proxy: {found}" if self._proxy else found

    async def _tcp(self) -> str:
        try:
            async with asyncio.timeout(5):
                await reach.connect(*self._first)
        except OSError as error:
            why = self._explain_first(error)
            other = {443: (5671, "amqp"), 5671: (443, "websockets")}.get(self._port)
            if other and not self._proxy and not self.settings.https_proxy:
                with suppress(OSError):
                    async with asyncio.timeout(4):
                        await reach.connect(self._host, other[0])
                    remedy = f"set HubTransport={other[1]} (eventHub.transport): {other[0]} is open"
                    why = BrokenError("closed", str(why), remedy)
            raise why from None
        return f"port {self._first[1]} is open"

    async def _tls(self) -> Found:
        if self._emulator:
            return Skip("a development emulator has none")
        found, _ = await reach.connect(*self._at, self._trusted, self._proxy)
        return found

    async def _login(self) -> Found:
        host = f"http://{self._host}:{self._port}" if self._emulator else f"https://{self._host}"
        asked = asyncio.create_task(reach.clock_ahead(f"{host}/", self._trusted, self._proxy))
        try:
            self._ids = (await self._client.get_eventhub_properties())["partition_ids"]
        except EventHubError as error:
            why = causes.of_hub(error, self.settings)
            if (ahead := await asked) and abs(ahead) > _CLOCK_OFF and why.kind != "hub":
                raise BrokenError("clock", *_clock(ahead, self._host)) from None
            if why.kind != "hub":
                raise
            self._missing = why
        if (ahead := await asked) and abs(ahead) > _CLOCK_OFF:
            return Doubt(*_clock(ahead, self._host))
        connection = self.settings.hub_connection
        if not connection:
            return f"by Microsoft Entra ID {self.settings.client_id}".rstrip()
        return f"by policy '{connection.policy}'" if connection.policy else "by a signature"

    async def _hub(self) -> str:
        if why := self._missing:
            raise BrokenError(why.kind, why.what, why.remedy)
        return f"'{self.settings.event_hub_name}' has {len(self._ids)} partitions"

    async def _group(self) -> str:
        name = self.settings.consumer_group
        try:
            receiver = await attach(self._client, self.settings, self._ids[0])
        except AMQPLinkError as error:
            if error.condition not in SHARED:
                raise
            return f"'{name}' is being read, by a forwarder"
        await receiver.close()
        return f"'{name}' may be read; nobody reads its partition {self._ids[0]} now"

    async def _messages(self) -> Found:
        asked = (self._client.get_partition_properties(number) for number in self._ids)
        self._partitions = await asyncio.gather(*asked)
        stored = await self._checkpoints
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
            return Doubt(silent.what, silent.remedy)
        behind = f"{waiting:,} behind the checkpoints" if stored else "no checkpoint"
        behind = "checkpoints are not visible here" if stored is None else behind
        return f"{total:,} in the hub, {behind}; the newest came {max(0, age):,.0f} s ago"

    async def _categories(self) -> Found:
        filled = [found for found in self._partitions if not found["is_empty"]]
        filled.sort(key=lambda found: found["last_enqueued_time_utc"], reverse=True)
        if not filled:
            return Skip("there is no message to look into")
        look = (
            peek(self._client, self.settings, found, _MESSAGES, _PEEK_SECONDS)
            for found in filled[:_PEEKED]
        )
        seen = await asyncio.gather(*look)
        messages = [body for bodies in seen if bodies is not None for body in bodies]
        if None in seen and not messages:
            return Skip("a forwarder reads the partitions: see its log and metrics")
        counts = Counter(name for body in messages for name in categories(body))
        if not messages:
            return Doubt(
                f"nothing came in {_PEEK_SECONDS:g} s although messages are there",
                "try again; if it lasts, see the state of the namespace in the Azure portal",
            )
        text = ", ".join(f"{name or 'unreadable'} {n}" for name, n in counts.most_common())
        text = f"{text or 'no records'} in {len(messages)} messages"
        if counts.keys() & self.settings.categories:
            return text
        return Doubt(
            f"{text}, none of {', '.join(sorted(self.settings.categories))}",
            "turn on kube-audit or kube-audit-admin in the diagnostic setting of the cluster, or "
            "see Categories (eventHub.categories)",
        )


def _clock(ahead: float, host: str) -> tuple[str, str]:
    """Return that this clock is wrong, and the remedy."""
    way = "ahead of" if ahead > 0 else "behind"
    what = f"the clock of this node is {abs(ahead) / 60:,.0f} minutes {way} that of {host}"
    return what, "set it by NTP: logins and the age of events depend on it"
