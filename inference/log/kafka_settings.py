"""From a `Connection` to kafka-python's clients: settings that Event Hubs bears, who we are, and errors that say what to mend."""

import itertools
import logging
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NodeNotReadyError,
    RecordListTooLargeError,
)
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.net.selector import NetworkSelector
from kafka.protocol.metadata import MetadataRequest

from inference.errors import EventError, LogError, LogUnavailable, SettingsError
from inference.log.address import KafkaAddress
from inference.log.connection import Connection, ConnectionString, Entra, Sasl, Tls
from inference.log.credentials import EntraTokens, shared_key
from inference.log.kafka_errors import Ears, cause, is_sure, translated
from inference.log.kafka_errors import meaning as meaning

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
_AGAIN_SECONDS = 3.5
_TOPIC_SECONDS = 4.0
_PAUSE_SECONDS = 0.2
_SLICE_SECONDS = 0.5
_AWAY_SECONDS = 12.0
OLDER = (1, 0)
"""What Event Hubs' table of API versions amounts to; asked for when a broker can't be talked to by what it says of itself."""
_WRITE = 4
"""Kafka's number of that right."""

# Event Hubs cuts idle connections after 240 s, and lets a request wait for up to a minute where a quota is used up.
_SAFE = {
    "connections_max_idle_ms": 180_000,
    "metadata_max_age_ms": 180_000,
    "request_timeout_ms": 60_000,
    "reconnect_backoff_max_ms": 2_000,
}
_ears = Ears.on("kafka.net")
_number = itertools.count(1)


class KafkaClients:
    """Makes kafka-python's clients for one connection, and remembers the API version that worked.

    SettingsError when the connection's own settings can't be right; LogUnavailable, within seconds, when nobody can be reached.
    """

    def __init__(self, connection: Connection, *, tokens: EntraTokens | None = None) -> None:
        self.address = KafkaAddress.parse(connection.url)
        self._id = f"driftloop-{next(_number)}"
        self._common = {**_settings(connection, self.address, tokens), "client_id": self._id}
        if connection.api_version != "auto":
            self._common["api_version"] = tuple(int(part) for part in connection.api_version.split("."))

    def consumer(self, **more: Any) -> Any:
        """A consumer that has spoken with a broker."""
        return self._made(KafkaConsumer, more)

    def producer(self, **more: Any) -> Any:
        """A producer that has spoken with a broker."""
        return self._made(_Producer, more)

    def partitions(self, consumer: Any) -> list[int]:
        """The topic's partitions. LogUnavailable within seconds: there is no such topic, no right to see it, or nobody to ask."""
        manager, topic, began = consumer._manager, self.address.topic, time.monotonic()
        deadline = began + _TOPIC_SECONDS
        with self.translated():
            try:
                asked = manager.cluster.add_topic(topic)
                while not (found := manager.cluster.partitions_for_topic(topic)):
                    self._ask(manager, asked, deadline)
                    # An answer may be one to a question from before: that did not name the topic.
                    asked = manager.cluster.request_update()
            except (TypeError, ValueError) as error:
                raise LogUnavailable(f"{self.address}: no topic can be called {topic!r}: {error}") from error
            except (KafkaTimeoutError, KafkaConnectionError) as error:
                where = ", ".join(f"{broker.host}:{broker.port}" for broker in manager.cluster.brokers())
                if where and (why := cause(self._heard(began))):
                    text = f"{self.address}: the broker says that it is at {where} (advertised.listeners), and there: {why}"
                    raise LogUnavailable(text) from error
                raise
        return sorted(found)

    def may_write(self, consumer: Any) -> bool | None:
        """Whether the broker says that we may write to the topic; None where it does not tell (Event Hubs, Kafka before 2.3)."""
        manager = consumer._manager
        asked = MetadataRequest(
            topics=[MetadataRequest.MetadataRequestTopic(name=self.address.topic)],
            allow_auto_topic_creation=False,
            include_topic_authorized_operations=True,
        )
        with self.translated():
            answer = manager.run(manager.wait_for, manager.call_soon(manager.send, asked), _TOPIC_SECONDS * 1000)
        rights = [topic.authorized_operations for topic in answer.topics]
        return _WRITE in rights[0] if rights and rights[0] else None

    @contextmanager
    def translated(self) -> Iterator[None]:
        """kafka-python's errors as ours: LogUnavailable, LogThrottled, and EventError for an event that is too large."""
        began = time.monotonic()
        try:
            yield
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise EventError("too_large", f"{self.address}: an event is larger than the broker takes: {error}") from error
        except (KafkaError, OSError) as error:
            raise translated(self.address, error, self._heard(began)) from error

    @staticmethod
    def _ask(manager: Any, asked: Any, deadline: float) -> None:
        """Wait for the cluster's metadata; a connection that fails is tried again."""
        while True:
            try:
                manager.run(manager.wait_for, asked, max(0.0, deadline - time.monotonic()) * 1000)
                return
            except (KafkaConnectionError, NodeNotReadyError):
                if time.monotonic() + _PAUSE_SECONDS > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)
                asked = manager.cluster.request_update()

    def _heard(self, began: float) -> list[str]:
        return _ears.since(began, self._id)

    def _made(self, kind: Callable[..., Any], more: dict[str, Any]) -> Any:
        settings = {**self._common, **more}
        try:
            return self._tried(kind, settings, CONNECT_SECONDS)
        except LogUnavailable as first:
            if "api_version" in settings or is_sure(str(first)):
                raise
            try:
                made = self._tried(kind, {**settings, "api_version": OLDER}, _AGAIN_SECONDS)
            except LogUnavailable as second:
                raise second if is_sure(str(second)) else first from None
        self._common["api_version"] = OLDER
        logger.info("%s: spoken to as Kafka %d.%d; `api_version` saves the first try", self.address, *OLDER)
        return made

    def _tried(self, kind: Callable[..., Any], settings: dict[str, Any], seconds: float) -> Any:
        began = time.monotonic()
        clients: list[KafkaNetClient] = []

        def client(**configs: Any) -> KafkaNetClient:
            net = NetworkSelector(**configs)
            clients.append(KafkaNetClient(net, _Manager(net, **configs), **configs))
            return clients[0]

        made: Any = None
        try:
            made = kind(**settings, kafka_client=client, bootstrap_timeout_ms=int(seconds * 1000))
            if kind is KafkaConsumer:  # which does not wait for anybody where it is told the version
                manager = clients[0]._manager
                manager.run(manager.wait_for, manager.bootstrap_async(refresh=False), seconds * 1000)
        except LogError:
            raise
        except (KafkaError, OSError) as error:
            if made is not None:
                made.close()
            for one in clients:  # else its thread stays
                with suppress(KafkaError, OSError, RuntimeError):
                    one.close()
            # A wrong password, a wrong port and a broker that is down all end as the same time-out: the reason is in its log.
            heard = self._heard(began)
            if why := cause(heard):
                raise LogUnavailable(f"{self.address}: no connection: {why}") from error
            raise translated(self.address, error, heard) from error
        return made


