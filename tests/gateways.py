"""Gateways over real sockets, in this process, and what is posted to them."""

import base64
import contextlib
import gzip
import http.client
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.event import REQUEST
from inference.gateway import Gateway
from inference.gateway_server import listen, make_server
from inference.log.embedded import EmbeddedLog

RECORDING = Path(__file__).parent / "recordings" / "kserve-logger-all.jsonl.gz"


@dataclass
class Running:
    port: int
    log: EmbeddedLog
    gateway: Gateway

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(self, method: str, path: str = "/", body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        connection = self.connection()
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def rejected(self, headers: dict[str, str], body: Any = b"{}") -> str:
        """Post what must be rejected, see that it was set aside, and give the reason."""
        status, answer = self.ask("POST", "/", body, headers)
        assert status == 400, (status, answer)
        problem = json.loads(answer)
        letter = self.log.dead_letters()[-1]
        assert (letter.reason, letter.message) == (problem["error"], problem["message"])
        return problem["error"]

    def counts(self) -> dict[str, Any]:
        counts = json.loads(self.ask("GET", "/counts")[1])
        totals = [sum(counts[name].values()) for name in ("ignored", "rejected", "refused")]
        assert counts["received"] == counts["appended"] + sum(totals) + counts["disconnected"] + counts["waiting"], counts
        return counts

    def bodies(self) -> list[bytes]:
        return [record.event.data for record in self.log.read(self.log.start_positions(), 10_000)]


@contextlib.contextmanager
def running(path: Path, **options: Any) -> Iterator[Running]:
    """`options` are the gateway's, and: `busy_timeout`, `shutdown_timeout`, `keep_alive` (seconds), `log` (in place of one at `path`)."""
    log = options.pop("log", None) or EmbeddedLog(path, busy_timeout=options.pop("busy_timeout", 5.0))
    shutdown_timeout = options.pop("shutdown_timeout", 3)
    keep_alive = options.pop("keep_alive", None)
    gateway = Gateway(log, **options)
    server = make_server(gateway, shutdown_timeout=shutdown_timeout)
    server.config.timeout_keep_alive = keep_alive or server.config.timeout_keep_alive
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield Running(port, log, gateway)
        finally:
            server.should_exit = True
            thread.join(20)
            log.close()
    assert not thread.is_alive()


def wire(headers: dict[str, str], body: bytes = b"{}", *, target: str = "/") -> bytes:
    """A POST as its bytes."""
    head = "".join(f"{name}: {value}\r\n" for name, value in {**headers, "Content-Length": str(len(body))}.items())
    return f"POST {target} HTTP/1.1\r\nHost: gateway\r\n{head}\r\n".encode() + body


def until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def ce(type_: str = REQUEST, id_: str = "1", **changes: str | None) -> dict[str, str]:
    headers: dict[str, str | None] = {
        "Ce-Specversion": "1.0",
        "Ce-Id": id_,
        "Ce-Source": "pod-1",
        "Ce-Type": type_,
        "Ce-Namespace": "default",
        "Ce-Inferenceservicename": "iris",
        "Content-Type": "application/json",
    }
    headers |= {f"Ce-{name.capitalize()}" if name != "content_type" else "Content-Type": value for name, value in changes.items()}
    return {name: value for name, value in headers.items() if value is not None}


def recorded() -> list[tuple[bytes, dict[str, str], bytes]]:
    """Each recorded request: its bytes as KServe sent them (but for Host), its headers, its body."""
    requests = []
    with gzip.open(RECORDING, "rt") as lines:
        for line in lines:
            item = json.loads(line)
            body = base64.b64decode(item["body_base64"])
            head = [item["request_line"], *(f"{name}: {value}" for name, value in item["headers"])]
            requests.append(("\r\n".join([*head, "", ""]).encode() + body, {n.lower(): v for n, v in item["headers"]}, body))
    return requests


def read_answer(stream: Any) -> tuple[bytes, bytes]:
    """Status line and the rest of the head; an answer to KServe has no body."""
    status, head = stream.readline(), b""
    while (line := stream.readline()) not in (b"\r\n", b""):
        head += line
    return status, head


@contextlib.contextmanager
def holding(path: Path) -> Iterator[None]:
    """Another process's write transaction."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def in_thread(served: Running, body: Any, headers: dict[str, str]) -> tuple[threading.Thread, list[tuple[int, bytes]]]:
    answers: list[tuple[int, bytes]] = []
    thread = threading.Thread(target=lambda: answers.append(served.ask("POST", "/", body, headers)))
    thread.start()
    return thread, answers


def join(post: tuple[threading.Thread, list[tuple[int, bytes]]]) -> tuple[int, bytes]:
    post[0].join(20)
    return post[1][0]
