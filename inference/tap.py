"""The payload tap: posts what KServe's logger would post, for a predictor that has no KServe agent beside it.

On a cluster the agent's logger does this and the tap stays off. One HTTP POST per event, CloudEvents binary mode, the
request's and the response's event under one id; header names, their order and form are the Go agent's, byte for byte
(tests/recordings). Like the agent it never sends an event twice: what the sink does not answer with 200 is lost and counted.

    client -> TapMiddleware -> KServe's app          the answer never waits for an event
                   |
                   `-> Tap: bounded queue -> 5 workers -> sink
"""

import asyncio
import json
import logging
import time
from base64 import b64encode
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from inference.errors import ServiceError
from inference.event import REQUEST, RESPONSE
from inference.pairing import ANNOTATION

logger = logging.getLogger(__name__)

METADATA_HEADERS = ("X-Request-Id", "Inference-Header-Content-Length", "Content-Encoding")
"""The request headers that travel in Ce-Metadata, in Go's canonical case as KServe's `metadataHeaders` wants them."""

WORKERS = 5
CAPACITY = 10_000
MAX_BODY = 64 * 2**20
MAX_QUEUED = 256 * 2**20
_DELIVERY_SECONDS = 10.0
_WARNING_SECONDS = 10.0
# Shorter than any server's keep-alive: a connection that the sink closes just as it is used again costs an event.
_IDLE_SECONDS = 2.0

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]


@dataclass(slots=True)
class Exchange:
    """One request being answered: its event id, and the model version that answered (set by the predictor)."""

    id: str
    version: str


EXCHANGE: ContextVar[Exchange | None] = ContextVar("driftloop_exchange", default=None)
"""Set while a tapped request is answered. The predictor writes into the object, so that a copied context will do."""


@dataclass(frozen=True, slots=True)
class _Item:
    type: str
    id: str
    at: int
    version: str
    metadata: str
    content_type: bytes | None
    body: bytes


@dataclass(slots=True)
class Capture:
    """The request's half of an exchange and what has come of the answer so far."""

    exchange: Exchange
    metadata: str
    content_type: bytes | None
    status: int = 0
    chunks: list[bytes] = field(default_factory=list)
    size: int = 0


