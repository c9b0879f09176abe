"""From an outcome to actions: the journal's line, the incident's record, and entries in the outbox.

Every entry's key is made of the outcome's id, so an outcome that comes again after a restart starts nothing again.
"""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inference.errors import VersionError
from inference.versions import Repository
from streaming.actions.incident import incident_folder, open_incident, update_incident
from streaming.actions.outbox import Item, Outbox
from streaming.actions.retrain import retrain_payload
from streaming.actions.slack import drift_message, outcome_message
from streaming.actions.webhook import webhook_payload
from streaming.core.verdict import Decision, Notice, Outcome, Verdict, as_object
from streaming.journal import Journal
from streaming.report import report_payload
from streaming.settings import RetrainingSettings, Settings

log = logging.getLogger(__name__)

_REMEMBERED = 1000
"""Decisions whose run may still end."""


class Dispatch:
    """Makes each outcome durable: when a call returns, what is to be done about it is on disk. ActionError: not now.

    A decision or notice whose place on the log is older than `settings.max_decision_age` is recorded and not acted upon: a
    watcher that first reads an old log must not retrain for what happened last week.
    """

    def __init__(self, settings: Settings, outbox: Outbox, journal: Journal, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._outbox = outbox
        self._journal = journal
        self._clock = clock
        self._repository = Repository(settings.repository)
        self._decisions: dict[str, Decision] = {}
        self._drifting: dict[str, bool] = {}

    def __call__(self, outcome: Outcome) -> None:
        if isinstance(outcome, Decision):
            self._decided(outcome)
        elif isinstance(outcome, Notice):
            self._noticed(outcome)
        else:
            self._log_change(outcome)
        self._journal.outcome(as_object(outcome))

    def _decided(self, decision: Decision) -> None:
        verdict = decision.verdict
        log.info("%s version %s: %s: %s", verdict.model, verdict.version, decision.action, decision.reason)
        if decision.run_id:
            # Kept whatever its age: the run's end may be news although its start is none.
            self._decisions[decision.run_id] = decision
            if len(self._decisions) > _REMEMBERED:
                del self._decisions[next(iter(self._decisions))]
        if decision.action == "hold" or self._too_old(decision.id, verdict.window.last_time):
            return
        reference = self._version_reference(verdict.model, verdict.version)
        now = self._clock()
        folder = open_incident(self._settings.state, decision, *reference[:1], schema=reference[1], now=now)
        links = {"record": str(folder / "incident.json")}
        message = drift_message(decision.as_dict(), links)
        items = []
        if decision.run_id:
            items.append(Item(decision.run_id, "retrain", self._run(decision)))
        if self._settings.alerts.slack:
            items.append(Item(f"{decision.id}:slack", "slack", message.payload()))
        if self._settings.alerts.webhook:
            items.append(Item(f"{decision.id}:webhook", "webhook", webhook_payload(decision, text=message.text)))
        if reference[0] is not None and reference[1] is not None:
            items.append(Item(f"{decision.incident}:report", "report", report_payload(decision.incident, reference[0], reference[1])))
        self._outbox.put_all(items, now=now)

    def _noticed(self, notice: Notice) -> None:
        if notice.kind == "unmonitored":
            log.error("%s version %s is not monitored: %s", notice.model, notice.version, notice.data["reason"])
            return
        log.info("%s: %s", notice.model, _told(notice))
        if notice.kind == "retraining_finished" and not self._too_old(notice.id, notice.time):
            self._finished(notice)

    def _finished(self, notice: Notice) -> None:
        now, data = self._clock(), dict(notice.data)
        decision = self._decisions.get(data["run_id"])
        if decision is None:
            return
        run = {"run": {"state": data["outcome"], "finished": data}}
        known = update_incident(
            self._settings.state, decision.incident, id_=notice.id, what=data["outcome"], text=data["reason"], now=now, changes=run
        )
        if known is not None and self._settings.alerts.slack:
            links = {"incident": str(incident_folder(self._settings.state, decision.incident))}
            self._outbox.put(f"{notice.id}:slack", "slack", outcome_message(data, links).payload(), now=now)

    def _run(self, decision: Decision) -> dict[str, Any]:
        verdict = decision.verdict
        retraining = self._settings.models[verdict.model].retraining
        if retraining is None:
            raise AssertionError("a run was decided on for a model whose retraining is off")
        description = f"Retraining of {verdict.model} version {verdict.version}: {', '.join(verdict.breached)} over the limit"
        parameters = run_parameters(self._settings, verdict.model, retraining) | {
            "run_id": decision.run_id,
            "since_offset": decision.drift_began.first_offset,
            "incident": decision.incident,
            "reason": description,
        }
        return retrain_payload(decision.run_id, verdict.model, parameters, description, metric=retraining.metric, margin=retraining.margin)

    def _version_reference(self, model: str, version: str) -> tuple[Path | None, Any]:
        try:
            stored = self._repository.read(model, version)
        except VersionError as error:
            log.warning("no report for %s version %s: %s", model, version, error)
            return None, None
        return stored.path / "reference.parquet", stored.schema

    def _too_old(self, id_: str, happened: float) -> bool:
        age = self._clock() - happened
        if age <= self._settings.max_decision_age:
            return False
        log.info(
            "%s is %.0f s old, more than max_decision_age (%.0f s): recorded, not acted upon", id_, age, self._settings.max_decision_age
        )
        return True

    def _log_change(self, verdict: Verdict) -> None:
        if verdict.drift != self._drifting.get(verdict.model, False):
            self._drifting[verdict.model] = verdict.drift
            state = f"over the limit ({', '.join(verdict.breached)})" if verdict.drift else "within its limits again"
            log.info("%s version %s: window %d is %s", verdict.model, verdict.version, verdict.number, state)


def run_parameters(settings: Settings, model: str, retraining: RetrainingSettings) -> dict[str, str | int | float | bool]:
    """The pipeline's parameters for a model, as configured; what belongs to one run is added by the caller."""
    return {
        "model": model,
        "data": settings.log.url,
        "log_url": settings.log.url,
        "repository": str(settings.repository),
        "trainer": retraining.trainer,
        "metric": retraining.metric,
        "margin": retraining.margin,
        "min_rows": retraining.min_rows,
        "max_rows": retraining.max_rows,
        "wait_seconds": retraining.wait,
        "holdout": retraining.holdout,
        "reference_rows": retraining.reference_rows,
        "server_url": retraining.server_url or "",
        "gateway_url": retraining.gateway_url or "",
    }


def _told(notice: Notice) -> str:
    data: Mapping[str, Any] = notice.data
    if notice.kind == "promoted":
        return f"version {notice.version} took over from {data['previous'] or 'nothing'}"
    return f"run {data['run_id']} ended: {data['outcome']}{': ' + data['reason'] if data['reason'] else ''}"
