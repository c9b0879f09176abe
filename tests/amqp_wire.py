"""The server's side of an AMQP 1.0 connection, on the codec that is in azure-eventhub: frames, sessions, links and credit, no meaning."""

import asyncio
import contextlib
import struct
import time
from dataclasses import dataclass, field

from azure.eventhub._pyamqp import performatives as frames
from azure.eventhub._pyamqp._decode import decode_empty_frame, decode_frame
from azure.eventhub._pyamqp._encode import encode_frame
from azure.eventhub._pyamqp.endpoints import Source, Target
from azure.eventhub._pyamqp.error import AMQPError
from azure.eventhub._pyamqp.outcomes import Accepted, Rejected

SASL, AMQP = b"AMQP\x03\x01\x00\x00", b"AMQP\x00\x01\x00\x00"
EMPTY = b"\x00\x00\x00\x08\x02\x00\x00\x00"
BATCH_FORMAT = 0x80013700
WIDE = 2**31 - 1
OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(16, 25)


class Refused(Exception):
    """A link or a message that the service will not have; the condition is one of AMQP's or Microsoft's."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(description)
        self.error = AMQPError(condition=condition, description=description)


class SocketPipe:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.read, self.abort, self.close = reader.readexactly, writer.transport.abort, writer.close
        self._writer = writer

    def write(self, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)


class WebSocketPipe:
    """A stream of bytes over binary messages."""

    def __init__(self, socket) -> None:
        self._socket, self._buffer = socket, b""
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self._writing = asyncio.ensure_future(self._send())
        self.write, self.close = self._out.put_nowait, self._writing.cancel

    async def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                self._buffer += await self._socket.recv()
            except Exception as error:
                raise ConnectionError from error
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def abort(self) -> None:
        self._socket.transport.abort()

    async def _send(self) -> None:
        with contextlib.suppress(Exception):
            while True:
                await self._socket.send(bytes(await self._out.get()))


@dataclass(eq=False)
class Link:
    """`receives`: the client does; `sent` counts deliveries to it, `credit` those that may follow; `place` is the service's to use."""

    channel: int
    handle: int
    name: str
    address: str
    receives: bool
    properties: dict
    filters: dict
    sent: int = 0
    credit: int = 0
    place: object = None
    incoming: bytearray = field(default_factory=bytearray)
    first: list = field(default_factory=list)


