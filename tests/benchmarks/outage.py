"""The broker goes away for a while under a steady load: is every acknowledged event on the log afterwards, once, in order per model?

    python tests/benchmarks/outage.py [--away 60] [--rate 500] [--kill] [--client NAME]

Starts a broker of its own (infra/kafka/broker.py), the gateway in front of it, and a load of recorded requests of KServe's logger; stops
the broker (or kills it), starts it again `--away` seconds later, and reads the topic when the gateway's spool is empty. Told as one JSON
object; the exit code is 1 if an acknowledged event is missing or out of order, or if anything was refused.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import load
import psutil
from gateway import BROKER, free_port, gateway, topic_on

from inference.log import open_log

BEFORE, AFTER = 3.0, 4.0
"""Seconds under load before the broker goes and after it came back."""


def broker(*arguments):
    done = subprocess.run([sys.executable, BROKER, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.split()[-1]


class Memory(threading.Thread):
    """The largest resident set of a process, in bytes."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self.first = self.largest = self._process.memory_info().rss
        self.start()

    def run(self):
        try:
            while True:
                self.largest = max(self.largest, self._process.memory_info().rss)
                time.sleep(0.1)
        except psutil.Error:
            return


def found_on(url):
    """The ids on the topic, by model, in order."""
    log = open_log(url)
    positions, ids = log.start_positions(), {}
    while records := log.read(positions, 5000):
        for record in records:
            ids.setdefault(record.event.model, []).append(record.event.id)
            positions[record.partition] = record.offset + 1
    log.close()
    return ids


def out_of_order(ids):
    """Ids that come, for the first time, after a later one of the same connection and model."""
    last, wrong = {}, []
    for model, mine in ids.items():
        for identity in dict.fromkeys(mine):
            connection, _, number = identity.rpartition("-")
            if int(number) < last.get((model, connection), -1):
                wrong.append(identity)
            last[model, connection] = int(number)
    return wrong


def outage(options, folder):
    address = broker("start", "--port", 0, "--folder", folder / "kafka", "--detach")
    url = topic_on(address)
    server = gateway("gateway", url, folder, free_port(), options.client)
    memory = Memory(server.process.pid)
    results = []
    seconds = BEFORE + options.away + AFTER
    posting = threading.Thread(
        target=lambda: results.append(load.run(server.port, seconds=seconds, connections=32, rate=options.rate, ids=True))
    )
    posting.start()
    time.sleep(BEFORE)
    if options.kill:
        os.kill(int((folder / "kafka" / "broker.pid").read_text()), signal.SIGKILL)
    broker("stop", "--folder", folder / "kafka")
    gone = time.perf_counter()
    time.sleep(options.away)
    before_return = time.perf_counter()
    spooled = json.loads(server.get("/counts")[1])["log"]["spool"]
    broker("start", "--port", address.rpartition(":")[2], "--folder", folder / "kafka", "--detach")
    posting.join()
    began = time.perf_counter()
    server.forward()
    caught_up = time.perf_counter() - began
    status = json.loads(server.get("/counts")[1])
    server.stop()
    done, ids = results[0], found_on(url)
    every = [identity for mine in ids.values() for identity in mine]
    counted = Counter(every)
    missing = [identity for identity in done.acknowledged if identity not in counted]
    return {
        "seconds_away": options.away,
        "killed": options.kill,
        "client": options.client,
        "acknowledged": len(done.acknowledged),
        "refused": done.refused,
        "missing": len(missing),
        "out_of_order": len(out_of_order(ids)),
        "doubles": len(every) - len(counted),
        "never_acknowledged": len(counted.keys() - set(done.acknowledged)),
        "ack_p50_ms_away": round(done.percentile(0.5, since=gone, until=before_return), 2),
        "ack_p99_ms_away": round(done.percentile(0.99, since=gone, until=before_return), 2),
        "ack_p99_ms_there": round(done.percentile(0.99, until=gone), 2),
        "spooled_events": spooled["events"],
        "seconds_to_catch_up_after_the_load": round(caught_up, 1),
        "memory_mb_first": round(memory.first / 1e6, 1),
        "memory_mb_largest": round(memory.largest / 1e6, 1),
        "forwarded": status["log"]["forwarded"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--away", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--rate", type=float, default=500.0, metavar="EVENTS/S")
    parser.add_argument("--kill", action="store_true", help="kill -9 instead of an orderly stop")
    parser.add_argument("--client", default="kafka-python", choices=["kafka-python", "librdkafka"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            result = outage(options, folder)
        finally:
            subprocess.run([sys.executable, BROKER, "stop", "--folder", folder / "kafka"], capture_output=True)
    sys.stdout.write(json.dumps(result) + "\n")
    return 1 if result["missing"] or result["out_of_order"] or result["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
