"""The watcher's throughput on a topic of iris-sized events, against the same client's bare poll of the same topic.

    python tests/benchmarks/watcher.py [--log kafka://HOST:PORT] [--events 200000]

Without --log it starts a broker of its own (infra/kafka/broker.py). Each measurement is a process of its own on one core, the
others are left to the broker; the limits are those that `driftloop init` writes. A rate is events by the clock; a rate per core
is events by the process's own CPU time, which a broker on the same machine disturbs less. Prints a table and one line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import joblib
import numpy as np
import pyarrow
import pyarrow.parquet
import yaml
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from inference.log import open_feed, open_log
from inference.log.connection import Connection
from inference.versions import Feature, Repository, Schema, Version
from streaming.testing import prediction, promotion

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 4
NAMES = ("sepal_length", "sepal_width", "petal_length", "petal_width")


def models_on_all_partitions(log):
    names = {log.partition_of(f"default/iris-{number}"): f"default/iris-{number}" for number in range(200)}
    return [names[number] for number in sorted(names)]


def fill(connection, count, models, repository):
    iris = load_iris()
    classes = LogisticRegression(max_iter=500).fit(iris.data, iris.target).predict(iris.data)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 150, 1000)
    table = {name: iris.data[rows, place] for place, name in enumerate(NAMES)} | {"prediction": [str(one) for one in classes[rows]]}
    schema = Schema(tuple(Feature(name, "numeric") for name in NAMES), "categorical", "species")
    with tempfile.TemporaryDirectory() as folder:
        pyarrow.parquet.write_table(pyarrow.table(table), Path(folder) / "reference.parquet")
        joblib.dump(None, Path(folder) / "model.joblib")
        for model in models:
            files = {"model_file": Path(folder) / "model.joblib", "reference_file": Path(folder) / "reference.parquet"}
            Repository(repository).write(Version(model, "1", Path(), schema), **files)
    log = open_log(connection)
    log.append([promotion(model, "1") for model in models])
    batch = []
    for number in range(count // 2):
        row = int(rng.integers(0, 150))
        model = models[number % len(models)]
        id_ = f"{number:08x}-0000-4000-8000-{number:012x}"
        batch += prediction(model, id_, [iris.data[row].tolist()], [int(classes[row])], version="1")
        if len(batch) >= 5000:
            log.append(batch)
            batch = []
    log.append(batch)
    ends = sum(log.end_positions().values())
    log.close()
    return ends


def configuration(folder, connection, models, group):
    from importlib.resources import files

    document = yaml.safe_load(files("streaming").joinpath("driftloop.yaml").read_text())
    (one,) = document["models"].values()
    document |= {"log": {"url": connection.url, "client": connection.client}, "models": dict.fromkeys(models, one | {"retraining": None})}
    document |= {"repository": str(folder / "models"), "state": str(folder / f"state-{group}"), "watch": {"group": group}}
    path = folder / f"{group}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


class Everything:
    """The owner of a bare poll: from the oldest record on."""

    def assigned(self, partitions):
        return {}

    def revoked(self, partitions):
        return

    lost = revoked


def bare(connection, group, until):
    """The client alone: messages with their headers, nothing made of them."""
    seen, began, cpu = 0, None, 0.0
    if connection.client == "librdkafka":
        from confluent_kafka import Consumer, TopicPartition

        from inference.log.librdkafka_settings import Librdkafka

        client = Librdkafka(connection)
        consumer = Consumer(client.configuration() | {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False})
        consumer.assign([TopicPartition(client.address.topic, number, 0) for number in range(PARTITIONS)])
        while seen < until:
            messages = consumer.consume(2000, 1.0)
            if messages and began is None:
                began, cpu = time.perf_counter(), time.process_time()
            for message in messages:
                message.headers(), message.value(), message.offset()
            seen += len(messages)
    else:
        from kafka import TopicPartition

        from inference.log.kafka_settings import KafkaClients

        clients = KafkaClients(connection)
        consumer = clients.consumer(group_id=None, auto_offset_reset="earliest", enable_auto_commit=False)
        consumer.assign([TopicPartition(clients.address.topic, number) for number in range(PARTITIONS)])
        while seen < until:
            polled = consumer.poll(timeout_ms=1000, max_records=2000)
            if polled and began is None:
                began, cpu = time.perf_counter(), time.process_time()
            seen += sum(map(len, polled.values()))
    return seen, time.perf_counter() - began, time.process_time() - cpu


def watching(path, until, members):
    """The whole watcher, from the feed to the journal."""
    import gc

    from streaming.actions.outbox import Outbox
    from streaming.assemble import build_fleet, log_identity, tuned
    from streaming.dispatch import Dispatch
    from streaming.journal import Journal
    from streaming.settings import load_settings
    from streaming.snapshots import SnapshotStore
    from streaming.watch import Watch

    settings = load_settings(Path(path))
    settings = settings.model_copy(update={"state": settings.state.with_name(f"{settings.state.name}-{os.getpid()}")})
    log, journal, stop = open_log(settings.log), Journal(settings.state), threading.Event()
    identity = log_identity(settings)
    outbox = Outbox(lambda event: None)
    store = SnapshotStore(settings.watch.snapshots, identity)
    began = []

    def status(told):
        if told["records"] and not began:
            began.append((told["records"], time.perf_counter(), time.process_time()))
        if told["records"] and sum(told["positions"].values()) >= until // members:
            stop.set()

    watch = Watch(
        build_fleet(settings), Dispatch(settings, outbox, journal), outbox, store, log, log_identity=identity, status=status, stop=stop
    )
    feed = open_feed(settings.log, log, watch, group=settings.watch.group, session=10.0)
    taken = []
    original = watch._take
    watch._take = lambda records: (original(records), taken.append(len(records)))[0]
    tuned()
    watch.run(feed)
    first, clock, cpu = began[0]
    gc.collect()
    return sum(taken) - first, time.perf_counter() - clock, time.process_time() - cpu


def child(arguments):
    kind, path_or_group, client, url, until, members = arguments
    os.sched_setaffinity(0, {int(os.environ["CORE"])})
    connection = Connection(url=url, client=client)
    wanted = int(until)
    print(json.dumps(bare(connection, path_or_group, wanted) if kind == "bare" else watching(path_or_group, wanted, int(members))))


def measured(kind, what, connection, until, *, members=1):
    cores = sorted(os.sched_getaffinity(0))
    processes = []
    for member in range(members):
        command = [sys.executable, __file__, "--child", kind, str(what), connection.client, connection.url, str(until), str(members)]
        environment = {**os.environ, "CORE": str(cores[member % len(cores)]), "PYTHONPATH": str(ROOT)}
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    results = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    seconds = max(result[1] for result in results)
    return {
        "events": sum(result[0] for result in results),
        "per_second": round(sum(result[0] for result in results) / seconds),
        "per_core_second": round(sum(result[0] for result in results) / sum(result[2] for result in results)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", help="kafka://HOST:PORT of a broker that is there")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--members", type=int, default=1, help="also measure so many watchers side by side")
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), False
        script = [sys.executable, str(ROOT / "infra" / "kafka" / "broker.py")]
        address = (options.log or "").removeprefix("kafka://")
        if not address:
            command = [*script, "start", "--port", "0", "--folder", str(folder / "broker"), "--detach"]
            began = subprocess.run(command, capture_output=True, text=True)
            address, started = began.stdout.split()[-1], True
        try:
            table = run(folder, address, options)
        finally:
            if started:
                subprocess.run([*script, "stop", "--folder", str(folder / "broker")], capture_output=True)
    for line in table:
        rates = (
            f"{line['per_second']:>8,} events/s {line['per_core_second']:>8,} events per CPU second" if "events" in line else line["ratio"]
        )
        print(f"{line['what']:40s} {rates}")
    print(json.dumps(table))


def run(folder, address, options):
    topic = f"benchmark-{uuid.uuid4().hex[:8]}"
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.create_topics([NewTopic(topic, num_partitions=PARTITIONS, replication_factor=1)])
    admin.close()
    filling = Connection(url=f"kafka://{address}/{topic}", client="librdkafka")
    log = open_log(filling)
    models = models_on_all_partitions(log)
    log.close()
    until = fill(filling, options.events, models, folder / "models")
    table = []
    for client in ("kafka-python", "librdkafka"):
        connection = Connection(url=f"kafka://{address}/{topic}", client=client)
        best = {}
        # In turn, so that what else the machine does falls on both.
        for number in range(options.rounds):
            path = configuration(folder, connection, models, f"{client}-{number}")
            for what, result in (
                (f"{client}, bare poll", measured("bare", f"bare-{number}", connection, until)),
                (f"{client}, watcher", measured("watch", path, connection, until)),
            ):
                best[what] = max(best.get(what, result), result, key=lambda one: one["per_core_second"])
        if options.members > 1:
            path = configuration(folder, connection, models, f"{client}-together")
            best[f"{client}, {options.members} watchers"] = measured("watch", path, connection, until, members=options.members)
        table += [{"what": what, **result} for what, result in best.items()]
        poll, watcher = best[f"{client}, bare poll"], best[f"{client}, watcher"]
        ratio = round(watcher["per_core_second"] / poll["per_core_second"], 2)
        table.append({"what": f"{client}, watcher / bare poll, per core", "ratio": ratio})
    return table


if __name__ == "__main__":
    main()
