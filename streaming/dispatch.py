"""From an outcome to actions: the journal's line, the incident's record, and entries in the outbox.

Every entry's key is made of the outcome's id, so an outcome that comes again after a restart starts nothing again.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inference.errors import ActionError, VersionError
from inference.versions import Repository
from streaming.actions.incident import INCIDENT, incident_folder, open_incident, update_incident
from streaming.actions.outbox import Item, Outbox
from streaming.actions.retrain import retrain_payload
from streaming.actions.slack import drift_message, outcome_message
from streaming.actions.webhook import webhook_payload
from streaming.core.verdict import Decision, Notice, Outcome, Verdict, as_object
from streaming.journal import Journal
from streaming.report import report_payload
from streaming.settings import RetrainingSettings, Settings

log = logging.getLogger(__name__)

_REMEMBERED = 100
"""Decisions of a partition whose run may still end."""


@dataclass(slots=True)
class _Memory:
    """Of one partition: runs that were decided on by id, and the models (with window and segment) whose newest verdict is drift."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    drifting: list[str] = field(default_factory=list)


class Dispatch:
    """Takes each outcome once, in the log's order; what is to be done about it stands in the outbox when the call returns.

    A decision or notice whose place on the log is older than `settings.max_decision_age` is recorded and not acted upon: a
    watcher that first reads an old log must not retrain for what happened last week. A record that can't be written costs
    the record, not the run.
    """

    def __init__(self, settings: Settings, outbox: Outbox, journal: Journal, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._outbox = outbox
        self._journal = journal
        self._clock = clock
        self._repository = Repository(settings.repository)
        self._memory: dict[int, _Memory] = {}

    def __call__(self, outcome: Outcome) -> None:
        if isinstance(outcome, Decision):
            self._decided(outcome)
        elif isinstance(outcome, Notice):
            self._noticed(outcome)
        else:
            self._log_change(outcome)
        self._journal.outcome(as_object(outcome))

    def state(self, partition: int) -> dict[str, Any]:
        """What is remembered of a partition, as plain values."""
        return asdict(self._of(partition))

    def restore(self, partition: int, state: Mapping[str, Any]) -> None:
        """Remember what a snapshot of the partition remembered."""
        self._memory[partition] = _Memory(**state)

    def forget(self, partition: int) -> None:
        """The partition is no longer ours."""
        self._memory.pop(partition, None)

    def _of(self, partition: int) -> "_Memory":
        return self._memory.setdefault(partition, _Memory())

    def _decided(self, decision: Decision) -> None:
        verdict = decision.verdict
        log.info("%s version %s: %s: %s", verdict.model, verdict.version, decision.action, decision.reason)
        act = decision.action != "hold" and not self._too_old(decision.id, verdict.fell.time)
        if decision.run_id:
            # Kept whatever its age: the run's end may be news although its start is none.
            runs = self._of(verdict.window.partition).runs
            runs[decision.run_id] = {"incident": decision.incident, "acted": act}
            if len(runs) > _REMEMBERED:
                del runs[next(iter(runs))]
        if not act:
            return
        reference, schema = self._version_reference(verdict.model, verdict.version)
        now = self._clock()
        folder = incident_folder(self._settings.state, decision.incident)
        recorded = self._record(lambda: open_incident(self._settings.state, decision, reference, schema=schema, now=now))
        message = drift_message(decision.as_dict(), {"record": str(folder / INCIDENT)})
        items = []
        if decision.run_id:
            items.append(Item(decision.run_id, "retrain", self._run(decision)))
        if self._settings.alerts.slack:
            items.append(Item(f"{decision.id}:slack", "slack", message.payload()))
        if self._settings.alerts.webhook:
            items.append(Item(f"{decision.id}:webhook", "webhook", webhook_payload(decision, text=message.text)))
        # Before the first row that can be read there is nothing to report on.
        shown = any(decision.evidence.values())
        if self._settings.reports and recorded and shown and reference is not None and schema is not None:
            items.append(Item(f"{decision.incident}:report", "report", report_payload(decision.incident, reference, schema)))
        self._outbox.put_all(items, partition=verdict.window.partition, model=verdict.model, now=now)

    def _noticed(self, notice: Notice) -> None:
        if notice.kind == "unmonitored":
            log.error("%s version %s is not monitored: %s", notice.model, notice.version, notice.data["reason"])
            return
        if notice.kind == "restarted":
            log.warning("%s version %s: its windows start anew: %s", notice.model, notice.version, notice.data["reason"])
            return
        log.info("%s: %s", notice.model, _told(notice))
        if notice.kind == "retraining_finished" and not self._too_old(notice.id, notice.time):
            self._finished(notice)

    def _finished(self, notice: Notice) -> None:
        now, data = self._clock(), dict(notice.data)
        run = self._of(notice.partition).runs.get(data["run_id"])
        if run is None:
            return
        state, incident = self._settings.state, run["incident"]
        changes = {"run": {"state": data["outcome"], "finished": data}}
        told = {"id_": notice.id, "what": data["outcome"], "text": data["reason"], "now": now, "changes": changes}
        known = self._record(lambda: update_incident(state, incident, **told))
        if self._settings.alerts.slack and (run["acted"] or known):
            message = outcome_message(data, {"incident": str(incident_folder(state, incident))} if known else {})
            item = Item(f"{notice.id}:slack", "slack", message.payload())
            self._outbox.put_all([item], partition=notice.partition, model=notice.model, now=now)

    def _record(self, write: Callable[[], object]) -> bool:
        try:
            return write() is not None
        except ActionError as error:
            log.error("the incident is not recorded: %s", error)
            return False

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
        drifting = self._of(verdict.window.partition).drifting
        of = f"{verdict.model}, {verdict.told_of}" if verdict.told_of else verdict.model
        if verdict.drift == (of in drifting):
            return
        if verdict.drift:
            drifting.append(of)
        else:
            drifting.remove(of)
        state = f"over the limit ({', '.join(verdict.breached)})" if verdict.drift else "within its limits again"
        log.info("%s version %s: window %d is %s", of, verdict.version, verdict.number, state)


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