class _Manager(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python is not followed by the type checker
    """kafka-python's connections, with two things put right: it would wait for a TLS handshake for ever, and make a topic by asking."""

    def __init__(self, net: Any, **configs: Any) -> None:
        super().__init__(net, **configs, socket_connection_setup_timeout_ms=int(CONNECT_SECONDS * 1000))
        self.cluster.config["allow_auto_create_topics"] = False

    async def _connect(self, node: Any, conn: Any, reset_backoff_on_connect: bool = True, timeout_at: float | None = None) -> None:
        def give_up() -> None:
            if conn.initializing:
                conn.close(KafkaConnectionError(f"nobody answers at {node.host}:{node.port}"))

        late = self._net.call_at(timeout_at or time.monotonic() + CONNECT_SECONDS, give_up)
        try:
            await super()._connect(node, conn, reset_backoff_on_connect, timeout_at)
        finally:
            if not late.is_done:
                self._net.cancel(late)


class _Producer(KafkaProducer):  # type: ignore[misc]
    """kafka-python's producer; it waits for long where a broker makes it wait, not where there is none, and it can be dropped."""

    _dropped = False

    def flush(self, timeout: float | None = None) -> None:
        """As the library's, but a KafkaTimeoutError comes after 12 s without a connection, too."""
        connected = now = time.monotonic()
        deadline = now + (float("inf") if timeout is None else timeout)
        while not self._dropped:
            try:
                super().flush(min(_SLICE_SECONDS, max(0.0, deadline - now)))
                return
            except KafkaTimeoutError:
                now = time.monotonic()
                if self._sender._client._manager.least_used_connections():
                    connected = now
                if now >= deadline or now - connected >= _AWAY_SECONDS:
                    raise

    def drop(self) -> None:
        """End at once, whatever is not acknowledged; the library's `close` would raise for it, and leave its thread and memory."""
        self._dropped = True
        self.close(timeout=0)


def _settings(connection: Connection, address: KafkaAddress, tokens: EntraTokens | None) -> dict[str, Any]:
    auth = connection.auth
    settings: dict[str, Any] = {
        **_SAFE,
        "bootstrap_servers": list(address.servers),
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
        raise SettingsError([f"log.tls.ca {tls.ca}: no certificates can be read from it: {error}"]) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate and tls.key:
        # Without one OpenSSL would ask for it at the terminal.
        password = tls.key_password.get_secret_value() if tls.key_password else ""
        try:
            context.load_cert_chain(str(tls.certificate), str(tls.key), password)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError([f"log.tls: certificate {tls.certificate} and key {tls.key} cannot be used together: {error}"]) from error
    return context
