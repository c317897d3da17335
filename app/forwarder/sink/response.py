"""What an answer of the sink means. Pure: status and body in, an error out, or nothing."""

from typing import Final

from forwarder.errors import MisconfiguredError, Rejected, RetryableError

_REJECTING: Final = {400, 413, 415, 422}  # guard: rejected-statuses
_BUSY: Final = {408, 425, 429, *range(500, 600)}
_CREDENTIALS: Final = "see WebSinkTokenFile, WebSinkHeaders, or a user and password in WebSinkURL"
_PATH: Final = "correct the path in WebSinkURL (webhook.url)"
_REMEDIES: Final = {  # what it means, what to do
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
_UNKNOWN: Final = "an audit webhook does not answer so", "see WebSinkURL (webhook.url)"
_MOST_PATIENCE: Final = 300.0
_SHOWN_CHARACTERS: Final = 200


def classify(status: int, body: bytes, retry_after: str | None) -> None:
    """Return if the events are accepted, by any 2xx as kube-apiserver takes it, or else raise.

    Rejected: never again. RetryableError: later, after so many seconds as Retry-After says
    (300 at most). MisconfiguredError: later, and somebody has to do what it says.
    """
    if status in range(200, 300):  # guard: accepted-statuses
        return
    told = f"{status} {' '.join(body.decode(errors='replace').split())[:_SHOWN_CHARACTERS]}".strip()
    if status in _REJECTING:
        raise Rejected(told)
    if status in _BUSY:
        wait = retry_after or ""
        after = min(float(wait), _MOST_PATIENCE) if wait.isdecimal() else None
        raise RetryableError(told, reason=str(status), after=after)
    meaning, do = _REMEDIES.get(status, _UNKNOWN)
    raise MisconfiguredError(f"{told}: {meaning}", reason=str(status), do=do)


def is_html(content_type: str, body: bytes) -> bool:
    """Tell a page for people, such as a proxy's or a log-in's, from what a webhook answers."""
    return content_type == "text/html" or body[:64].lstrip()[:1] == b"<"  # guard: html-is-logged
