#!/usr/bin/env python3
"""A real Apache Kafka on this machine, one node on loopback, for tests and for trying driftloop out.

    python infra/kafka/broker.py start [--port 9092] [--folder DIR] [--detach] [--properties FILE]
    python infra/kafka/broker.py stop [--folder DIR]
    python infra/kafka/broker.py fetch

It needs Java 17 or newer and, the first time, Maven, which fetches what pom.xml names into the cache: $DRIFTLOOP_CACHE, or
~/.cache/driftloop. The folder keeps the log (data/): stop and start the same folder and what was written is still there.
`start` ends its output with "ready at 127.0.0.1:PORT". The exit code is 1 for an error and 3 if Kafka cannot be had on this machine.
"""

import argparse
import base64
import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

HOST = "127.0.0.1"
HERE = Path(__file__).resolve().parent
POM = HERE / "pom.xml"
VERSION = ET.parse(POM).findtext("{*}properties/{*}kafka.version")  # noqa: S314 - our own file
START_LIMIT, STOP_LIMIT, FETCH_LIMIT = 120.0, 60.0, 600.0  # seconds

PORTS = """
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
# A voter that is configured, not stored in the log: the controller's port may be another one after a restart.
controller.quorum.voters=1@{host}:{controller}
log.dirs=data
"""


class BrokerError(Exception):
    code = 1


class MissingError(BrokerError):
    """Kafka cannot be had here: no Java, no Maven, or no artifacts."""

    code = 3


def say(line: str, to: IO[str] = sys.stdout) -> None:
    to.write(f"{line}\n")
    to.flush()


def run(command: list[str], limit: float, folder: Path | None = None) -> tuple[int, str]:
    """The exit code and what the command said on either stream."""
    out = subprocess.PIPE
    try:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, text=True, timeout=limit, cwd=folder)  # noqa: S603
    except subprocess.TimeoutExpired:
        return 1, f"no end after {limit:.0f} s"
    return done.returncode, done.stdout.strip()


# What it is made of


def cache() -> Path:
    return Path(os.environ.get("DRIFTLOOP_CACHE") or "~/.cache/driftloop").expanduser().resolve()


def java() -> str:
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    where = f"JAVA_HOME ({home})" if home else "the PATH"
    needed = f"Apache Kafka {VERSION} needs Java 17 or newer"
    if found is None:
        raise MissingError(f"no java in {where}: {needed}")
    code, said = run([found, "-version"], 60)
    version = re.search(r'version "(\d+)', said)
    if code != 0 or version is None:
        raise MissingError(f"{found} -version does not work ({said[:200]}): {needed}")
    if int(version[1]) < 17:
        raise MissingError(f"{found} is Java {version[1]}: {needed}")
    return found


