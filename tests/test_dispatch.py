"""From an outcome to the outbox: what is put, under which keys, what is remembered of a run, and what of an old log is left alone."""

import logging
import shutil
from pathlib import Path

import joblib
import orjson
import pyarrow
import pyarrow.parquet
import pytest
from sklearn.dummy import DummyClassifier

from inference.versions import Feature, Repository, Schema, Version
from streaming.actions.incident import list_incidents
from streaming.actions.outbox import Outbox
from streaming.core.verdict import Decision, Finding, Notice, Span, Verdict
from streaming.dispatch import Dispatch
from streaming.journal import Journal
from streaming.settings import load_settings
from streaming.testing import told_ends

MODEL = "default/iris"
OTHER = "default/wine"
PARTITION = 2
SETTINGS = """\
models:
  default/iris:
    limits: [{kind: evidently, test: ks}]
    retraining: {margin: 0.05, min_rows: 33, server_url: "http://127.0.0.1:1"}
alerts:
  slack: {webhook: "http://127.0.0.1:1/hook"}
  webhook: {url: "http://127.0.0.1:1/drift"}
"""
BEGAN = Span(PARTITION, 40, 90, 100.0, 200.0)


def verdict(*, number=7, drift=True, model=MODEL, partition=PARTITION, version="1"):
    finding = Finding("evidently ks", "x", "ks", 1e-9, 0.05, True)
    window = Span(partition, 10, 90, 50.0, 200.0)
    return Verdict(f"v{number}-{model}", model, version, number, 160, window, (finding,), ("evidently ks",) if drift else ())


def decision(action="retrain", *, number=1, evidence=None):
    """The decision `d<number>` to start `run<number>`, of the incident `inc<number>`."""
    run = f"run{number}" if action == "retrain" else ""
    window = {"x": (1.0,)} if evidence is None else evidence
    return Decision(f"d{number}", action, "why", f"inc{number}", run, verdict(), BEGAN, window)


def finished(time=300.0, outcome="promoted", *, run="run1", partition=PARTITION):
    told = {"metric": "accuracy", "margin": 0.05, "champion": 0.5, "challenger": 0.9, "rows": 60, "reason": "better"}
    data = {"model": MODEL, "run_id": run, "outcome": outcome, "version": "2", **told}
    return Notice("retraining_finished", f"f-{run}", MODEL, "2", time, data, partition)


class Watcher:
    """A dispatch that believes it is `now`, its outbox and its journal, in one process on one state folder."""

    def __init__(self, settings, now, *, entries=(), memory=None):
        self.settings = settings
        self.events = []
        self.outbox = Outbox(self.events.append, clock=lambda: now)
        self.outbox.open(PARTITION, entries)
        self.dispatch = Dispatch(settings, self.outbox, Journal(settings.state), clock=lambda: now)
        if memory is not None:
            self.dispatch.restore(PARTITION, memory)

    def __call__(self, *outcomes):
        for outcome in outcomes:
            self.dispatch(outcome)
        return self

    def snapshot(self):
        return orjson.dumps([self.outbox.state(PARTITION), self.dispatch.state(PARTITION)])

    def successor(self, now, *, settings=None):
        """Another process, with this one's snapshot."""
        entries, memory = orjson.loads(self.snapshot())
        return Watcher(settings or self.settings, now, entries=entries, memory=memory)

    @property
    def entries(self):
        return {entry.key: entry for entry in self.outbox.entries()}

    @property
    def keys(self):
        return list(self.entries)

    @property
    def incidents(self):
        return list_incidents(self.settings.state)

    def journal(self):
        return [orjson.loads(line)["id"] for line in (self.settings.state / "outcomes.jsonl").read_bytes().splitlines()]


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "driftloop.yaml").write_text(SETTINGS)
    return load_settings(tmp_path / "driftloop.yaml", {})


