"""From an outcome to the outbox: what is put, under which keys, and what of an old log is left alone."""

import pytest

from streaming.actions.incident import list_incidents
from streaming.actions.outbox import Outbox
from streaming.core.verdict import Decision, Finding, Notice, Span, Verdict
from streaming.dispatch import Dispatch
from streaming.journal import Journal
from streaming.settings import load_settings

MODEL = "default/iris"
SETTINGS = """\
models:
  default/iris:
    limits: [{kind: evidently, test: ks}]
    retraining: {margin: 0.05, min_rows: 33, server_url: "http://127.0.0.1:1"}
alerts:
  slack: {webhook: "http://127.0.0.1:1/hook"}
  webhook: {url: "http://127.0.0.1:1/drift"}
"""
BEGAN = Span(2, 40, 90, 100.0, 200.0)


def decision(action="retrain"):
    finding = Finding("evidently ks", "x", "ks", 1e-9, 0.05, True)
    verdict = Verdict("v1", MODEL, "1", 7, 160, Span(2, 10, 90, 50.0, 200.0), (finding,), ("evidently ks",))
    return Decision("d1", action, "why", "inc1", "run1" if action == "retrain" else "", verdict, BEGAN, {"x": (1.0,)})


def finished(time=300.0, outcome="promoted"):
    told = {"metric": "accuracy", "margin": 0.05, "champion": 0.5, "challenger": 0.9, "rows": 60, "reason": "better"}
    data = {"model": MODEL, "run_id": "run1", "outcome": outcome, "version": "2", **told}
    return Notice("retraining_finished", "f1", MODEL, "2", time, data)


@pytest.fixture
def dispatching(tmp_path):
    """Makes a dispatch on one state folder that believes it is `now`, as after a restart; and that folder's outbox."""
    (tmp_path / "driftloop.yaml").write_text(SETTINGS)
    settings = load_settings(tmp_path / "driftloop.yaml", {})
    outbox = Outbox(settings.state / "outbox.db")

    def make(now):
        return Dispatch(settings, outbox, Journal(settings.state), clock=lambda: now)

    return make, outbox, settings


def test_a_decision_to_retrain_starts_one_run_and_tells_everyone_under_its_own_ids(dispatching):
    make, outbox, settings = dispatching
    for _ in range(2):
        make(210.0)(decision())
    entries = {entry.key: entry for entry in outbox.entries()}
    assert {key: entry.kind for key, entry in entries.items()} == {"run1": "retrain", "d1:slack": "slack", "d1:webhook": "webhook"}
    run = entries["run1"].payload
    assert (run["run_id"], run["model"], run["margin"]) == ("run1", MODEL, 0.05)
    parameters = run["parameters"]
    assert parameters["since_offset"] == BEGAN.first_offset
    assert parameters["data"] == settings.log.url
    assert (parameters["min_rows"], parameters["server_url"], parameters["incident"]) == (33, "http://127.0.0.1:1", "inc1")
    assert entries["d1:webhook"].payload["id"] == "d1"
    (incident,) = list_incidents(settings.state)
    assert (incident["id"], incident["run"]["state"]) == ("inc1", "started")


def test_the_parameters_of_a_run_are_parameters_of_the_pipeline(dispatching):
    from pipelines.parameters import checked

    make, outbox, _ = dispatching
    make(210.0)(decision())
    checked(dict(outbox.get("run1").payload["parameters"]))


def test_a_hold_does_nothing(dispatching):
    make, outbox, settings = dispatching
    make(210.0)(decision("hold"))
    assert outbox.entries() == []
    assert list_incidents(settings.state) == []


def test_an_alert_starts_no_run(dispatching):
    make, outbox, _ = dispatching
    make(210.0)(decision("alert"))
    assert sorted(entry.kind for entry in outbox.entries()) == ["slack", "webhook"]


def test_the_end_of_a_run_is_told_once_and_stands_in_the_incident(dispatching):
    make, outbox, settings = dispatching
    for now in (310.0, 320.0):
        dispatch = make(now)
        dispatch(decision())
        dispatch(finished())
    assert [entry.key for entry in outbox.entries(kind="slack")] == ["d1:slack", "f1:slack"]
    (incident,) = list_incidents(settings.state)
    assert incident["run"]["state"] == "promoted"
    assert incident["run"]["finished"]["challenger"] == 0.9
    assert [line["what"] for line in incident["timeline"]] == ["retrain", "promoted"]


def test_a_run_that_ends_long_after_its_decision_is_still_news_to_a_restarted_watcher(dispatching):
    make, outbox, _ = dispatching
    make(210.0)(decision())
    late = make(9000.0)
    late(decision())
    late(finished(time=8990.0))
    assert [entry.key for entry in outbox.entries(kind="slack")] == ["d1:slack", "f1:slack"]


def test_an_old_log_is_recorded_and_not_acted_upon(dispatching):
    make, outbox, settings = dispatching
    dispatch = make(200.0 + 3601)
    dispatch(decision())
    dispatch(finished(time=3700.0))
    assert outbox.entries() == []
    assert list_incidents(settings.state) == []
    assert len((settings.state / "outcomes.jsonl").read_text().splitlines()) == 2


def test_a_failed_run_is_told_too(dispatching):
    make, outbox, settings = dispatching
    dispatch = make(310.0)
    dispatch(decision())
    dispatch(finished(outcome="failed"))
    assert "failed" in outbox.get("f1:slack").payload["text"]
    assert list_incidents(settings.state)[0]["run"]["state"] == "failed"
