"""The way to an event hub by AMQP: azure-eventhub's clients, who we are there, and what their errors mean.

Event Hubs hands a Kafka producer's headers to AMQP readers as binary application properties. Events are sent in the same
shape (CloudEvents' Kafka names `ce_*`, binary values), so that both endpoints see one kind of event; the content type goes in
AMQP's own field, which the Kafka endpoint shows as the header `content-type`. CloudEvents' AMQP names (`cloudEvents:*`) are read too.
"""

import itertools
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.eventhub import EventData, EventHubConsumerClient, EventHubProducerClient, TransportType
from azure.eventhub.amqp import AmqpMessageBodyType
from azure.eventhub.exceptions import AuthenticationError, ConnectionLostError, EventHubError, OperationTimeoutError

from inference.errors import EventError, LogCorrupt, LogError, LogThrottled, LogUnavailable, SettingsError
from inference.event import Event, to_kafka
from inference.log import Record
from inference.log.address import HubAddress
from inference.log.amqp_properties import headers_of
from inference.log.connection import Connection, ConnectionString, Entra, SasToken, Tls
from inference.log.credentials import default_credential as default_credential
from inference.log.credentials import shared_key
from inference.log.kafka_records import milliseconds, record_of

logger = logging.getLogger(__name__)
T = TypeVar("T")

READERS = "$Default"
"""The consumer group of who reads without owning: every hub has it."""

_ASK_SECONDS = 15.0
_AUTH_SECONDS = 10
_AT_ONCE = 16
_LEFT_BEHIND = 16
# A whole batch must get into the socket within one time-out, or the connection is taken for broken.
_WRITE_SECONDS = 5.0
# What the SDK asks for, down to the second slash.
_SCOPE = "https://eventhubs.azure.net//.default"
_SECRET = re.compile(r"(?i)(sig|SharedAccessKey|SharedAccessSignature)=[^&;\s]+")


