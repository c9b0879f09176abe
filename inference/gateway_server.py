"""The gateway's HTTP server: uvicorn with bounds of its own, a socket that explains itself, and a plain end on a signal."""

import gc
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn

from inference.access import Access
from inference.errors import LogError, ServiceError, SettingsError
from inference.gateway import Gateway
from inference.gateway_protocol import GatewayProtocol
from inference.gateway_writer import Intake
from inference.log import open_log
from inference.log.address import is_remote
from inference.log.connection import Connection
from inference.log.embedded import EmbeddedLog
from inference.spool import Forwarder, Spool
from inference.tee import Tee, TeeOptions

# At most so much of a message is kept: 64 KiB of its body, and its head.
DEAD_LETTER_BYTES = 131_072
# Longer than the 90 s after which Go's client drops an idle connection: if we were first, a POST already on its way would be lost.
KEEP_ALIVE_SECONDS = 120
# Python's default of 700 is fewer objects than a few dozen events are made of.
_YOUNG_OBJECTS = 50_000


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How a gateway is run. Sizes are in bytes, times in seconds.

    `log` is where events belong. One on the network needs `spool`, the folder in which they wait for it, at most `spool_bytes`;
    `drain` is how long a gateway that ends goes on carrying them. With a `token` only who shows it may post.
    """

    log: Connection
    host: str = "127.0.0.1"
    port: int = 8090
    spool: Path | None = None
    spool_bytes: int = 2_000_000_000
    drain: float = 10.0
    max_body: int = 1_000_000
    token: str | None = field(default=None, repr=False)
    close_connections: bool = False
    tee: TeeOptions | None = None


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
            http=GatewayProtocol,
            ws="none",
            loop="auto",  # uvloop where it is installed, which is quicker
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(shutdown_timeout),
        )
    )


def serve_gateway(options: GatewayOptions, on_ready: Callable[[int], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted. `on_ready` gets the port once connections are taken.

    A log on the network gets a spool: events are acknowledged once they stand there, and carried to the log from there in order.
    A spool that is full answers 503 until the log has taken some of it. At the end it is carried on for `options.drain` seconds;
    what is left then waits for the next start.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(listen(options.host, options.port))
        log, forwarder = _local_log(options, stack)
        tee = Tee(options.tee) if options.tee is not None else None
        if tee is not None:
            stack.callback(tee.close)
        access = Access(options.token) if options.token is not None else None
        gateway = Gateway(
            log, access=access, close_connections=options.close_connections, forwarder=forwarder, tee=tee, max_body=options.max_body
        )
        server = make_server(gateway)
        with _ended_by_signals(server), _seldom_collected():
            if on_ready is not None:
                on_ready(listener.getsockname()[1])
            server.run(sockets=[listener])


def _local_log(options: GatewayOptions, stack: ExitStack) -> tuple[Intake, Forwarder | None]:
    """The log that the gateway itself writes to: the embedded log, or the spool in front of another with its forwarder running."""
    connection = options.log
    if not is_remote(connection.url):
        log = open_log(connection)
        assert isinstance(log, EmbeddedLog)
        return stack.enter_context(closing(log)), None
    if options.spool is None:
        raise SettingsError(
            [f"log {connection.url}: give --spool FOLDER (or gateway.spool), where events wait on this disk while the log is away"]
        )
    # Dead letters stay; so few that they take no more than a tenth of what the spool may.
    letters = max(10, min(1_000, options.spool_bytes // 10 // DEAD_LETTER_BYTES))
    try:
        spool = Spool(options.spool, max_bytes=options.spool_bytes, max_dead_letters=letters)
    except LogError as error:
        raise ServiceError(str(error)) from error
    stack.enter_context(closing(spool))
    forwarder = Forwarder(spool, lambda: open_log(connection))
    forwarder.start()
    stack.callback(forwarder.stop, options.drain)
    return spool, forwarder


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Events leave no cycles behind, yet the collector would go through all that are under way again and again."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


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
