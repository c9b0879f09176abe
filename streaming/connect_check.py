"""`driftloop check --connect`: whether the configured log can be reached, and what stands on it. Writes nothing."""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Protocol, runtime_checkable

from inference.errors import LogUnavailable
from inference.log import EventLog, open_log
from inference.log.address import is_eventhubs, is_kafka, is_remote
from inference.log.connection import Connection
from streaming.settings import Settings

LIMIT_SECONDS = 15.0


@runtime_checkable
class Broker(Protocol):
    """A log whose broker knows about rights and groups."""

    def may_write(self) -> bool | None:
        """Whether we may append; None where the broker does not tell."""
        ...

    def committed(self, group: str) -> dict[int, int | None]:
        """How far the group says that it is, on each partition; LogUnavailable where it may not be asked."""
        ...


def extra_of(log: Connection) -> str:
    """What has to be installed to reach it."""
    return "eventhubs" if is_eventhubs(log.url) else "librdkafka" if log.client == "librdkafka" else "kafka"


def connect(settings: Settings, *, limit: float = LIMIT_SECONDS) -> Iterator[str]:
    """Reach the log and tell what is found, a line at a time. LogError or SettingsError, within `limit` seconds, says what to mend."""
    found: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for line in _look(settings):
                found.put(line)
            found.put(None)
        except Exception as error:  # noqa: BLE001 - raised below, on the thread that asked
            found.put(error)

    # Not every wait of a client is bounded (a resolver that does not answer): this one is.
    threading.Thread(target=work, name="connect", daemon=True).start()
    deadline = time.monotonic() + limit
    while True:
        try:
            line = found.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            advice = "is this its address, does the name resolve here, and does a firewall let us through?"
            raise LogUnavailable(f"{settings.log.url}: no answer within {limit:.0f} s; {advice}") from None
        if line is None:
            return
        if isinstance(line, Exception):
            raise line
        yield line


def _look(settings: Settings) -> Iterator[str]:
    log = settings.log
    with closing(open_log(log, must_exist=True)) as event_log:
        yield f"{log.url}: reached{_how(log) if is_remote(log.url) else ''}"
        starts, ends = event_log.start_positions(), event_log.end_positions()
        for partition, end in sorted(ends.items()):
            yield f"  partition {partition}: offsets {starts[partition]} to {end}"
        yield f"  {', '.join(f'{model} on partition {event_log.partition_of(model)}' for model in settings.models)}"
        records = event_log.read({partition: max(starts[partition], end - 1) for partition, end in ends.items()}, limit=100)
        yield f"  reading works: {len(records)} of the newest events were read"
        yield from _rights(event_log, settings.watch.group)


def _how(log: Connection) -> str:
    client = f" by {log.client}" if is_kafka(log.url) else " by AMQP over WebSockets" if log.websocket else " by AMQP"
    secured = "with TLS" if log.encrypted else "without TLS"
    return f"{client}, {secured}{f', as {log.auth.kind}' if log.auth else ', without logging in'}"


def _rights(event_log: EventLog, group: str) -> Iterator[str]:
    if not isinstance(event_log, Broker):
        return
    may_write = event_log.may_write()
    told = {
        True: "permitted, says the broker",
        False: "NOT permitted, says the broker",
        None: "the broker does not tell whether it is permitted",
    }
    yield f"  writing: {told[may_write]}; nothing was written"
    committed = event_log.committed(group)
    places = ", ".join(f"{partition}: {'none' if offset is None else offset}" for partition, offset in sorted(committed.items()))
    yield f"  group {group}: may be asked; committed offsets {places}"
