"""From a `Connection` to librdkafka's clients: settings that Event Hubs bears, who we are, and errors that say what to mend."""

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from inference.errors import EventError, LogThrottled, LogUnavailable, SettingsError
from inference.log.address import KafkaAddress
from inference.log.connection import Connection, ConnectionString, Entra, Sasl, Tls
from inference.log.credentials import EntraTokens, shared_key
from inference.log.kafka_errors import is_sure, meaning

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 6.0
_FIRST_SECONDS = 2.0
_PAUSE_SECONDS = 0.1
_SETTLE_SECONDS = 1.0

_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)
_THROTTLED = (KafkaError.POLICY_VIOLATION, KafkaError.THROTTLING_QUOTA_EXCEEDED)
_TIMED_OUT = (KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE, KafkaError.REQUEST_TIMED_OUT)
_NOT_REACHED = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)
_NOT_PERMITTED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
_NO_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
_UNTRUSTED = "the certificate is not trusted: name its authority in `log.tls.ca`, if it is not for another host name than the address has"
_SETTLING = (*_NO_TOPIC, KafkaError.LEADER_NOT_AVAILABLE)
# What librdkafka says in words of its own; the rest is told by kafka_errors.
_MEANINGS = (
    ("mechanism handshake failed", "no such mechanism there: the broker does not take this kind of `auth`"),
    ("sasl authentication error", "the broker refused the credentials: check `log.auth`"),
    ("certificate could not be verified", _UNTRUSTED),
    ("certificate verify failed", _UNTRUSTED),
    ("certificate_verify_failed", _UNTRUSTED),
    ("plaintext broker listener", "there is no TLS on that port: another port, or `tls: false`"),
    ("disconnected", "the broker hung up: does that port want TLS (`tls: true`) or `auth`?"),
    ("failed to resolve", "no such host: check the name in the address"),
)
_UNKNOWN_TO_IT = "the broker hung up: does it want to know who we are, by `log.tls.certificate` and `log.tls.key` that it trusts?"
_HOPELESS = ("refused the credentials", "no such mechanism", "not trusted", "no TLS on that port")
_BROKER = re.compile(r"(?:\w+://)?([^\s/]+:\d+)(?:/(?:bootstrap|\d+))?: ")
_FILES = {"ssl.ca.location": "ca", "ssl.certificate.location": "certificate", "ssl.key.location": "key"}


