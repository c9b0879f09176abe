"""The gateway: an ASGI sink for KServe's payload logger and our own events that answers once the event is on the log.

KServe's logger never retries, has five workers a pod and takes any answer but 200 for an error, so an answer is quick,
exactly 200 and empty. It is also true: requests wait while one writer thread appends all that came meanwhile in a single
transaction (group commit), so an event that was acknowledged survives a kill of this process.

The path of a request, in reading order: route -> enter -> receive -> take (admit, is it noise?, write) -> leave -> answer.
An HTTP protocol that has the whole of a request at once (gateway_protocol.py) calls `enter` and `take` itself.

What is counted where, for every request that was received (`Gateway.counts`):
- appended: it stands on the log (or in the spool in front of it) and was acknowledged;
- ignored, by reason: acknowledged, and no event of a prediction: what KServe logs of GETs;
- rejected, by reason: it is wrong (4xx); set aside with its content and counted among the log's dead letters, both on disk;
- refused, by reason: it could not be taken in: `unauthorized` (401); or 503: `queue_full`, `log_full` (spool or disk without room),
  `log_unavailable`, `log_corrupt`. A sender that does not repeat, as KServe's, has lost that event for good, so each 503 is also counted
  among the dead letters as `lost_REASON`: in memory at once, on disk with the next transaction that succeeds (a kill before loses the
  count). Their content is not kept: there is no room where it could be;
- disconnected: the sender went away before its body was complete.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import orjson

from inference.access import Access
from inference.admission import admit, noise
from inference.episode import Episode
from inference.errors import EventError, LogCorrupt, LogError, LogFull
from inference.gateway_writer import Intake, Letter, Writer
from inference.latency import Latency
from inference.spool import Forwarder
from inference.tee import Tee

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

LINGER_SECONDS = 5.0
STATUS = {"body_too_large": 413, "body_timeout": 408}

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What a request is answered; `content-length` is not among the headers."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()


ACCEPTED = Answer(200)
DISCONNECTED = Answer(0)


class Gateway:
    """The ASGI app. `max_waiting` and `max_waiting_bytes` bound what it holds in memory; beyond them it answers 503.

    `forwarder` carries the events from `log`, which is a spool then, to where they belong; `tee` gets a copy of each.
    """

    def __init__(
        self,
        log: Intake,
        *,
        access: Access | None = None,
        close_connections: bool = False,
        forwarder: Forwarder | None = None,
        tee: Tee | None = None,
        max_body: int = 1_000_000,
        max_waiting: int = 10_000,
        max_waiting_bytes: int = 256 * 1024 * 1024,
        body_timeout: float = 30.0,
    ) -> None:
        self.max_body = max_body
        self._log = log
        self._access = access
        self.close_connections = close_connections
        self._forwarder = forwarder
        self._tee = tee
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._body_timeout = body_timeout
        self._waiting = self._waiting_bytes = 0
        self._writer = Writer(log)
        self._refusing = Episode(logger)
        self._latency = Latency()
        self._received = self._appended = self._disconnected = self._letters_lost = 0
        self._ignored: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    def counts(self) -> dict[str, Any]:
        """received = appended + ignored + rejected + refused + disconnected + waiting; reads nothing but memory."""
        return {
            "received": self._received,
            "appended": self._appended,
            "ignored": dict(self._ignored),
            "rejected": dict(self._rejected),
            "refused": dict(self._refused),
            "disconnected": self._disconnected,
            "waiting": self._waiting,
            "queue_depth": self._writer.depth,
            "batches": self._writer.batches,
            "dead_letters_lost": self._letters_lost,
            "ack_seconds": self._latency.snapshot(),
        }

    def status(self) -> dict[str, Any]:
        """The counts, the dead letters ever (by reason), and how the parts beside the gateway are; may wait for the disk."""
        status = self.counts()
        with suppress(LogError):
            # The loop goes on counting meanwhile: a copy is made in one step.
            status["dead_letters"] = dict(Counter(self._log.dead_letter_counts()) + Counter(dict(self._writer.lost)))
        if self._forwarder is not None:
            with suppress(LogError):
                status["log"] = self._forwarder.status()
        if self._tee is not None:
            status["tee"] = self._tee.status()
        return status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["method"] == "POST":
            await self._post(scope["headers"], scope["raw_path"], receive, send)
        elif scope["method"] != "GET":
            await self._answer(send, _problem(405, "method_not_allowed", "send events with POST", (b"allow", b"GET, POST")))
        else:
            await self._answer(send, await self._get(scope["path"]))

    async def _get(self, path: str) -> Answer:
        if path == "/healthz":
            return Answer(200, b'{"status":"ok"}', (_JSON,))
        if path == "/counts":
            return Answer(200, orjson.dumps(await asyncio.to_thread(self.status)), (_JSON,))
        if path == "/metrics":
            from inference.gateway_metrics import CONTENT_TYPE, exposition

            return Answer(200, exposition(await asyncio.to_thread(self.status)), ((b"content-type", CONTENT_TYPE.encode()),))
        return _problem(404, "not_found", "known: GET /healthz, GET /counts, GET /metrics, POST any path")

    async def _post(self, headers: Headers, target: bytes, receive: Receive, send: Send) -> None:
        size = min(_content_length(headers, otherwise=self.max_body), self.max_body)
        if (answer := self.enter(headers, target, size)) is None:
            answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            began = perf_counter()
            reply = partial(_set_once, answered)
            body = b""
            try:
                body = await self._body(headers, receive)
            except EventError as error:
                self._reject(error, headers, body, size, reply)
            except _Disconnected:
                self._disconnected += 1
                self._leave(size, reply, DISCONNECTED)
            else:
                self.take(headers, body, size, began, reply)
            answer = await answered
        if answer is not DISCONNECTED:
            await self._answer(send, answer, unread=receive if answer.status == 413 else None)

    def enter(self, headers: Headers, target: bytes, size: int) -> Answer | None:
        """Count a request with a body of (at most) `size` bytes in and keep room for it; an answer turns it away."""
        self._received += 1
        if self._access is not None and not self._access.allows(headers, target):
            self._refused["unauthorized"] += 1
            return _UNAUTHORIZED
        if self._waiting >= self._max_waiting or self._waiting_bytes + size > self._max_waiting_bytes:
            return self._refuse("queue_full", f"{self._waiting} events are waiting for the log")
        self._waiting += 1
        self._waiting_bytes += size
        return None

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        length = _content_length(headers, otherwise=0)
        if length > self.max_body:
            raise EventError("body_too_large", f"a body of {length} bytes; at most {self.max_body} are accepted")
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Disconnected
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > self.max_body:
                        raise EventError(
                            "body_too_large", f"a body of more than {self.max_body} bytes; at most {self.max_body} are accepted"
                        )
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError as error:
            raise EventError("body_timeout", f"the body did not arrive within {self._body_timeout:g} s ({size} bytes came)") from error

    def take(self, headers: Headers, body: bytes, size: int, began: float, reply: Callable[[Answer], None]) -> None:
        """Take in one whole request that `enter` let through with `size` at `began` (perf_counter); `reply` gets its answer once."""
        try:
            event = admit(headers, body)
        except EventError as error:
            self._reject(error, headers, body, size, reply)
            return
        if reason := noise(event):
            self._ignored[reason] += 1
            self._leave(size, reply, ACCEPTED)
            return
        self._writer.put(event, partial(self._written, headers, body, size, began, reply))

    def _written(
        self, headers: Headers, body: bytes, size: int, began: float, reply: Callable[[Answer], None], outcome: Exception | None
    ) -> None:
        if outcome is None:
            self._appended += 1
            self._latency.observe(perf_counter() - began)
            if self._refusing.failures:
                self._refusing.succeeded("events are taken in again; %d were lost meanwhile")
            if self._tee is not None:
                self._tee.offer(headers, body)
            self._leave(size, reply, ACCEPTED)
        elif isinstance(outcome, EventError):
            self._reject(outcome, headers, body, size, reply)
        else:
            reason = "log_full" if isinstance(outcome, LogFull) else "log_corrupt" if isinstance(outcome, LogCorrupt) else "log_unavailable"
            self._leave(size, reply, self._refuse(reason, str(outcome)))

    def _reject(self, error: EventError, headers: Headers, body: bytes, size: int, reply: Callable[[Answer], None]) -> None:
        """Set a wrong event aside, and say what is wrong."""
        self._rejected[error.reason] += 1
        status = STATUS.get(error.reason, 400)
        answer = _problem(status, error.reason, str(error), *(((b"connection", b"close"),) if status != 400 else ()))

        def done(outcome: Exception | None) -> None:
            self._letters_lost += outcome is not None
            self._leave(size, reply, answer)

        self._writer.put(Letter(error.reason, str(error), [(_lenient(name), _lenient(value)) for name, value in headers], body), done)

    def _refuse(self, reason: str, message: str) -> Answer:
        """The event is lost for good if its sender does not repeat it: never in silence."""
        self._refused[reason] += 1
        self._writer.lost[f"lost_{reason}"] += 1
        self._refusing.failed("events are refused with 503 and lost, as KServe sends none twice: %s: %s", reason, message)
        return _problem(503, reason, f"{message}; send again in a second", (b"retry-after", b"1"))

    def _leave(self, size: int, reply: Callable[[Answer], None], answer: Answer) -> None:
        self._waiting -= 1
        self._waiting_bytes -= size
        reply(answer)

    async def _answer(self, send: Send, answer: Answer, *, unread: Receive | None = None) -> None:
        status, body, headers = answer
        closing = ((b"connection", b"close"),) if self.close_connections else ()
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body)), *headers, *closing]}
        )
        await send({"type": "http.response.body", "body": body, "more_body": unread is not None})
        if unread is not None:
            # Closing on a client that is still sending would reset the connection and destroy the answer: read on for a moment.
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    while (message := await unread())["type"] == "http.request" and message.get("more_body", False):
                        pass
            await send({"type": "http.response.body", "body": b""})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def close(self) -> None:
        """Write what still waits, then let the writer thread go."""
        await self._writer.close()


class _Disconnected(Exception):
    """The client went away before its body was complete."""


_JSON = (b"content-type", b"application/json")


def _problem(status: int, error: str, message: str, *headers: tuple[bytes, bytes]) -> Answer:
    return Answer(status, orjson.dumps({"error": error, "message": message.encode("utf-8", "replace").decode()}), (*headers, _JSON))


_UNAUTHORIZED = _problem(
    401,
    "unauthorized",
    "show the gateway's token: as Basic password, as Bearer, or in the path",
    (b"www-authenticate", b'Basic realm="driftloop"'),
)


def _set_once(answered: asyncio.Future[Answer], answer: Answer) -> None:
    if not answered.done():
        answered.set_result(answer)


def _content_length(headers: Headers, *, otherwise: int) -> int:
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else otherwise
    return otherwise


def _lenient(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