class Tap:
    """Takes events without waiting and posts them; use as `async with Tap(...)`, which flushes for at most `flush` seconds.

    `clock` gives nanoseconds since 1970; it is asked once when an event occurs (Ce-Time) and once when it is sent
    (Ce-Recordedtime). `version` tells the live model version; the answer's is the one in its `Exchange`.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        source: str,
        version: Callable[[], str] = lambda: "",
        annotation: str = ANNOTATION,
        component: str = "predictor",
        metadata_headers: Sequence[str] = METADATA_HEADERS,
        new_id: Callable[[], str] = lambda: str(uuid4()),
        clock: Callable[[], int] = time.time_ns,
        capacity: int = CAPACITY,
        flush: float = 5.0,
    ) -> None:
        self._url, self._host, self._authorization = _checked_url(url)
        self._namespace, _, self._service = model.partition("/")
        self._source = source
        self._version = version
        self._annotation = annotation
        self._component = component
        self._metadata_names = {name.lower().encode(): name for name in metadata_headers}
        self._new_id = new_id
        self._clock = clock
        self._flush = flush
        self._queue: asyncio.Queue[_Item] = asyncio.Queue(capacity)
        self._queued = 0
        self._workers: list[asyncio.Task[None]] = []
        self._unreported = 0
        self._warned = float("-inf")
        self.counts: Counter[str] = Counter()
        """sent, and the lost ones by reason: overflow, too_large, unreachable, refused, failed, shutdown."""

    async def __aenter__(self) -> Self:
        import httpx

        # The transport itself, no client: no proxy from the environment, no redirects, and no log line with the URL in it.
        limits = httpx.Limits(max_connections=WORKERS, max_keepalive_connections=WORKERS, keepalive_expiry=_IDLE_SECONDS)
        self._transport = httpx.AsyncHTTPTransport(limits=limits)
        self._workers = [asyncio.create_task(self._work()) for _ in range(WORKERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            async with asyncio.timeout(self._flush):
                await self.drained()
        except TimeoutError:
            pass
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        while not self._queue.empty():
            self._queue.get_nowait()
            self._lost("shutdown", "the predictor stopped before they were sent")
        await self._transport.aclose()
        self._report("the predictor stopped", now=float("inf"))

    async def drained(self) -> None:
        """Wait until every event taken so far was sent or lost."""
        await self._queue.join()

    def request(self, headers: Headers, body: Iterable[bytes]) -> Capture | None:
        """Take a request's event; None when even that failed (the answer must go on without the tap)."""
        try:
            found = _first(headers, b"ce-id")
            exchange = Exchange(found.decode("latin-1") if found else self._new_id(), self._version())
            capture = Capture(exchange, self._metadata(headers), _first(headers, b"content-type"))
            self._offer(REQUEST, capture, b"".join(body))
            return capture
        except Exception:
            self.counts["failed"] += 1
            logger.exception("the tap lost a request's event; the answer is not affected")
            return None

    def response(self, capture: Capture, message: Message) -> None:
        """Take the next part of an answer; the event goes out with the last part, for status 200 only."""
        try:
            if message["type"] == "http.response.start":
                capture.status = message["status"]
            elif message["type"] == "http.response.body" and capture.status == 200:
                chunk = bytes(message.get("body", b""))
                capture.size += len(chunk)
                if capture.size <= MAX_BODY:
                    capture.chunks.append(chunk)
                else:
                    capture.chunks.clear()
                if not message.get("more_body", False):
                    self._offer(RESPONSE, capture, b"".join(capture.chunks), size=capture.size)
        except Exception:
            self.counts["failed"] += 1
            logger.exception("the tap lost a response's event; the answer is not affected")

    def _offer(self, type_: str, capture: Capture, body: bytes, *, size: int | None = None) -> None:
        at = self._clock()
        if (len(body) if size is None else size) > MAX_BODY:
            return self._lost("too_large", f"a body of more than {MAX_BODY} bytes")
        if self._queue.full() or self._queued + len(body) > MAX_QUEUED:
            return self._lost("overflow", "the sink is too slow and the queue is full")
        exchange = capture.exchange
        self._queue.put_nowait(_Item(type_, exchange.id, at, exchange.version, capture.metadata, capture.content_type, body))
        self._queued += len(body)
        return None

    async def _work(self) -> None:
        while True:
            item = await self._queue.get()
            try:
                async with asyncio.timeout(_DELIVERY_SECONDS):
                    status = await self._post(item)
                if status == 200:
                    self.counts["sent"] += 1
                else:
                    self._lost("refused", f"the sink answered {status}; it must answer 200")
            except asyncio.CancelledError:
                self._lost("shutdown", "the predictor stopped while they were being sent")
                raise
            except TimeoutError:
                self._lost("unreachable", f"no answer within {_DELIVERY_SECONDS:g} s")
            except Exception as error:  # noqa: BLE001 - a dead worker would lose every event after this one
                self._lost("unreachable", f"{type(error).__name__}: {error}".rstrip(": "))
            finally:
                self._queued -= len(item.body)
                self._queue.task_done()

    async def _post(self, item: _Item) -> int:
        import httpx

        response = await self._transport.handle_async_request(
            httpx.Request("POST", self._url, headers=self._headers(item), content=item.body)
        )
        try:
            async for _ in response.aiter_raw():
                pass
        finally:
            await response.aclose()
        return response.status_code

    def _headers(self, item: _Item) -> list[tuple[bytes, bytes]]:
        annotations = {self._annotation: item.version} if item.version else {}
        headers: list[tuple[str, str | bytes | None]] = [
            ("Host", self._host),
            ("User-Agent", "Go-http-client/1.1"),
            ("Content-Length", str(len(item.body))),
            ("Authorization", self._authorization),
            ("Ce-Annotations", _go_json(annotations)),
            ("Ce-Component", self._component),
            ("Ce-Endpoint", ""),
            ("Ce-Id", item.id.encode("latin-1", "replace")),
            ("Ce-Inferenceservicename", self._service),
            ("Ce-Metadata", item.metadata),
            ("Ce-Namespace", self._namespace),
            ("Ce-Recordedtime", _go_time(self._clock())),
            ("Ce-Source", self._source),
            ("Ce-Specversion", "1.0"),
            ("Ce-Time", _go_time(item.at)),
            ("Ce-Type", item.type),
            ("Content-Type", item.content_type),
            ("Accept-Encoding", "gzip"),
        ]
        return [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in headers if value is not None]

    def _metadata(self, headers: Headers) -> str:
        found: dict[str, list[str]] = {}
        for name, value in headers:
            if name in self._metadata_names:
                found.setdefault(self._metadata_names[name], []).append(value.decode("utf-8", "replace"))
        return _go_json(found)

    def _lost(self, reason: str, detail: str) -> None:
        self.counts[reason] += 1
        self._unreported += 1
        self._report(detail, now=time.monotonic())

    def _report(self, detail: str, *, now: float) -> None:
        if self._unreported and now - self._warned >= _WARNING_SECONDS:
            logger.warning(
                "the tap lost %d event(s) for %s, %d sent so far: %s (predictions go on; lost events are not sent again)",
                self._unreported,
                self._host,
                self.counts["sent"],
                detail,
            )
            self._unreported, self._warned = 0, now