class Hub:
    """An event hub as a connection leads to it. SettingsError: the connection's own settings cannot be right; LogUnavailable: there
    is no Entra token. `credential` stands in for azure-identity's default chain."""

    def __init__(self, connection: Connection, *, credential: Any = None) -> None:
        self.address = HubAddress.parse(connection.url)
        host, _, port = self.address.host.partition(":")
        tls = connection.tls
        if isinstance(tls, Tls) and tls.certificate is not None:
            raise SettingsError(["log.tls.certificate: Event Hubs knows no client certificates; `ca` is all that tls may name"])
        self._options: dict[str, Any] = {
            "fully_qualified_namespace": host,
            "eventhub_name": self.address.hub,
            "credential": self._credential(connection, host, credential),
            "transport_type": TransportType.AmqpOverWebsocket if connection.websocket else TransportType.Amqp,
            "use_tls": connection.encrypted,
            "connection_verify": str(tls.ca) if isinstance(tls, Tls) and tls.ca else None,
            "auth_timeout": _AUTH_SECONDS,
            "retry_backoff_factor": 0.1,
            "user_agent": "driftloop",
        }
        if port:
            self._options["custom_endpoint_address"] = f"sb://{self.address.host}"
        self._left: list[Future[Any]] = []
        self._counting = threading.Lock()

    def producer(self) -> EventHubProducerClient:
        """A client that sends. The SDK tries a send twice, and each time once more on a new connection: it notices only by a send
        that the service has closed an idle link."""
        return EventHubProducerClient(**self._options, retry_total=1, socket_timeout=_WRITE_SECONDS)

    def consumer(self, group: str, *, silence: float | None = None) -> EventHubConsumerClient:
        """A client that reads; a connection on which nothing came for `silence` seconds, not even a sign of life, is given up."""
        return EventHubConsumerClient(**self._options, consumer_group=group, retry_total=0, idle_timeout=silence)

    def partitions(self) -> list[int]:
        """The numbers of the hub's partitions; the first thing to ask, since the answer tells whether anything works."""
        [found] = self._ask([lambda client: client.get_partition_ids()])
        return sorted(map(int, found))

    def bounds(self, partitions: Iterable[int]) -> dict[int, tuple[int, int]]:
        """Of each partition the oldest sequence number that can be read, and the one that comes next."""
        bounds = {}
        for number, properties in self._told_of(partitions).items():
            end = properties["last_enqueued_sequence_number"] + 1
            bounds[number] = (end if properties["is_empty"] else properties["beginning_sequence_number"], end)
        return bounds

    def positions_at(self, partitions: Iterable[int], time: float) -> dict[int, int]:
        """As `EventLog.positions_at`. The service is asked for the first event by its time, which takes a connection for each partition."""
        since = datetime.fromtimestamp(milliseconds(time) / 1000.0, UTC)
        found = self._told_of(partitions)
        positions = {number: properties["last_enqueued_sequence_number"] + 1 for number, properties in found.items()}
        behind = [number for number, told in found.items() if not told["is_empty"] and told["last_enqueued_time_utc"] >= since]
        for start in range(0, len(behind), _AT_ONCE):
            some = behind[start : start + _AT_ONCE]
            positions |= zip(some, self.run([partial(self._first_at, number, since) for number in some], _ASK_SECONDS), strict=True)
        return positions

    def _first_at(self, number: int, since: datetime) -> int:
        """The sequence number of the first event of `since` or later, of which there is one."""
        found: list[EventData] = []
        deadline = monotonic() + _ASK_SECONDS
        with closing(self.consumer(READERS)) as client:
            consumer = client._create_consumer(READERS, str(number), since, found.extend, event_position_inclusive=True, prefetch=1)
            # See eventhubs_receiver.py.
            consumer._keep_alive = None
            with closing(consumer):
                while not found and monotonic() < deadline:
                    consumer.receive(batch=True, max_batch_size=1)
                    if not consumer.running:
                        client.get_partition_properties(str(number))
                        raise ConnectionLostError("the connection could not be made")
        if not found:
            raise OperationTimeoutError(f"partition {number} did not tell its first event since {since.isoformat()}")
        first: int = found[0].sequence_number
        return first

    def _told_of(self, partitions: Iterable[int]) -> dict[int, dict[str, Any]]:
        numbers = list(partitions)
        return dict(zip(numbers, self._ask([partial(_properties, number=number) for number in numbers]), strict=True))

    def run(self, calls: Sequence[Callable[[], T]], seconds: float) -> list[T]:
        """The results of some of the SDK's blocking calls, made at the same time on threads of their own.

        The SDK waits without end for a peer that takes the connection and never speaks: what takes longer than `seconds` is
        LogUnavailable, and its thread is left behind, at most a few of them at a time.
        """
        with self._counting:
            self._left = [future for future in self._left if not future.done()]
            if len(self._left) + len(calls) > _LEFT_BEHIND + _AT_ONCE:
                raise LogUnavailable(f"{self.address}: {len(self._left)} earlier requests have not been answered yet")
        futures: list[Future[T]] = [Future() for _ in calls]
        for call, future in zip(calls, futures, strict=True):
            threading.Thread(target=_fulfil, args=(call, future), daemon=True, name="eventhubs").start()
        late = wait(futures, seconds).not_done
        with self._counting:
            self._left.extend(late)
        with self.translated():
            results = [future.result(timeout=0) for future in futures if future not in late]
        if late:
            raise LogUnavailable(f"{self.address}: no answer within {seconds:g} s; {_REACH}")
        return results

    @contextmanager
    def translated(self) -> Iterator[None]:
        """The SDK's errors as ours, see `told`."""
        try:
            yield
        except LogError:
            raise
        except (EventHubError, OSError, ImportError) as error:
            raise self.told(error) from error

    def told(self, error: Exception) -> LogError | EventError | SettingsError:
        """What a foreign error means, and what to do about it; never a secret."""
        # The SDK says most things twice, from a line that begins with "Error" on.
        lines = itertools.takewhile(lambda line: not line.startswith("Error"), str(error).splitlines())
        text = _SECRET.sub(r"\1=***", " ".join(" ".join(lines).split()))[:400]
        if isinstance(error, ImportError):
            return SettingsError([f"log: {text}; pip install 'driftloop[eventhubs]'"])
        code = getattr(error, "error", None) or ""
        if code == "link:message-size-exceeded":
            return EventError("too_large", f"{self.address}: an event is larger than the hub takes: {text}")
        if "server-busy" in code:
            return LogThrottled(f"{self.address}: throttled by the service; send less, or have more throughput units: {text}")
        if "argument" in code and "is invalid" in text:
            return LogCorrupt(f"{self.address}: the position to read from is not on this hub, was it made anew? {text}")
        if code == "not-found" or "Status code: 404" in text:
            advice = (
                f"there is no event hub {self.address.hub!r} in this namespace, or no such consumer group; make it first, or name another"
            )
        elif code == "link:stolen":
            advice = f"a watcher reads the consumer group {READERS!r} alone; let it use one of its own (`watch.group`), or stop it first"
        elif code == "resource-limit-exceeded":
            advice = f"at most 5 may read a partition in the consumer group {READERS!r} at the same time"
        elif code == "unauthorized-access" or "Unauthorized access" in text:
            advice = "who `log.auth` names lacks a right there: Send to append, Listen to read"
        elif "CERTIFICATE_VERIFY_FAILED" in text:
            advice = "its certificate is not trusted: name its authority in `log.tls.ca`"
        elif (isinstance(error, AuthenticationError) and "Status code" in text) or "Authentication Expired" in text:
            advice = "the service refused the credentials: check `log.auth` (a key that was changed, a token that has expired?)"
        elif "Can not" in text or code in ("link:detach-forced", "connection:forced", "unknown-error"):
            advice = "the connection broke off"
        else:
            advice = _REACH
        return LogUnavailable(f"{self.address}: {advice} ({text or type(error).__name__})")

    def _credential(self, connection: Connection, host: str, credential: Any) -> Any:
        auth = connection.auth
        if isinstance(auth, ConnectionString):
            key = shared_key(auth, self.address.hub)
            if key.host.partition(":")[0] != host:
                found = f"the namespace {key.host[:80]!r}, and the log's address names {host!r}"
                raise SettingsError([f"log.auth.connection_string is for {found}: make them the same"])
            return AzureNamedKeyCredential(key.name, key.key)
        if isinstance(auth, SasToken):
            return AzureSasCredential(auth.token.get_secret_value())
        if not isinstance(auth, Entra):
            raise SettingsError(["an eventhubs:// log needs auth of kind connection_string, entra or sas_token"])
        credential = credential or default_credential(auth)
        try:
            # Here, on the caller's thread, an identity that is missing is an error that says so.
            credential.get_token(_SCOPE)
        except Exception as error:
            text = f"no Entra token: {(str(error).splitlines() or [type(error).__name__])[0][:300]}; give this workload an identity"
            rights = "(on AKS a service account with workload identity) that has the role Azure Event Hubs Data Sender or Receiver"
            raise LogUnavailable(f"{self.address}: {text} {rights}") from error
        return credential

    def _ask(self, questions: Sequence[Callable[[EventHubProducerClient], T]]) -> list[T]:
        """Each question has a client of its own: the SDK's are for one thread, and it connects for each question anyway."""

        def ask(question: Callable[[EventHubProducerClient], T]) -> T:
            with closing(EventHubProducerClient(**self._options, retry_total=1, socket_timeout=_WRITE_SECONDS)) as client:
                return question(client)

        answers: list[T] = []
        for start in range(0, len(questions), _AT_ONCE):
            some = questions[start : start + _AT_ONCE]
            answers += self.run([partial(ask, question) for question in some], _ASK_SECONDS)
        return answers


