"""The gateway: an ASGI sink for KServe's payload logger and our own events that answers once the event is on the log.

KServe's logger never retries, has five workers a pod and takes any answer but 200 for an error, so an answer is quick,
exactly 200 and empty. It is also true: requests wait while one writer thread appends all that came meanwhile in a single
transaction (group commit), so an event that was acknowledged survives a kill of this process.

The path of a request, in reading order: route -> receive -> admit -> is it noise? -> append -> answer.
"""

import asyncio
import logging
import re
from collections import Counter, deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import orjson

from inference.errors import EventError, LogCorrupt, LogError
from inference.event import LABEL, PROMOTED, REQUEST, RESPONSE, RETRAINING_FINISHED, Event, from_http
from inference.log.embedded import EmbeddedLog

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

ACCEPTED_TYPES = (REQUEST, RESPONSE, LABEL, PROMOTED, RETRAINING_FINISHED)
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SERVICE_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")

BATCH_EVENTS = 1_000
BATCH_BYTES = 16 * 1024 * 1024
LINGER_SECONDS = 5.0
STATUS = {"body_too_large": 413, "body_timeout": 408}

logger = logging.getLogger(__name__)


class _Letter(NamedTuple):
    reason: str
    message: str
    headers: list[tuple[str, str]]
    body: bytes


class _Disconnected(Exception):
    """The client went away before its body was complete."""


