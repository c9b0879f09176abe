"""Where an event log is: the addresses that may stand in a configuration, read without the clients they need."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from inference.errors import SettingsError

DEFAULT_TOPIC = "driftloop"


def is_kafka(url: str) -> bool:
    """Whether the log at `url` is a Kafka topic."""
    return url.startswith("kafka:")


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """Where the topic is: `kafka://HOST:PORT[,HOST:PORT...][/TOPIC]`."""

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
        return cls(tuple(server if ":" in server else f"{server}:9092" for server in servers), topic)

    def __str__(self) -> str:
        return f"kafka://{','.join(self.servers)}/{self.topic}"
