"""A double of the Event Hubs service, by AMQP, in this process: what the SDK asks of it and no more.

Like the service it wants a token for each entity ($cbs: SAS or JWT), tells about a hub and its partitions ($management),
takes batches whole, numbers events from 0 in each partition, gives them out on credit from where a selector says, lets a
receiver with an epoch push out those with a lower one or none, and throttles, cuts or falls silent on demand. Unlike the
service it keeps everything in memory, has no session windows, and does not know which rights a policy has.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import re
import ssl
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote_plus

from amqp_wire import Link, Refused, SocketPipe, WebSocketPipe, Wire
from azure.eventhub import _client_base as sdk_base
from azure.eventhub._pyamqp import client as sdk_client
from azure.eventhub._pyamqp._decode import decode_payload
from azure.eventhub._pyamqp._encode import encode_payload
from azure.eventhub._pyamqp.message import Message, Properties
from azure.eventhub._pyamqp.types import TYPE, VALUE, AMQPTypes
from websockets.asyncio.server import serve


class Hasty:
    """Stands in for `time` in the SDK, which looks 20 times a second whether a connection is ready: here it is sooner."""

    time = staticmethod(time.time)

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(0.002 if seconds == 0.05 else seconds)


SELECTOR = re.compile(rb"amqp\.annotation\.x-opt-(sequence-number|offset|enqueued-time) (>=?) '(.+)'")
READERS_AT_MOST = 5


@dataclass
class Partition:
    """`events` holds (encoded message, milliseconds since 1970); the first of them has the number `begin`."""

    events: list[tuple[bytes, int]] = field(default_factory=list)
    begin: int = 0

    @property
    def end(self) -> int:
        return self.begin + len(self.events)


class AmqpDouble:
    """A namespace with `hubs` (name -> number of partitions); use it as a context manager.

    `idle` (seconds) is how long a client may say nothing before it is cut off; 0: as long as it likes.
    """

    key_name, key = "driftloop", "c2VjcmV0LWtleS1vZi10aGUtZG91Ymxl"
    jwt = "a.jwt.of.entra"

    def __init__(
        self,
        hubs: dict[str, int],
        *,
        tls: ssl.SSLContext | None = None,
        websocket: bool = False,
        idle: float = 0.0,
        max_message: int = 1024 * 1024,
    ) -> None:
        self.hubs = {name: [Partition() for _ in range(count)] for name, count in hubs.items()}
        self.groups = {"$Default", "driftloop"}
        self.busy = 0
        """How many of the next sends are throttled."""
        self.mute = False
        """Whether new connections get no answer; see `fall_silent` for the others."""
        self.counts: Counter[str] = Counter()
        self.max_message, self.idle = max_message, idle
        self.open: set[_Connection] = set()
        self._tls, self._websocket = tls, websocket
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "AmqpDouble":
        sdk_base.time = sdk_client.time = Hasty
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        sdk_base.time = sdk_client.time = time
        self.cut()
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def connection_string(self) -> str:
        return f"Endpoint=sb://127.0.0.1:{self.port}/;SharedAccessKeyName={self.key_name};SharedAccessKey={self.key}"

    def sas(self, hub: str, *, lifetime: float = 3600) -> str:
        """A shared access signature for the hub."""
        audience, expiry = f"sb://127.0.0.1/{hub}", int(time.time() + lifetime)
        signature = quote_plus(self._sign(audience, expiry))
        return f"SharedAccessSignature sr={quote_plus(audience)}&sig={signature}&se={expiry}&skn={self.key_name}"

    def cut(self) -> None:
        """Break every connection, as a network does."""
        self._each(lambda connection: connection.abort())

    def fall_silent(self) -> None:
        """Say nothing more on the connections that there are, as when a network goes away without a word."""
        self._each(lambda connection: setattr(connection, "mute", True))

    def detach(self, where: str, condition: str) -> None:
        """Close every link whose address contains `where`, with a reason."""

        def detach(connection: "_Connection") -> None:
            for link in [link for link in connection.links.values() if where in link.address]:
                connection.detach(link, Refused(condition, "the double was told to"))

        self._each(detach)

    def receivers(self) -> list[tuple[int, int | None]]:
        """Partition and epoch of each link that receives events, in order."""
        found = [link.place for connection in list(self.open) for link in list(connection.links.values()) if link.place is not None]
        return sorted((place.number, place.epoch) for place in found)

    def append(self, hub: str, number: int, *messages: Message) -> None:
        """As another client would."""
        encoded = [bytes(encode_payload(bytearray(), message)) for message in messages]

        async def append() -> None:
            self.add(self.hubs[hub][number], encoded)

        asyncio.run_coroutine_threadsafe(append(), self._loop).result(10)

    def messages(self, hub: str, number: int) -> list[Message]:
        """What stands on a partition."""
        return [decode_payload(memoryview(content)) for content, _ in self.hubs[hub][number].events]

    def forget(self, hub: str, number: int, before: int) -> None:
        """Let the retention of the hub drop everything before this sequence number."""
        partition = self.hubs[hub][number]
        del partition.events[: before - partition.begin]
        partition.begin = before

    def add(self, partition: Partition, encoded: list[bytes]) -> None:
        """In the double's own thread."""
        now = int(time.time() * 1000)
        for content in encoded:
            annotations = {
                b"x-opt-sequence-number": {TYPE: AMQPTypes.long, VALUE: partition.end},
                b"x-opt-offset": str(partition.end * 100),
                b"x-opt-enqueued-time": {TYPE: AMQPTypes.timestamp, VALUE: now},
            }
            head = encode_payload(bytearray(), Message(message_annotations=annotations))
            partition.events.append((bytes(head) + content, now))
        for connection in list(self.open):
            connection.credited()

    def allows(self, kind: str, token: str, audience: str) -> bool:
        if kind == "jwt":
            return token == self.jwt
        parts = dict(parse_qsl(token.removeprefix("SharedAccessSignature ")))
        signed = hmac.compare_digest(parts.get("sig", ""), self._sign(parts.get("sr", ""), int(parts.get("se", 0))))
        return signed and int(parts["se"]) > time.time() and audience.startswith(parts["sr"]) and parts.get("skn") == self.key_name

    def _sign(self, audience: str, expiry: int) -> str:
        digest = hmac.digest(self.key.encode(), f"{quote_plus(audience)}\n{expiry}".encode(), hashlib.sha256)
        return base64.b64encode(digest).decode()

    def _each(self, work) -> None:
        async def run() -> None:
            for connection in list(self.open):
                work(connection)

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _start(self) -> int:
        async def talk(socket) -> None:
            await self._serve(WebSocketPipe(socket))

        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(SocketPipe(reader, writer))

        if self._websocket:
            self._server = await serve(talk, "127.0.0.1", 0, subprotocols=["AMQPWSB10"], ssl=self._tls, max_size=None)
        else:
            self._server = await asyncio.start_server(speak, "127.0.0.1", 0, ssl=self._tls)
        return next(iter(self._server.sockets)).getsockname()[1]

    async def _serve(self, pipe) -> None:
        connection = _Connection(self, pipe)
        connection.mute = self.mute
        self.open.add(connection)
        self.counts["connections"] += 1
        with contextlib.suppress(asyncio.CancelledError):
            await connection.serve()
        self.open.discard(connection)

    async def _stop(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class _Place:
    """What a receiver reads: `next` is the sequence number of the event that it gets next."""

    path: str
    number: int
    partition: Partition
    epoch: int | None
    next: int = 0


class _Connection(Wire):
    def __init__(self, double: AmqpDouble, pipe) -> None:
        super().__init__(pipe, max_message=double.max_message, idle=double.idle)
        self._double = double
        self._allowed: set[str] = set()

    def attached(self, link: Link) -> None:
        """Find what the address means; a client may attach to what it has put a token for."""
        link.address = re.sub(r"^amqps?://[^/]+/", "", link.address)
        hub, *rest = link.address.split("/")
        if hub in ("$cbs", "$management"):
            return
        if hub not in self._allowed:
            raise Refused("amqp:unauthorized-access", f"Unauthorized access. 'Send,Listen' claim(s) are required on {hub}")
        match rest:
            case [] | ["Partitions", _] if not link.receives:
                self._double.counts["senders"] += 1
            case ["ConsumerGroups", group, "Partitions", number] if link.receives:
                if group not in self._double.groups:
                    raise Refused("amqp:not-found", f"The messaging entity 'sb://double/{hub}|{group}' could not be found.")
                place = _Place(link.address, int(number), self._double.hubs[hub][int(number)], link.properties.get(b"com.microsoft:epoch"))
                self._exclude(place)
                self._seek(place, link.filters)
                link.place = place
                self._double.counts["receivers"] += 1
            case _:
                raise Refused("amqp:not-allowed", f"nothing can be attached at {link.address}")

    def arrived(self, link: Link, payload: bytes, batch: bool) -> None:
        message = decode_payload(memoryview(payload))
        if link.address.startswith("$"):
            self._answer(link.address, message)
            return
        double = self._double
        if double.busy:
            double.busy -= 1
            double.counts["throttled"] += 1
            raise Refused("com.microsoft:server-busy", "The request was terminated because the namespace is being throttled.")
        if len(payload) > double.max_message:
            raise Refused("amqp:link:message-size-exceeded", f"{len(payload)} bytes are too many")
        double.counts["sends"] += 1
        hub, _, number = link.address.partition("/Partitions/")
        double.add(double.hubs[hub][int(number)], [bytes(part) for part in message.data] if batch else [payload])

    def credited(self) -> None:
        """Give out what there is, as far as the credit goes."""
        for link in list(self.links.values()):
            place = link.place
            while place is not None and link.credit > 0 and place.next < place.partition.end:
                place.next = max(place.next, place.partition.begin)
                self.deliver(link, place.partition.events[place.next - place.partition.begin][0])
                place.next += 1
                self._double.counts["given out"] += 1

    def _exclude(self, place: _Place) -> None:
        """Event Hubs' rule: the higher or newer epoch stays, and nobody without one beside it."""
        links = [(connection, link) for connection in self._double.open for link in connection.links.values() if link.place is not None]
        others = [(connection, link) for connection, link in links if link.place.path == place.path]
        self._double.counts["readers at once"] = max(self._double.counts["readers at once"], len(others) + 1)
        highest = max((link.place.epoch for _, link in others if link.place.epoch is not None), default=None)
        if place.epoch is None and highest is not None:
            text = f"At least one receiver for the endpoint is created with epoch of '{highest}', and so non-epoch receiver is not allowed."
            raise Refused("amqp:link:stolen", text)
        if place.epoch is not None and highest is not None and highest > place.epoch:
            text = (
                f"Receiver 'nil' with a higher epoch '{highest}' already exists. Receiver 'nil' with epoch {place.epoch} cannot be created."
            )
            raise Refused("amqp:link:stolen", text)
        if place.epoch is None and len(others) >= READERS_AT_MOST:
            raise Refused("amqp:resource-limit-exceeded", "Exceeded the maximum number of allowed receivers per partition")
        for connection, link in others if place.epoch is not None else ():
            text = f"New receiver 'nil' with higher epoch of '{place.epoch}' is created hence current receiver is getting disconnected."
            connection.detach(link, Refused("amqp:link:stolen", text))

    @staticmethod
    def _seek(place: _Place, filters: dict) -> None:
        selector = filters.get(b"apache.org:selector-filter:string", b"amqp.annotation.x-opt-offset > '-1'")
        what, comparison, value = SELECTOR.fullmatch(selector).groups()
        inclusive = comparison == b">="
        if value == b"@latest":
            place.next = place.partition.end
        elif what == b"enqueued-time":
            earlier = [stamp for _, stamp in place.partition.events if stamp < int(value) + (not inclusive)]
            place.next = place.partition.begin + len(earlier)
        elif int(value) >= place.partition.end + inclusive:
            text = f"The supplied {what.decode()} '{value.decode()}' is invalid. The last is '{place.partition.end - 1}'"
            raise Refused("com.microsoft:argument-error", text)
        else:
            place.next = int(value) + (not inclusive)

    def _answer(self, address: str, request: Message) -> None:
        asked = {name.decode(): value for name, value in request.application_properties.items()}
        status, text, value = self._put_token(asked, request.value) if address == "$cbs" else self._manage(asked)
        reply = Message(
            properties=Properties(correlation_id=request.properties.message_id),
            application_properties={"status-code": {TYPE: AMQPTypes.int, VALUE: status}, "status-description": text},
            value=value,
        )
        for link in self.links.values():
            if link.receives and link.address == address:
                self.deliver(link, bytes(encode_payload(bytearray(), reply)))

    def _put_token(self, asked: dict, token: bytes) -> tuple[int, str, object]:
        audience, kind = asked["name"].decode(), asked["type"].decode()
        hub = audience.removeprefix("sb://").split("/")[1]
        self._double.counts["tokens"] += 1
        if not self._double.allows(kind, token.decode(), audience):
            return 401, "InvalidSignature: The token has an invalid signature.", None
        if hub not in self._double.hubs:
            return 404, f"The messaging entity '{audience}' could not be found.", None
        self._allowed.add(hub)
        return 202, "Accepted", None

    def _manage(self, asked: dict) -> tuple[int, str, object]:
        name = asked["name"].decode()
        self._double.counts["questions"] += 1
        if name not in self._allowed or not asked.get("security_token"):
            return 401, "Unauthorized", None
        partitions = self._double.hubs[name]
        if asked["type"] == b"com.microsoft:eventhub":
            numbers = [str(number) for number in range(len(partitions))]
            return 200, "OK", {"name": name, "created_at": 1_700_000_000_000.0, "partition_ids": numbers}
        partition = partitions[int(asked["partition"])]
        told = {
            "name": name,
            "partition": asked["partition"].decode(),
            # What it says of a partition that is empty is nothing to rely on.
            "begin_sequence_number": {TYPE: AMQPTypes.long, VALUE: partition.begin if partition.events else 0},
            "last_enqueued_sequence_number": {TYPE: AMQPTypes.long, VALUE: partition.end - 1},
            "last_enqueued_offset": str((partition.end - 1) * 100),
            "last_enqueued_time_utc": float(partition.events[-1][1]) if partition.events else 0.0,
            "is_partition_empty": not partition.events,
        }
        return 200, "OK", told
