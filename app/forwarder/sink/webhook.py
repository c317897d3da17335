"""The sink: the audit webhook of a security sensor, which accepts what kube-apiserver posts.

`Sink.post` returns when the sink has accepted the events. It repeats a POST for as long as the sink
is away, busy or misconfigured, and raises only where repeating does not help: Rejected for events
that this sink never accepts, OversizedError and FaultError for a list whose halves may be accepted.
`concurrency` decides when POSTs may start.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Final, Self

import aiohttp

from forwarder import log
from forwarder.config.parsers import shown_url
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.errors import (
    FaultError,
    MisconfiguredError,
    OversizedError,
    Rejected,
    RetryableError,
)
from forwarder.metrics import Metrics
from forwarder.outage import Outage
from forwarder.redaction import protect
from forwarder.sink.concurrency import MAX_BACKOFF, AdaptiveConcurrency, Slot
from forwarder.sink.response import classify, is_html
from forwarder.sink.tls import SinkTls, authorization

_OPEN: Final = b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":['
_CLOSE: Final = b"]}"
LIST_OVERHEAD: Final = len(_OPEN) + len(_CLOSE)
_MAX_RESPONSE: Final = 65_536  # bytes; of a longer response the rest is not read
_FAILURES_TO_BE_DOWN: Final = 3  # in a row: a single one is normal
_TRIES_IN_FRONT: Final = 3  # of a list, before other lists are posted
_FAULTS_TO_RAISE: Final = 3  # of the same list
_FAULTS_TO_REJECT: Final = 12  # of an event while others are accepted; takes a minute


class Sink:
    """Posts lists of events. An async context manager."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._log_url = str(shown_url(settings.web_sink_url))
        self._rejects = self._failures = 0  # in a row
        self._accepted_events = 0
        self._authorization = authorization(settings.web_sink_token_file)
        https = settings.web_sink_url.scheme == "https"
        self._tls = SinkTls(settings, metrics.expiry) if https else None
        self.html_logged = False
        """Whether a response was a web page, which is logged once."""
        self.concurrency = AdaptiveConcurrency(settings.web_sink_timeout, metrics.post_concurrency)
        self.outage = Outage("sink down", "sink up")
        metrics.sink_up.set_function(lambda: self.outage.since is None)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            # guard: post-timeout
            timeout=aiohttp.ClientTimeout(total=self._settings.web_sink_timeout),
            headers={"User-Agent": "aks-audit"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, events: Sequence[bytes], *, faults: int = _FAULTS_TO_RAISE) -> None:
        """Post these events until the sink accepts them.

        Raises Rejected for 400, 413, 415 and 422, OversizedError for a list that is too large to be
        answered in time, and FaultError after that many `faults`.
        """
        body = events[0] if self._settings.web_sink_max_events == 1 else _list_of(events)
        tries = 0
        while True:
            slot = await self.concurrency.acquire(len(events), retry=0 < tries < _TRIES_IN_FRONT)
            try:
                if len(events) > self.concurrency.max_events:
                    raise OversizedError("the sink is late with larger lists")
                tries += 1
                await self._request(body, slot.events)
            except RetryableError as error:
                self._failed(slot, error)
                if isinstance(error, FaultError):
                    faults -= 1
                    if not faults:
                        raise
            except Rejected:
                if self._rejects < self._settings.web_sink_max_rejects:
                    if len(events) == 1:
                        self._rejects += 1
                    self._accepted(slot)
                    raise
                remedy = "is this a Kubernetes audit webhook? see WebSinkURL, WebSinkMaxRejects"
                what = f"{self._rejects} events rejected in a row and none accepted"
                self._failed(slot, MisconfiguredError(what, reason="rejects", remedy=remedy))
            else:
                self._rejects = 0
                self._accepted_events += len(events)
                self._accepted(slot)
                return
            finally:
                self.concurrency.release(slot)

    async def retry_event(self, events: Sequence[bytes]) -> None:
        """Post a single event at which the sink fails, until it is accepted.

        Raises Rejected also if it fails for a minute while the sink accepts others: no outage then.
        """
        faults = 0
        while True:
            accepted_before = self._accepted_events
            await asyncio.sleep(min(MAX_BACKOFF, self._settings.web_sink_timeout / 2))
            try:
                return await self.post(events, faults=1)
            except FaultError as error:
                if self._accepted_events > accepted_before:  # guard: no-verdict-in-an-outage
                    faults += 1
                if faults == _FAULTS_TO_REJECT:
                    raise Rejected(str(error)) from None

    async def probe(self) -> None:
        """Post an empty list, once; RetryableError or Rejected if the sink did not accept it."""
        await self._request(_list_of([]), 0)

    async def _request(self, body: bytes, events: int) -> None:
        """Send one POST and classify the response; RetryableError or Rejected if it fails."""
        log.write(log.POST, "post", url=self._log_url, events=events, bytes=len(body))
        started = time.perf_counter()
        try:
            response, content = await self._send(body)
        except TimeoutError:
            self._metrics.posts.labels("error").inc()
            what = f"no answer in {self._settings.web_sink_timeout:g} s"
            remedy = "is it overloaded, or the wrong port? see WebSinkTimeout, WebSinkURL"
            # guard: timeout-is-retried
            raise RetryableError(what, reason="timeout", remedy=remedy) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._metrics.posts.labels("error").inc()
            diagnosis = causes.of_sink(error, self._settings)
            what = (self._tls.expired() if self._tls else "") or diagnosis.what
            kind = RetryableError if isinstance(error, aiohttp.ClientConnectorError) else FaultError
            # guard: no-response-is-retried
            raise kind(what, reason="connection", remedy=diagnosis.remedy) from None
        seconds, status = time.perf_counter() - started, response.status
        self._metrics.posts.labels(status).inc()
        self._metrics.post_seconds.observe(seconds)
        log.write(log.POST, "response", status=status, milliseconds=round(seconds * 1000, 1))
        if status not in range(200, 300):  # some sinks repeat the credentials they refuse
            protect(response.request_info.headers.get("Authorization", "").partition(" ")[2])
        headers = response.headers
        classify(status, content, headers.get("Retry-After", ""), headers.get("Date", ""))
        if is_html(response.content_type, content) and not self.html_logged:
            self.html_logged = True
            why = "it counts as acceptance, but is this an audit webhook? see WebSinkURL"
            log.error("sink answers with a web page", url=self._log_url, status=status, reason=why)

    async def _send(self, body: bytes) -> tuple[aiohttp.ClientResponse, bytes]:
        """Send one POST; return the response and the first _MAX_RESPONSE bytes of its body."""
        async with self._session.post(
            self._settings.current("web_sink_url"),
            data=aiohttp.BytesPayload(body),
            headers={
                "Content-Type": "application/json",
                **dict(self._settings.current("web_sink_headers")),
                **self._authorization.get(),
            },
            allow_redirects=False,
            ssl=self._tls.context() if self._tls else True,
        ) as response:
            content = await response.content.read(_MAX_RESPONSE)  # guard: bounded-response
            if not response.content.at_eof():
                response.close()  # a next request on the connection would read the rest
            return response, content

    def _failed(self, slot: Slot, error: RetryableError) -> None:
        self._metrics.retries.labels(error.reason).inc()
        timed_out = error.reason == "timeout"
        self.concurrency.failed(slot, timed_out=timed_out, retry_after=error.after)
        self._failures += 1
        misconfigured = isinstance(error, MisconfiguredError)
        if misconfigured or error.after > MAX_BACKOFF or self._failures >= _FAILURES_TO_BE_DOWN:
            self.outage.fail(str(error), url=self._log_url)

    def _accepted(self, slot: Slot) -> None:
        """Note that the sink answered and can be posted to."""
        self.concurrency.succeeded(slot)
        self._failures = 0
        self.outage.end(url=self._log_url)


def _list_of(events: Sequence[bytes]) -> bytes:
    return _OPEN + b",".join(events) + _CLOSE
