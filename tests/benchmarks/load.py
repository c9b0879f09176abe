"""KServe's payload logger as a load: recorded requests over keep-alive connections, one on its way on each, as fast or as slow as asked."""

import base64
import gzip
import json
import select
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

MODELS = 8
RECORDING = Path(__file__).resolve().parents[1] / "recordings" / "kserve-logger-all.jsonl.gz"


@dataclass
class Load:
    """What became of it. `latencies` are seconds from a request's first byte to its answer's last; `sent` is when (perf_counter)."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    refused: int = 0

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, share: float, *, since: float = 0.0, until: float = float("inf")) -> float:
        """Milliseconds that this share of the answers stayed within, of requests that were sent in that time."""
        ordered = sorted(latency for sent, latency in zip(self.sent, self.latencies, strict=True) if since <= sent < until)
        return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def recorded(model: str) -> list[tuple[bytes, bytes]]:
    """The recorded predictions' requests as KServe sent them, but for the model's name, cut where the Ce-Id stands."""
    cut = []
    with gzip.open(RECORDING, "rt") as lines:
        for line in lines:
            item = json.loads(line)
            headers = [(name, value) for name, value in item["headers"] if name not in ("Ce-Id", "Ce-Inferenceservicename")]
            headers.append(("Ce-Inferenceservicename", model))
            if any(name == "Content-Type" for name, _ in headers):
                head = "\r\n".join([item["request_line"], *(f"{name}: {value}" for name, value in headers), "Ce-Id: "])
                cut.append((head.encode(), b"\r\n\r\n" + base64.b64decode(item["body_base64"])))
    return cut


class _Client:
    """One connection; its events are numbered, so that their order can be seen on the log."""

    def __init__(self, name: str, port: int, requests: list[tuple[bytes, bytes]]) -> None:
        self.name = name
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = requests
        self.number = 0
        self.sent_at = 0.0
        self._answer = b""

    def send(self) -> None:
        before, after = self._requests[self.number % len(self._requests)]
        self.sent_at = time.perf_counter()
        self.socket.sendall(b"%b%b-%d%b" % (before, self.name.encode(), self.number, after))

    def answered(self) -> bytes | None:
        """The status of the answer once it is whole, for example b"200"."""
        received = self.socket.recv(65_536)
        if not received:
            raise ConnectionError("the server closed a connection")
        self._answer += received
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found:
            return None
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if len(body) < int(length or 0):
            return None
        self._answer = b""
        return head[9:12]


def run(port: int, *, seconds: float, connections: int, rate: float = 0.0, prefix: str = "c", ids: bool = False) -> Load:
    """Post for `seconds`: `rate` events/s, or as many as are answered (0). With `ids` the acknowledged ids are kept.

    An id is CONNECTION-NUMBER; its number goes up by one and is posted again until it is acknowledged. Connections share 8 models.
    """
    requests = [recorded(f"iris-{number}") for number in range(min(connections, MODELS))]
    clients = {}
    poll = select.epoll() if hasattr(select, "epoll") else None
    ready = select.poll() if poll is None else poll
    for number in range(connections):
        client = _Client(f"{prefix}{number}", port, requests[number % MODELS])
        clients[client.socket.fileno()] = client
        ready.register(client.socket.fileno(), select.POLLIN)
    load = Load()
    idle = list(clients.values())
    began = time.perf_counter()
    started = 0
    busy = 0
    while True:
        now = time.perf_counter()
        over = now - began >= seconds
        if over and not busy:
            break
        while idle and not over and (not rate or started < (now - began) * rate):
            idle.pop().send()
            started += 1
            busy += 1
        wait = 0.002 if rate else 5.0
        for descriptor, _ in ready.poll(wait if poll is not None else wait * 1000):
            client = clients[descriptor]
            status = client.answered()
            if status is None:
                continue
            busy -= 1
            if status == b"200":
                load.sent.append(client.sent_at)
                load.latencies.append(time.perf_counter() - client.sent_at)
                if ids:
                    load.acknowledged.append(f"{client.name}-{client.number}")
                client.number += 1
            else:
                load.refused += 1
            if rate or over or time.perf_counter() - began >= seconds:
                idle.insert(0, client)
            else:
                client.send()
                started += 1
                busy += 1
    load.seconds = time.perf_counter() - began
    for client in clients.values():
        client.socket.close()
    return load
