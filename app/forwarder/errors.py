"""The errors of this package: what may be tried again and what may not are different types."""


class ForwarderError(Exception):
    """Base of all errors raised here; its text is one line and holds no secret."""


class SettingsError(ForwarderError):
    """Settings that cannot be used. `problems`: one line each, begun by the variable's name."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class StateError(ForwarderError):
    """The state directory cannot be used: not writable, or in use by another process."""


class SupersededError(ForwarderError):
    """A checkpoint that was not written: the one in the store, of another process, is ahead."""


class EvictedError(ForwarderError):
    """Dead-letter records that found no room in memory while their store failed."""


class UnusableError(ForwarderError):
    """Bytes that are no audit event and cannot be made one: a dead letter."""


class Rejected(ForwarderError):  # noqa: N818 - a verdict about events, as Unusable is
    """The sink refused these events for good: 400, 413, 415 or 422."""


class OversizedError(ForwarderError):
    """The sink did not accept this list, and may accept its halves."""


class RetryableError(ForwarderError):
    """The sink did not take the events this time: `what` happened, what to `do` about it.

    `reason` labels the metric; `after` is the wait in seconds that the sink asked for, if it did.
    """

    def __init__(self, what: str, *, reason: str, after: float | None = None, do: str = "") -> None:
        super().__init__(f"{what}; {do}" if do else what)
        self.what = what
        self.do = do
        self.reason = reason
        self.after = after


class MisconfiguredError(RetryableError):
    """The sink will not take anything until somebody changes a setting, here or there."""


class PolicyError(ForwarderError, ValueError):
    """An audit policy that cannot be used. `problems`: one line each, with rule and field."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
