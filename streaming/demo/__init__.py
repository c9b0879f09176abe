"""The whole loop on one machine: a model is trained and served, its traffic drifts, and a better one takes over.

Nothing here is simulated but the clients: gateway, predictor and watcher are the real commands in processes of their own,
and both training runs are the compiled Kubeflow pipeline, executed by kfp.local.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from inference.errors import PipelineError, ServiceError
from streaming.demo.log import made_log
from streaming.demo.observed import Observed
from streaming.demo.processes import Processes, answers, free_ports
from streaming.demo.result import accuracy, closed, quiet, since, told
from streaming.demo.traffic import FEATURES, TARGET, Traffic, iris
from streaming.demo.view import View, make_view, slack_text
from streaming.testing import Receiver

MODEL = "default/iris-sklearn"
NAME = MODEL.partition("/")[2]
QUIET = 500
QUIET_WITHOUT_DRIFT = 900
RATE = 60.0
LABEL_LAG = 1.5
STABLE_VERDICTS = 5
_MARK = ".driftloop-demo"

_SETTINGS = """\
# Written by `driftloop demo`: a small window and a short memory, so that the loop closes within a minute.
log: {log}
repository: models
state: state
models:
  {model}:
    window: {{size: 100, slide: 20}}
    limits:
      - {{kind: budget, false_alarms: 1 per 100k events}}
    governor: {{min_samples: 200, cooldown: 2m}}
    retraining:
      min_rows: 150
      wait: 60s
      margin: 0.02
      reference_rows: 500
      server_url: {server}
      gateway_url: {gateway}
alerts:
  slack: {{webhook: "${{DRIFTLOOP_DEMO_SLACK}}"}}
