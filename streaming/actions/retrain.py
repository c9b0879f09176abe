"""Retrain: starts a retraining run and follows it until it has ended.

The pipeline itself tells the log how the run ended. A run that cannot be started, dies without a word, vanishes, or takes
too long tells nothing: then this does, with the event and the id that the pipeline would have used, so that the governor
never waits for a run that is no more, and a reader that sees both takes them as one.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from inference.errors import ActionError
from inference.event import Event
from pipelines.publish import finished
from pipelines.submit import Runner, RunRequest
from streaming.actions.outbox import Done, Entry, Later, Result
from streaming.actions.worker import Policy

log = logging.getLogger(__name__)

POLICY = Policy(attempts=10, max_age=float("inf"))
"""For the worker. A run's entry never expires: `max_run` ends it, and its end must be told."""

_MAX_TEXT = 500
_TOLD_IN_VAIN = 5.0


def retrain_payload(
    run_id: str, model: str, parameters: Mapping[str, Any], description: str, *, metric: str = "accuracy", margin: float = 0.0
) -> dict[str, Any]:
    """An entry's payload; `metric` and `margin` only appear in the event of a failure."""
    named = {"metric": metric, "margin": margin}
    return {"run_id": run_id, "model": model, "parameters": dict(parameters), "description": description, **named}


@dataclass(frozen=True, slots=True)
class Retrain:
    """Performs entries of kind "retrain" (payload: `retrain_payload`): start, look again every `poll` seconds, stop after `max_run`.

    `publish` appends an event to the log. A start that fails is tried `start_attempts` times. A run that the runner does not
    know for `vanished_after` seconds after it was started has vanished. While the runner itself is away, a started run has
    until `max_run`.
    """

    runner: Runner
    publish: Callable[[Event], object]
    max_run: float = 3600.0
    poll: float = 1.0
    start_attempts: int = 5
    vanished_after: float = 10.0
    clock: Callable[[], float] = time.time

    def __call__(self, entry: Entry) -> Result:
        memory: dict[str, Any] = orjson.loads(entry.note) if entry.note else {}
        if "failure" not in memory:
            try:
                return self._follow(entry.payload, memory)
            except _Failed as failed:
                memory["failure"] = failed.reason
            except Exception as error:  # noqa: BLE001 - whatever a runner raises, the run's end must be told in the end
                if not self._given_up(entry, memory, error):
                    return self._again(entry, memory, error)
        return self._tell_failure(entry, memory)

    def _follow(self, payload: Mapping[str, Any], memory: dict[str, Any]) -> Result:
        run_id = payload["run_id"]
        run = self.runner.state(run_id)
        now = self.clock()
        if run.state == "succeeded":
            return Done(f"run {run_id} succeeded")
        if run.state == "failed":
            raise _Failed(run.error or "the run failed and left no reason")
        if run.state == "unknown":
            if "started" not in memory:
                self.runner.start(RunRequest(run_id, payload["model"], payload["parameters"], payload["description"]))
                log.info("%s: retraining run %s started", payload["model"], run_id)
                return self._later(memory | {"started": now})
            missing = memory.setdefault("missing", now)
            if now - missing >= self.vanished_after:
                raise _Failed("the run vanished: its runner no longer knows it")
            return self._later(memory)
        memory.pop("missing", None)
        # A crash between start and note leaves a run without a start; then it counts from here.
        if now - memory.setdefault("started", now) > self.max_run:
            self.runner.stop(run_id)
            raise _Failed(f"the run took longer than {self.max_run:g} s and was stopped")
        return self._later(memory)

    def _given_up(self, entry: Entry, memory: dict[str, Any], error: Exception) -> bool:
        if "started" in memory:
            if self.clock() - memory["started"] <= self.max_run:
                return False
            memory["failure"] = f"the run could not be followed to its end: {error}"
        else:
            may_retry = not isinstance(error, ActionError) or error.retry
            if may_retry and entry.attempts + 1 < self.start_attempts:
                return False
            memory["failure"] = f"the run could not be started: {error}"
        return True

    def _again(self, entry: Entry, memory: dict[str, Any], error: Exception) -> Result:
        if "started" not in memory:
            raise ActionError(f"run {entry.payload['run_id']} cannot be started: {type(error).__name__}: {error}") from error
        log.info("run %s cannot be looked at: %s", entry.payload["run_id"], error)
        return Later(self.poll * 5, _note(memory))

    def _tell_failure(self, entry: Entry, memory: dict[str, Any]) -> Result:
        payload, reason = entry.payload, str(memory["failure"])[:_MAX_TEXT]
        memory["failure"] = reason
        try:
            self.publish(self._finished(payload, reason))
        except Exception as error:  # noqa: BLE001 - the log will be back; until then the failure must not be forgotten
            if not memory.get("told_in_vain"):
                log.warning("run %s failed (%s), and the log cannot be told: %s; trying on", payload["run_id"], reason, error)
            memory["told_in_vain"] = True
            return Later(_TOLD_IN_VAIN, _note(memory))
        log.warning("%s: retraining run %s failed: %s", payload["model"], payload["run_id"], reason)
        return Done(f"failed: {reason}")

    def _finished(self, payload: Mapping[str, Any], reason: str) -> Event:
        told = {"reason": reason, "metric": payload["metric"], "margin": payload["margin"]}
        return finished(payload["model"], payload["run_id"], "failed", told, now=self.clock())

    def _later(self, memory: Mapping[str, Any]) -> Result:
        return Later(self.poll, _note(memory))


class _Failed(Exception):
    """The run has ended without telling so."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _note(memory: Mapping[str, Any]) -> str:
    return orjson.dumps(memory).decode()
