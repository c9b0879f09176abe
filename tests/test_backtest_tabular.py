"""A table chunk by chunk: what the replay of a whole table says, wherever a chunk is cut, and from a state as without."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference.versions import Feature, Schema
from streaming.backtest.inject import read_injections
from streaming.backtest.question import KnownDrift
from streaming.backtest.result import Asked, Ridden, result
from streaming.backtest.tabular import MODEL, TableRide
from streaming.core.governor import Governor
from streaming.core.limits import BudgetLimit, EvidentlyLimit
from streaming.core.monitor import MonitorSpec
from streaming.core.window import CountWindow
from streaming.snapshots import Snapshot, decode, encode
from streaming.sources.table import Chunk
from streaming.table_replay import TableReplay
from streaming.tables import Tables

ROWS, FIRST, SECOND = 9000, 1500, 6500
SCHEMA = Schema((Feature("x", "numeric"), Feature("c", "categorical")), "numeric", "")
KS = MonitorSpec(CountWindow(200, 50), (EvidentlyLimit("ks", "ks", 1e-7),), Governor(2, 3, cooldown=0.0))
BUDGET = MonitorSpec(CountWindow(300, 100), (BudgetLimit("budget", 50_000.0),), Governor(1, 1, cooldown=0.0))


def made(rng, count):
    names = np.empty(count, dtype=object)
    names[:] = rng.choice(["a", "b", "c"], count)
    return {"x": rng.normal(size=count), "c": names}


def tables():
    """Quiet rows, of which x is shifted twice for good; the second time soon after the reference has grown whole again."""
    rng = np.random.default_rng(5)
    reference, rows = made(rng, 2500), made(rng, ROWS)
    rows["x"][FIRST:] += 1.5
    rows["x"][SECOND:] -= 2.0
    reference["c"][::97] = rows["c"][::97] = None
    return Tables(SCHEMA, reference, rows, np.arange(ROWS) * 60.0)


TABLES = tables()
WHOLE = Chunk(TABLES.rows, TABLES.times)


def ride(specs=(KS, BUDGET), **more):
    return TableRide(specs, SCHEMA, TABLES.reference, **{"timed": True, **more})


def fed(riding, cuts=()):
    ends = sorted({*cuts, ROWS})
    for start, stop in zip([0, *ends], ends, strict=False):
        riding.feed(WHOLE.part(start, stop))
    return riding


def events(tally):
    return [one["event"] for one in tally.memory.alarms]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("spec", [KS, BUDGET], ids=["ks", "budget"])
def test_the_alarms_are_those_of_the_replay_of_the_whole_table(spec, keep):
    replay = TableReplay(TABLES, spec, keep)
    alarms = [alarm.as_dict() for alarm in replay]
    (tally,) = fed(ride((spec,), keep_reference=keep)).tallies
    assert [{"event": one["event"], "findings": one["findings"]} for one in tally.memory.alarms] == alarms
    assert [one["decision"] for one in tally.memory.alarms] == ["alert" if keep else "retrain"] * len(alarms)
    assert len(alarms) >= (1 if keep else 2)


UNCUT = fed(ride())


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(1, ROWS - 1), max_size=8))
def test_no_cut_of_a_chunk_changes_anything(cuts):
    cut = fed(ride(), cuts)
    assert [tally.memory for tally in cut.tallies] == [tally.memory for tally in UNCUT.tallies]
    assert [part.as_dict() for part in cut.tallies[0].parts.values()] == [part.as_dict() for part in UNCUT.tallies[0].parts.values()]
    assert len(events(UNCUT.tallies[0])) == len(events(UNCUT.tallies[1])) == 2


@settings(max_examples=3, deadline=None)
@example(FIRST + 600)
@example(FIRST + 1500)
@given(st.integers(1, ROWS - 1))
def test_a_replay_that_goes_on_from_a_state_ends_as_an_undisturbed_one(at):
    first = ride()
    first.feed(WHOLE.part(0, at))
    second = ride()
    second.restore(decode(encode(Snapshot(0, 0, first.state()), "replay"), "replay").body)
    second.feed(WHOLE.part(at, ROWS))
    assert [tally.memory for tally in second.tallies] == [tally.memory for tally in UNCUT.tallies]
    assert second.course.state() == UNCUT.course.state()


def test_known_drifts_are_found_with_their_delays_and_repeats_are_no_false_alarms():
    drifts = [KnownDrift("first", "", FIRST + 1, SECOND, False), KnownDrift("second", "", SECOND * 60.0, 1e9, True)]
    riding = fed(ride((KS,), drifts=drifts))
    answer = result(Asked("t", of_log=False), [Ridden({0: {MODEL: riding.tallies[0]}}, ROWS)])
    first, second = events(riding.tallies[0])
    told = [(one["found"], one["delay_events"], one["delay_seconds"], one["alarm"]) for one in answer["known_drifts"]]
    late = first - FIRST - 1, second - SECOND - 1
    assert told == [(True, late[0], late[0] * 60.0, 0), (True, late[1], late[1] * 60.0, 1)]
    assert (answer["false_alarms"]["count"], answer["missed"]) == (0, 0)
    assert answer["false_alarms"]["events"] == FIRST
    assert answer["false_alarms"]["days"] == pytest.approx((FIRST - 1) * 60 / 86400, rel=1e-4)
    long = fed(ride((KS,), drifts=[KnownDrift("both", "", FIRST + 1, 1e9, False)]))
    assert (long.tallies[0].memory.false_alarms, len(long.tallies[0].memory.found), len(events(long.tallies[0]))) == (0, 1, 2)
    assert long.tallies[0].memory.found[0].event == events(long.tallies[0])[0], "what was found is found by its first alarm"
    incidents = riding.tallies[0].memory.incidents
    assert [one["opened"] < one["closed"] for one in incidents] == [True, True]
    assert [one["decisions"] for one in incidents] == [1, 1]
    none = fed(ride((KS,), drifts=[KnownDrift("early", "", 1, 900, False)]))
    assert (none.tallies[0].memory.false_alarms, none.tallies[0].missed) == (2, 1)


def test_an_injection_is_seen_and_is_a_known_drift_of_its_own():
    (injection,) = read_injections(["x: shift 1.5sd from 500 until 900"], ["m"])
    riding = fed(ride((KS,), injections=[injection]))
    drift = riding.course.drifts[0]
    assert (drift.name, drift.injected) == ("injected x: shift 1.5sd from 500 until 900", True)
    assert 500 <= riding.tallies[0].memory.found[0].event <= 700
