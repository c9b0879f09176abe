"""The Kafka that the other tests run against: it keeps its log, and says what is in its way."""

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Broker = Callable[..., subprocess.CompletedProcess[str]]
FOLDER = Path(__file__).resolve().parent.parent / "infra" / "kafka"
TOPIC = "kept"


def start(broker: Broker, folder: Path, port: int) -> str:
    started = broker("start", "--port", port, "--folder", folder, "--detach")
    assert started.returncode == 0, started.stdout + started.stderr
    return started.stdout.split()[-1]


def first_message(address: str) -> bytes:
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(TOPIC, bootstrap_servers=address, auto_offset_reset="earliest", consumer_timeout_ms=10_000)
    try:
        return next(consumer).value
    finally:
        consumer.close()


@pytest.mark.slow
def test_what_was_written_is_still_there_after_a_stop_and_a_start(broker: Broker, tmp_path: Path) -> None:
    from kafka import KafkaProducer
    from kafka.admin import KafkaAdminClient, NewTopic

    try:
        address = start(broker, tmp_path, 0)
        admin = KafkaAdminClient(bootstrap_servers=address)
        admin.create_topics([NewTopic(TOPIC, num_partitions=1, replication_factor=1)])
        admin.close()
        producer = KafkaProducer(bootstrap_servers=address, acks="all")
        producer.send(TOPIC, b"a prediction", timestamp_ms=1).get(timeout=10)
        producer.close()
        assert first_message(address) == b"a prediction"
        assert f"already running in {tmp_path}" in broker("start", "--port", 0, "--folder", tmp_path, "--detach").stderr
        assert broker("stop", "--folder", tmp_path).stdout.startswith("stopped the broker")
        assert start(broker, tmp_path, int(address.rpartition(":")[2])) == address
        assert first_message(address) == b"a prediction"
    finally:
        broker("stop", "--folder", tmp_path)


def test_a_start_on_a_port_in_use_says_so(broker: Broker, kafka: str, tmp_path: Path) -> None:
    refused = broker("start", "--port", kafka.rpartition(":")[2], "--folder", tmp_path, "--detach")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"broker.py: port {kafka.rpartition(':')[2]} is in use on 127.0.0.1")


def test_without_java_the_message_names_what_is_missing(broker: Broker, tmp_path: Path) -> None:
    without = broker("start", "--folder", tmp_path, PATH=str(tmp_path), JAVA_HOME="")
    assert without.returncode == 3
    assert without.stderr.startswith("broker.py: no java in the PATH: Apache Kafka 4.1.0 needs Java 17")


def test_of_two_that_start_at_once_one_fetches(broker: Broker, tmp_path: Path) -> None:
    """A stand-in for Maven counts its calls; it is slow enough for both to find nothing in the cache."""
    maven = tmp_path / "mvn"
    maven.write_text(
        f'#!/bin/sh\necho called >>"{tmp_path}/calls"\nfor last; do :; done\n'
        'folder=${last#*=}\nmkdir "$folder"\nsleep 0.7\ntouch "$folder/kafka_2.13.jar"\n',
        encoding="utf-8",
    )
    maven.chmod(0o755)
    done = []

    def fetch() -> None:
        done.append(broker("fetch", PATH=f"{tmp_path}:{os.environ['PATH']}", DRIFTLOOP_CACHE=str(tmp_path / "cache")))

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.returncode for result in done] == [0, 0], done
    assert done[0].stdout.split()[-1] == done[1].stdout.split()[-1]
    assert (tmp_path / "calls").read_text(encoding="utf-8") == "called\n"


def test_the_container_has_the_same_version_and_settings() -> None:
    lines = (FOLDER / "server.properties").read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    service = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]["kafka"]
    of_the_container = {name.removeprefix("KAFKA_").lower().replace("_", "."): value for name, value in service["environment"].items()}
    assert settings.items() <= of_the_container.items()
    version = service["image"].rpartition(":")[2]
    assert f"<kafka.version>{version}</kafka.version>" in (FOLDER / "pom.xml").read_text(encoding="utf-8")
