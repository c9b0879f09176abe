"""The seam `Runner`, through which a retraining run is started and watched, and the runner for one machine.

Kubeflow on a cluster is another runner behind the same seam: it looks a run up by its id before it creates one.
"""

import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import uuid4

from inference.errors import PipelineError
from pipelines.local_run import LOG, REQUEST, RESULT, write_result
from pipelines.parameters import Value, checked
from pipelines.steps import LOCK, STEP_LOCK, is_locked

logger = logging.getLogger(__name__)

ATTEMPT = "attempt.json"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_GRACE = 5.0


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run to start. `parameters` are the pipeline's, without `model` and `run_id`; `description` is for people."""

    run_id: str
    model: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True, slots=True)
class RunState:
    """How a run stands; `error` says why it failed, `started` (seconds since 1970) when the last attempt began."""

    state: Literal["running", "succeeded", "failed", "unknown"]
    error: str = ""
    started: float | None = None


class Runner(Protocol):
    """Starts runs and knows how they stand. Runs outlive the process that started them."""

    def start(self, request: RunRequest) -> None:
        """Start the run unless it runs or ended; safe to repeat with the same `run_id`.

        PipelineError: the request is wrong, or nothing could be started.
        """
        ...

    def state(self, run_id: str) -> RunState:
        """How it stands; "unknown" when it was never started here. Never waits."""
        ...

    def stop(self, run_id: str) -> None:
        """End a run that runs (it then counts as failed); nothing otherwise."""
        ...


class LocalRunner:
    """Each run is a detached process that works in `folder`/RUN_ID (see local_run.py); its file locks tell whether it lives.

    A process that was killed leaves its lock free and no result: the run failed, and `start` begins it again.
    """

    def __init__(self, folder: Path, *, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is added to that of the runs: secrets go there, never into parameters, which are written down."""
        self._folder = Path(folder).resolve()
        self._extra = dict(environment or {})
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, request: RunRequest) -> None:
        folder = self.folder(request.run_id)
        checked({**request.parameters, "model": request.model, "run_id": request.run_id})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise PipelineError(f"{folder}: cannot be written: {error.strerror}") from error
        try:
            if not _take(descriptor):
                return
            # Asked under the lock: a run that ended a moment ago must not begin again.
            if not (folder / RESULT).exists() and not is_locked(folder / STEP_LOCK):
                self._spawn(folder, request, descriptor)
        finally:
            os.close(descriptor)

    def state(self, run_id: str) -> RunState:
        folder = self.folder(run_id)
        child = self._children.get(run_id)
        if child is not None and child.poll() is not None:
            del self._children[run_id]
        started = _read(folder / ATTEMPT).get("started")
        # The locks are asked first: a run writes its result before it lets go.
        alive = is_locked(folder / LOCK) or is_locked(folder / STEP_LOCK)
        result = _read(folder / RESULT)
        if result:
            return RunState("succeeded" if result.get("state") == "succeeded" else "failed", str(result.get("error", "")), started)
        if alive:
            return RunState("running", "", started)
        if started is None:
            return RunState("unknown")
        return RunState("failed", f"the run's process ended without a result (killed?); its output is in {folder / LOG}", started)

    def stop(self, run_id: str) -> None:
        folder = self.folder(run_id)
        pid = _read(folder / ATTEMPT).get("pid")
        if (folder / RESULT).exists() or not isinstance(pid, int):
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            # While a lock is held, a process of the group lives, and the group's number cannot be another's.
            if not self._alive(folder):
                break
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                break
            self._await_end(run_id, folder)
        if not (folder / RESULT).exists():
            write_result(folder, "the run was stopped")

    def folder(self, run_id: str) -> Path:
        """Where this run works."""
        if not _RUN_ID.fullmatch(run_id):
            raise PipelineError(f"{run_id[:80]!r} is no run id (letters, digits, '.', '_' and '-', at most 128)")
        return self._folder / run_id

    def _spawn(self, folder: Path, request: RunRequest, descriptor: int) -> None:
        document = {
            "run_id": request.run_id,
            "model": request.model,
            "parameters": dict(request.parameters),
            "description": request.description,
        }
        try:
            (folder / REQUEST).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            with (folder / LOG).open("ab") as output:
                process = subprocess.Popen(  # noqa: S603 - our own module, arguments as a list
                    [sys.executable, "-m", "pipelines.local_run", str(folder), "--lock-fd", str(descriptor)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(descriptor,),
                    start_new_session=True,
                    env={**_environment(), **self._extra},
                )
            attempt = {"pid": process.pid, "started": time.time()}
            (folder / ATTEMPT).write_text(json.dumps(attempt) + "\n", encoding="utf-8")
        except OSError as error:
            raise PipelineError(f"{folder}: the run could not be started: {error}") from error
        self._children[request.run_id] = process
        logger.info("%s: run %s started in %s", request.model, request.run_id, folder)

    def _alive(self, folder: Path) -> bool:
        return is_locked(folder / LOCK) or is_locked(folder / STEP_LOCK)

    def _await_end(self, run_id: str, folder: Path) -> None:
        deadline = time.monotonic() + _GRACE
        while self._alive(folder) and time.monotonic() < deadline:
            time.sleep(0.05)
        child = self._children.get(run_id)
        if child is not None:
            child.poll()


def run_local(
    parameters: Mapping[str, Value], *, folder: Path, timeout: float | None = None, run_id: str | None = None
) -> tuple[str, RunState]:
    """Run the pipeline once on this machine and wait: the run's id and how it ended. `parameters` holds `model` as well.

    When `timeout` seconds pass, the run is stopped and counts as failed. Its output is in `folder`/RUN_ID/log.txt.
    """
    given = dict(parameters)
    model = str(given.pop("model", ""))
    id_ = run_id or str(given.pop("run_id", "")) or str(uuid4())
    given.pop("run_id", None)
    runner = LocalRunner(folder)
    runner.start(RunRequest(id_, model, given, "run by hand"))
    deadline = time.monotonic() + timeout if timeout is not None else None
    try:
        while (state := runner.state(id_)).state == "running":
            if deadline is not None and time.monotonic() >= deadline:
                runner.stop(id_)
            time.sleep(0.05)
    except KeyboardInterrupt:
        runner.stop(id_)
        raise
    return id_, state


def _take(descriptor: int) -> bool:
    """Whether the lock is ours now; one that is held for a moment only is somebody asking for the run's state."""
    for _ in range(5):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return True
    return False


def _environment() -> dict[str, str]:
    """Ours, and a path on which the run's process and its steps find these packages when they are not installed."""
    home = Path(__file__).resolve().parents[1]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if home.name not in ("site-packages", "dist-packages"):
        paths.insert(0, str(home))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)} if paths else dict(os.environ)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