class Wire:
    """One connection; what links and messages mean is for a subclass to say: `attached`, `arrived`, `credited`."""

    def __init__(self, pipe, *, max_message: int, max_frame: int = 65_536, idle: float = 0.0) -> None:
        self.links: dict[tuple[int, int], Link] = {}
        self.mute = False
        """Whether nothing is said any more."""
        self._pipe, self._max_message, self._max_frame, self._idle = pipe, max_message, max_frame, idle
        self._frame, self._beat = 0, 0.0
        self._deliveries = 0
        self._heard = time.monotonic()

    def attached(self, link: Link) -> None:
        """Refused: the client may not have it."""

    def arrived(self, link: Link, payload: bytes, batch: bool) -> None:
        """A message, or several in one; Refused: the client is told so."""

    def credited(self) -> None:
        """More may be delivered on some link."""

    def abort(self) -> None:
        self._pipe.abort()

    def detach(self, link: Link, why: Refused | None = None) -> None:
        self.links.pop((link.channel, link.handle), None)
        self._send(link.channel, frames.DetachFrame(handle=link.handle, closed=True, error=why and why.error))

    def deliver(self, link: Link, payload: bytes) -> None:
        """Send a settled message, in as many frames as it takes."""
        room = self._frame - 128
        number, tag = self._deliveries, struct.pack(">I", self._deliveries)
        self._deliveries += 1
        for start in range(0, len(payload), room):
            more = start + room < len(payload)
            transfer = (link.handle, number, tag, 0, True, more, None, None, None, None, None, payload[start : start + room])
            self._send(link.channel, frames.TransferFrame(*transfer))
        link.sent += 1
        link.credit -= 1

    async def serve(self) -> None:
        """Until either side ends it."""
        beats = asyncio.ensure_future(self._keep_time())
        try:
            await self._greet()
            while True:
                channel, kind, fields = await self._read()
                self._take(channel, kind, fields)
                if kind == CLOSE:
                    return
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            beats.cancel()
            self._pipe.close()

    async def _greet(self) -> None:
        if await self._pipe.read(8) != SASL:
            raise ConnectionError("no SASL header")
        while self.mute:
            await asyncio.sleep(0.05)
        self._pipe.write(SASL)
        self._send(0, frames.SASLMechanism(sasl_server_mechanisms=[b"MSSBCBS", b"PLAIN", b"ANONYMOUS"]), b"\x01")
        await self._read()
        self._send(0, frames.SASLOutcome(code=0, additional_data=None), b"\x01")
        await self._pipe.read(8)
        self._pipe.write(AMQP)

    async def _read(self):
        header = await self._pipe.read(8)
        payload = await self._pipe.read(int.from_bytes(header[:4], "big") - 8)
        self._heard = time.monotonic()
        kind, fields = decode_frame(memoryview(payload)) if payload else decode_empty_frame(memoryview(header))
        return int.from_bytes(header[6:], "big"), kind, fields

    def _send(self, channel: int, frame, kind: bytes = b"\x00") -> None:
        if not self.mute:
            header, body = encode_frame(frame, kind)
            self._pipe.write(header + struct.pack(">H", channel) + body)

    async def _keep_time(self) -> None:
        """A sign of life twice in the time that the client asked for, and an end for a client that gives none in ours."""
        spoke = time.monotonic()
        while True:
            await asyncio.sleep(0.1)
            if self._beat and time.monotonic() - spoke > self._beat and not self.mute:
                spoke = time.monotonic()
                self._pipe.write(EMPTY)
            if self._idle and time.monotonic() - self._heard > self._idle:
                self.abort()

    def _take(self, channel: int, kind: int, fields: list) -> None:
        if kind == OPEN:
            self._frame = min(fields[2] or self._max_frame, self._max_frame)
            self._beat = (fields[4] or 0) / 2000
            idle = int(self._idle * 1000) or None
            self._send(0, frames.OpenFrame("double", None, self._max_frame, 255, idle, None, None, None, None, None))
        elif kind == BEGIN:
            self._send(channel, frames.BeginFrame(channel, 1, WIDE, WIDE, 255, None, None, None))
        elif kind == ATTACH:
            self._attach(channel, fields)
        elif kind == FLOW and (link := self.links.get((channel, fields[4]))) and link.receives:
            link.credit = (fields[5] or 0) + (fields[6] or 0) - link.sent
            self.credited()
        elif kind == TRANSFER and (link := self.links.get((channel, fields[0]))):
            # What was under way to a link that has been detached is lost.
            self._transfer(link, fields)
        elif kind == DETACH and (link := self.links.get((channel, fields[0]))):
            self.detach(link)
        elif kind == END:
            self._send(channel, frames.EndFrame(error=None))
        elif kind == CLOSE:
            self._send(0, frames.CloseFrame(error=None))

    def _attach(self, channel: int, fields: list) -> None:
        name, handle, receives = fields[0].decode(), fields[1], fields[2]
        address = (fields[5] if receives else fields[6])[0].decode()
        filters = (receives and fields[5][7]) or {}
        link = Link(channel, handle, name, address, receives, fields[13] or {}, filters)
        refused = None
        try:
            self.attached(link)
        except Refused as error:
            refused = error
        ends = (None, None) if refused else (Source(address), Target(address))
        count = 0 if receives else None
        self._send(
            channel, frames.AttachFrame(name, handle, not receives, 0, 0, *ends, None, None, count, self._max_message, None, None, None)
        )
        if refused:
            self.detach(link, refused)
            return
        self.links[channel, handle] = link
        if not receives:
            self._send(channel, frames.FlowFrame(0, WIDE, 0, WIDE, handle, 0, 1000, None, None, None, None))

    def _transfer(self, link: Link, fields: list) -> None:
        if not link.incoming:
            link.first = fields
        link.incoming += fields[-1]
        if fields[5]:
            return
        payload, link.incoming, state = bytes(link.incoming), bytearray(), Accepted()
        try:
            self.arrived(link, payload, link.first[3] == BATCH_FORMAT)
        except Refused as refused:
            state = Rejected(error=refused.error)
        self._send(link.channel, frames.DispositionFrame(True, link.first[1], None, True, state, None))
