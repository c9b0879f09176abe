"""The gateway's status in Prometheus' text format, made anew for each scrape."""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
LOG_STATES = {"ok": 0, "throttled": 1, "away": 2}

_COUNTERS = {
    "received": "Requests that came in.",
    "appended": "Events that were acknowledged and stand on the log or in the spool.",
    "ignored": "Events that were acknowledged and are no predictions, by reason.",
    "rejected": "Events that were wrong and set aside, by reason.",
    "refused": "Events that were not taken in (503, or 401 without the token), by reason; who does not repeat them has lost them.",
    "disconnected": "Requests whose sender went away before their body was complete.",
    "dead_letters": "Events that were set aside or lost, by reason, over all runs of the gateway on this log or spool.",
    "dead_letters_lost": "Wrong events that could not even be set aside.",
}


def exposition(status: Mapping[str, Any]) -> bytes:
    """What /metrics answers for a `Gateway.status`; a part of it that could not be told is left out."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(status))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status
        for name, text in _COUNTERS.items():
            if name in status:
                yield _counter(name, text, status[name])
        yield _gauge("waiting", "Requests that are not answered yet.", status["waiting"])
        yield _acks(status["ack_seconds"])
        log = status.get("log", {"state": "ok"})
        yield _gauge("log_state", "How the log is: 0 ok, 1 throttled, 2 away.", LOG_STATES[log["state"]])
        if "spool" in log:
            yield _gauge("spool_events", "Events that wait in the spool.", log["spool"]["events"])
            yield _gauge("spool_bytes", "Bytes of the events that wait in the spool.", log["spool"]["bytes"])
            yield _gauge(
                "spool_oldest_seconds", "For how long the oldest event has been waiting in the spool.", log["spool"]["oldest_seconds"]
            )
            yield _counter("forwarded", "Events that were carried from the spool to the log.", log["forwarded"])
            yield _counter("throttled", "How often the log asked for a slower pace.", log["throttled"])
        if "tee" in status:
            yield _counter("tee_sent", "Copies that the second receiver took.", status["tee"]["sent"])
            yield _counter("tee_dropped", "Copies for which there was no room.", status["tee"]["dropped"])
            yield _counter("tee_failed", "Copies that the second receiver did not take.", status["tee"]["failed"])
            yield _gauge("tee_waiting", "Copies that wait for the second receiver.", status["tee"]["waiting"])


def _counter(name: str, text: str, value: int | Mapping[str, int]) -> CounterMetricFamily:
    if not isinstance(value, Mapping):
        return CounterMetricFamily(f"driftloop_gateway_{name}", text, value=value)
    family = CounterMetricFamily(f"driftloop_gateway_{name}", text, labels=["reason"])
    for reason, count in sorted(value.items()):
        family.add_metric([reason], count)
    return family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"driftloop_gateway_{name}", text, value=value)


def _acks(latency: Mapping[str, Any]) -> HistogramMetricFamily:
    bounds = [*map(str, latency["bounds"]), "+Inf"]
    buckets = list(zip(bounds, accumulate(latency["buckets"]), strict=True))
    text = "From an event that is there as a whole to its acknowledgement."
    return HistogramMetricFamily("driftloop_gateway_ack_seconds", text, buckets=buckets, sum_value=latency["sum"])
