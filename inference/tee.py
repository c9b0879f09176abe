"""A copy of every accepted event for a second receiver, since KServe posts to one: best effort, and never in the way of the first.

What is offered waits in a queue that is bounded in number and bytes and is posted by a few threads, each with a connection that it
keeps. What does not fit is dropped, what the receiver does not take is not sent again; both are counted.
"""

import http.client
import logging
import ssl
import threading
import time
from base64 import b64encode
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from inference.episode import Episode
from inference.errors import SettingsError

logger = logging.getLogger(__name__)

# Of one connection, or made anew for each; the authorization was for the gateway, and nobody else's business.
_NOT_PASSED_ON = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade"
    b" host content-length expect authorization cookie".split()
)
_LONGEST_PAUSE = 5.0
_Copy = tuple[Sequence[tuple[bytes, bytes]], bytes, int]


@dataclass(frozen=True, slots=True)
class TeeOptions:
    """Where copies go and what that may cost. `url` may hold credentials (`http://user:password@host/`); `ca` is a PEM file."""

    url: str = field(repr=False)
    timeout: float = 5.0
    connections: int = 4
    max_events: int = 10_000
    max_bytes: int = 64_000_000
    ca: Path | None = None


class Tee:
    """Runs from its making until `close`."""

    def __init__(self, options: TeeOptions) -> None:
        parts = urlsplit(options.url)
        try:
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            self._host = ""
        if parts.scheme not in ("http", "https") or not self._host:
            raise SettingsError(["gateway.tee.url must be an http:// or https:// URL"])
        self._options = options
        self.receiver = f"{parts.scheme}://{self._host}{f':{self._port}' if self._port else ''}"
        """Where copies go, without what might be secret in the URL."""
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._own = {}
        if parts.username is not None:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._own["Authorization"] = f"Basic {b64encode(credentials.encode()).decode()}"
        self._tls = self._context() if parts.scheme == "https" else None
        self._queue: deque[_Copy] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._trouble = Episode(logger)
        self._sent = self._dropped = self._failed = 0
        self._threads = [threading.Thread(target=self._run, name=f"tee-{n}", daemon=True) for n in range(options.connections)]
        for thread in self._threads:
            thread.start()

    def offer(self, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Take a copy of what came, if there is room for it."""
        size = len(body) + sum(len(name) + len(value) for name, value in headers)
        with self._changed:
            if self._closing or len(self._queue) >= self._options.max_events or self._bytes + size > self._options.max_bytes:
                self._dropped += 1
                full = not self._closing
            else:
                full = False
                self._queue.append((headers, body, size))
                self._bytes += size
                self._changed.notify()
        if full:
            self._trouble.failed("copies for %s are dropped: %d events wait already", self.receiver, len(self._queue))

    def status(self) -> dict[str, Any]:
        """sent + failed + dropped + waiting = offered, but for those that are just being posted."""
        return {"sent": self._sent, "dropped": self._dropped, "failed": self._failed, "waiting": len(self._queue)}

    def close(self, timeout: float = 2.0) -> None:
        """Post what waits for at most `timeout` seconds; the rest is dropped."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            self._dropped += len(self._queue)
            self._queue.clear()
            self._bytes = 0

    def _run(self) -> None:
        connection = self._connection()
        pause = 0.0
        while (copy := self._next()) is not None:
            try:
                problem = self._post(connection, copy[0], copy[1])
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                problem = f"{type(error).__name__}: {error}"
                # It is not there, or hangs: no use in trying at once.
                pause = min(max(2 * pause, 0.05), _LONGEST_PAUSE)
            else:
                pause = 0.0
            with self._changed:
                self._sent += not problem
                self._failed += bool(problem)
                if not problem:
                    self._trouble.succeeded(f"copies reach {self.receiver} again, %d were lost meanwhile")
                    continue
                self._trouble.failed("copies for %s are lost: %s", self.receiver, problem)
                if pause:
                    self._changed.wait_for(lambda: self._closing, pause)
        connection.close()

    def _next(self) -> _Copy | None:
        """The oldest copy; None when there is none left and none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            if not self._queue:
                return None
            copy = self._queue.popleft()
            self._bytes -= copy[2]
            return copy

    def _post(self, connection: http.client.HTTPConnection, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> str:
        """Post one; what the receiver has against it, or ""."""
        kept = connection.sock is not None
        try:
            return self._post_once(connection, headers, body)
        except (ConnectionError, http.client.RemoteDisconnected):
            connection.close()
            if not kept:
                raise
        # The receiver had closed the connection that was kept: only a new one tells whether it is there.
        return self._post_once(connection, headers, body)

    def _post_once(self, connection: http.client.HTTPConnection, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> str:
        connection.putrequest("POST", self._target, skip_accept_encoding=True)
        for name, value in self._own.items():
            connection.putheader(name, value)
        named = {part.strip().lower() for name, value in headers if name.lower() == b"connection" for part in value.split(b",")}
        for raw_name, raw_value in headers:
            if raw_name.lower() not in _NOT_PASSED_ON and raw_name.lower() not in named:
                connection.putheader(raw_name.decode("latin-1"), raw_value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        with connection.getresponse() as response:
            response.read(65_536)
            if not response.isclosed():
                connection.close()  # there is more of it, which nobody wants
            return "" if 200 <= response.status < 300 else f"it answered {response.status} {response.reason[:100]}"

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._options.timeout, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._options.timeout)

    def _context(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self._options.ca)
        except OSError as error:
            raise SettingsError(
                [f"gateway.tee.ca {self._options.ca}: {error.strerror or error}; give a PEM file of authorities"]
            ) from error
