"""Classifies a response of the sink. Pure: status and body in; an error out, or nothing."""

import time
from email.utils import parsedate_to_datetime
from typing import Final

from forwarder.errors import FaultError, MisconfiguredError, Rejected, RetryableError
from forwarder.redaction import redact

_REJECTING: Final = {400, 413, 415, 422}  # guard: rejected-statuses
_RETRYABLE: Final = {408, 425, 429, *range(500, 600)}
_FAULTS: Final = {500, 501, 505}  # CrowdSec answers 500 to a list with one malformed event
_CREDENTIALS: Final = "see WebSinkTokenFile, WebSinkHeaders, or a user and password in WebSinkURL"
_PATH: Final = "correct the path in WebSinkURL (webhook.url)"
_REMEDIES: Final = {  # diagnosis, remedy
    401: ("it wants credentials", _CREDENTIALS),
    403: ("it forbids this client", _CREDENTIALS),
    404: ("there is nothing at this path", _PATH),
    405: ("this path takes no POST", _PATH),
    410: ("this path is gone", _PATH),
    **dict.fromkeys(
        range(300, 400),
        ("redirects are never followed", "give the final address as WebSinkURL (webhook.url)"),
    ),
}
_UNKNOWN: Final = ("unexpected from an audit webhook", "see WebSinkURL (webhook.url)")
_MAX_RETRY_AFTER: Final = 300.0  # seconds
_SHOWN_CHARACTERS: Final = 200


def classify(status: int, body: bytes, retry_after: str, date: str = "") -> None:
    """Return if the events are accepted: any 2xx, as for kube-apiserver.

    Otherwise raise Rejected (these events will never be accepted), RetryableError (they may be, not
    before `after` seconds), FaultError (they may be, perhaps without one of them), or
    MisconfiguredError (they may be, once a setting is changed). `date` is the header Date.
    """
    if status in range(200, 300):  # guard: accepted-statuses
        return
    # A sink that refuses credentials may repeat them.
    text = "" if status in (401, 403) else redact(" ".join(body.decode(errors="replace").split()))
    shown = f"{status} {text[:_SHOWN_CHARACTERS]}".strip()
    if status in _REJECTING:
        raise Rejected(shown)
    if status in _RETRYABLE:
        kind = FaultError if status in _FAULTS else RetryableError
        raise kind(shown, reason=str(status), after=_seconds(retry_after, date))
    diagnosis, remedy = _REMEDIES.get(status, _UNKNOWN)
    raise MisconfiguredError(f"{shown}: {diagnosis}", reason=str(status), remedy=remedy)


def is_html(content_type: str, body: bytes) -> bool:
    """Return whether the response is a web page, such as a login, and not that of a webhook."""
    return content_type == "text/html" or body[:64].lstrip()[:1] == b"<"  # guard: html-is-logged


def _seconds(retry_after: str, date: str) -> float:
    """Return the wait that Retry-After asks for, in seconds or as an HTTP date (RFC 9110); or 0.

    A date is compared with that of the response, because the clock of either side may be wrong.
    """
    try:
        if retry_after.isdecimal():
            wait = float(retry_after)
        else:
            now = parsedate_to_datetime(date).timestamp() if date else time.time()
            wait = parsedate_to_datetime(retry_after).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return min(max(wait, 0.0), _MAX_RETRY_AFTER)
