"""`driftloop check --connect`: whether the configured log can be reached, and what stands on it. Writes nothing."""

from collections.abc import Iterator
from contextlib import closing

from inference.log import open_log
from streaming.settings import Settings


def connect(settings: Settings) -> Iterator[str]:
    """Reach the log and tell what is found, a line at a time. LogError or SettingsError, within some 15 s, says what to mend."""
    log = settings.log
    who = f" as {log.auth.kind}" if log.auth else ""
    secured = "TLS" if log.encrypted else "no TLS"
    with closing(open_log(log, must_exist=True)) as event_log:
        yield f"{log.url}: reached{who}, {secured}"
        starts, ends = event_log.start_positions(), event_log.end_positions()
        for partition, end in sorted(ends.items()):
            yield f"  partition {partition}: offsets {starts[partition]} to {end}"
        models = [f"{model} on partition {event_log.partition_of(model)}" for model in settings.models]
        yield f"  {', '.join(models)}"
        records = event_log.read({partition: max(starts[partition], end - 1) for partition, end in ends.items()}, limit=100)
        yield f"  readable: {len(records)} of the newest events were read; nothing was written, so that the right to write is not tried"
