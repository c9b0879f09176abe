"""Schema changes: predictions that can't be read are one alert, never a run, and over when they are gone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from inference.versions import Feature, Schema
from streaming.core.fleet import Fleet
from streaming.core.governor import Governor
from streaming.core.limits import EvidentlyLimit
from streaming.core.monitor import MonitorSpec
from streaming.core.reference import prepare
from streaming.core.schema import SchemaJudge, SchemaLimit
from streaming.core.verdict import Decision, Verdict
from streaming.core.window import CountWindow
from streaming.testing import prediction, promotion, records

MODEL = "ns/a"
SCHEMA = Schema((Feature("x", "numeric"), Feature("y", "numeric")), "categorical", "species")
GOOD, WIDE, TEXT, NAMED, UNEVEN = (
    ([[1.0, 2.0]], ["1"]),
    ([[1.0, 2.0, 3.0]], ["1"]),
    ([["secret", 2.0]], ["1"]),
    ([{"x": 1.0, "z": 2.0}], ["1"]),
    ([[1.0, 2.0]], ["1", "0"]),
)


def reference(model, version):
    return prepare(model, version, SCHEMA, {"x": [0.0, 1.0, 2.0], "y": [0.0, 1.0, 2.0], "prediction": ["0", "1", "1"]})


def fleet(schema=SchemaLimit(0.2, 10), **governor):  # noqa: B008 - a frozen value
    far = (EvidentlyLimit("far", "wasserstein", 99.0, columns=("x",)),)
    spec = MonitorSpec(CountWindow(10, 5), far, Governor(**{"confirm": 1, "of": 1, **governor}), schema=schema)
    return Fleet({MODEL: spec}, reference, live=lambda model: None, annotation="a")


def payloads(*bodies):
    events = [promotion(MODEL, "1")]
    for number, (rows, said) in enumerate(bodies):
        events += prediction(MODEL, f"p{number}", rows, said)
    return records(events)


def of_schema(outcomes):
    return [one for one in outcomes if isinstance(one, Verdict) and one.of_window == "schema"]


def test_a_share_of_unreadable_predictions_alerts_once_and_closes_when_half_of_it_is_left():
    outcomes = fleet().feed(payloads(*[GOOD] * 20, *[WIDE] * 30, *[GOOD] * 30))
    opened, closed = of_schema(outcomes)
    (decision,) = [one for one in outcomes if isinstance(one, Decision)]
    # The second wide one is the 22nd; 2 of 10 are 0.2. Its response is the record 2 + 2 * 21.
    assert (opened.window.last_offset, opened.breached, opened.number, opened.drift) == (44, ("schema",), 1, True)
    assert opened.window.first_offset == 42
    (finding,) = opened.findings
    assert (finding.limit, finding.test, finding.score, finding.threshold, finding.over) == ("schema", "unreadable", 0.2, 0.2, True)
    assert finding.signal == "wrong_width 2 (row 0 has 3 values; the model takes 2: x, y)"
    assert (decision.action, decision.run_id, decision.verdict) == ("alert", "", opened)
    assert decision.reason == f"2 of the last 10 predictions can't be read: {finding.signal}; no retraining mends that"
    assert decision.explanation[0].moved[0].after == 0.2
    assert decision.evidence["x"] == (1.0,) * 10
    # 2 of 10 close when none is left of 2 * 0 < 2; the last wide one is the 50th.
    assert (closed.drift, closed.window.last_offset) == (False, 2 + 2 * 59)
    assert decision.incident


def test_it_opens_again_with_another_incident():
    outcomes = fleet().feed(payloads(*[GOOD] * 10, *[WIDE] * 5, *[GOOD] * 20, *[NAMED] * 5))
    alerts = [one for one in outcomes if isinstance(one, Decision)]
    assert [one.action for one in alerts] == ["alert", "alert"]
    assert len({one.incident for one in alerts}) == len({one.id for one in alerts}) == 2
    assert "missing_feature 2 (not in every row: y; the model takes x, y)" in alerts[1].reason


def test_a_share_around_the_limit_is_no_storm():
    outcomes = fleet(SchemaLimit(0.2, 20)).feed(
        payloads(*[GOOD] * 20, *[WIDE, GOOD, GOOD, GOOD, GOOD, GOOD] * 40, *[WIDE, GOOD, GOOD, GOOD] * 40)
    )
    assert [one.drift for one in of_schema(outcomes)] == [True]


def test_an_alert_is_no_incident_of_the_features_and_starts_no_run():
    running = fleet(confirm=2, of=3)
    running.feed(payloads(*[WIDE] * 30, *[GOOD] * 30))
    governor = running.status()["models"][MODEL]["governor"]
    assert (governor["incident"], governor["active_run"]) == ("", "")


def test_each_reason_is_counted_and_no_cell_of_anybodys_is_told():
    running = fleet(SchemaLimit(1.0, 4))
    (verdict,) = of_schema(running.feed(payloads(TEXT, TEXT, UNEVEN, WIDE)))
    (finding,) = verdict.findings
    assert finding.signal.startswith("not_a_number 2, row_mismatch 1, wrong_width 1 (row 0 has 3 values")
    assert "secret" not in repr(verdict)
    status = running.status()["models"][MODEL]["schema"]
    assert (status["unreadable"], status["of"], status["over"]) == (4, 4, True)
    assert "secret" not in repr(of_schema(fleet(SchemaLimit(1.0, 2)).feed(payloads(WIDE, TEXT))))
    (verdict,) = of_schema(fleet(SchemaLimit(1.0, 2)).feed(payloads(TEXT, TEXT)))
    assert verdict.findings[0].signal == "not_a_number 2"


def test_null_switches_it_off_and_the_counts_stay():
    running = fleet(None)
    outcomes = running.feed(payloads(*[WIDE] * 30))
    assert of_schema(outcomes) == []
    assert running.status()["models"][MODEL]["counts"]["unreadable wrong_width"] == 30
    assert running.status()["models"][MODEL]["schema"] is None


def test_a_promotion_starts_it_anew():
    log = [*payloads(*[GOOD] * 10, *[WIDE] * 5)]
    events = [record.event for record in log] + [promotion(MODEL, "2", "1")]
    events += [replace(event, id=f"{event.id} again") for record in payloads(WIDE, *[GOOD] * 20)[1:] for event in [record.event]]
    verdicts = of_schema(fleet().feed(records(events)))
    assert [(one.version, one.drift) for one in verdicts] == [("1", True)], "one of the new version's is not enough"


def test_a_verdict_comes_after_the_rows_before_it_and_its_place_is_the_same_however_the_log_is_cut():
    log = payloads(*[GOOD] * 14, *[WIDE] * 4, *[GOOD] * 11)
    whole, cut = fleet(), fleet()
    outcomes = whole.feed(log)
    assert outcomes == [one for record in log for one in cut.feed([record])]
    assert cut.state(0) == whole.state(0)
    assert [one.predictions for one in outcomes if isinstance(one, Verdict)] == [10, 14, 15, 20, 24, 25]


@settings(max_examples=100, deadline=None)
@given(
    readable=st.lists(st.booleans(), max_size=80), share=st.sampled_from([0.01, 0.1, 0.25, 0.5, 1.0]), of=st.integers(1, 12), data=st.data()
)
def test_it_opens_and_closes_as_counting_the_last_ones_says_also_when_restored(readable, share, of, data):
    limit, over = SchemaLimit(share, of), False
    judge = SchemaJudge(limit, MODEL, "1", 0)
    (record,) = payloads()
    for place, good in enumerate(readable):
        at = replace(record, offset=place, timestamp=float(place))
        count = readable[max(0, place + 1 - of) : place + 1].count(False)
        expected = count >= share * of / 2 and count > 0 if over else count >= share * of and count > 0
        if limit.enough / 2 > share * of / 2 and over:
            expected = 2 * count >= limit.enough
        changed = judge.readable() if good else judge.unreadable("wrong_width", "x", at)
        assert changed == (expected != over)
        over = expected
        if changed:
            verdict, decision = judge.judge(at, place)
            assert verdict.drift == over == (decision is not None)
        if data.draw(st.booleans()):
            state, judge = judge.state(), SchemaJudge(limit, MODEL, "1", 0)
            judge.restore(state)
            assert judge.state() == state
        assert len(judge.state()["unreadable"]) <= of


@pytest.mark.parametrize(("share", "of"), [(0.0, 10), (1.1, 10), (0.1, 0)])
def test_a_limit_that_cannot_be_is_refused(share, of):
    with pytest.raises(ValueError, match=r"schema\."):
        SchemaLimit(share, of)
