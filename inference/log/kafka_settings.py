"""From a `Connection` to kafka-python's clients: settings that Event Hubs bears, who we are, and errors that say what to mend."""

import logging
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import (
    AuthorizationError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    ThrottlingQuotaExceededError,
)
from kafka.net.sasl.oauth import AbstractTokenProvider

from inference.errors import EventError, LogError, LogThrottled, LogUnavailable, SettingsError
from inference.log.address import KafkaAddress
from inference.log.connection import Connection, ConnectionString, Entra, Sasl, Tls
from inference.log.credentials import EntraTokens, shared_key

logger = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_SECONDS = 6.0
OLDER = (1, 0)
"""What Event Hubs' table of API versions amounts to; asked for when a broker can't be talked to by what it says of itself."""

# Event Hubs cuts idle connections after 240 s; one error of its own poisons an idempotent producer for good.
_SAFE = {
    "connections_max_idle_ms": 180_000,
    "metadata_max_age_ms": 180_000,
    "allow_auto_create_topics": False,
    "reconnect_backoff_max_ms": 2_000,
}
_SURE = ("refused the credentials", "no such mechanism", "not trusted", "no TLS", "nothing listens", "no such host")


class KafkaClients:
    """Makes kafka-python's clients for one connection, and remembers the API version that worked.

    SettingsError when the connection's own settings can't be right; LogUnavailable, within seconds, when nobody can be reached.
    """

    def __init__(self, connection: Connection, *, tokens: EntraTokens | None = None) -> None:
        self.address = KafkaAddress.parse(connection.url)
        self._connection = connection
        self._common = _settings(connection, self.address, tokens)
        if connection.api_version != "auto":
            self._common["api_version"] = tuple(int(part) for part in connection.api_version.split("."))

    def consumer(self, **more: Any) -> Any:
        """A consumer that has spoken with a broker."""
        return self._made(lambda: KafkaConsumer(**self._common, **more))

    def producer(self, **more: Any) -> Any:
        """A producer that has spoken with a broker."""
        return self._made(lambda: KafkaProducer(**self._common, **more))

    @contextmanager
    def translated(self) -> Iterator[None]:
        """kafka-python's errors as ours: LogUnavailable, LogThrottled, and EventError for an event that is too large."""
        try:
            yield
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise EventError("too_large", f"{self.address}: an event is larger than the broker takes: {error}") from error
        except (KafkaError, OSError) as error:
            raise self.told(error) from error

    def told(self, error: Exception) -> LogUnavailable:
        """What a foreign error means, and what to do about it."""
        if isinstance(error, PolicyViolationError | ThrottlingQuotaExceededError):
            return LogThrottled(
                f"{self.address}: throttled by the broker ({type(error).__name__}); send less, or have more throughput units"
            )
        if isinstance(error, AuthorizationError):
            advice = "give this user the rights to read and write the topic and to be in the group"
            return LogUnavailable(f"{self.address}: {type(error).__name__}: not permitted; {advice}")
        cause = (error.__cause__ and meaning(str(error.__cause__))) or meaning(str(error))
        advice = cause or "is the broker up, is this its address, and may this machine and user reach it?"
        return LogUnavailable(f"{self.address}: {_short(error)}; {advice}")

    def _made(self, make: Callable[[], T]) -> T:
        try:
            return self._tried(make)
        except LogUnavailable as error:
            if "api_version" in self._common or any(sure in str(error) for sure in _SURE):
                raise
            self._common["api_version"] = OLDER
            try:
                made = self._tried(make)
            except LogUnavailable:
                del self._common["api_version"]
                raise error from None
            logger.info("%s: spoken to as Kafka %d.%d; `api_version` saves the first try", self.address, *OLDER)
            return made

    def _tried(self, make: Callable[[], T]) -> T:
        began = time.monotonic()
        try:
            return make()
        except LogError:
            raise
        except (KafkaError, OSError) as error:
            # A wrong password, a wrong port and a broker that is down all end as the same time-out: the reason is in its log.
            heard = _ears.since(began)
            known = [told for told in map(meaning, heard) if told]
            why = next((told for told in known if any(sure in told for sure in _SURE)), "") or next(iter(known), "")
            if not why and heard:
                why = f"last heard: {heard[-1][:200]}"
            if not why:
                raise self.told(error) from error
            raise LogUnavailable(f"{self.address}: no connection: {why}") from error


