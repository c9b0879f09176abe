"""Where an event log is: the addresses that may stand in a configuration, read without the clients they need."""

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from inference.errors import SettingsError

DEFAULT_TOPIC = "driftloop"
FORMS = "a path, embedded:PATH, kafka://HOST:PORT[,HOST:PORT...][/TOPIC] or eventhubs://NAMESPACE.servicebus.windows.net/HUB"


def is_kafka(url: str) -> bool:
    """Whether the log at `url` is a Kafka topic."""
    return url.startswith("kafka:")


def is_eventhubs(url: str) -> bool:
    """Whether the log at `url` is an event hub that is reached by AMQP."""
    return url.startswith("eventhubs:")


def is_remote(url: str) -> bool:
    """Whether the log at `url` is on the network, and may be away."""
    return is_kafka(url) or is_eventhubs(url)


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """Where the topic is: `kafka://HOST:PORT[,HOST:PORT...][/TOPIC]`; the port is 9092 if there is none, 9093 for Event Hubs."""

    servers: tuple[str, ...]
    topic: str

    @classmethod
    def parse(cls, url: str) -> "KafkaAddress":
        """SettingsError says what an address looks like."""
        parts = urlsplit(url)
        servers = tuple(server for server in parts.netloc.split(",") if server)
        topic = parts.path.strip("/") or DEFAULT_TOPIC
        if parts.scheme != "kafka" or not servers or "@" in parts.netloc or "/" in topic or parts.query:
            raise SettingsError(["a Kafka log is kafka://HOST:PORT[,HOST:PORT...][/TOPIC], without credentials in it"])
        return cls(tuple(map(_with_port, servers)), topic)

    def __str__(self) -> str:
        return f"kafka://{','.join(self.servers)}/{self.topic}"


def _with_port(server: str) -> str:
    host, colon, port = server.rpartition(":")
    if not colon or server.endswith("]"):  # an IPv6 address is in brackets
        return f"{server}:{9093 if '.servicebus.' in server else 9092}"
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise SettingsError([f"a Kafka log is kafka://HOST:PORT[,HOST:PORT...][/TOPIC]; {server!r} is no HOST:PORT"])
    return server


@dataclass(frozen=True, slots=True)
class HubAddress:
    """Where the event hub is: `eventhubs://NAMESPACE.servicebus.windows.net[:PORT]/HUB`."""

    host: str
    hub: str

    @classmethod
    def parse(cls, url: str) -> "HubAddress":
        """SettingsError says what an address looks like."""
        parts = urlsplit(url)
        hub = parts.path.strip("/")
        if parts.scheme != "eventhubs" or not parts.hostname or "@" in parts.netloc or not hub or "/" in hub or parts.query:
            raise SettingsError(["an event hub is eventhubs://NAMESPACE.servicebus.windows.net/HUB, without credentials in it"])
        return cls(parts.netloc, hub)

    def __str__(self) -> str:
        return f"eventhubs://{self.host}/{self.hub}"


def _log_url(value: str) -> str:
    try:
        if is_kafka(value):
            KafkaAddress.parse(value)
        elif is_eventhubs(value):
            HubAddress.parse(value)
        elif "://" in value:
            raise ValueError(f"must be {FORMS}")
    except SettingsError as error:
        raise ValueError(str(error)) from error
    return value


LogUrl = Annotated[str, AfterValidator(_log_url)]
