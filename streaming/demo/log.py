"""The demo's event log: an embedded one in its folder, or a Kafka topic that it makes if it is not there."""

import time
from pathlib import Path

from inference.errors import LogUnavailable, SettingsError
from inference.log.address import KafkaAddress, is_kafka

_PARTITIONS = 4


def made_log(url: str | None, folder: Path) -> str:
    """The log's address; a Kafka topic is there when this returns. An address that names no topic gets a new one."""
    if url is None:
        return f"embedded:{folder / 'log.db'}"
    if not is_kafka(url):
        raise SettingsError([f"--log {url}: give kafka://HOST:PORT[/TOPIC], or nothing for the embedded log"])
    address = KafkaAddress.parse(url)
    if not url.partition("://")[2].partition("/")[2]:
        address = KafkaAddress(address.servers, f"driftloop-demo-{int(time.time())}")
    _make_topic(address)
    return str(address)


def _make_topic(address: KafkaAddress) -> None:
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic
    from kafka.errors import KafkaError, TopicAlreadyExistsError

    try:
        admin = KafkaAdminClient(bootstrap_servers=list(address.servers), bootstrap_timeout_ms=8000)
        try:
            admin.create_topics([NewTopic(address.topic, num_partitions=_PARTITIONS, replication_factor=1)])
        except TopicAlreadyExistsError:
            pass
        finally:
            admin.close()
    except KafkaError as error:
        raise LogUnavailable(f"{address}: the topic cannot be made: {type(error).__name__}: {error}; is the broker up?") from error
