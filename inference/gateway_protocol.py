"""The gateway's HTTP protocol: uvicorn's with the bounds it lacks, and a short way for events that arrive whole."""

import asyncio
import logging
from http import HTTPStatus
from time import perf_counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from inference.gateway import ACCEPTED, Answer, Gateway

MAX_HEAD = 65_536

logger = logging.getLogger(__name__)


class GatewayProtocol(HttpToolsProtocol):  # type: ignore[misc]  # uvicorn is not followed by the type checker
    """Hands a POST that came in one piece, as KServe's do, to the gateway itself: no task, no ASGI messages.

    Until its end was seen, a POST is only `_held`; one that does not end within the bytes at hand goes uvicorn's way, as do
    all other requests, so that whatever takes time is dealt with there. What only that way needs is made when it is taken.

    A head may be `MAX_HEAD` bytes long; it, and the silence before it, may last as long as a connection is kept alive.
    """

    _held: bytes | None = None
    _head = 0
    _in_head = True
    _head_is_new = True
    _since = 0.0
    _timer: asyncio.TimerHandle | None = None
    headers: list[tuple[bytes, bytes]]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._gateway: Gateway = self.config.app
        self._direct = _Direct()
        # A path may hold a token: whatever handlers there are, it is not for them.
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._since = self.loop.time()
        self._timer = self.loop.call_later(self.timeout_keep_alive, self._look_back)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._held is not None:
            self._go_uvicorns_way()
        if not self._in_head:
            return
        # A head that began within these bytes, perhaps behind the body of another request, is counted from the next ones on.
        if self._head_is_new:
            self._since = self.loop.time()
        self._head = 0 if self._head_is_new else self._head + len(data)
        self._head_is_new = False
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()

    def on_message_begin(self) -> None:
        self._in_head = self._head_is_new = True
        self.expect_100_continue = False
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.parser.get_method() == b"POST" and self._is_plain():
            self._held = b""
        else:
            self._go_uvicorns_way()

    def on_body(self, body: bytes) -> None:
        if self._held is None:
            super().on_body(body)
        else:
            self._held = self._held + body if self._held else body

    def on_message_complete(self) -> None:
        body = self._held
        if body is None:
            super().on_message_complete()
        elif len(body) > self._gateway.max_body:
            self._go_uvicorns_way()
            super().on_message_complete()
        else:
            self._held = None
            self._take(body)

    def on_response_complete(self) -> None:
        """As uvicorn's, without a timer to set and to cancel for each request: the one that is there looks back when it goes off."""
        self._since = self.loop.time()
        if self.pipeline:
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _is_plain(self) -> bool:
        """Whether the answer may be written as soon as it is known: nothing before it on this connection is unanswered or unread."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and self.parser.get_http_version() == "1.1"
            and not self.parser.should_upgrade()
        )

    def _take(self, body: bytes) -> None:
        self.cycle = self._direct
        self._direct.response_complete = False
        self._direct.keep_alive = self.parser.should_keep_alive()
        try:
            answer = self._gateway.enter(self.headers, self.url, len(body))
            if answer is not None:
                self._reply(answer)
            else:
                self._gateway.take(self.headers, body, len(body), perf_counter(), self._reply)
        except Exception:
            logger.exception("the gateway failed on a request")
            self._reply(Answer(500, headers=((b"connection", b"close"),)))

    def _reply(self, answer: Answer) -> None:
        direct = self._direct
        direct.response_complete = True
        if not self.transport.is_closing():
            close = not direct.keep_alive or self._gateway.close_connections or (b"connection", b"close") in answer.headers
            self.transport.write(_rendered(answer, close=close))
            if close:
                self.transport.close()
        self.on_response_complete()

    def _go_uvicorns_way(self) -> None:
        url, headers, held = self.url, self.headers, self._held
        self._held = None
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()
        if held:
            super().on_body(held)

    def _look_back(self) -> None:
        busy = self.cycle is not None and not self.cycle.response_complete
        left = self.timeout_keep_alive if busy else self._since + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            self.transport.close()
        else:
            self._timer = self.loop.call_later(left, self._look_back)


class _Direct:
    """What uvicorn wants to know and to say of the request that is being answered, for one that the gateway took itself."""

    def __init__(self) -> None:
        self.message_event = asyncio.Event()
        self.disconnected = False
        self.response_complete = True
        self.keep_alive = True


def _rendered(answer: Answer, *, close: bool) -> bytes:
    if answer is ACCEPTED:
        return _CLOSING if close else _ACCEPTED
    headers = [(name, value) for name, value in answer.headers if name != b"connection"]
    if close:
        headers.append((b"connection", b"close"))
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    phrase = HTTPStatus(answer.status).phrase.encode()
    return b"HTTP/1.1 %d %b\r\ncontent-length: %d\r\n%b\r\n%b" % (answer.status, phrase, len(answer.body), head, answer.body)


_ACCEPTED = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_CLOSING = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