def _settings(connection: Connection, address: KafkaAddress, tokens: EntraTokens | None) -> dict[str, Any]:
    auth = connection.auth
    settings: dict[str, Any] = {
        **_SAFE,
        "bootstrap_servers": list(address.servers),
        "bootstrap_timeout_ms": int(CONNECT_SECONDS * 1000),
        "security_protocol": ("SASL_" if auth else "") + ("SSL" if connection.encrypted else "PLAINTEXT"),
    }
    if connection.encrypted:
        settings["ssl_context"] = _ssl_context(connection.tls if isinstance(connection.tls, Tls) else Tls())
    if isinstance(auth, ConnectionString):
        shared_key(auth, address.topic)
        settings |= {"sasl_mechanism": "PLAIN", "sasl_plain_username": "$ConnectionString"}
        settings["sasl_plain_password"] = auth.connection_string.get_secret_value().strip()
    elif isinstance(auth, Sasl):
        settings |= {"sasl_mechanism": auth.mechanism, "sasl_plain_username": auth.username}
        settings["sasl_plain_password"] = auth.password.get_secret_value()
    elif isinstance(auth, Entra):
        tokens = tokens or EntraTokens(auth, address.servers[0])
        # Here, on the caller's thread, an identity that is missing is an error that says so.
        tokens.token()
        settings |= {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": _Tokens(tokens)}
    return settings


class _Tokens(AbstractTokenProvider):  # type: ignore[misc]  # kafka-python is not followed by the type checker
    def __init__(self, tokens: EntraTokens) -> None:
        self._tokens = tokens

    def token(self) -> str:
        return self._tokens.token()

    def extensions(self) -> dict[str, str]:
        return {}


def _ssl_context(tls: Tls) -> ssl.SSLContext:
    """Names are verified always; nothing older than TLS 1.2."""
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError([f"log.tls.ca {tls.ca}: no certificates can be read from it: {_short(error)}"]) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate and tls.key:
        # Without one OpenSSL would ask for it at the terminal.
        password = tls.key_password.get_secret_value() if tls.key_password else ""
        try:
            context.load_cert_chain(str(tls.certificate), str(tls.key), password)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                [f"log.tls: certificate {tls.certificate} and key {tls.key} cannot be used together: {_short(error)}"]
            ) from error
    return context


class _Ears(logging.Handler):
    """The last things that kafka-python's network said: its exceptions do not tell why a connection could not be made."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._heard: deque[tuple[float, str]] = deque(maxlen=100)

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append((time.monotonic(), record.getMessage()))

    def since(self, began: float) -> list[str]:
        return [text for at, text in list(self._heard) if at >= began]


_ears = _Ears()
_network = logging.getLogger("kafka.net")
_network.addHandler(_ears)
_network.setLevel(logging.WARNING)
_network.propagate = False


def meaning(text: str) -> str:
    """What to mend, told from an error's text; "" when it tells nothing."""
    lower = text.lower()
    for words, told in _MEANINGS:
        if any(word in lower for word in words):
            return told
    return ""


_MEANINGS = (
    (("unsupportedsaslmechanism", "sasl mechanism"), "no such mechanism there: the broker does not take this kind of `auth`"),
    (("saslauthenticationfailed", "authentication failed", "invalid credentials"), "the broker refused the credentials: check `log.auth`"),
    (("hostname mismatch", "is not valid for"), "the certificate is not trusted: it is for another host name than the one in the address"),
    (("certificate_verify_failed", "certificate verify failed"), "the certificate is not trusted: name its authority in `log.tls.ca`"),
    (
        ("wrong_version_number", "wrong version number", "record layer failure"),
        "there is no TLS on that port: another port, or `tls: false`",
    ),
    (("handshake failed", "ssl"), "the TLS handshake failed: check `log.tls`, and whether the port is the one for TLS"),
    (("refused", "econnrefused"), "nothing listens there: is the broker up, and is this its address?"),
    (("name or service", "nodename nor", "getaddrinfo", "name resolution", "dns"), "no such host: check the name in the address"),
    (("socket disconnected", "apiversions check"), "the broker hung up: does that port want TLS (`tls: true`) or `auth`?"),
)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}"[:300].rstrip(": ")
