"""The errors of this package. Whether to retry depends on the type."""


class ForwarderError(Exception):
    """Base of all errors raised here; the text is one line without secrets."""


class SettingsError(ForwarderError):
    """Invalid settings. `problems` has one line for each, which begins with the variable."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class PolicyError(SettingsError, ValueError):
    """An invalid audit policy; its problems begin with rule and field."""


class StateError(ForwarderError):
    """The state directory cannot be used: not writable, or in use by another process."""


class SupersededError(ForwarderError):
    """A checkpoint was not written, because another process has stored a later one."""


class EvictedError(ForwarderError):
    """Dead-letter records did not fit into memory while their store was failing."""


class UnusableError(ForwarderError):
    """Bytes are not an audit event and cannot be completed to one. They become a dead letter."""


class Rejected(ForwarderError):  # noqa: N818 - a verdict about events, as Unusable is
    """The sink will never accept these events: 400, 413, 415 or 422."""


class OversizedError(ForwarderError):
    """The sink did not accept this list, but may accept its halves."""


class RetryableError(ForwarderError):
    """The sink did not accept the events this time: `what` happened, and the `remedy` if any.

    `reason` is the label of the metric, `after` the delay in seconds that the sink asked for.
    """

    def __init__(self, what: str, *, reason: str, after: float = 0.0, remedy: str = "") -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy
        self.reason = reason
        self.after = after


class FaultError(RetryableError):
    """A single event may be the cause: 500, 501, 505, or a connection closed without a response."""


class MisconfiguredError(RetryableError):
    """The sink will accept nothing until a setting is changed, of the forwarder or of the sink."""
