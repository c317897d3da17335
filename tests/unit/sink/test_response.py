"""The outcome of every response of a sink, as the specification defines it."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from forwarder.errors import FaultError, MisconfiguredError, Rejected, RetryableError
from forwarder.sink.response import classify

RETRIED = {408, 425, 429}
HALVED = {400, 413, 415, 422}
REMEDIES = {
    401: "WebSinkTokenFile",
    403: "WebSinkTokenFile",
    404: "WebSinkURL",
    405: "WebSinkURL",
    410: "WebSinkURL",
}


def _outcome(
    status: int, body: bytes = b"", retry_after: str = "", date: str = ""
) -> Exception | None:
    try:
        classify(status, body, retry_after, date)
    except (Rejected, RetryableError) as error:
        return error
    return None


@pytest.mark.parametrize("status", range(200, 600))
def test_every_status_has_one_outcome(status: int) -> None:
    error = _outcome(status, b"because")
    if 200 <= status < 300:
        assert error is None
    elif status in HALVED:
        assert type(error) is Rejected
        assert str(error) == f"{status} because"
    elif status in RETRIED or status >= 500:
        assert type(error) is (FaultError if status in {500, 501, 505} else RetryableError)
        assert (error.reason, error.after, str(error)) == (str(status), 0, f"{status} because")
    else:
        assert type(error) is MisconfiguredError
        assert (error.reason, error.after) == (str(status), 0)
        shown = f"{status}: " if status in {401, 403} else f"{status} because: "
        assert str(error).startswith(shown)  # a sink that refuses credentials may echo them
        assert REMEDIES.get(status, "WebSinkURL") in str(error)


@pytest.mark.parametrize("status", range(300, 400))
def test_a_redirect_is_reported_as_never_followed(status: int) -> None:
    assert "never followed" in str(_outcome(status))


@pytest.mark.parametrize("status", [0, 99, 100, 101, 103, 199, 600, 999])
def test_a_status_that_no_sink_should_send_counts_as_misconfiguration(status: int) -> None:
    assert type(_outcome(status)) is MisconfiguredError


@pytest.mark.parametrize("status", [*RETRIED, 500, 503])
@pytest.mark.parametrize(
    ("header", "after"),
    [
        ("0", 0),
        ("7", 7),
        ("300", 300),
        ("301", 300),
        ("9" * 400, 300),
        ("", 0),
        ("-1", 0),
        ("1.5", 0),
        ("soon", 0),
        ("²", 0),
        ("Mon, 23 Nov 2020 09:14:10 GMT", 0),
        ("Mon, 23 Nov 2099 09:14:10 GMT", 300),
        ("Mon, 99 Nov 2026 09:14:10 GMT", 0),
    ],
)
def test_retry_after_in_seconds_is_honoured_up_to_five_minutes(
    status: int, header: str, after: float
) -> None:
    error = _outcome(status, retry_after=header)
    assert isinstance(error, RetryableError)
    assert error.after == after


@pytest.mark.parametrize("status", [400, 404, 302])
def test_retry_after_is_ignored_where_waiting_does_not_help(status: int) -> None:
    assert not getattr(_outcome(status, retry_after="7"), "after", 0)


def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    error = _outcome(503, retry_after=date)
    assert isinstance(error, RetryableError)
    assert 50 < error.after <= 60


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_date_in_retry_after_is_relative_to_the_clock_of_the_sink(hours: int) -> None:
    """By the local clock, a sink that is an hour ahead would cause the maximum delay."""
    now = datetime.now(UTC) + timedelta(hours=hours)
    dates = [format_datetime(now + timedelta(seconds=n), usegmt=True) for n in (3, 0)]
    error = _outcome(503, b"", *dates)
    assert isinstance(error, RetryableError)
    assert error.after == 3


def test_the_response_body_is_shown_in_one_short_line() -> None:
    shown = str(_outcome(400, b"bad\r\n\tevent \xff" + b"x" * 1000))
    assert shown == "400 bad event \ufffd" + "x" * 189


def test_a_response_without_a_body_is_shown_as_its_status() -> None:
    assert str(_outcome(503)) == "503"
