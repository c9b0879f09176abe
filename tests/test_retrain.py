"""Following a retraining run to its end, and telling the log when nobody else does."""

from typing import Any

import orjson

from inference.errors import ActionError, LogUnavailable
from inference.event import RETRAINING_FINISHED, Event, deterministic_id
from pipelines.publish import SOURCE
from pipelines.submit import RunState
from streaming.actions.outbox import MAX_NOTE
from streaming.actions.retrain import POLICY, Retrain, retrain_payload
from streaming.actions.worker import Worker
from streaming.testing import StandInRunner, open_outbox, put, told_ends


class Loop:
    """An outbox with one retraining entry, a worker, a log that can be away, and a clock that jumps to the next try."""

    def __init__(self, runner: StandInRunner, **options: Any) -> None:
        self.runner, self.now = runner, 1_000_000.0
        self.log: list[Event] = []
        self.log_away = 0
        self.options = options
        self.start([])
        payload = retrain_payload("run-1", "default/iris", {"rows": 300}, "drift in petal", metric="f1", margin=0.02)
        put(self.outbox, "run-1", "retrain", payload, now=self.now)

    def start(self, state: list[dict[str, Any]]) -> None:
        self.ends: list[Event] = []
        self.outbox = open_outbox(self.ends, state=state, clock=lambda: self.now)
        retrain = Retrain(self.runner, self.publish, clock=lambda: self.now, **self.options)
        self.worker = Worker(self.outbox, {"retrain": retrain}, policies={"retrain": POLICY}, clock=lambda: self.now, chance=lambda: 0.0)

    def restart(self) -> None:
        """A new process with the newest snapshot."""
        self.start(orjson.loads(orjson.dumps(self.outbox.state(0))))

    def publish(self, event: Event) -> None:
        if self.log_away:
            self.log_away -= 1
            raise LogUnavailable("the log is locked")
        self.log.append(event)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            for entry in self.outbox.entries():
                self.now = max(self.now, entry.next_at)
            self.worker.run_due()

    @property
    def pending(self) -> bool:
        return bool(self.outbox.entries()) and not self.ends

    @property
    def end(self) -> tuple[str, str]:
        assert not self.outbox.entries()
        (end,) = told_ends(self.ends)
        return end["end"], end["note"]

    def failure(self) -> str:
        """The reason in the one event on the log."""
        (event,) = self.log
        assert (event.type, event.id, event.source, event.model) == (
            RETRAINING_FINISHED,
            deterministic_id("finished", "run-1"),
            SOURCE,
            "default/iris",
        )
        body = orjson.loads(event.data)
        reason = body.pop("reason")
        assert body == {
            "model": "default/iris",
            "run_id": "run-1",
            "outcome": "failed",
            "version": "",
            "champion": None,
            "challenger": None,
            "metric": "f1",
            "margin": 0.02,
            "rows": 0,
        }
        # The note of an end is cut where an event's body would grow without bound.
        assert self.end == ("done", f"failed: {reason}"[:MAX_NOTE])
        return str(reason)


def test_a_run_is_started_once_followed_and_done_without_an_event_of_ours() -> None:
    runner = StandInRunner()
    loop = Loop(runner)
    loop.step(5)
    (request,) = runner.started
    assert (request.run_id, request.model, request.parameters, request.description) == (
        "run-1",
        "default/iris",
        {"rows": 300},
        "drift in petal",
    )
    assert loop.pending
    runner.states["run-1"] = RunState("succeeded", "")
    loop.step()
    assert loop.end == ("done", "run run-1 succeeded")
    assert loop.log == []


def test_a_restarted_watcher_follows_the_run_that_is_there() -> None:
    runner = StandInRunner()
    runner.states["run-1"] = RunState("running", "")
    loop = Loop(runner)
    loop.step(3)
    loop.restart()
    loop.step(3)
    assert runner.started == []
    assert loop.pending


def test_a_failed_run_is_told_with_its_reason() -> None:
    runner = StandInRunner()
    loop = Loop(runner)
    loop.step(2)
    runner.states["run-1"] = RunState("failed", "train: it broke " + "x" * 5000)
    loop.step()
    reason = loop.failure()
    assert reason.startswith("train: it broke") and len(reason) == 500


def test_a_run_that_vanishes_is_told_but_a_moment_out_of_sight_is_not() -> None:
    runner = StandInRunner()
    loop = Loop(runner, vanished_after=10.0)
    loop.step(2)
    kept = runner.states.pop("run-1")
    loop.step(8)
    runner.states["run-1"] = kept
    loop.step(5)
    del runner.states["run-1"]
    loop.step(8)
    assert loop.pending
    loop.step(6)
    assert "vanished" in loop.failure()
    assert len(runner.started) == 1


def test_a_run_that_vanishes_right_after_its_start_is_not_started_again() -> None:
    runner = StandInRunner()
    loop = Loop(runner)
    loop.step()
    runner.states.clear()
    loop.step(12)
    assert "vanished" in loop.failure()
    assert len(runner.started) == 1


def test_a_run_that_takes_too_long_is_stopped_and_told() -> None:
    runner = StandInRunner()
    loop = Loop(runner, max_run=20.0)
    loop.step(21)
    assert runner.stopped == []
    loop.step(3)
    assert runner.stopped == ["run-1"]
    assert "longer than 20 s" in loop.failure()


def test_the_age_of_a_run_counts_from_its_start_not_from_the_decision() -> None:
    runner = StandInRunner()
    loop = Loop(runner, max_run=20.0)
    loop.now += 500_000.0
    loop.step(10)
    assert loop.pending
    assert len(runner.started) == 1 and runner.stopped == []


def test_a_start_that_fails_is_tried_again() -> None:
    runner = StandInRunner(start_errors=[OSError("no process"), ActionError("no route")])
    loop = Loop(runner, start_attempts=5)
    loop.step(4)
    assert len(runner.started) == 1
    assert loop.pending and loop.log == []


def test_a_start_that_fails_for_good_is_told() -> None:
    runner = StandInRunner(start_errors=[OSError("no process")] * 9)
    loop = Loop(runner, start_attempts=3)
    loop.step(3)
    assert loop.failure() == "the run could not be started: no process"
    assert len(runner.start_errors) == 6


def test_a_start_that_another_try_cannot_help_is_told_at_once() -> None:
    loop = Loop(StandInRunner(start_errors=[ActionError("no such pipeline", retry=False)]))
    loop.step()
    assert loop.failure() == "the run could not be started: no such pipeline"


def test_while_the_runner_is_away_a_started_run_is_not_given_up_before_its_time() -> None:
    runner = StandInRunner()
    loop = Loop(runner, max_run=100.0)
    loop.step(2)
    runner.state_error = OSError("connection refused")
    loop.step(18)
    assert loop.pending and loop.log == []
    runner.state_error = None
    loop.step()
    assert loop.pending
    runner.state_error = OSError("connection refused")
    loop.step(5)
    assert loop.failure() == "the run could not be followed to its end: connection refused"


def test_a_failure_is_told_when_the_log_is_back_even_after_a_restart() -> None:
    runner = StandInRunner()
    loop = Loop(runner)
    loop.step(2)
    runner.states["run-1"] = RunState("failed", "out of memory")
    loop.log_away = 30
    loop.step(20)
    assert loop.pending
    runner.states.clear()
    loop.restart()
    loop.step(11)
    assert loop.failure() == "out of memory"
    assert len(runner.started) == 1
