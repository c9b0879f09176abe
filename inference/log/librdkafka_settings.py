"""From a `Connection` to librdkafka's configuration: settings that Event Hubs bears, who we are, and errors that say what to mend."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from inference.errors import EventError, LogThrottled, LogUnavailable, SettingsError
from inference.log.address import KafkaAddress
from inference.log.connection import Connection, ConnectionString, Entra, Sasl, Tls
from inference.log.credentials import EntraTokens, shared_key
from inference.log.kafka_settings import OLDER, meaning

_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD)
_THROTTLED = (KafkaError.POLICY_VIOLATION, KafkaError.THROTTLING_QUOTA_EXCEEDED)
_NOT_PERMITTED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)

# It would write its log lines to stderr, one for every try; what matters of them comes as an error too.
_silent = logging.getLogger("librdkafka")
_silent.propagate = False
_silent.addHandler(logging.NullHandler())


class Librdkafka:
    """Configurations for one connection, and what its clients were heard to complain of.

    SettingsError when the connection's own settings can't be right.
    """

    def __init__(self, connection: Connection, *, tokens: EntraTokens | None = None) -> None:
        self.address = KafkaAddress.parse(connection.url)
        self._heard: deque[tuple[float, str]] = deque(maxlen=50)
        self._lock = threading.Lock()
        self._common = self._settings(connection, tokens)

    def configuration(self, **more: Any) -> dict[str, Any]:
        """librdkafka's properties, with `more` of them (`_` for `.`)."""
        return {**self._common, **{name.replace("_", "."): value for name, value in more.items()}}

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

    def told(self, error: KafkaError, *, since: float = float("-inf")) -> EventError | LogUnavailable:
        """What a foreign error means, and what to do about it."""
        code, text = error.code(), f"{error.name()}: {error.str()}"[:300]
        if code in _TOO_LARGE:
            return EventError("too_large", f"{self.address}: an event is larger than the broker takes: {text}")
        if code in _THROTTLED:
            return LogThrottled(f"{self.address}: throttled by the broker ({error.name()}); send less, or have more throughput units")
        if code in _NOT_PERMITTED:
            advice = "give this user the rights to read and write the topic and to be in the group"
            return LogUnavailable(f"{self.address}: {error.name()}: not permitted; {advice}")
        with self._lock:
            heard = [line for at, line in self._heard if at >= since]
        advice = next(filter(None, map(meaning, (*reversed(heard), text))), "")
        return LogUnavailable(
            f"{self.address}: {text}; {advice or 'is the broker up, is this its address, and may this machine and user reach it?'}"
        )

    def _complained(self, error: KafkaError) -> None:
        with self._lock:
            self._heard.append((time.monotonic(), error.str()))

    def _settings(self, connection: Connection, tokens: EntraTokens | None) -> dict[str, Any]:
        auth = connection.auth
        settings: dict[str, Any] = {
            "bootstrap.servers": ",".join(self.address.servers),
            "security.protocol": ("SASL_" if auth else "") + ("SSL" if connection.encrypted else "PLAINTEXT"),
            # Event Hubs cuts idle connections after 240 s.
            "connections.max.idle.ms": 180_000,
            "metadata.max.age.ms": 180_000,
            "socket.keepalive.enable": True,
            "reconnect.backoff.max.ms": 2_000,
            "allow.auto.create.topics": False,
            "error_cb": self._complained,
            "logger": _silent,
        }
        version = OLDER if connection.api_version == "auto" else tuple(map(int, connection.api_version.split(".")))
        settings["broker.version.fallback"] = ".".join(map(str, (*version, 0)))
        if connection.api_version != "auto":
            settings["api.version.request"] = False
        if connection.encrypted:
            settings |= _tls(connection.tls if isinstance(connection.tls, Tls) else Tls())
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
            settings |= {"sasl.mechanisms": "OAUTHBEARER", "oauth_cb": _token_callback(tokens)}
        return settings


def consumed(consumer: Any, limit: int, timeout: float) -> list[Any]:
    """At most `limit` messages and errors; waits at most `timeout` seconds for the first of them, and for no other.

    `consume` alone would wait until it has `limit` of them.
    """
    messages: list[Any] = consumer.consume(1, timeout)
    if messages and limit > 1:
        messages += consumer.consume(limit - 1, 0.0)
    return messages


def _token_callback(tokens: EntraTokens) -> Callable[[str], tuple[str, float]]:
    def give(_configuration: str) -> tuple[str, float]:
        return tokens.token(), tokens.until

    return give


def _tls(tls: Tls) -> dict[str, Any]:
    for name in ("ca", "certificate", "key"):
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
