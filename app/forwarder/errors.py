"""The errors of this package. What may be retried and what may not are different types."""


class ForwarderError(Exception):
    """Base of all errors raised here; its text is one line and holds no secret."""


class SettingsError(ForwarderError):
    """Invalid settings. `problems`: one line each, which begins with the variable."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class PolicyError(SettingsError, ValueError):
    """An invalid audit policy; its problems begin with rule and field."""


class StateError(ForwarderError):
    """The state directory cannot be used: not writable, or in use by another process."""


class SupersededError(ForwarderError):
    """A checkpoint that was not written, because the store has a later one of another process."""


class EvictedError(ForwarderError):
    """Dead-letter records did not fit into memory while their store failed."""


class UnusableError(ForwarderError):
    """Bytes that are not an audit event and cannot be completed to one: a dead letter."""


class Rejected(ForwarderError):  # noqa: N818 - a verdict about events, as Unusable is
    """The sink will never accept these events: 400, 413, 415 or 422."""


class OversizedError(ForwarderError):
    """The sink did not accept this list, and may accept its halves."""


class RetryableError(ForwarderError):
    """The sink did not accept the events this time: `what` happened, and the `remedy` if any.

    `reason` labels the metric; `after` is the wait in seconds that the sink asked for.
    """

    def __init__(
        self, what: str, *, reason: str, after: float | None = None, remedy: str = ""
    ) -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy
        self.reason = reason
        self.after = after


class FaultError(RetryableError):
    """One event may be the cause: 500, 501, 505, or a connection that ends without a response."""


class MisconfiguredError(RetryableError):
    """The sink will accept nothing until a setting is changed, here or there."""
