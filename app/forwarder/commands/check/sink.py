"""The sink: the way to it, and what it answers to an empty list."""

from typing import Final

from forwarder import __version__
from forwarder.commands.check import reach
from forwarder.commands.check.walk import SECONDS, BrokenError, Doubt, Found, Part, Skip
from forwarder.config.parsers import shown_url
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.errors import Rejected, RetryableError
from forwarder.metrics import Metrics
from forwarder.sink.tls import SinkTls
from forwarder.sink.webhook import Sink

_SOON: Final = 14.0  # days


class SinkCheck(Part):
    """Steps to the sink."""

    def __init__(self, settings: Settings, *, post: bool) -> None:
        super().__init__(settings, causes.of_sink)
        self._post = post
        self._url = settings.web_sink_url
        self._address = self._url.host or "", self._url.port or 0
        self.steps = {
            "sink DNS": (self._dns, 5),
            "sink TCP": (self._tcp, 5),
            "sink TLS": (self._tls, SECONDS),
            "sink POST": (self._request, min(settings.web_sink_timeout, 25) + 1),
        }

    async def _dns(self) -> str:
        return await reach.resolved(*self._address)

    async def _tcp(self) -> str:
        await reach.connect(*self._address)
        return f"port {self._address[1]} is open"

    async def _tls(self) -> Found:
        if self._url.scheme == "http":
            return Skip("WebSinkURL is http")
        found, days = await reach.connect(*self._address, SinkTls(self.settings).context())
        return found if days > _SOON else Doubt(found, "renew the certificate of the sink")

    async def _request(self) -> Found:
        if not self._post:
            return Skip("--no-post")
        async with Sink(self.settings, Metrics(__version__)) as sink:
            try:
                await sink.probe()
            except Rejected as error:
                remedy = (
                    "an audit webhook accepts an empty EventList: see WebSinkURL (webhook.url); if "
                    "this one is known not to, use check --no-post"
                )
                what = f"refuses an empty list: {error}"
                raise BrokenError("rejected", what, remedy) from None
            except RetryableError as error:
                remedy = error.remedy or "the sink is there but fails: see its own log"
                what = f"answers {error.what}" if error.reason.isdecimal() else error.what
                raise BrokenError("sink", what, remedy) from None
        return f"{shown_url(self._url)} takes an empty list"