class Librdkafka:
    """Makes librdkafka's clients for one connection, and hears what they complain of.

    SettingsError when the connection's own settings can't be right. `api_version` plays no part: librdkafka asks every broker
    for its versions in a way that old ones understand.
    """

    def __init__(self, connection: Connection, *, tokens: EntraTokens | None = None) -> None:
        self.address = KafkaAddress.parse(connection.url)
        self._tls = connection.tls if isinstance(connection.tls, Tls) else Tls()
        self._heard: deque[tuple[float, str]] = deque(maxlen=300)
        self._slowed = float("-inf")
        self._no_token = ""
        self._lock = threading.Lock()
        self._common = self._settings(connection, tokens)

    def configuration(self, **more: Any) -> dict[str, Any]:
        """librdkafka's properties, with `more` of them (`_` for `.`, but not in the names of callbacks)."""
        return {**self._common, **{name if callable(value) else name.replace("_", "."): value for name, value in more.items()}}

    def consumer(self, **more: Any) -> Any:
        """A consumer; nobody has been spoken to yet."""
        return self._made(Consumer, more)

    def producer(self, **more: Any) -> Any:
        """A producer; nobody has been spoken to yet."""
        return self._made(Producer, more)

    def partitions(self, client: Any, *, since: float | None = None) -> list[int]:
        """The topic's partitions. LogUnavailable within seconds: there is no such topic, no right to see it, or nobody to ask.

        The error's cause may be one that was heard of after `since` (monotonic), by default after this call.
        """
        topic, began = self.address.topic, time.monotonic()
        patience = _FIRST_SECONDS
        while True:
            try:
                found = client.list_topics(topic, timeout=patience).topics[topic]
                error = found.error
            except KafkaException as failed:
                found, error = None, failed.args[0]
            if found is not None and found.partitions:
                return sorted(found.partitions)
            # What it complains of is told when it is asked for.
            client.poll(0)
            patience = began + CONNECT_SECONDS - time.monotonic()
            passing = found is None or error is None or error.retriable()
            # A topic that was just made is not known everywhere, or has no leader, for a moment.
            passing = passing or (error.code() in _SETTLING and time.monotonic() - began < _SETTLE_SECONDS)
            if patience <= 0 or not passing or self._no_token or any(word in self.cause(began) for word in _HOPELESS):
                raise self.told(error or KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART), since=began if since is None else since)
            time.sleep(min(_PAUSE_SECONDS, patience))

    @contextmanager
    def translated(self) -> Iterator[None]:
        """librdkafka's errors as ours: LogUnavailable, LogThrottled, and EventError for an event that is too large."""
        began = time.monotonic()
        try:
            yield
        except KafkaException as error:
            raise self.told(error.args[0], since=began) from error
        except BufferError as error:
            raise LogUnavailable(f"{self.address}: the client's queue is full: {error}") from error

    def told(self, error: KafkaError, *, since: float) -> EventError | LogUnavailable:
        """What a foreign error means, and what to do about it; `since` is when what failed began (monotonic)."""
        code, text = error.code(), f"{error.name()}: {error.str()}"[:300]
        if code in _TOO_LARGE:
            return EventError("too_large", f"{self.address}: an event is larger than the broker takes: {text}")
        if code in _THROTTLED or (code in _TIMED_OUT and self._slowed >= since):
            return LogThrottled(f"{self.address}: throttled by the broker ({error.name()}); send less, or have more throughput units")
        if code == KafkaError.GROUP_AUTHORIZATION_FAILED:
            return LogUnavailable(f"{self.address}: not permitted ({error.name()}): give this user the right to read in the group")
        if code in _NOT_PERMITTED:
            advice = f"give this user the rights to read and write the topic {self.address.topic!r}"
            return LogUnavailable(f"{self.address}: not permitted ({error.name()}): {advice}")
        if code in _NO_TOPIC:
            return LogUnavailable(f"{self.address}: there is no topic {self.address.topic!r}; make it first, or name another")
        if code == KafkaError.TOPIC_EXCEPTION:
            return LogUnavailable(f"{self.address}: no topic can be called {self.address.topic!r}")
        if self._no_token:
            return LogUnavailable(f"{self.address}: {self._no_token}")
        advice = self.cause(since) or meaning(text)
        if advice and code in _NOT_REACHED:
            return LogUnavailable(f"{self.address}: no connection: {advice}")
        advice = advice or "is the broker up, is this its address, and may this machine and user reach it?"
        return LogUnavailable(f"{self.address}: {text}; {advice}")

    def cause(self, since: float) -> str:
        """The most certain meaning of what the clients complained of since then (monotonic); "" when there was nothing."""
        with self._lock:
            heard = [line for at, line in self._heard if at >= since]
        known = list(dict.fromkeys(filter(None, map(self._meaning, heard))))
        hopeless = (told for told in known if any(word in told for word in _HOPELESS))
        return next(hopeless, "") or next(filter(is_sure, known), "") or next(iter(known), "")

    def _meaning(self, line: str) -> str:
        lower = line.lower()
        told = next((told for word, told in _MEANINGS if word in lower), "") or meaning(line)
        if lower.startswith("ssl://") and "disconnected: " in lower and "handshake" not in lower:
            told = _UNKNOWN_TO_IT
        where = _BROKER.search(line)
        if told and where and where[1] not in self.address.servers:
            return f"the broker says that it is at {where[1]} (advertised.listeners), and there: {told}"
        return told

    def _hear(self, line: str) -> None:
        with self._lock:
            self._heard.append((time.monotonic(), line))

    def _slow_down(self, event: Any) -> None:
        if event.throttle_time > 0:
            self._slowed = time.monotonic()

    def _made(self, kind: Callable[[dict[str, Any]], Any], more: dict[str, Any]) -> Any:
        began = time.monotonic()
        try:
            return kind(self.configuration(**more))
        except KafkaException as error:
            if error.args[0].code() != KafkaError._INVALID_ARG:
                raise self.told(error.args[0], since=began) from error
            text = error.args[0].str()
            for name, field in _FILES.items():
                if f"{name} failed" in text:
                    path = getattr(self._tls, field)
                    raise SettingsError([f"log.tls.{field} {path}: cannot be used: {text.partition(' failed: ')[2]}"]) from error
            raise SettingsError([f"log: librdkafka does not take these settings: {text}"]) from error

    def _settings(self, connection: Connection, tokens: EntraTokens | None) -> dict[str, Any]:
        auth = connection.auth
        settings: dict[str, Any] = {
            "bootstrap.servers": ",".join(self.address.servers),
            "client.id": "driftloop",
            "security.protocol": ("SASL_" if auth else "") + ("SSL" if connection.encrypted else "PLAINTEXT"),
            # Event Hubs cuts idle connections after 240 s.
            "connections.max.idle.ms": 180_000,
            "metadata.max.age.ms": 180_000,
            "socket.keepalive.enable": True,
            "reconnect.backoff.max.ms": 2_000,
            "allow.auto.create.topics": False,
            "error_cb": lambda error: self._hear(error.str()),
            "throttle_cb": self._slow_down,
            "logger": _listened_to(self._hear),
        }
        if connection.encrypted:
            settings |= _tls(self._tls)
        if isinstance(auth, ConnectionString):
            shared_key(auth, self.address.topic)
            settings |= {"sasl.mechanisms": "PLAIN", "sasl.username": "$ConnectionString"}
            settings["sasl.password"] = auth.connection_string.get_secret_value().strip()
        elif isinstance(auth, Sasl):
            settings |= {"sasl.mechanisms": auth.mechanism, "sasl.username": auth.username}
            settings["sasl.password"] = auth.password.get_secret_value()
        elif isinstance(auth, Entra):
            tokens = tokens or EntraTokens(auth, self.address.servers[0])
            # Here, on the caller's thread, an identity that is missing is an error that says so.
            tokens.token()
            settings |= {"sasl.mechanisms": "OAUTHBEARER", "oauth_cb": self._token_from(tokens)}
        return settings

    def _token_from(self, tokens: EntraTokens) -> Callable[[str], tuple[str, float]]:
        def give(_configuration: str) -> tuple[str, float]:
            try:
                token = tokens.token()
            except LogUnavailable as error:
                self._no_token = str(error)
                raise
            self._no_token = ""
            return token, tokens.until

        return give


