"""Runs as detached processes: started once, watched by their locks, and seen for what they are when they were killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inference.errors import PipelineError
from inference.log import open_log
from inference.versions import PREDICTION, Feature, Repository, Schema
from pipelines.deploy import Candidate
from pipelines.deploy.local import LocalTarget
from pipelines.steps import FAILURE, LOCK, STEP_LOCK, is_locked
from pipelines.submit import LocalRunner, RunRequest, RunState, run_local

ROOT = Path(__file__).parent.parent
MODEL = "default/flowers"


def waiting(tmp_path: Path, run_id: str = "run-1", seconds: float = 90.0) -> RunRequest:
    """A run whose first step waits for labels that never come."""
    import joblib
    import pandas
    from sklearn.linear_model import LogisticRegression

    repository = Repository(tmp_path / "repository")
    if repository.current(MODEL) is None:
        rows = pandas.DataFrame({"a": [0.0, 1.0]})
        joblib.dump(LogisticRegression().fit(rows, [0, 1]), tmp_path / "m.joblib")
        rows.assign(**{PREDICTION: [0, 1]}).to_parquet(tmp_path / "r.parquet")
        schema = Schema((Feature("a", "numeric"),), "categorical", "kind")
        LocalTarget(repository.root).deploy(Candidate(MODEL, "r", tmp_path / "m.joblib", tmp_path / "r.parquet", schema), expected=None)
        open_log(str(tmp_path / "log.db")).close()
    parameters = {"data": str(tmp_path / "log.db"), "repository": str(repository.root), "wait_seconds": seconds}
    return RunRequest(run_id, MODEL, parameters)


def failing(run_id: str = "run-1") -> RunRequest:
    return RunRequest(run_id, MODEL, {"data": "no-such-table.csv", "repository": "nowhere"})


def until(condition, seconds=40.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def ended(runner: LocalRunner, run_id: str) -> RunState:
    until(lambda: runner.state(run_id).state != "running")
    return runner.state(run_id)


@pytest.fixture
def runner(tmp_path):
    runner = LocalRunner(tmp_path / "runs")
    yield runner
    for folder in (tmp_path / "runs").glob("*"):
        runner.stop(folder.name)


def attempt(runner, run_id="run-1"):
    return json.loads((runner.folder(run_id) / "attempt.json").read_text())


def test_a_run_that_was_never_started_is_unknown(runner):
    assert runner.state("nobody") == RunState("unknown")


@pytest.mark.parametrize("run_id", ["", "..", "a/b", "x" * 200, ".hidden"])
def test_a_run_id_that_is_no_folder_name_is_refused(runner, run_id):
    with pytest.raises(PipelineError, match="is no run id"):
        runner.start(failing(run_id))


def test_a_wrong_parameter_is_told_before_anything_starts(runner):
    with pytest.raises(PipelineError, match="'colour' is no parameter"):
        runner.start(RunRequest("run-1", MODEL, {"data": "t.csv", "repository": "r", "colour": "red"}))
    assert runner.state("run-1").state == "unknown"


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PipelineError, match="cannot be written"):
        LocalRunner(tmp_path / "file").start(failing())


def test_a_step_that_raises_fails_the_run_with_its_own_words_and_the_run_is_not_begun_again(runner):
    runner.start(failing())
    assert runner.state("run-1").state == "running"
    state = ended(runner, "run-1")
    assert state.state == "failed" and state.started is not None
    assert state.error == "collect: no-such-table.csv: there is no such table; give a .csv or .parquet file, or an event log"
    until(lambda: not is_locked(runner.folder("run-1") / LOCK))  # its process is gone as well, not only its result there
    began = attempt(runner)
    runner.start(failing())
    assert attempt(runner) == began and runner.state("run-1") == state
    assert "Traceback" in (runner.folder("run-1") / "log.txt").read_text()


def test_a_run_is_started_once_seen_running_by_others_and_can_be_stopped(runner, tmp_path):
    request = waiting(tmp_path)
    runner.start(request)
    began = attempt(runner)
    until(lambda: is_locked(runner.folder("run-1") / STEP_LOCK))
    other = LocalRunner(tmp_path / "runs")
    other.start(request)
    assert attempt(runner) == began
    state = other.state("run-1")
    assert state.state == "running" and state.started == began["started"]
    other.stop("run-1")
    assert other.state("run-1") == RunState("failed", "the run was stopped", began["started"])
    assert not is_locked(runner.folder("run-1") / LOCK) and not is_locked(runner.folder("run-1") / STEP_LOCK)


def test_a_run_that_was_killed_has_failed_and_can_be_begun_again(runner, tmp_path):
    request = waiting(tmp_path, seconds=8.0)
    runner.start(request)
    first = attempt(runner)
    until(lambda: is_locked(runner.folder("run-1") / STEP_LOCK))
    os.kill(first["pid"], signal.SIGKILL)
    until(lambda: not is_locked(runner.folder("run-1") / LOCK))

    # The step at work outlives the run's process: until it ends the run is not over, and must not begin a second time.
    assert runner.state("run-1").state == "running"
    runner.start(request)
    assert attempt(runner) == first

    os.killpg(first["pid"], signal.SIGKILL)
    state = ended(runner, "run-1")
    assert state.state == "failed" and "ended without a result" in state.error and "log.txt" in state.error
    runner.start(request)
    assert attempt(runner)["pid"] != first["pid"] and runner.state("run-1").state == "running"
    state = ended(runner, "run-1")
    assert state.state == "failed" and "0 labelled rows" in state.error


def test_a_step_whose_run_is_gone_does_not_begin(tmp_path):
    (tmp_path / LOCK).write_text("")
    program = (
        "from pipelines.steps import report; report(model='a/b', run_id='r', state='SUCCEEDED', message='', gateway_url='', log_url='')"
    )
    environment = {**os.environ, "DRIFTLOOP_RUN_FOLDER": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "the run's process is gone" in done.stderr


def test_a_run_outlives_the_process_that_started_it(runner, tmp_path):
    program = (
        "from pathlib import Path; from pipelines.submit import LocalRunner, RunRequest; "
        f"LocalRunner(Path({str(tmp_path / 'runs')!r})).start("
        f"RunRequest('run-1', {MODEL!r}, {{'data': 'no-such-table.csv', 'repository': 'nowhere'}}))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    assert "no-such-table.csv" in ended(runner, "run-1").error


def test_a_run_by_hand_needs_no_runner_and_does_not_run_twice(runner, tmp_path):
    folder = tmp_path / "runs" / "run-1"
    folder.mkdir(parents=True)
    (folder / "request.json").write_text('{"run_id": "run-1"}')
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "pipelines.local_run", str(folder)], env=environment)
    assert done.returncode == 1
    assert "not a run's request" in runner.state("run-1").error
    assert not (folder / FAILURE).exists()


def test_a_run_past_its_time_is_stopped(tmp_path):
    request = waiting(tmp_path)
    _, state = run_local({"model": MODEL, **request.parameters}, folder=tmp_path / "runs", timeout=1.0)
    assert state.state == "failed" and state.error == "the run was stopped"