"""


def run_demo(folder: Path, *, drift: bool, slack_webhook: str | None, log: str | None, as_json: bool, seed: int) -> int:
    """0 when the loop closed (or, without drift, stayed quiet), 1 when it did not."""
    started = time.monotonic()
    _prepare(folder)
    for name in ("NO_PROXY", "no_proxy"):
        # Everything but Slack stays on this machine; a proxy would be asked for 127.0.0.1 otherwise.
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    with ExitStack() as stack:
        view = stack.enter_context(make_view(plain=as_json))
        demo = Demo(folder.resolve(), view, stack, slack_webhook or os.environ.get("SLACK_WEBHOOK"), seed, made_log(log, folder.resolve()))
        result = demo.run(drift=drift)
    result["wall_seconds"] = round(time.monotonic() - started, 1)
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        sys.stdout.write(told(result, folder))
    return 0 if (closed(result) if drift else quiet(result)) else 1


def _prepare(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).exists():
        raise ServiceError(f"{folder} is not empty and no demo's folder; give another with --folder")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / _MARK).touch()
    except OSError as error:
        raise ServiceError(f"{folder} cannot be written: {error.strerror}; give another with --folder") from error


class Demo:
    """One run of the story; everything it starts is ended by `stack`."""

    def __init__(self, folder: Path, view: View, stack: ExitStack, slack_webhook: str | None, seed: int, log: str) -> None:
        self._folder = folder
        self._log = log
        self._view = view
        self._stack = stack
        self._observed = Observed(folder / "state")
        self._processes = stack.enter_context(Processes(folder / "logs"))
        self._receiver = None if slack_webhook else stack.enter_context(Receiver())
        self._slack = slack_webhook or (self._receiver.url() if self._receiver else "")
        self._server, self._gateway = (f"http://127.0.0.1:{port}" for port in free_ports(2))
        self._traffic = Traffic(
            f"{self._server}/v1/models/{NAME}:predict", f"{self._gateway}/", model=MODEL, seed=seed, rate=RATE, label_lag=LABEL_LAG
        )
        self._phase = "starting"
        self._shown = 0

    def run(self, *, drift: bool) -> dict[str, Any]:
        self._start()
        enough = QUIET if drift else QUIET_WITHOUT_DRIFT
        self._phase = "quiet traffic"
        self._view.tell(f"clients send real iris rows, {RATE:.0f} a second; their labels follow {LABEL_LAG:g} s later")
        self._wait(f"{enough} quiet predictions", lambda: len(self._traffic.answers) >= enough, 120)
        if drift and not self._observed.acted:
            self._drift()
        self._traffic.stop()
        self._wait("the watcher caught up", lambda: bool(self._observed.status.get("caught_up")), 30)
        report = self._report()
        return self._result(report, drift=drift)

    def _start(self) -> None:
        gateway_port, server_port = (url.rpartition(":")[2] for url in (self._gateway, self._server))
        config = self._folder / "driftloop.yaml"
        config.write_text(_SETTINGS.format(log=self._log, model=MODEL, server=self._server, gateway=self._gateway), encoding="utf-8")
        self._processes.start("gateway", ["gateway", "--log", self._log, "--spool", str(self._folder / "spool"), "--port", gateway_port])
        self._processes.wait_for("the gateway's first answer", lambda: answers(f"{self._gateway}/healthz"), 30)
        self._first_version()
        serving = ["serve", "--repository", str(self._folder / "models"), "--model", MODEL, "--port", server_port]
        self._processes.start("serve", [*serving, "--tap", f"{self._gateway}/", "--predict-log", str(self._folder / "predict_log.json")])
        self._processes.start("watch", ["watch", "--config", str(config)], {"DRIFTLOOP_DEMO_SLACK": self._slack})
        self._processes.wait_for("the predictor's first answer", lambda: answers(f"{self._server}/v1/models/{NAME}"), 60)
        self._wait("the watcher's start", lambda: self._observed.promoted("1") is not None, 60)
        self._view.tell("gateway, predictor (KServe's ModelServer) and watcher run")
        self._traffic.start()

    def _first_version(self) -> None:
        """Version 1 from the data set, by the pipeline that retrains later."""
        import pandas

        from pipelines.submit import run_local

        features, species = iris()
        table = self._folder / "iris.csv"
        pandas.DataFrame(features, columns=list(FEATURES)).assign(**{TARGET: species}).to_csv(table, index=False)
        parameters: dict[str, str | int | float | bool] = {
            "model": MODEL,
            "data": str(table),
            "repository": str(self._folder / "models"),
            "target": TARGET,
            "reference_rows": 500,
            "gateway_url": self._gateway,
        }
        self._view.tell("the compiled pipeline trains version 1 (kfp.local): collect, train, evaluate, deploy")
        run_id, state = run_local(parameters, folder=self._folder / "state" / "runs", timeout=120)
        if state.state != "succeeded":
            raise PipelineError(f"training version 1 failed: {state.error}; see {self._folder / 'state' / 'runs' / run_id / 'log.txt'}")

    def _drift(self) -> None:
        self._phase = "drifted traffic"
        self._traffic.drift()
        self._view.tell("two lengths now arrive in inches, and the mix of species shifts")
        self._wait("a decision", lambda: bool(self._observed.acted), 60)
        decision = self._observed.acted[0]
        self._phase = "retraining"
        self._view.tell(f"DRIFT: {decision['reason']}; run {decision['run_id']} starts")
        self._wait("the end of the run", lambda: self._observed.finished(decision["run_id"]) is not None, 240)
        end = self._observed.finished(decision["run_id"])
        version = end["data"]["version"] if end else ""
        self._phase = "watching the new version"
        if not version:
            return
        self._view.tell(f"version {version} took over: {end['data']['reason'] if end else ''}")
        self._wait("stable windows", lambda: len(self._observed.verdicts_of(version)) >= STABLE_VERDICTS, 90)
        self._view.tell(f"{STABLE_VERDICTS} windows of version {version} judged against its own reference")

    def _report(self) -> str | None:
        """Where Evidently's report of the first incident lies, when there is an incident."""
        if not self._observed.acted:
            return None
        self._phase = "rendering the report"
        incident = self._folder / "state" / "incidents" / self._observed.acted[0]["incident"]
        self._wait("Evidently's report", (incident / "report.html").exists, 150)
        return str(incident / "report.html")

    def _wait(self, what: str, ready: Callable[[], bool], timeout: float) -> None:
        """Wait, while the view is kept up to date; ServiceError when something died or it takes too long."""

        def look() -> bool:
            self._look()
            return ready()

        self._processes.wait_for(what, look, timeout)

    def _look(self) -> None:
        if self._traffic.error:
            raise ServiceError(f"the clients failed: {self._traffic.error}; see {self._folder / 'logs'}")
        self._observed.poll()
        model = self._observed.model(MODEL)
        messages = self._receiver.requests if self._receiver else []
        for message in messages[self._shown :]:
            for line in slack_text(message.json()):
                self._view.tell(line)
        self._shown = len(messages)
        self._view.show(
            {
                "phase": self._phase,
                "events": len(self._traffic.answers),
                "labels": self._traffic.labels,
                "version": model.get("version"),
                "run": self._run_state(),
                "slack": self._slack_messages(),
                "verdict": model.get("verdict"),
            }
        )

    def _run_state(self) -> str:
        if not self._observed.acted:
            return "none"
        end = self._observed.finished(self._observed.acted[0]["run_id"])
        return str(end["data"]["outcome"]) if end else "running"

    def _slack_messages(self) -> int:
        if self._receiver:
            return len(self._receiver.requests)
        return int(self._observed.status.get("actions", {}).get("slack", {}).get("done", 0))

    def _result(self, report: str | None, *, drift: bool) -> dict[str, Any]:
        answered, acted = self._traffic.answers, self._observed.acted
        began = next((number for number, answer in enumerate(answered, 1) if answer.drifted), None)
        decision = next((one for one in acted if began is not None and one["verdict"]["predictions"] >= began), None)
        end = self._observed.finished(decision["run_id"]) if decision else None
        took_over = self._observed.promoted(end["data"]["version"]) if end and end["data"]["version"] else None
        first = answered[began - 1].sent if began else None
        after = self._observed.verdicts_of(took_over["version"]) if took_over else []
        before_take_over = [one for one in answered if one.drifted and (took_over is None or one.sent < took_over["time"])]
        since_take_over = [one for one in answered if took_over is not None and one.sent > took_over["time"]]
        if self._slack:
            self._wait("Slack's messages", lambda: self._slack_messages() >= len(acted) + (end is not None), 20)
        return {
            "drift": drift,
            "events": len(answered),
            "labels": self._traffic.labels,
            "drift_began_at_event": began,
            "drift_detected_at_event": decision["verdict"]["predictions"] if decision else None,
            "false_alarms": len([one for one in acted if one is not decision]),
            "detection_seconds": since(first, decision["verdict"]["window"]["last_time"] if decision else None),
            "promotion_seconds": since(first, took_over["time"] if took_over else None),
            "run_state": end["data"]["outcome"] if end else ("running" if decision else "none"),
            "run_id": decision["run_id"] if decision else None,
            "promoted_version": took_over["version"] if took_over else None,
            "accuracy_before": accuracy(before_take_over),
            "accuracy_after": accuracy(since_take_over),
            "slack_messages": self._slack_messages(),
            "windows_judged": len(self._observed.verdicts),
            "stable_after_promotion": len(after) >= STABLE_VERDICTS and not any(verdict["drift"] for verdict in after),
            "report_path": report,
        }