@pytest.fixture
def elsewhere(tmp_path):
    """The same configuration on another machine, with a state folder that is empty."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "driftloop.yaml").write_text(SETTINGS)
    return load_settings(tmp_path / "elsewhere" / "driftloop.yaml", {})


@pytest.fixture
def version(tmp_path, settings):
    """Version 1 in the repository, so that there is something to report against."""
    pyarrow.parquet.write_table(pyarrow.table({"x": [1.0], "prediction": [0.0]}), tmp_path / "reference.parquet")
    joblib.dump(DummyClassifier().fit([[0.0]], [0]), tmp_path / "model.joblib")
    made = Version(MODEL, "1", Path(), Schema((Feature("x", "numeric"),), "numeric", "y"))
    files = {"model_file": tmp_path / "model.joblib", "reference_file": tmp_path / "reference.parquet"}
    Repository(settings.repository).write(made, **files)


def test_a_decision_to_retrain_starts_one_run_and_tells_everyone_under_its_own_ids(settings):
    watcher = Watcher(settings, 210.0)(decision())
    # After a crash it comes to the same decision again, now with a snapshot that has it and now without.
    for again in (watcher(decision()), watcher.successor(220.0)(decision()), Watcher(settings, 220.0)(decision())):
        kinds = {key: entry.kind for key, entry in again.entries.items()}
        assert kinds == {"run1": "retrain", "d1:slack": "slack", "d1:webhook": "webhook"}
        assert {(entry.model, entry.partition) for entry in again.entries.values()} == {(MODEL, PARTITION)}
    run = watcher.entries["run1"].payload
    assert (run["run_id"], run["model"], run["margin"]) == ("run1", MODEL, 0.05)
    parameters = run["parameters"]
    assert parameters["since_offset"] == BEGAN.first_offset
    assert parameters["data"] == settings.log.url
    assert (parameters["min_rows"], parameters["server_url"], parameters["incident"]) == (33, "http://127.0.0.1:1", "inc1")
    assert watcher.entries["d1:webhook"].payload["id"] == "d1"
    (incident,) = watcher.incidents
    assert (incident["id"], incident["run"]["state"]) == ("inc1", "started")
    assert [line["what"] for line in incident["timeline"]] == ["retrain"]
    assert watcher.journal() == ["d1"]


def test_the_parameters_of_a_run_are_parameters_of_the_pipeline(settings):
    from pipelines.parameters import checked

    checked(dict(Watcher(settings, 210.0)(decision()).entries["run1"].payload["parameters"]))


def test_a_hold_does_nothing(settings):
    watcher = Watcher(settings, 210.0)(decision("hold"))
    assert watcher.keys == []
    assert watcher.incidents == []
    assert watcher.journal() == ["d1"]


def test_an_alert_starts_no_run(settings):
    watcher = Watcher(settings, 210.0)(decision("alert"))
    assert watcher.keys == ["d1:slack", "d1:webhook"]
    assert watcher.dispatch.state(PARTITION)["runs"] == {}


def test_a_version_that_is_in_the_repository_gets_its_report(settings, version):
    watcher = Watcher(settings, 210.0)(decision())
    report = watcher.entries["inc1:report"]
    assert (report.kind, report.payload["incident"]) == ("report", "inc1")
    assert Path(report.payload["reference"]).name == "reference.parquet"


def test_without_reports_none_is_rendered(settings, version):
    watcher = Watcher(settings.model_copy(update={"reports": False}), 210.0)(decision())
    assert watcher.keys == ["run1", "d1:slack", "d1:webhook"]
    assert len(watcher.incidents) == 1


def test_the_end_of_a_run_is_told_once_and_stands_in_the_incident(settings):
    watcher = Watcher(settings, 310.0)(decision(), finished())
    for again in (watcher, watcher.successor(320.0)(decision(), finished()), Watcher(settings, 320.0)(decision(), finished())):
        assert [entry.key for entry in again.outbox.entries("slack")] == ["d1:slack", "f-run1:slack"]
        (incident,) = again.incidents
        assert incident["run"]["state"] == "promoted"
        assert incident["run"]["finished"]["challenger"] == 0.9
        assert [line["what"] for line in incident["timeline"]] == ["retrain", "promoted"]
    assert watcher.entries["f-run1:slack"].partition == PARTITION


def test_a_failed_run_is_told_too(settings):
    watcher = Watcher(settings, 310.0)(decision(), finished(outcome="failed"))
    assert "failed" in watcher.entries["f-run1:slack"].payload["text"]
    assert watcher.incidents[0]["run"]["state"] == "failed"


def test_the_end_of_a_run_that_nobody_decided_on_is_recorded_only(settings):
    watcher = Watcher(settings, 310.0)(decision(), finished(run="somebody's"))
    assert "f-somebody's:slack" not in watcher.entries
    assert watcher.incidents[0]["run"]["state"] == "started"
    assert watcher.journal() == ["d1", "f-somebody's"]


def test_without_slack_the_end_of_a_run_still_stands_in_the_incident(settings):
    quiet = settings.model_copy(update={"alerts": settings.alerts.model_copy(update={"slack": None})})
    watcher = Watcher(quiet, 310.0)(decision(), finished())
    assert watcher.keys == ["run1", "d1:webhook"]
    assert watcher.incidents[0]["run"]["state"] == "promoted"


def test_a_run_that_ends_long_after_its_decision_is_still_news_to_a_restarted_watcher(settings):
    early = Watcher(settings, 210.0)(decision())
    late = Watcher(settings, 9000.0)(decision(), finished(time=8990.0))
    assert late.keys == ["f-run1:slack"]
    assert early.successor(9000.0)(finished(time=8990.0)).keys == [*early.keys, "f-run1:slack"]


def test_an_old_log_is_recorded_and_not_acted_upon(settings, caplog):
    caplog.set_level(logging.INFO)
    watcher = Watcher(settings, 200.0 + 3601)(decision(), finished(time=3700.0))
    assert watcher.keys == []
    assert watcher.incidents == []
    assert watcher.journal() == ["d1", "f-run1"]
    assert "d1 is 3601 s old, more than max_decision_age (3600 s): recorded, not acted upon" in caplog.text
    assert Watcher(settings, 200.0 + 3600)(decision()).keys != []


def test_the_end_of_a_run_that_is_old_itself_is_no_news(settings):
    watcher = Watcher(settings, 210.0)(decision()).successor(9000.0)(finished(time=9000.0 - 3601))
    assert "f-run1:slack" not in watcher.entries
    assert watcher.incidents[0]["run"]["state"] == "started"


def test_the_memory_goes_through_a_snapshot_and_back(settings):
    watcher = Watcher(settings, 210.0)(verdict(), verdict(model=OTHER), decision(), decision("alert", number=2), decision(number=3))
    memory = watcher.dispatch.state(PARTITION)
    assert memory == {
        "runs": {"run1": {"incident": "inc1", "acted": True}, "run3": {"incident": "inc3", "acted": True}},
        "drifting": [MODEL, OTHER],
    }
    assert orjson.loads(orjson.dumps(memory)) == memory
    successor = watcher.successor(220.0)
    assert successor.dispatch.state(PARTITION) == memory
    # A snapshot is of one moment: what comes after it is none of it.
    successor(verdict(number=8, drift=False), decision(number=4))
    assert watcher.dispatch.state(PARTITION) == memory
    memory["runs"].clear()
    memory["drifting"].clear()
    assert len(watcher.dispatch.state(PARTITION)["runs"]) == 2


def test_each_partition_has_a_memory_of_its_own_that_goes_with_it(settings):
    watcher = Watcher(settings, 210.0)
    watcher.outbox.open(5)
    watcher(verdict(), verdict(model=OTHER, partition=5), decision())
    assert watcher.dispatch.state(5) == {"runs": {}, "drifting": [OTHER]}
    watcher(finished(partition=5))
    assert "f-run1:slack" not in watcher.entries
    watcher.dispatch.forget(PARTITION)
    assert watcher.dispatch.state(PARTITION) == {"runs": {}, "drifting": []}
    assert watcher.dispatch.state(5)["drifting"] == [OTHER]
    watcher(finished(), finished(partition=5))
    assert "f-run1:slack" not in watcher.entries
    watcher.dispatch.forget(7)


def test_what_is_restored_replaces_what_was_remembered(settings):
    watcher = Watcher(settings, 210.0)(verdict(), decision())
    watcher.dispatch.restore(PARTITION, {"runs": {"run9": {"incident": "inc9", "acted": True}}, "drifting": []})
    assert list(watcher.dispatch.state(PARTITION)["runs"]) == ["run9"]
    with pytest.raises(TypeError):
        watcher.dispatch.restore(PARTITION, {"of": "another version"})


def test_the_runs_it_remembers_are_the_newest_and_bounded(settings, monkeypatch):
    monkeypatch.setattr("streaming.dispatch._REMEMBERED", 3)
    watcher = Watcher(settings, 210.0)(*(decision(number=number) for number in range(1, 6)))
    assert list(watcher.dispatch.state(PARTITION)["runs"]) == ["run3", "run4", "run5"]
    successor = watcher.successor(220.0)(decision(number=6))
    assert list(successor.dispatch.state(PARTITION)["runs"]) == ["run4", "run5", "run6"]


def test_a_successor_without_the_state_folder_still_tells_the_end_of_a_run(settings, elsewhere):
    successor = Watcher(settings, 210.0)(decision()).successor(310.0, settings=elsewhere)
    assert successor.incidents == []
    successor(finished())
    message = successor.entries["f-run1:slack"].payload
    assert "is live" in message["text"]
    # There is no record of it here, so none is named.
    assert "incident" not in orjson.dumps(message["blocks"]).decode()
    assert successor.incidents == []


def test_a_successor_without_the_state_folder_says_nothing_of_a_run_that_was_not_acted_upon(settings, elsewhere):
    old = Watcher(settings, 200.0 + 3601)(decision())
    assert old.dispatch.state(PARTITION)["runs"] == {"run1": {"incident": "inc1", "acted": False}}
    assert old.successor(3900.0, settings=elsewhere)(finished(time=3850.0)).keys == []


@pytest.mark.parametrize("broken", ["folder", "record"])
def test_a_record_that_cannot_be_written_costs_the_record_and_the_report_not_the_run(settings, version, caplog, broken):
    if broken == "folder":
        settings.state.mkdir(exist_ok=True)
        (settings.state / "incidents").write_text("")
    else:
        (settings.state / "incidents" / "inc1").mkdir(parents=True)
        (settings.state / "incidents" / "inc1" / "incident.json").write_text("{")
    watcher = Watcher(settings, 310.0)(decision())
    assert watcher.keys == ["run1", "d1:slack", "d1:webhook"]
    watcher(finished())
    assert watcher.keys[3:] == ["f-run1:slack"]
    assert watcher.journal() == ["d1", "f-run1"]
    assert "the incident is not recorded: " in caplog.text
    # Where the record can be written the report is rendered.
    shutil.rmtree(settings.state / "incidents") if broken == "record" else (settings.state / "incidents").unlink()
    assert "inc2:report" in watcher(decision(number=2)).entries


def changes(caplog):
    return [record.getMessage() for record in caplog.records if ": window " in record.getMessage()]


def test_a_change_is_logged_once_also_by_a_successor(settings, caplog):
    caplog.set_level(logging.INFO)
    watcher = Watcher(settings, 210.0)(verdict(number=1, drift=False), verdict(number=2), verdict(number=3))
    successor = watcher.successor(220.0)(verdict(number=4), verdict(number=4, model=OTHER, drift=False), verdict(number=5, drift=False))
    successor = successor.successor(230.0)(verdict(number=6, drift=False), verdict(number=7, model=OTHER))
    assert changes(caplog) == [
        "default/iris version 1: window 2 is over the limit (evidently ks)",
        "default/iris version 1: window 5 is within its limits again",
        "default/wine version 1: window 7 is over the limit (evidently ks)",
    ]
    assert successor.dispatch.state(PARTITION)["drifting"] == [OTHER]


@pytest.mark.parametrize(("kind", "level"), [("unmonitored", "ERROR"), ("restarted", "WARNING"), ("promoted", "INFO")])
def test_a_notice_is_logged_and_recorded_and_starts_nothing(settings, caplog, kind, level):
    caplog.set_level(logging.INFO)
    data = {"reason": "no reference", "previous": "1"}
    watcher = Watcher(settings, 210.0)(Notice(kind, "n1", MODEL, "2", 200.0, data, PARTITION))
    (record,) = [record for record in caplog.records if record.name == "streaming.dispatch"]
    assert record.levelname == level and MODEL in record.getMessage()
    assert ("version 2 took over from 1" if kind == "promoted" else "no reference") in record.getMessage()
    assert watcher.keys == [] and watcher.journal() == ["n1"]


def test_what_was_decided_and_done_is_not_done_again_by_a_successor_that_reads_it(settings):
    """From the decision to its end on the log, over a crash in between."""
    before = Watcher(settings, 210.0)
    snapshot = orjson.loads(before.snapshot())
    before(decision())
    for kind in ("slack", "webhook"):
        entry = before.outbox.take(210.0, kind)
        before.outbox.done(entry)
    after = Watcher(settings, 220.0, entries=snapshot[0], memory=snapshot[1])(decision())
    for event in before.events:
        after.outbox.read(PARTITION, event)
    assert after.keys == ["run1"]
    assert [end["key"] for end in told_ends(before.events)] == ["d1:slack", "d1:webhook"]


def test_before_the_first_readable_row_there_is_nothing_to_report_on(settings, version):
    watcher = Watcher(settings, 210.0)(decision(evidence={"x": (), "prediction": ()}))
    assert sorted(entry.kind for entry in watcher.entries.values()) == ["retrain", "slack", "webhook"]