def consumed(consumer: Any, limit: int, timeout: float) -> list[Any]:
    """At most `limit` messages and errors; waits at most `timeout` seconds for the first of them, and for no other.

    `consume` alone would wait until it has `limit` of them.
    """
    messages: list[Any] = consumer.consume(1, timeout)
    if messages and limit > 1:
        messages += consumer.consume(limit - 1, 0.0)
    return messages


def _tls(tls: Tls) -> dict[str, Any]:
    for name in _FILES.values():
        path = getattr(tls, name)
        if path is not None and not path.is_file():
            raise SettingsError([f"log.tls.{name} {path}: there is no such file"])
    settings: dict[str, Any] = {"ssl.endpoint.identification.algorithm": "https"}
    if tls.ca:
        settings["ssl.ca.location"] = str(tls.ca)
    if tls.certificate and tls.key:
        settings |= {"ssl.certificate.location": str(tls.certificate), "ssl.key.location": str(tls.key)}
    if tls.key_password:
        settings["ssl.key.password"] = tls.key_password.get_secret_value()
    return settings


class _Ears(logging.Handler):
    """Takes librdkafka's log lines, one for every try: that the log is away we tell ourselves, and why is found among them."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__()
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        kind, _, line = record.getMessage().partition(" ")
        # That a position is not there any more, and where reading goes on.
        logger.log(logging.WARNING if kind == "OFFSET" else logging.DEBUG, "%s %s", kind, line)
        if kind == "FAIL":
            self._hear(line.partition("]: ")[2])


def _listened_to(hear: Callable[[str], None]) -> logging.Logger:
    """A logger of its own, which hands nothing on: librdkafka would write to stderr."""
    ours = logging.Logger("librdkafka")
    ours.addHandler(_Ears(hear))
    return ours