class TapMiddleware:
    """An ASGI application around another: every request but a kube-probe's goes past `tap`, unchanged and unhindered."""

    def __init__(self, app: App, tap: Tap) -> None:
        self._app = app
        self._tap = tap

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (_first(scope["headers"], b"user-agent") or b"").startswith(b"kube-probe"):
            return await self._app(scope, receive, send)
        # The agent, too, reads the whole request before it passes it on; KServe's app needs it whole anyway.
        messages = deque([await receive()])
        while messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False):
            messages.append(await receive())
        capture = None
        if messages[-1]["type"] == "http.request":  # otherwise the client went away half way: no event, as the agent does
            capture = self._tap.request(scope["headers"], [message.get("body", b"") for message in messages])
        if capture is None:
            return await self._app(scope, _replayed(messages, receive), send)

        async def sent(message: Message) -> None:
            self._tap.response(capture, message)
            await send(message)

        token = EXCHANGE.set(capture.exchange)
        try:
            return await self._app(scope, _replayed(messages, receive), sent)
        finally:
            EXCHANGE.reset(token)


def _replayed(messages: deque[Message], receive: Receive) -> Receive:
    async def replay() -> Message:
        return messages.popleft() if messages else await receive()

    return replay


def _first(headers: Headers, name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)


def _go_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _go_time(nanoseconds: int) -> str:
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{fraction:09d}".rstrip("0").rstrip(".") + "Z"


def _checked_url(url: str) -> tuple[str, str, str | None]:
    """The URL without its user, host and port for the log, and the Authorization header that Go makes of user:password."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:  # its text may hold a piece of the password
        raise ServiceError("the tap's URL cannot be read (its host or port); give one like http://127.0.0.1:8081/") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ServiceError(
            f"the tap's URL must be like http://127.0.0.1:8081/ (its scheme is {parts.scheme!r}, its host {parts.hostname!r})"
        )
    host = f"[{parts.hostname}]{port}" if ":" in parts.hostname else f"{parts.hostname}{port}"
    authorization = None
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {b64encode(user.encode()).decode()}"
    return parts._replace(netloc=host).geturl(), host, authorization
