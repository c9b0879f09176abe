"""The gateway in front of a real Kafka that goes away: what it acknowledged arrives, in order, and posting never stops."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from inference.log import open_log
from streaming.reader import everything
from streaming.testing import free_port, poll_until

ROOT = Path(__file__).resolve().parents[1]


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
    stop, gateway = threading.Event(), None
    try:
        url = f"kafka://{bootstrap}/{topic_for(bootstrap)}"
        port = free_port()
        gateway = start_gateway(url, tmp_path, port)
        acknowledged, slowest = [], 0.0

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
        poll_until(lambda: len(acknowledged) - before_outage > 200, timeout=60)
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
        stop.set()
        if gateway is not None:
            gateway.kill()
        broker("stop", "--folder", data)


OUTAGE = Path(__file__).parent / "benchmarks" / "outage.py"


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--kill"]], ids=["stopped", "killed"])
def test_an_outage_under_500_events_a_second_loses_and_disorders_nothing_and_costs_little_memory(broker, how):
    """By hand for longer: DRIFTLOOP_OUTAGE_SECONDS=60, or `python tests/benchmarks/outage.py --away 600`."""
    seconds = os.environ.get("DRIFTLOOP_OUTAGE_SECONDS", "20")
    # The script's folder, for what it shares with the other benchmarks; not the checkout: the installed packages are tested.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(OUTAGE.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(OUTAGE), "--away", seconds, *how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120 + 3 * float(seconds), env=environment)
    assert done.returncode in (0, 1), done.stderr
    told = json.loads(done.stdout)
    assert (told["missing"], told["out_of_order"], told["refused"]) == (0, 0, 0), told
    assert told["acknowledged"] > 450 * float(seconds), told
    assert told["spooled_events"] > 400 * float(seconds), "they waited on the disk"
    # The broker's answer to what was on its way may have been lost: those, and no more.
    assert told["doubles"] <= 1000, told
    assert told["memory_mb_largest"] < told["memory_mb_first"] + 150, told
    assert told["ack_p99_ms_away"] < 1000, told


@pytest.mark.slow
def test_a_gateway_that_ends_while_kafka_is_away_leaves_in_time_and_its_next_start_carries_the_rest(broker, tmp_path):
    data = tmp_path / "broker"
    bootstrap = broker("start", "--port", 0, "--folder", data, "--detach").stdout.split()[-1]
    try:
        url = f"kafka://{bootstrap}/{topic_for(bootstrap)}"
        port = free_port()
        gateway = start_gateway(url, tmp_path, port)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        assert post(connection, 0, "m") == 200
        assert poll_until(lambda: counts(port)["log"]["forwarded"] == 1, timeout=20)
        assert broker("stop", "--folder", data).returncode == 0
        assert [post(connection, number, "m") for number in range(1, 301)] == [200] * 300
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(timeout=25) == 0, "ten seconds for the spool, and some"
        assert broker("start", "--port", bootstrap.rpartition(":")[2], "--folder", data, "--detach").returncode == 0
        gateway = start_gateway(url, tmp_path, port)
        assert poll_until(lambda: not counts(port)["log"]["spool"]["events"], timeout=60)
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(timeout=25) == 0
        log = open_log(url)
        ids = [record.event.id for batch in everything(log) for record in batch]
        log.close()
        assert list(dict.fromkeys(ids)) == [f"e{number}" for number in range(301)]
    finally:
        broker("stop", "--folder", data)


def counts(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/counts")
    return json.loads(connection.getresponse().read())


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
