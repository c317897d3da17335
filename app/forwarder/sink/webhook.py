"""The sink: the webhook of a security sensor, which takes what kube-apiserver posts."""

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import aiohttp
from yarl import URL

from forwarder import log
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.errors import MisconfiguredError, Rejected, RetryableError
from forwarder.metrics import Metrics
from forwarder.sink.bearer import BearerToken
from forwarder.sink.response import classify, is_html
from forwarder.sink.tls import tls

_OPEN: Final = b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":['
_CLOSE: Final = b"]}"
LIST_OVERHEAD: Final = len(_OPEN) + len(_CLOSE)
_FIRST_BACKOFF: Final = 0.2  # seconds, doubled each time
_MOST_BACKOFF: Final = 30.0
_ANSWER_BYTES: Final = 65_536  # of an answer are read; more closes the connection
_FAILURES_TO_BE_DOWN: Final = 3  # in a row: one is ordinary, and no news for the operator


class Sink:
    """Posts lists of events and says what became of them. An async context manager."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._url = settings.web_sink_url
        self._shown_url = str(shown_url(self._url))
        self._refused_in_a_row = self._failures = 0
        self._token = BearerToken(settings.web_sink_token_file)
        self._repeated = log.RateLimited()
        self._said_page = False
        self.down_since: float | None = None
        """When posts began to fail, by the monotonic clock; None while they succeed."""
        self.failure = ""
        """Why they fail, in a line."""
        self.up_since = time.monotonic()
        metrics.sink_up.set(1)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls(self._settings) or True),
            # guard: post-timeout
            timeout=aiohttp.ClientTimeout(total=self._settings.web_sink_timeout),
            headers={"User-Agent": "aks-audit", **dict(self._settings.web_sink_headers)},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def post(self, events: Sequence[bytes]) -> None:
        """Post these events, again and again until the sink takes them or refuses them for good.

        Raises Rejected if it refuses: 400, 413, 415, 422.
        """
        body = encode(events, single=self._settings.web_sink_max_events == 1)
        for attempt in itertools.count():
            try:
                await self._attempt(body, len(events))
            except RetryableError as error:
                self._metrics.retries.labels(error.reason).inc()
                backoff = min(_FIRST_BACKOFF * 2 ** min(attempt, 10), _MOST_BACKOFF)
                jittered = random.uniform(backoff / 2, backoff)  # noqa: S311 - not a secret
                await asyncio.sleep(jittered if error.after is None else error.after)
            else:
                return

    async def probe(self) -> None:
        """Post an empty list, once; RetryableError or Rejected if the sink did not take it."""
        await self._request(encode([], single=False), 0)

    async def _attempt(self, body: bytes, events: int) -> None:
        """Post once; RetryableError or Rejected if the sink did not take it."""
        try:
            await self._request(body, events)
        except RetryableError as error:
            self._failed(error)
            raise
        except Rejected:
            if self._refused_in_a_row >= self._settings.web_sink_max_rejects:
                hold = MisconfiguredError(
                    f"{self._refused_in_a_row} events refused in a row and none taken",
                    reason="rejects",
                    do="is this the address of a Kubernetes audit webhook? see WebSinkURL, "
                    "WebSinkMaxRejects",
                )
                self._failed(hold)
                raise hold from None
            self._refused_in_a_row += events == 1
            self._answered()
            raise
        self._refused_in_a_row = 0
        self._answered()

    async def _request(self, body: bytes, events: int) -> None:
        """Send one POST and judge the answer."""
        if log.enabled(log.POST):
            log.write(log.POST, "post", url=self._shown_url, events=events, bytes=len(body))
        started = time.perf_counter()
        headers = {"Content-Type": "application/json", **self._token.header()}
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as response:
                answer = await response.content.read(_ANSWER_BYTES)  # guard: bounded-response
                if not response.content.at_eof():
                    response.close()  # what is left unread must not be read by the next request
        except TimeoutError:
            self._metrics.posts.labels("error").inc()
            seconds = f"{self._settings.web_sink_timeout:g}"  # guard: timeout-is-retried
            raise RetryableError(
                f"no answer in {seconds} s",
                reason="timeout",
                do="is it overloaded, or the wrong port? see WebSinkTimeout, WebSinkURL",
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._metrics.posts.labels("error").inc()
            why = causes.of_sink(error, self._settings)
            # guard: no-response-is-retried
            raise RetryableError(why.what, reason="connection", do=why.remedy) from None
        taken = time.perf_counter() - started
        status = response.status
        self._metrics.posts.labels(str(status)).inc()
        self._metrics.post_seconds.observe(taken)
        if log.enabled(log.POST):
            log.write(log.POST, "response", status=status, milliseconds=round(taken * 1000, 1))
        if status not in range(200, 300):  # some sinks repeat what they refuse
            login = response.request_info.headers.get("Authorization", "").partition(" ")[2]
            for secret in filter(None, (login, *self._settings.secrets)):
                answer = answer.replace(secret.encode(), b"***")
        classify(status, answer, response.headers.get("Retry-After"))
        if is_html(response.content_type, answer) and not self._said_page:
            self._said_page = True
            log.error(
                "sink answers with a web page",
                url=self._shown_url,
                status=status,
                reason="its answer counts as acceptance, but is this an audit webhook? see "
                "WebSinkURL",
            )

    def _failed(self, error: RetryableError) -> None:
        self._failures += 1
        misconfigured = isinstance(error, MisconfiguredError)
        if misconfigured or self._failures >= _FAILURES_TO_BE_DOWN:
            self.failure = str(error)
            self.down_since = self.down_since or time.monotonic()
            self._metrics.sink_up.set(0)
            self._repeated.error("sink down", url=self._shown_url, reason=self.failure)

    def _answered(self) -> None:
        self._failures = 0
        if self.down_since is not None:
            now = time.monotonic()
            log.info("sink up", url=self._shown_url, downSeconds=round(now - self.down_since, 1))
            self.down_since, self.up_since, self.failure = None, now, ""
            self._metrics.sink_up.set(1)
            self._repeated.forget()


def encode(events: Sequence[bytes], *, single: bool) -> bytes:
    """Return a request's body: an EventList, or with `single` the bare event."""
    return events[0] if single else _OPEN + b",".join(events) + _CLOSE


def shown_url(url: URL) -> URL:
    """Return the URL without what may be secret: user, password and query."""
    return url.with_user(None).with_query(None).with_fragment(None)
