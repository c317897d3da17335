"""Checks the sink: the connection, and its response to an empty list."""

from forwarder.commands.check.steps import Check, Finding, connection_steps
from forwarder.config.parsers import shown_url
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.errors import Rejected, RetryableError
from forwarder.metrics import Metrics
from forwarder.sink.tls import SinkTls
from forwarder.sink.webhook import Sink


class SinkCheck(Check):
    """The steps for the sink."""

    def __init__(self, settings: Settings, *, post: bool) -> None:
        super().__init__(settings, causes.of_sink)
        self._post = post
        url = settings.web_sink_url
        tls = (lambda: SinkTls(settings).context()) if url.scheme == "https" else None
        connection = connection_steps("sink", url.host or "", url.port or 0, tls)
        self.steps = {**connection, "sink POST": self._post_empty_list}

    async def _post_empty_list(self) -> Finding | str:
        if not self._post:
            return Finding("skipped", "--no-post")
        async with Sink(self.settings, Metrics()) as sink:
            try:
                await sink.probe()
            except Rejected as error:
                return Finding(
                    "FAIL",
                    f"refuses an empty list: {error}",
                    "an audit webhook accepts an empty EventList: see WebSinkURL (webhook.url); if "
                    "this one is known not to, use check --no-post",
                )
            except RetryableError as error:
                remedy = error.remedy or "the sink is there but fails: see its own log"
                found = f"answers {error.what}" if error.reason.isdecimal() else error.what
                return Finding("FAIL", found, remedy)
        if sink.html_logged:
            remedy = "is this an audit webhook? see WebSinkURL (webhook.url)"
            return Finding("warn", "answers with a web page, which counts as acceptance", remedy)
        return f"{shown_url(self.settings.web_sink_url)} accepts an empty list"
