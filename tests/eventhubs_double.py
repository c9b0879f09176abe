"""A double of Event Hubs' Kafka endpoint in this process, on kafka-python's own protocol classes.

Like the service it knows older versions of Kafka's requests and hangs up on newer ones, wants a connection string (SASL PLAIN)
or a token (OAUTHBEARER), makes whoever is over its quota wait (`throttle_time_ms`) and refuses who would have to wait too long
(error 44), takes no compressed batches, cuts idle connections, refuses more than four commits a second and partition, and hangs
up on requests over 1,046,528 bytes. Unlike the service it is one node, keeps everything in memory, and counts what it saw.
"""

import asyncio
import ssl
import struct
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Coroutine, Mapping
from typing import Any

from eventhubs_answers import Connection, HangUp
from eventhubs_groups import Group

from inference.event import Event
from streaming.reader import everything

TOPIC = "driftloop"
KEY = "s3cretKey="
STRING = f"Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=send;SharedAccessKey={KEY}"
USERS = {"$ConnectionString": STRING, "alice": "wonderland"}
"""Who may come in where a test wants it, by PLAIN: with a connection string, and with a password."""


def event(number, model="ns/m", size=10):
    namespace, _, name = model.partition("/")
    return Event(f"e{number}", "pod-1", "t", extensions={"namespace": namespace, "inferenceservicename": name}, data=b"x" * size)


def ids(log):
    return [record.event.id for batch in everything(log) for record in batch]


class EventHubsDouble:
    """A namespace with one hub, `topic`; use it as a context manager. What is public may be changed while it runs.

    `users` (name -> password) log in by PLAIN, `tokens` by OAUTHBEARER; without either everybody may come in. `quota` is in bytes a
    second; who would have to wait longer than `patience` seconds or his own request's time-out is refused. `idle_seconds`: then a
    silent connection is cut. `session_seconds`: then a client must log in again. `modern=False`: hangs up on versions of ApiVersions
    that it does not know, in place of telling those that it knows.
    """

    def __init__(
        self,
        partitions: int = 4,
        *,
        topic: str = TOPIC,
        users: Mapping[str, str] | None = None,
        tokens: set[str] | None = None,
        tls: ssl.SSLContext | None = None,
        quota: float | None = None,
        patience: float = 60.0,
        idle_seconds: float | None = None,
        session_seconds: float = 0.0,
        commits_a_second: int = 4,
        event_bytes: int = 1_046_528,
        request_bytes: int = 1_046_528,
        modern: bool = True,
    ) -> None:
        self.topics = {topic: [Partition() for _ in range(partitions)]}
        self.users, self.tokens = dict(users or {}), set(tokens or ())
        self.secured = users is not None or tokens is not None
        self.quota, self.patience, self.idle_seconds, self.session_seconds = quota, patience, idle_seconds, session_seconds
        self.commits_a_second, self.event_bytes, self.request_bytes = commits_a_second, event_bytes, request_bytes
        self.modern = modern
        self.denied: set[str] = set()
        """Topics and groups that nobody has rights on."""
        self.advertised: tuple[str, int] | None = None
        """Where it says that it is, if not here."""
        self.refusals = 0
        """How many of the next Produce requests get error 44."""
        self.hold = 0.0
        """Seconds that each answer to Produce and Fetch is held back, as where a quota is used up."""
        self.seen: Counter[str] = Counter()
        """Requests by their name; `PLAIN in`, `PLAIN again`, `PLAIN refused` and so on; `connections`, `idle` (cut), `throttled`,
        `refused` (error 44), `commits refused`, `would be made` (a topic); why it hung up: `oversized`, `unsupported`, `not logged in`."""
        self.groups: defaultdict[str, Group] = defaultdict(Group)
        self.commits: defaultdict[tuple[str, str, int], deque[float]] = defaultdict(deque)
        """When each group committed each partition of a topic within the last second."""
        self._paid = 0.0
        self._tls = tls
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "EventHubsDouble":
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break every connection, as a network does."""

        async def cut() -> None:
            for writer in list(self._open):
                writer.transport.abort()

        self._call(cut())

    async def throttled(self, size: int, timeout_ms: int) -> float | None:
        """Wait as long as the quota wants for `size` bytes; gives how long that was, None where it would be too long."""
        now = time.monotonic()
        paid = max(self._paid, now) + (size / self.quota if self.quota else 0.0)
        held = max(0.0, paid - now - 1.0, self.hold)  # a second's worth may come at once
        if self.refusals or held > min(self.patience, timeout_ms / 1000):
            self.refusals = max(0, self.refusals - 1)
            self.seen["refused"] += 1
            return None
        self._paid = paid
        if held:
            self.seen["throttled"] += 1
            await asyncio.sleep(held)
        return held

    def append(self, topic: str, number: int, batch: bytes) -> int:
        """Gives the offset of the batch's first record; whoever waits for events is woken."""
        offset = self.topics[topic][number].append(batch)
        self.grown.set()
        self.grown = asyncio.Event()
        return offset

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _start(self) -> None:
        self.grown = asyncio.Event()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self._expiry = asyncio.create_task(self._expire())

    async def _stop(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            for group in self.groups.values():
                group.expire(self._loop.time())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self.seen["connections"] += 1
        connection = Connection(self)
        try:
            while True:
                head = await asyncio.wait_for(reader.readexactly(4), self.idle_seconds)
                (size,) = struct.unpack(">i", head)
                if not 0 < size <= self.request_bytes:
                    raise HangUp("oversized")
                writer.write(await connection.answer(await reader.readexactly(size)))
                await writer.drain()
        except TimeoutError:
            self.seen["idle"] += 1
        except HangUp as why:
            self.seen[str(why)] += 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()


class Partition:
    """Batches as (offset of the first record, offset after the last, newest timestamp in ms, bytes); `start` is the oldest offset."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, int, bytes]] = []
        self.start = 0

    @property
    def end(self) -> int:
        return self.batches[-1][1] if self.batches else self.start

    def append(self, batch: bytes) -> int:
        """Gives the offset of its first record. The checksum does not cover where a batch says that it stands."""
        first = self.end
        last_delta, _, newest = struct.unpack_from(">iqq", batch, 23)
        self.batches.append((first, first + last_delta + 1, newest, struct.pack(">q", first) + batch[8:]))
        return first

    def read(self, offset: int, most: int) -> bytes:
        """Whole batches from the one that holds the offset; the first of them however large it is."""
        taken: list[bytes] = []
        for _, end, _, batch in self.batches:
            if end > offset and (not taken or sum(map(len, taken)) + len(batch) <= most):
                taken.append(batch)
        return b"".join(taken)