_REACH = (
    "is this its address, and may this machine reach it on port 5671 (AMQP), or, with `websocket: true`, on port 443, through a proxy"
    " that the environment names?"
)


def _properties(client: EventHubProducerClient, number: int) -> dict[str, Any]:
    found: dict[str, Any] = client.get_partition_properties(str(number))
    return found


def _fulfil(call: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - it is raised again where the result is asked for
        future.set_exception(error)


def to_message(event: Event) -> EventData:
    """The event as the SDK's message."""
    _, headers, body = to_kafka(event)
    message = EventData(body)
    message.properties = {name: value for name, value in headers if name != "content-type"}
    if event.datacontenttype is not None:
        message.content_type = event.datacontenttype
    return message


def to_record(hub: str, partition: int, message: EventData) -> Record:
    """What came from the hub as a record of the log; what is no CloudEvent is a record all the same (`UNREADABLE`)."""
    headers = headers_of(message.properties or {}, message.content_type)
    body = b""
    if message.body_type == AmqpMessageBodyType.DATA:
        body = b"".join(message.body)
    elif isinstance(message.body, bytes):
        body = message.body
    elif message.body is not None:
        # A sequence or a number: whatever it means, it is no data of a CloudEvent.
        headers = headers_of({}, message.content_type)
    appended = int(message.enqueued_time.timestamp() * 1000) if message.enqueued_time else 0
    return record_of(hub, partition, message.sequence_number, appended, headers, body)