class Gateway:
    """The ASGI app. `max_waiting` and `max_waiting_bytes` bound what it holds in memory; beyond them it answers 503."""

    def __init__(
        self,
        log: EmbeddedLog,
        *,
        max_body: int = 1_000_000,
        max_waiting: int = 10_000,
        max_waiting_bytes: int = 256 * 1024 * 1024,
        body_timeout: float = 30.0,
    ) -> None:
        self._log = log
        self._max_body = max_body
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._body_timeout = body_timeout
        self._waiting = 0
        self._waiting_bytes = 0
        self._queue: deque[tuple[Event | _Letter, asyncio.Future[Exception | None]]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="log-writer")
        self._received = self._appended = self._disconnected = self._batches = self._letters_lost = 0
        self._ignored: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    def counts(self) -> dict[str, Any]:
        """received = appended + ignored + rejected (dead letters) + refused (503) + disconnected + waiting."""
        return {
            "received": self._received,
            "appended": self._appended,
            "ignored": dict(self._ignored),
            "rejected": dict(self._rejected),
            "refused": dict(self._refused),
            "disconnected": self._disconnected,
            "waiting": self._waiting,
            "queue_depth": len(self._queue),
            "batches": self._batches,
            "dead_letters_lost": self._letters_lost,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["method"] == "POST":
            await self._post(scope["headers"], receive, send)
        elif scope["method"] != "GET":
            await _answer(send, 405, _problem("method_not_allowed", "send events with POST"), (b"allow", b"GET, POST"))
        elif scope["path"] == "/healthz":
            await _answer(send, 200, b'{"status":"ok"}')
        elif scope["path"] == "/counts":
            await _answer(send, 200, orjson.dumps(self.counts()))
        else:
            await _answer(send, 404, _problem("not_found", "known: GET /healthz, GET /counts, POST any path"))

    async def _post(self, headers: Headers, receive: Receive, send: Send) -> None:
        self._received += 1
        expected = min(_content_length(headers, otherwise=self._max_body), self._max_body)
        if self._waiting >= self._max_waiting or self._waiting_bytes + expected > self._max_waiting_bytes:
            self._refused["queue_full"] += 1
            await _refuse(send, "queue_full", f"{self._waiting} events are waiting for the log; send again in a second")
            return
        self._waiting += 1
        self._waiting_bytes += expected
        try:
            outcome = await self._outcome(headers, receive)
        finally:
            self._waiting -= 1
            self._waiting_bytes -= expected
        await self._tell(outcome, receive, send)

    async def _outcome(self, headers: Headers, receive: Receive) -> Exception | None:
        """Take one event in, and count what became of it; None is success."""
        body = b""
        try:
            body = await self._body(headers, receive)
            event = admit(headers, body)
            if reason := noise(event):
                self._ignored[reason] += 1
                return None
            failure = await self._write(event)
            if failure is not None:
                raise failure
        except EventError as error:
            self._rejected[error.reason] += 1
            letter = _Letter(error.reason, str(error), [(_lenient(name), _lenient(value)) for name, value in headers], body)
            if await self._write(letter) is not None:
                self._letters_lost += 1
            return error
        except LogError as error:
            self._refused["log_corrupt" if isinstance(error, LogCorrupt) else "log_unavailable"] += 1
            return error
        except _Disconnected as gone:
            self._disconnected += 1
            return gone
        self._appended += 1
        return None

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        length = _content_length(headers, otherwise=0)
        if length > self._max_body:
            raise EventError("body_too_large", f"a body of {length} bytes; at most {self._max_body} are accepted")
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
                    if size > self._max_body:
                        raise EventError(
                            "body_too_large", f"a body of more than {self._max_body} bytes; at most {self._max_body} are accepted"
                        )
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError as error:
            raise EventError("body_timeout", f"the body did not arrive within {self._body_timeout:g} s ({size} bytes came)") from error

    async def _write(self, work: Event | _Letter) -> Exception | None:
        """Hand over to the writer and wait for its transaction."""
        done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._queue.append((work, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._drain())
        return await done

    async def _drain(self) -> None:
        """Write until the queue is empty; what comes while one transaction runs makes up the next."""
        loop = asyncio.get_running_loop()
        while self._queue:
            batch: list[tuple[Event | _Letter, asyncio.Future[Exception | None]]] = []
            size = 0
            while self._queue and len(batch) < BATCH_EVENTS and size < BATCH_BYTES:
                batch.append(self._queue.popleft())
                work = batch[-1][0]
                size += len(work.data if isinstance(work, Event) else work.body)
            outcomes = await loop.run_in_executor(self._thread, self._commit, [work for work, _ in batch])
            self._batches += 1
            for (_, done), outcome in zip(batch, outcomes, strict=True):
                if not done.done():
                    done.set_result(outcome)

    def _commit(self, batch: list[Event | _Letter]) -> list[Exception | None]:
        """Runs on the writer thread: all events in one transaction. It must not raise, or their senders would wait for ever."""
        events = [work for work in batch if isinstance(work, Event)]
        together: Exception | None = self._try(partial(self._log.append, events)) if events else None
        alone = isinstance(together, EventError) and len(events) > 1
        outcomes: list[Exception | None] = []
        for work in batch:
            if isinstance(work, _Letter):
                outcomes.append(self._try(partial(self._log.set_aside, *work)))
            elif alone:  # one of them can't stand on the log, which must not cost the others their place
                outcomes.append(self._try(partial(self._log.append, [work])))
            else:
                outcomes.append(together)
        return outcomes

    def _try(self, step: Callable[[], object]) -> Exception | None:
        try:
            step()
        except EventError as error:
            return error
        except LogError as error:
            logger.warning("not written: %s", error)
            return error
        except Exception as error:
            logger.exception("the log's writer failed")
            return LogError(f"the log's writer failed: {type(error).__name__}")
        return None

    async def _tell(self, outcome: Exception | None, receive: Receive, send: Send) -> None:
        if outcome is None:
            await _answer(send, 200)
        elif isinstance(outcome, EventError):
            status = STATUS.get(outcome.reason, 400)
            unread = receive if status == 413 else None
            closing = ((b"connection", b"close"),) if status in (408, 413) else ()
            await _answer(send, status, _problem(outcome.reason, str(outcome)), *closing, unread=unread)
        elif isinstance(outcome, LogError):
            await _refuse(send, "log_corrupt" if isinstance(outcome, LogCorrupt) else "log_unavailable", str(outcome))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def close(self) -> None:
        """Write what still waits, then let the writer thread go."""
        if self._writer is not None:
            await self._writer
        self._thread.shutdown()


def admit(headers: Headers, body: bytes) -> Event:
    """The event of an HTTP message, if we accept it; EventError says what is wrong with it."""
    event = from_http(headers, body)
    if event.type not in ACCEPTED_TYPES:
        raise EventError("unknown_type", f"type {event.type[:100]!r}; accepted: {', '.join(ACCEPTED_TYPES)}")
    for name, pattern in (("namespace", NAMESPACE), ("inferenceservicename", SERVICE_NAME)):
        value = event.extensions.get(name, "")
        if not value:
            raise EventError(f"missing_{name}", f"the attribute {name!r} is missing or empty; it names the model together with the other")
        if not pattern.fullmatch(value):
            raise EventError(f"bad_{name}", f"{name} {value[:100]!r} is no Kubernetes name (lower-case letters, digits and '-')")
    if event.type not in (REQUEST, RESPONSE) and not isinstance(_json(event.data), dict):
        raise EventError("bad_json", f"the body of {event.type} must be one JSON object")
    return event


def noise(event: Event) -> str:
    """Why an event of KServe's logger is no prediction, or "": it logs GETs (model lists, metrics) like predictions.

    Their request half has no body; their response half has no content type (it carries the request's) and another body.
    """
    if event.type == REQUEST and not event.data:
        return "empty_request"
    if event.type == RESPONSE and not event.datacontenttype and not _answers_inference(event.data):
        return "not_inference"
    return ""


def _answers_inference(body: bytes) -> bool:
    document = _json(body)
    if isinstance(document, dict):
        return isinstance(document.get("predictions"), list) or (isinstance(document.get("outputs"), list) and "model_name" in document)
    # No JSON as a whole, but perhaps gzip, or v2's JSON header with raw tensors after it: the reader decides.
    return body.startswith(b"\x1f\x8b") or (body.startswith(b"{") and b'"outputs"' in body and b'"model_name"' in body)


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _content_length(headers: Headers, *, otherwise: int) -> int:
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else otherwise
    return otherwise


def _lenient(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _problem(error: str, message: str) -> bytes:
    return orjson.dumps({"error": error, "message": message.encode("utf-8", "replace").decode()})


async def _refuse(send: Send, error: str, message: str) -> None:
    await _answer(send, 503, _problem(error, message), (b"retry-after", b"1"))


async def _answer(send: Send, status: int, body: bytes = b"", *headers: tuple[bytes, bytes], unread: Receive | None = None) -> None:
    everything = [(b"content-length", b"%d" % len(body)), *headers]
    if body:
        everything.append((b"content-type", b"application/json"))
    await send({"type": "http.response.start", "status": status, "headers": everything})
    await send({"type": "http.response.body", "body": body, "more_body": unread is not None})
    if unread is not None:
        # Closing on a client that is still sending would reset the connection and destroy the answer: read on for a moment.
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (message := await unread())["type"] == "http.request" and message.get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b""})
