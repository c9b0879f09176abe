"""The gateway's writer: events that arrive together share a transaction, and one that fails costs no other its place."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inference import gateway_writer
from inference.errors import EventError
from inference.event import Event, from_kafka_text
from inference.gateway_writer import Letter, Writer
from inference.log.embedded import EmbeddedLog
from inference.spool import Spool

ROOT = Path(__file__).parents[1]


def event(number, **changed):
    fields = {"extensions": {"namespace": "ns", "inferenceservicename": "m"}, "data": b"{}", **changed}
    return Event(f"e{number}", "pod", "io.driftloop.label", **fields)


@pytest.fixture
def log(tmp_path):
    opened = EmbeddedLog(tmp_path / "events.db")
    yield opened
    opened.close()


def test_events_that_go_on_arriving_share_one_transaction(log, monkeypatch):
    monkeypatch.setattr(gateway_writer, "GATHER_SECONDS", 20.0)

    async def write():
        writer, told = Writer(log), []
        for number in range(50):
            writer.put(event(number), told.append)
            await asyncio.sleep(0)
        await writer.close()
        return writer.batches, told

    assert asyncio.run(write()) == (1, [None] * 50)
    assert [record.event.id for record in log.read(log.start_positions())] == [f"e{number}" for number in range(50)]


def test_an_event_waits_for_others_only_so_long_however_many_come(log, monkeypatch):
    monkeypatch.setattr(gateway_writer, "BATCH_EVENTS", 1_000_000)

    async def write():
        writer, answered = Writer(log), asyncio.Event()
        began = time.monotonic()
        writer.put(event(0), lambda _: answered.set())
        while not answered.is_set() and time.monotonic() - began < 2.0:
            writer.put(event(1), lambda _: None)
            await asyncio.sleep(0)
        waited = time.monotonic() - began
        await writer.close()
        return waited

    assert asyncio.run(write()) < 1.0


@pytest.mark.parametrize("place", ["log", "spool"])
def test_one_event_that_can_stand_nowhere_costs_the_others_nothing_and_their_order_stays(place, log, tmp_path):
    intake = log if place == "log" else Spool(tmp_path / "spool")

    async def write():
        writer, outcomes = Writer(intake), []
        for number in range(10):
            writer.put(event(number), outcomes.append)
        writer.put(Letter("bad", "bad", [], b""), outcomes.append)
        # One that no log can hold makes the others go alone.
        writer.put(event(10, extensions={"UPPER": "case"}), outcomes.append)
        writer.put(event(11), outcomes.append)
        await writer.close()
        return outcomes

    outcomes = asyncio.run(write())
    assert [isinstance(outcome, EventError) for outcome in outcomes] == [False] * 11 + [True, False]
    if place == "log":
        stands = [record.event.id for record in log.read(log.start_positions())]
    else:
        stands = [from_kafka_text(message.headers, message.value).id for _, message in intake.read(intake.start)]
    assert stands == [f"e{number}" for number in [*range(10), 11]]
    assert intake.dead_letter_counts() == {"bad": 1}


def test_while_a_gateway_serves_python_looks_for_cycles_seldom_and_afterwards_as_before(tmp_path):
    code = (
        "import gc, os, signal, sys; from inference.gateway_server import GatewayOptions, serve_gateway;"
        "from inference.log.connection import connection_to;"
        "told = lambda: print(gc.get_threshold(), gc.get_freeze_count() > 1000, gc.isenabled());"
        "told(); serve_gateway(GatewayOptions(connection_to(sys.argv[1]), port=0),"
        " lambda port: (told(), os.kill(os.getpid(), signal.SIGTERM))); told()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "events.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, "PYTHONPATH": str(ROOT)})
    before, serving, after = done.stdout.splitlines()
    assert before == after
    assert serving.startswith("(50000, ")
    assert serving.endswith("True True")
    assert before.endswith("False True")
