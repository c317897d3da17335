"""The sink's part of the check: the way to it, and what it answers to an empty list."""

import ssl
from typing import Final

from forwarder import __version__
from forwarder.commands.check import reach
from forwarder.commands.check.walk import BrokenError, Doubt, Skip, Step
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.diagnosis.causes import Diagnosis
from forwarder.errors import Rejected, RetryableError
from forwarder.metrics import Metrics
from forwarder.sink.tls import tls
from forwarder.sink.webhook import Sink, shown_url

_SOON: Final = 14.0  # days that a certificate is valid yet


class SinkCheck:
    """Steps to the sink."""

    def __init__(self, settings: Settings, *, post: bool) -> None:
        self._settings = settings
        self._post = post
        self._url = settings.web_sink_url
        self._address = self._url.host or "", self._url.port or 0

    def steps(self) -> list[Step]:
        """Return the steps in order."""
        return [
            Step("sink DNS", self._dns, 5),
            Step("sink TCP", self._tcp, 5),
            Step("sink TLS", self._tls),
            Step("sink POST", self._request, min(self._settings.web_sink_timeout, 25) + 1),
        ]

    def explain(self, error: BaseException) -> Diagnosis:
        """Return the cause of an error."""
        return causes.of_sink(error, self._settings)

    async def _dns(self) -> str:
        return await reach.resolved(*self._address)

    async def _tcp(self) -> str:
        await reach.connect(*self._address)
        return f"port {self._address[1]} is open"

    async def _tls(self) -> str | Doubt | Skip:
        if self._url.scheme == "http":
            return Skip("WebSinkURL is http")
        context = tls(self._settings) or ssl.create_default_context()
        version, left = await reach.connect(*self._address, context)
        days = left / 86_400
        text = f"{version}, certificate valid for {days:.0f} days"
        return text if days > _SOON else Doubt(text, "renew the sink's certificate")

    async def _request(self) -> str | Skip:
        if not self._post:
            return Skip("--no-post")
        async with Sink(self._settings, Metrics(__version__)) as sink:
            try:
                await sink.probe()
            except Rejected as error:
                do = (
                    "an audit webhook takes an empty EventList: see WebSinkURL (webhook.url); if "
                    "this one is known to take none, check --no-post"
                )
                raise BrokenError(
                    Diagnosis("rejected", f"refuses an empty list: {error}", do)
                ) from None
            except RetryableError as error:
                do = error.do or "the sink is there, and in trouble: see its own log"
                what = f"answers {error.what}" if error.reason.isdecimal() else error.what
                raise BrokenError(Diagnosis("sink", what, do)) from None
        return f"{shown_url(self._url)} takes an empty list"
