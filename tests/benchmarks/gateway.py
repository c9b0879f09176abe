"""The gateway's events a second on one core, and the latency of its acknowledgements, against a bare ASGI app on the same server.

    python tests/benchmarks/gateway.py [--rounds 7] [--seconds 2] [--connections 64] [--kafka HOST:PORT | --no-kafka] [--client NAME]

Real processes on loopback, one of them loaded at a time, in turns: each server alone on core 0, the load on core 1 (with the broker, if
this script starts one: a machine with more cores should give it others). The requests are the recorded ones of KServe's logger.
`events/s` counts what was acknowledged, with Kafka until all of it had arrived there. `CPU` is all that the server's process used, the
carrying to Kafka included: 1 second over it is what a core that does nothing else could do, whatever else the machine does.
The table goes to stderr, one JSON object to stdout.
"""

import argparse
import http.client
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import load
import psutil

ROOT = Path(__file__).resolve().parents[2]
BROKER = ROOT / "infra" / "kafka" / "broker.py"
SERVERS, LOAD = 0, 1


def pin(core):
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {core})


class Server:
    """One process on the servers' core."""

    def __init__(self, name, command, port, folder):
        self.name, self.port = name, port
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (folder / f"{name.replace(' ', '-')}.log").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command], stdout=output, stderr=output, env=environment, cwd=folder, preexec_fn=lambda: pin(SERVERS)
            )
        self.usage = psutil.Process(self.process.pid)
        self.rounds = []
        deadline = time.monotonic() + 30
        while not self.answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(f"{name} does not answer; see {output.name}")
            time.sleep(0.05)

    def answers(self):
        try:
            return self.get("/healthz")[0] in (200, 404)
        except OSError:
            return False

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def cpu(self):
        times = self.usage.cpu_times()
        return times.user + times.system

    def forward(self):
        """Wait until nothing is left in the spool, if there is one."""
        while json.loads(self.get("/counts")[1] or b"{}").get("log", {}).get("spool", {}).get("events"):
            time.sleep(0.02)

    def measure(self, seconds, connections):
        cpu, began, own = self.cpu(), time.perf_counter(), time.process_time()
        done = load.run(self.port, seconds=seconds, connections=connections)
        own = (time.process_time() - own) / done.seconds
        self.forward()
        elapsed = time.perf_counter() - began
        count = len(done.latencies)
        if done.refused:
            raise SystemExit(f"{self.name} refused {done.refused} events")
        self.rounds.append(
            {
                "events_per_second": count / elapsed,
                "cpu_us": 1e6 * (self.cpu() - cpu) / count,
                "p50_ms": done.percentile(0.5),
                "p99_ms": done.percentile(0.99),
                "load_cpu": own,
            }
        )

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def topic_on(address):
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic

    name = f"gateway-benchmark-{time.time_ns()}"
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.create_topics([NewTopic(name, num_partitions=4, replication_factor=1)])
    admin.close()
    return f"kafka://{address}/{name}"


def gateway(name, log, folder, port, client=None):
    config = folder / f"{name.replace(' ', '-')}.yaml"
    connection = {"url": log, **({"client": client} if client else {})}
    config.write_text(json.dumps({"log": connection, "gateway": {"port": port, "spool": str(folder / f"spool-{port}")}}))
    return Server(name, ["-m", "streaming.cli", "gateway", "--config", str(config)], port, folder)


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def summary(servers):
    bare = servers[0]
    table = {}
    for server in servers:
        row = {key: statistics.median(one[key] for one in server.rounds) for key in server.rounds[0]}
        pairs = list(zip(bare.rounds, server.rounds, strict=True))
        row["of_bare"] = statistics.median(own["events_per_second"] / of["events_per_second"] for of, own in pairs)
        row["of_bare_by_cpu"] = statistics.median(of["cpu_us"] / own["cpu_us"] for of, own in pairs)
        table[server.name] = {key: round(value, 3) for key, value in row.items()}
    return table


def show(table):
    write = sys.stderr.write
    write(f"{'':26}{'events/s':>10}{'of bare':>9}{'CPU us':>8}{'of bare':>9}{'p50 ms':>8}{'p99 ms':>8}{'load CPU':>10}\n")
    for name, row in table.items():
        write(f"{name:26}{row['events_per_second']:10.0f}{row['of_bare']:9.2f}{row['cpu_us']:8.1f}{row['of_bare_by_cpu']:9.2f}")
        write(f"{row['p50_ms']:8.2f}{row['p99_ms']:8.2f}{row['load_cpu']:10.0%}\n")
    if any(row["load_cpu"] > 0.9 for row in table.values()):
        write("The load was as fast as it could: go by the CPU time.\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    parser.add_argument("--connections", type=int, default=64, help="KServe's agent has five a pod")
    parser.add_argument("--kafka", metavar="HOST:PORT", help="a broker that is there (default: start one)")
    parser.add_argument("--no-kafka", action="store_true")
    parser.add_argument("--client", action="append", choices=["kafka-python", "librdkafka"], help="may be repeated")
    options = parser.parse_args()
    pin(LOAD)
    with tempfile.TemporaryDirectory() as name:
        folder, servers, own_broker = Path(name), [], False
        try:
            port = free_port()
            servers.append(Server("bare", [str(Path(__file__).with_name("bare.py")), str(port)], port, folder))
            servers.append(gateway("embedded log", str(folder / "log.db"), folder, free_port()))
            if not options.no_kafka:
                address = options.kafka
                if address is None:
                    started = subprocess.run(
                        [sys.executable, BROKER, "start", "--port", "0", "--folder", folder / "kafka", "--detach"],
                        capture_output=True,
                        text=True,
                    )
                    if started.returncode:
                        raise SystemExit(f"no broker (--no-kafka leaves it out): {started.stderr}")
                    address, own_broker = started.stdout.split()[-1], True
                for client in options.client or ["kafka-python"]:
                    servers.append(gateway(f"Kafka, {client}", topic_on(address), folder, free_port(), client))
            for _ in range(options.rounds):
                for server in servers:
                    server.measure(options.seconds, options.connections)
        finally:
            for server in servers:
                server.stop()
            if own_broker:
                subprocess.run([sys.executable, BROKER, "stop", "--folder", folder / "kafka"], capture_output=True)
    table = summary(servers)
    show(table)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "system": platform.system(), "python": platform.python_version()}
    sys.stdout.write(
        json.dumps({"machine": machine, "connections": options.connections, "rounds": options.rounds, "servers": table}) + "\n"
    )


if __name__ == "__main__":
    main()
