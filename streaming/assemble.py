"""From settings to objects: the one place where configuration meets the parts."""

import signal
import threading
from collections.abc import Callable
from functools import lru_cache

from inference.log import EventLog, open_log
from inference.versions import Repository
from pipelines.submit import LocalRunner
from streaming.actions import retrain
from streaming.actions.outbox import Handler, Outbox
from streaming.actions.retrain import Retrain
from streaming.actions.slack import Slack
from streaming.actions.webhook import Webhook
from streaming.actions.worker import Worker
from streaming.core.fleet import Fleet
from streaming.core.governor import Governor
from streaming.core.limits import DetectorLimit, EvidentlyLimit, Limit
from streaming.core.monitor import MonitorSpec
from streaming.core.reference import Reference, prepare
from streaming.core.window import CountWindow
from streaming.dispatch import Dispatch
from streaming.journal import Journal
from streaming.reader import following
from streaming.replay import Replay
from streaming.report import POLICY as REPORT_POLICY
from streaming.report import RenderReport
from streaming.settings import DetectorLimitSettings, EvidentlyLimitSettings, ModelSettings, Settings
from streaming.watch import Watch


def run_watch(settings: Settings) -> None:
    """`driftloop watch`: follow the log and act, until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    event_log = open_log(settings.log)
    journal = Journal(settings.state)
    outbox = Outbox(settings.state / "outbox.db")
    worker = Worker(outbox, handlers(settings, event_log), policies={"retrain": retrain.POLICY, "report": REPORT_POLICY})
    worker.start()
    try:
        Watch(build_fleet(settings), Dispatch(settings, outbox, journal), journal.status, stop).run(following(event_log, stop))
    finally:
        worker.stop()
        outbox.close()
        journal.close()
        event_log.close()


def open_replay(settings: Settings, from_log: str | None) -> Replay:
    """`driftloop replay`: everything on a log, the configured one unless another is named, through the same fleet."""
    return Replay(open_log(from_log or settings.log, must_exist=True), build_fleet(settings))


def handlers(settings: Settings, event_log: EventLog) -> dict[str, Handler]:
    """Who performs which kind of entry."""
    max_run = max((model.governor.max_run for model in settings.models.values()), default=3600.0)
    runner = LocalRunner(settings.state / "runs")
    performing: dict[str, Handler] = {
        "retrain": Retrain(runner, lambda event: event_log.append([event]), max_run=max_run),
        "report": RenderReport(settings.state),
    }
    if settings.alerts.slack:
        performing["slack"] = Slack(settings.alerts.slack.webhook, timeout=round(settings.alerts.slack.timeout) or 1)
    if settings.alerts.webhook:
        performing["webhook"] = Webhook(settings.alerts.webhook.url, timeout=settings.alerts.webhook.timeout)
    return performing


def build_fleet(settings: Settings) -> Fleet:
    """All configured models, their references read from the repository as their versions appear on the log."""
    repository = Repository(settings.repository)
    specs = {model: monitor_spec(model_settings) for model, model_settings in settings.models.items()}
    return Fleet(specs, references(repository), live=repository.current, annotation=settings.version_annotation)


def references(repository: Repository) -> Callable[[str, str], Reference]:
    """Reads and prepares the reference of a version; a few are kept, since versions never change."""

    @lru_cache(maxsize=32)
    def read(model: str, version: str) -> Reference:
        stored = repository.read(model, version)
        return prepare(model, version, stored.schema, stored.load_reference())

    return read


def monitor_spec(settings: ModelSettings) -> MonitorSpec:
    """How a model is watched, as the core's own frozen values."""
    governor = settings.governor
    return MonitorSpec(
        window=CountWindow(settings.window.size, settings.window.slide),
        limits=tuple(_limit(limit) for limit in settings.limits),
        governor=Governor(
            governor.confirm,
            governor.of,
            governor.min_samples,
            governor.cooldown,
            governor.max_run,
            retrain=settings.retraining is not None,
        ),
    )


def _limit(settings: EvidentlyLimitSettings | DetectorLimitSettings) -> Limit:
    if isinstance(settings, DetectorLimitSettings):
        return DetectorLimit(settings.label, settings.detector.kind, settings.detector.build, settings.columns)
    share = None if settings.drifting == "any" else settings.drifting
    return EvidentlyLimit(settings.label, settings.test, settings.threshold, share, settings.columns)
