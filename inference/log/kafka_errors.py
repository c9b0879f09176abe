"""What kafka-python's errors and log lines mean, and what is to be mended."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

from kafka.errors import (
    AuthorizationError,
    GroupAuthorizationFailedError,
    KafkaTimeoutError,
    PolicyViolationError,
    ThrottlingQuotaExceededError,
    UnknownTopicOrPartitionError,
)

from inference.errors import LogThrottled, LogUnavailable
from inference.log.address import KafkaAddress

THROTTLED = "throttled by broker"
_MEANINGS = (
    (("no entra token",), "no token to log in with: give this workload an identity that can have one"),
    (
        ("saslauthenticationfailed", "authentication failed", "authentication error", "invalid credentials"),
        "the broker refused the credentials: check `log.auth`",
    ),
    (
        ("unsupportedsaslmechanism", "unsupported sasl", "does not support"),
        "no such mechanism there: the broker does not take this kind of `auth`",
    ),
    (("wrong signature",), "the broker refused the credentials, or is not the one that knows them: check `log.auth`"),
    (
        ("hostname mismatch", "ip address mismatch", "is not valid for"),
        "the certificate is not trusted: it is for another host name than the one in the address",
    ),
    (("certificate_verify_failed", "certificate verify failed"), "the certificate is not trusted: name its authority in `log.tls.ca`"),
    (
        ("certificate_required", "certificate required", "alert unknown ca", "alert bad certificate"),
        "the broker wants to know who we are: give `log.tls.certificate` and `log.tls.key`, signed by an authority that it trusts",
    ),
    (
        ("wrong_version_number", "wrong version number", "record layer failure"),
        "there is no TLS on that port: another port, or `tls: false`",
    ),
    (
        ("handshake failed", "[ssl"),
        "the TLS handshake failed: is that a port with TLS (else another one, or `tls: false`), and does `log.tls` fit?",
    ),
    (("refused", "econnrefused"), "nothing listens there: is the broker up, and is this its address?"),
    (
        ("nobody answers", "unreachable", "timed out"),
        "nobody answers there: is that the port of a broker, and does a firewall let us through?",
    ),
    (("name or service", "nodename nor", "getaddrinfo", "name resolution", "dns"), "no such host: check the name in the address"),
    (
        ("socket disconnected", "disconnected while", "econnreset", "connection reset", "apiversions check"),
        "the broker hung up: does that port want TLS (`tls: true`), a certificate of ours, `auth` or an older `api_version`?",
    ),
)
_SURE = ("refused the credentials", "such mechanism", "not trusted", "TLS", "who we are", "no token", "nothing listens", "no such host")


def meaning(text: str) -> str:
    """What to mend, told from an error's text; "" when it tells nothing."""
    lower = text.lower()
    return next((told for words, told in _MEANINGS if any(word in lower for word in words)), "")


def is_sure(told: str) -> bool:
    """Whether this is the cause for certain: asking again as another version of Kafka would change nothing."""
    return "hung up" not in told and any(sure in told for sure in _SURE)


def cause(heard: Sequence[str]) -> str:
    """The most certain meaning of what the network said, else its last words; "" when it said nothing."""
    known = list(filter(None, map(meaning, heard)))
    words = [text for text in heard if not any(other in text for other in (THROTTLED, "in the clear", "event loop"))]
    return next(filter(is_sure, known), "") or next(iter(known), "") or (f"last heard: {words[-1][:200]}" if words else "")


def translated(address: KafkaAddress, error: Exception, heard: Sequence[str]) -> LogUnavailable:
    """What a foreign error means, and what to do about it; `heard` is what the network said since the call began."""
    slow = isinstance(error, KafkaTimeoutError) and any(THROTTLED in text for text in heard)
    if slow or isinstance(error, PolicyViolationError | ThrottlingQuotaExceededError):
        return LogThrottled(f"{address}: throttled by the broker ({type(error).__name__}); send less, or have more throughput units")
    if isinstance(error, GroupAuthorizationFailedError):
        return LogUnavailable(f"{address}: not permitted: give this user the right to read in the group {next(iter(error.args), '')!r}")
    if isinstance(error, AuthorizationError):
        advice = f"give this user the rights to read and write the topic {address.topic!r}"
        return LogUnavailable(f"{address}: not permitted ({type(error).__name__}): {advice}")
    if isinstance(error, UnknownTopicOrPartitionError):
        return LogUnavailable(f"{address}: there is no topic {address.topic!r}; make it first, or name another")
    told = (error.__cause__ and meaning(str(error.__cause__))) or meaning(str(error)) or cause(heard)
    advice = told or "is the broker up, is this its address, and may this machine and user reach it?"
    return LogUnavailable(f"{address}: {_short(f'{type(error).__name__}: {error}')}; {advice}")


def _short(what: object) -> str:
    return str(what).strip()[:300].rstrip(": ")


class Ears(logging.Handler):
    """The last things that kafka-python's network said: its exceptions do not tell why a connection could not be made.

    They are kept in place of being logged: it tells of every try, and that the log is away we tell ourselves. Clients are told
    apart by the names of their threads.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._heard: deque[tuple[float, str | None, str]] = deque(maxlen=300)

    @classmethod
    def on(cls, name: str) -> "Ears":
        """Listen to that logger, in place of everybody else."""
        ears, network = cls(), logging.getLogger(name)
        network.addHandler(ears)
        network.setLevel(logging.WARNING)
        network.propagate = False
        return ears

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append((time.monotonic(), record.threadName, record.getMessage()))

    def since(self, began: float, client_id: str) -> list[str]:
        """What the client was told since then, in its own threads or in the one that asks."""
        threads = (f"kafka-io-{client_id}", f"{client_id}-network-thread", threading.current_thread().name)
        return [text for at, thread, text in list(self._heard) if at >= began and thread in threads]
