"""The gateway in front of a real Kafka that goes away: what it acknowledged arrives, in order, and posting never stops."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest

from inference.log import open_log
from streaming.reader import everything
from streaming.testing import free_port, poll_until


def post(connection, number, model):
    body = json.dumps({"prediction_id": f"p{number}", "labels": [number]})
    headers = {
        "Ce-Specversion": "1.0",
        "Ce-Id": f"e{number}",
        "Ce-Type": "io.driftloop.label",
        "Ce-Source": "client",
        "Ce-Namespace": "ns",
        "Ce-Inferenceservicename": model,
        "Content-Type": "application/json",
    }
    connection.request("POST", "/", body, headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def topic_for(bootstrap):
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic

    name = f"t-{uuid.uuid4().hex[:12]}"
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(name, num_partitions=4, replication_factor=1)])
    admin.close()
    return name


def start_gateway(url, folder, port):
    with (folder / "gateway.log").open("ab") as output:
        command = ["gateway", "--log", url, "--spool", str(folder / "spool"), "--port", str(port)]
        process = subprocess.Popen([sys.executable, "-m", "streaming.cli", *command], stdout=output, stderr=output)

    def answers():
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False

    assert poll_until(answers, timeout=30)
    return process


@pytest.mark.slow
def test_everything_acknowledged_while_kafka_was_away_and_the_gateway_was_killed_is_on_the_topic(broker, tmp_path):
    data = tmp_path / "broker"
    started = broker("start", "--port", 0, "--folder", data, "--detach")
    assert started.returncode == 0, started.stderr
    bootstrap = started.stdout.split()[-1]
    try:
        url = f"kafka://{bootstrap}/{topic_for(bootstrap)}"
        port = free_port()
        gateway = start_gateway(url, tmp_path, port)
        acknowledged, slowest, stop = [], 0.0, threading.Event()

        def client():
            nonlocal slowest
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            number = 0
            while not stop.wait(0.004):
                number += 1
                began = time.monotonic()
                try:
                    status = post(connection, number, f"m{number % 3}")
                except (OSError, http.client.HTTPException):
                    connection.close()
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                    continue
                slowest = max(slowest, time.monotonic() - began)
                if status == 200:
                    acknowledged.append(number)

        clients = threading.Thread(target=client)
        clients.start()
        time.sleep(1.5)
        assert broker("stop", "--folder", data).returncode == 0
        before_outage = len(acknowledged)
        time.sleep(4)
        during_outage = len(acknowledged) - before_outage
        gateway.kill()
        gateway.wait()
        gateway = start_gateway(url, tmp_path, port)
        time.sleep(1)
        assert broker("start", "--port", bootstrap.rpartition(":")[2], "--folder", data, "--detach").returncode == 0
        time.sleep(3)
        stop.set()
        clients.join()
        assert during_outage > 200, "the gateway took events in while Kafka was away"
        assert slowest < 5.0

        log = open_log(url)
        wanted = {f"e{number}" for number in acknowledged}

        def arrived():
            return [record.event for batch in everything(log) for record in batch]

        assert poll_until(lambda: wanted <= {event.id for event in arrived()}, timeout=60)
        events = arrived()
        for model in ("m0", "m1", "m2"):
            first_seen = list(dict.fromkeys(int(e.id[1:]) for e in events if e.extensions["inferenceservicename"] == model))
            assert first_seen == sorted(first_seen)
        log.close()
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(timeout=30) == 0
    finally:
        broker("stop", "--folder", data)


def test_a_gateway_in_front_of_kafka_asks_for_a_spool(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "streaming.cli", "gateway", "--log", "kafka://127.0.0.1:9/t"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "--spool FOLDER" in done.stderr


@pytest.mark.slow
def test_the_loop_closes_over_kafka(kafka, tmp_path):
    """The demo on a real broker, and its replay from the topic says the same."""
    command = [sys.executable, "-m", "streaming.cli"]
    done = subprocess.run(
        [*command, "demo", "--folder", str(tmp_path / "demo"), "--json", "--log", f"kafka://{kafka}"],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["run_state"] == "promoted"
    config = ["replay", "--config", str(tmp_path / "demo" / "driftloop.yaml"), "--json"]
    replayed = subprocess.run([*command, *config], capture_output=True, text=True, timeout=120)
    assert replayed.stdout.splitlines()[:-1] == (tmp_path / "demo" / "state" / "outcomes.jsonl").read_text().splitlines()
