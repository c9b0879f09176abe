"""The gateway's metrics as Prometheus reads them, and the same numbers as JSON."""

import json
import time

import pytest
from gateways import ce, recorded, running
from prometheus_client.parser import text_string_to_metric_families

from inference.errors import LogThrottled, LogUnavailable
from inference.event import RESPONSE
from inference.gateway_metrics import exposition
from inference.log.embedded import EmbeddedLog
from inference.spool import Forwarder, Spool
from inference.tee import Tee, TeeOptions
from streaming.testing import Answer, Receiver, poll_until


def scraped(served):
    status, text = served.ask("GET", "/metrics")
    assert status == 200
    return values(text)


def values(text):
    return {
        (sample.name.removeprefix("driftloop_gateway_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_every_event_is_in_one_metric(tmp_path):
    with running(tmp_path / "events.db") as served:
        for _, headers, body in recorded()[:40]:
            served.ask("POST", "/", body, headers)
        served.ask("POST", "/", b"# HELP", ce(RESPONSE, content_type=None))
        served.ask("POST", "/", b"{}", ce("nope"))
        told, counts = scraped(served), served.counts()
    assert told["received_total",] == counts["received"] == 42
    assert told["appended_total",] == counts["appended"] == 40
    assert told["ignored_total", "not_inference"] == 1
    assert told["rejected_total", "unknown_type"] == told["dead_letters_total", "unknown_type"] == 1
    assert (told["log_state",], told["waiting",], told["disconnected_total",]) == (0, 0, 0)
    assert told["ack_seconds_count",] == told["ack_seconds_bucket", "+Inf"] == 40
    assert 0 < told["ack_seconds_sum",] < 40 * 5
    assert ("spool_events",) not in told, "there is no spool"
    assert ("tee_sent_total",) not in told
    assert told["process_resident_memory_bytes",] > 1e6 if ("process_resident_memory_bytes",) in told else True


def test_the_latency_is_that_of_the_acknowledgement(tmp_path):
    from gateways import holding, in_thread, join, until

    with running(tmp_path / "events.db", busy_timeout=20) as served:
        with holding(served.log.path):
            post = in_thread(served, b"1", ce())
            until(lambda: served.gateway.counts()["waiting"] == 1)
            time.sleep(0.3)
        assert join(post)[0] == 200
        told = scraped(served)
    assert told["ack_seconds_bucket", "0.25"] == 0
    assert 0.3 < told["ack_seconds_sum",] < 5


class Log:
    """A log that does what it is told."""

    def __init__(self):
        self.error = None

    def append(self, events):
        if self.error is not None:
            raise self.error
        return []

    def close(self):
        pass


@pytest.mark.parametrize(("error", "state"), [(LogThrottled("slower"), 1), (LogUnavailable("away"), 2)])
def test_the_state_of_the_log_and_what_waits_for_it_can_be_seen(tmp_path, error, state):
    spool, log = Spool(tmp_path / "spool"), Log()
    forwarder = Forwarder(spool, lambda: log)
    forwarder.start()
    with running(tmp_path / "spool", log=spool, forwarder=forwarder) as served:
        assert scraped(served)["log_state",] == 0
        log.error = error
        assert served.ask("POST", "/", b"{}", ce()) == (200, b"")
        assert poll_until(lambda: scraped(served)["log_state",] == state)
        time.sleep(0.05)
        told = scraped(served)
        assert (told["spool_events",], told["forwarded_total",]) == (1, 0)
        assert told["spool_bytes",] > 50
        assert told["spool_oldest_seconds",] >= 0.05
        assert (told["throttled_total",] > 0) == (state == 1)
        assert json.loads(served.ask("GET", "/counts")[1])["log"]["state"] == ("throttled", "away")[state - 1]
        assert served.ask("GET", "/healthz") == (200, b'{"status":"ok"}'), "the gateway itself is well"
        log.error = None
        assert poll_until(lambda: scraped(served)["log_state",] == 0)
        told = scraped(served)
        assert (told["spool_events",], told["forwarded_total",], told["spool_oldest_seconds",]) == (0, 1, 0)
        forwarder.stop()


def test_copies_can_be_seen(tmp_path):
    with Receiver([Answer(500)]) as receiver:
        tee = Tee(TeeOptions(receiver.url("/"), connections=1))
        with running(tmp_path / "events.db", tee=tee) as served:
            for _ in range(3):
                served.ask("POST", "/", b"{}", ce())
            assert poll_until(lambda: scraped(served)["tee_sent_total",] == 2)
            told = scraped(served)
            assert (told["tee_failed_total",], told["tee_dropped_total",], told["tee_waiting",]) == (1, 0, 0)
            assert served.counts()["tee"] == {"sent": 2, "failed": 1, "dropped": 0, "waiting": 0}
        tee.close()


def test_losses_are_dead_letters_at_once_and_still_after_a_restart(tmp_path):
    for run in (1, 2):
        log = EmbeddedLog(tmp_path / "events.db")
        with running(tmp_path / "events.db", log=log, max_waiting=0) as served:
            served.ask("POST", "/", b"{}", ce())
            told = scraped(served)
            assert told["refused_total", "queue_full"] == 1, "of this run"
            assert told["dead_letters_total", "lost_queue_full"] == run, "of all"
    log = EmbeddedLog(tmp_path / "events.db")
    assert log.dead_letter_counts() == {"lost_queue_full": 2}
    log.close()


def test_what_can_not_be_told_is_left_out(tmp_path):
    log = EmbeddedLog(tmp_path / "events.db")
    with running(tmp_path / "events.db", log=log) as served:
        log.close()
        told = scraped(served)
        assert told["received_total",] == 0
        assert not any(name == "dead_letters_total" for name, *_ in told)


def test_a_reason_that_comes_from_outside_makes_no_metric_of_its_own(tmp_path):
    """Reasons are our own codes: nobody can make new time series by sending new names."""
    with running(tmp_path / "events.db") as served:
        for number in range(5):
            served.ask("POST", "/", b"{}", ce(f"type-{number}"))
            served.ask("POST", "/", b"{}", ce(**{f"Bad_{number}": "x"}))
        assert sorted(name[1] for name in scraped(served) if name[0] == "rejected_total") == ["bad_attribute", "unknown_type"]


def test_the_names_keep_prometheus_conventions():
    latency = {"bounds": [0.1], "buckets": [1, 0], "sum": 0.01}
    status = {"received": 1, "waiting": 0, "ack_seconds": latency}
    families = list(text_string_to_metric_families(exposition(status).decode()))
    for family in families:
        assert family.documentation or family.name.startswith("process")
        assert family.name.startswith(("driftloop_gateway_", "process_"))
        assert (family.type == "counter") == all(sample.name.endswith("_total") for sample in family.samples), family
