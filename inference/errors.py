"""The family tree of the product's errors.

DriftloopError
|-- EventError            an event that breaks the CloudEvents contract or a bound of ours; has a `reason` code
|   `-- PayloadError      a body that is no inference request, response, label or promotion we can read
|-- LogError              the event log
|   |-- LogUnavailable    it is away, full or locked; trying again may help
|   |   |-- LogThrottled  it is there, and asks for a slower pace
|   |   `-- LogFull       there is no room on it or on its disk
|   `-- LogCorrupt        its file is not a log, or of a newer format; trying again will not help
|-- SnapshotError         a snapshot that is damaged, of another log or a newer format, or cannot be written or read now
|-- SettingsError         the configuration; carries every problem found, each with its place
|-- VersionError          a model version folder that is missing, damaged or not what it says
|-- PipelineError         a retraining step
|   |-- TooLittleData     not enough labelled predictions to train on
|   `-- DeployError       a version that could not be put live (the one before stays live)
|-- ActionError           an action that failed; `retry` tells whether another try can help
`-- ServiceError          a process that could not start (a port in use, a folder that can't be written)
"""

from collections.abc import Sequence


class DriftloopError(Exception):
    """The root: anything driftloop raises on purpose."""


class EventError(DriftloopError):
    """An event that cannot be accepted; `reason` is a short code, fit for a metric label and the dead-letter table."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PayloadError(EventError):
    """A body that cannot be read as rows; `reason` as in `EventError`."""


class LogError(DriftloopError):
    """The event log failed."""


class LogUnavailable(LogError):
    """The log is away, full or locked; the caller may try again.

    Of a failed append, `appended` holds the indexes of the events that are on the log for certain, if it can tell.
    """

    appended: frozenset[int] = frozenset()


class LogThrottled(LogUnavailable):
    """The log is there and asks for a slower pace; the caller tries again after a pause: of `pause` seconds, if it said so."""

    pause: float | None = None


class LogFull(LogUnavailable):
    """There is no room, on the log or on its disk; it takes events again once some was made."""


class LogCorrupt(LogError):
    """The file is no event log, or one of a newer format."""


class SnapshotError(DriftloopError):
    """A watcher's snapshot is damaged, foreign or of a newer format, or the place where snapshots are kept is away or full."""


class SettingsError(DriftloopError):
    """One or more problems in the configuration, each a line of the message."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class VersionError(DriftloopError):
    """A model version folder is missing, damaged or inconsistent."""


class PipelineError(DriftloopError):
    """A retraining step failed."""


class TooLittleData(PipelineError):
    """There are not enough labelled predictions to train on."""


class DeployError(PipelineError):
    """A version could not be put live; the one before it stays live."""


class ActionError(DriftloopError):
    """An action failed; `retry` tells whether another try can help."""

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry


class ServiceError(DriftloopError):
    """A process of ours could not start."""