def artifacts() -> Path:
    """The folder of Kafka's jars, fetched if this pom.xml has not been fetched yet."""
    digest = hashlib.sha256(POM.read_bytes()).hexdigest()[:8]
    folder = cache() / f"kafka-{VERSION}-{digest}"
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise MissingError(f"no mvn on the PATH: Maven fetches Apache Kafka {VERSION} the first time")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Of two that start at once the second waits here, then finds the folder; a folder with the final name is always whole.
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        say(f"fetching Apache Kafka {VERSION} into {folder}")
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        command = [maven, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={partial}"]
        code, said = run(command, FETCH_LIMIT)
        if code != 0 or not any(partial.glob("kafka_*.jar")):
            raise MissingError(f"mvn could not fetch Apache Kafka {VERSION}: {said[-1500:] or f'no jars, exit code {code}'}")
        partial.rename(folder)
    return folder


# Ports


def is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return False  # on some systems one can bind where another listens on all addresses
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_ports() -> Iterator[int]:
    # Below those that systems lend to clients: one of them could take the port while the broker is stopped.
    candidates = secrets.SystemRandom().sample(range(20_000, 30_000), 100)
    return filter(is_free, candidates)


def answers(port: int) -> bool:
    """Whether the broker lists itself: it takes connections before it is ready to hold a topic."""
    # Metadata, version 0: api key, version, correlation id, no client id, no topics.
    request = struct.pack(">hhihi", 3, 0, 1, -1, 0)
    try:
        with socket.create_connection((HOST, port), timeout=5) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            reply = connection.makefile("rb").read(12)
    except OSError:
        return False
    return len(reply) == 12 and struct.unpack(">iii", reply)[2] > 0


# Start and stop


def start(folder: Path, port: int, detach: bool, properties: Path | None) -> int:
    command = [
        java(),
        "-cp",
        f"{artifacts()}/*",
        "-Xmx512m",
        "-XX:TieredStopAtLevel=1",
        f"-Dlog4j2.configurationFile={(HERE / 'log4j2.properties').as_uri()}",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    # The lock is handed to Java: it is held for as long as that runs, whatever became of this process.
    with (folder / "broker.pid").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BrokerError(f"a broker is already running in {folder}: stop it, or choose another --folder") from None
        lock.truncate(0)
        chosen = free_ports()
        port = port or next(chosen)
        if not is_free(port):
            raise BrokerError(f"port {port} is in use on {HOST}: stop what listens there, or choose another --port (0: any)")
        controller = next(number for number in chosen if number != port)
        settings = (HERE / "server.properties").read_text(encoding="utf-8")
        for lines in (PORTS, properties.read_text(encoding="utf-8") if properties else ""):
            settings += "\n" + lines.format(host=HOST, port=port, controller=controller)
        (folder / "server.properties").write_text(settings, encoding="utf-8")
        if not (folder / "data" / "meta.properties").exists():
            cluster = base64.urlsafe_b64encode(b"d" + secrets.token_bytes(15)).decode().rstrip("=")  # Kafka forbids a "-" in front
            code, said = run([*command, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", "server.properties"], 60, folder)
            if code != 0:
                raise BrokerError(f"Kafka could not format {folder / 'data'}: {said}")
        return serve([*command, "kafka.Kafka", "server.properties"], folder, port, detach, lock)


def serve(command: list[str], folder: Path, port: int, detach: bool, lock: IO[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the broker is ended, below
    with (folder / "broker.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command, no shell
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock.fileno()],
            start_new_session=detach,
        )
    left_running = False
    try:
        lock.write(str(process.pid))
        lock.flush()
        deadline = time.monotonic() + START_LIMIT
        while not answers(port):
            if process.poll() is not None:
                fail_to_start(folder, f"Kafka ended with exit code {process.returncode}")
            if time.monotonic() > deadline:
                fail_to_start(folder, f"Kafka did not answer within {START_LIMIT:.0f} s")
            time.sleep(0.05)
        say(f"ready at {HOST}:{port}")
        left_running = detach
        if detach:
            return 0
        code = process.wait()
        return 0 if code in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT) else code  # Java's own way to end on a signal
    except KeyboardInterrupt:
        return 0
    finally:
        if not left_running:
            with contextlib.suppress(KeyboardInterrupt):
                process.terminate()
                process.wait()


def fail_to_start(folder: Path, what: str) -> NoReturn:
    path = folder / "broker.log"
    last = path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    raise BrokerError("\n".join([f"{what}; the end of {path}:", *last]))


def stop(folder: Path) -> int:
    path = folder / "broker.pid"
    if not path.exists():
        raise BrokerError(f"no broker was started in {folder}")
    with path.open("a+") as lock:
        deadline = time.monotonic() + STOP_LIMIT
        told = False
        while not unlocked(lock):
            if time.monotonic() > deadline:
                raise BrokerError(f"the broker in {folder} has not ended within {STOP_LIMIT:.0f} s")
            # While it is locked, the process of that number can only be the broker; just after a start there is none yet.
            if not told and (pid := path.read_text(encoding="utf-8")):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGTERM)
                told = True
            time.sleep(0.05)
    say(f"stopped the broker in {folder}" if told else f"no broker is running in {folder}")
    return 0


def unlocked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="A real Apache Kafka on this machine, one node on loopback.")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("start", help="start it, wait until it answers, and stay (Ctrl-C ends it)")
    starting.add_argument("--port", type=int, default=9092, help="default 9092; 0: any free one")
    starting.add_argument(
        "--properties",
        type=Path,
        metavar="FILE",
        help="more lines for server.properties, which count more than ours; {host}, {port} and {controller} stand for what was chosen",
    )
    starting.add_argument("--detach", action="store_true", help="return once it answers, and leave it running")
    stopping = commands.add_parser("stop", help="stop it, and wait until it has ended; the log stays")
    for command in (starting, stopping):
        command.add_argument("--folder", type=Path, default=cache() / "broker", help="of its log (default: %(default)s)")
    commands.add_parser("fetch", help="only check Java and fetch Kafka, if that has not been done")
    options = parser.parse_args()
    try:
        if options.command == "start":
            return start(options.folder.resolve(), options.port, options.detach, options.properties)
        if options.command == "stop":
            return stop(options.folder.resolve())
        java()
        say(str(artifacts()))
    except BrokerError as error:
        say(f"broker.py: {error}", sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
