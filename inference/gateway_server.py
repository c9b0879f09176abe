"""The gateway's HTTP server: uvicorn with bounds of its own, a socket that explains itself, and a plain end on a signal."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from inference.errors import ServiceError, SettingsError
from inference.gateway import Gateway
from inference.log import open_log
from inference.log.address import KafkaAddress, is_kafka
from inference.log.embedded import EmbeddedLog
from inference.spool import Forwarder

MAX_HEAD = 65_536
# Longer than the 90 s after which Go's client drops an idle connection: if we were first, a POST already on its way would be lost.
KEEP_ALIVE_SECONDS = 120


class BoundedProtocol(HttpToolsProtocol):  # type: ignore[misc]  # uvicorn is not followed by the type checker
    """uvicorn's HTTP protocol with what it lacks: a bound on the length of a request's head, and on the time it may take."""

    _head = 0
    _in_head = True
    _head_is_new = True
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head:
            return
        # A head that began within these bytes, perhaps behind the body of another request, is counted from the next ones on.
        self._head = 0 if self._head_is_new else self._head + len(data)
        self._head_is_new = False
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()
        elif self._deadline is None:
            self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._head_is_new = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(self.config.timeout_keep_alive, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. ServiceError says why it can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServiceError(f"can't listen on {host}:{port}: {error.strerror}; give an address of this machine") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ServiceError(
            f"can't listen on {host}:{port}: {error.strerror}; give another port (0 takes a free one) or end the process that has it"
        ) from error
    listener.setblocking(False)
    return listener


def make_server(gateway: Gateway, *, shutdown_timeout: float = 10.0) -> uvicorn.Server:
    """The uvicorn server of a gateway; it is run with a socket from `listen`, and `should_exit = True` ends it."""
    return uvicorn.Server(
        uvicorn.Config(
            gateway,
            http=BoundedProtocol,
            ws="none",
            loop="auto",  # uvloop where it is installed, which is quicker
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(shutdown_timeout),
        )
    )


def serve_gateway(
    log_url: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8090,
    max_body: int = 1_000_000,
    spool: Path | None = None,
    spool_bytes: int = 2_000_000_000,
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted. `on_ready` gets the port once connections are taken.

    A log on the network gets a spool in the folder `spool`: events are acknowledged once they stand there, and carried to
    the log from there in order. A spool that is full (`spool_bytes`) answers 503 until the log has taken some of it.
    """
    with _local_log(log_url, spool, spool_bytes) as log, listen(host, port) as listener:
        server = make_server(Gateway(log, max_body=max_body))
        with _ended_by_signals(server):
            if on_ready is not None:
                on_ready(listener.getsockname()[1])
            server.run(sockets=[listener])


@contextmanager
def _local_log(log_url: str, spool: Path | None, spool_bytes: int) -> Iterator[EmbeddedLog]:
    """The log that the gateway itself writes to: the log at `log_url`, or the spool in front of it with its forwarder running."""
    if not is_kafka(log_url):
        log = open_log(log_url)
        if not isinstance(log, EmbeddedLog):
            raise SettingsError([f"log {log_url!r}: the gateway knows the embedded log and Kafka"])
        with closing(log):
            yield log
        return
    if spool is None:
        raise SettingsError([f"log {log_url}: give --spool FOLDER, where events wait on this disk while the log is away"])
    KafkaAddress.parse(log_url)
    try:
        spool.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServiceError(
            f"the spool {spool} cannot be written: {error.strerror}; give a folder that this process may write to"
        ) from error
    waiting = EmbeddedLog(spool / "spool.db", retention_bytes=spool_bytes, refuse_when_full=True)
    with closing(waiting):
        forwarder = Forwarder(waiting, lambda: open_log(log_url))
        forwarder.start()
        try:
            yield waiting
        finally:
            forwarder.stop()


@contextmanager
def _ended_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """uvicorn raises the signal again once it has shut down; ours makes that, and one before it has started, a plain end."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
