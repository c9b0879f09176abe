"""From settings to objects: the one place where configuration meets the parts."""

import fcntl
import gc
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache
from pathlib import Path

from inference.errors import ServiceError, SettingsError
from inference.event import Event
from inference.log import Feed, open_feed, open_log
from inference.log.address import is_remote
from inference.log.connection import as_environment
from inference.versions import Repository
from pipelines.submit import LocalRunner, Runner
from streaming.actions import retrain
from streaming.actions.outbox import Handler, Outbox
from streaming.actions.retrain import Retrain
from streaming.actions.slack import Slack
from streaming.actions.webhook import Webhook
from streaming.actions.worker import Worker
from streaming.core.errors import ErrorLimit
from streaming.core.fleet import Fleet
from streaming.core.governor import Governor
from streaming.core.limits import BudgetLimit, DetectorLimit, EvidentlyLimit, Limit, QualityLimit
from streaming.core.limits.pace import WindowBudget
from streaming.core.monitor import MonitorSpec
from streaming.core.reference import Reference, prepare
from streaming.core.schema import SchemaLimit
from streaming.core.segments import Segments
from streaming.core.time_window import TimeWindow
from streaming.core.view import View, Window
from streaming.core.window import CountWindow
from streaming.dispatch import Dispatch
from streaming.journal import Journal
from streaming.replay import Replay
from streaming.report import POLICY as REPORT_POLICY
from streaming.report import RenderReport
from streaming.settings import ErrorSettings, LimitSettings, ModelSettings, Settings, TimeWindowSettings, WindowSettings, load_settings
from streaming.snapshots import SnapshotStore
from streaming.source_replay import Stopwatch
from streaming.table_replay import DEFAULT_SPEC, TableReplay
from streaming.tables import read_tables
from streaming.watch import Watch


def run_watch(settings: Settings, *, runner: Runner | None = None) -> None:
    """`driftloop watch`: follow the log and act, until SIGTERM or SIGINT. `runner` starts the retraining runs."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as stack:
        stack.enter_context(alone(settings.state))
        journal = stack.enter_context(closing(Journal(settings.state)))
        event_log = stack.enter_context(closing(open_log(settings.log)))
        writing = threading.Lock()

        def publish(event: Event) -> None:
            with writing:
                event_log.append([event])

        feed: Feed | None = None
        outbox = Outbox(publish, owns=lambda partition: feed is not None and feed.owns(partition))
        runner = runner or LocalRunner(settings.state / "runs", environment=as_environment(settings.log))
        worker = Worker(outbox, handlers(settings, runner, publish), policies={"retrain": retrain.POLICY, "report": REPORT_POLICY})
        identity = log_identity(settings)
        watch = Watch(
            build_fleet(settings),
            Dispatch(settings, outbox, journal),
            outbox,
            SnapshotStore(settings.watch.snapshots, identity),
            event_log,
            log_identity=identity,
            every=settings.watch.snapshot_every,
            status=journal.status,
            stop=stop,
        )
        member = settings.watch
        feed = open_feed(settings.log, event_log, watch, group=member.group, member=member.member, session=member.session)
        worker.start()
        tuned()
        stack.callback(worker.stop)
        watch.run(feed)


def tuned() -> None:
    """Spare the garbage collector what lives as long as the process, and have it look less often: hardly anything here is a cycle."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


def log_identity(settings: Settings) -> str:
    """What snapshots call the log they belong to: not where it is, which may change, but which it is."""
    url = settings.log.url
    name = url.rstrip("/").rpartition("/")[2] if is_remote(url) else Path(url.removeprefix("embedded:")).name
    return f"{settings.watch.group}-{name}"


@contextmanager
def alone(state: Path) -> Iterator[None]:
    """Keep the state folder to this process; ServiceError when another watcher has it."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = (state / ".lock").open("a")
    except OSError as error:
        advice = "give one that this process may write to"
        raise ServiceError(f"the state folder {state} cannot be written: {error.strerror}; {advice}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceError(f"a watcher is at work in {state}: stop it, or give this one a `state` folder of its own") from None
        yield


def open_replay(settings: Settings, from_log: str | None) -> Replay:
    """`driftloop replay`: everything on a log, the configured one unless another is named, through the same fleet."""
    return Replay(open_log(from_log or settings.log, must_exist=True), build_fleet(settings))


def open_table(
    table: Path,
    reference: Path,
    *,
    time: str | None = None,
    ignore: Sequence[str] = (),
    config: Path | None = None,
    keep_reference: bool = False,
) -> TableReplay:
    """`driftloop replay --table`: the rows of a file against those of another, judged by default or as a configuration's only model."""
    tables = read_tables(table, reference, time=time, ignore=ignore)
    spec = DEFAULT_SPEC
    if config is not None:
        models = load_settings(config, alerts=False, gateway=False).models
        if len(models) != 1:
            raise SettingsError([f"{config}: --table needs a configuration of one model, not of {', '.join(models)}"])
        spec = monitor_spec(next(iter(models.values())))
        limits = [limit for view in spec.views for limit in view.limits]
        if time is None and any(_in_time(limit) for limit in limits):
            raise SettingsError([f"{config}: a budget in time needs the rows' times: name their column with --time"])
        if time is None and any(isinstance(view.window, TimeWindow) for view in spec.views):
            raise SettingsError([f"{config}: a window of a stretch of time needs the rows' times: name their column with --time"])
    return TableReplay(tables, spec, keep_reference)


def _in_time(limit: Limit) -> bool:
    """Whether its budget is one of time."""
    budget = limit.budget if isinstance(limit, EvidentlyLimit) else limit
    return isinstance(budget, BudgetLimit | WindowBudget) and budget.seconds is not None


def handlers(settings: Settings, runner: Runner, publish: Callable[[Event], None]) -> dict[str, Handler]:
    """Who performs which kind of entry."""
    max_run = max((model.governor.max_run for model in settings.models.values()), default=3600.0)
    performing: dict[str, Handler] = {
        "retrain": Retrain(runner, publish, max_run=max_run),
        "report": RenderReport(settings.state),
    }
    if settings.alerts.slack:
        performing["slack"] = Slack(settings.alerts.slack.webhook, timeout=round(settings.alerts.slack.timeout) or 1)
    if settings.alerts.webhook:
        performing["webhook"] = Webhook(settings.alerts.webhook.url, timeout=settings.alerts.webhook.timeout)
    return performing


def build_fleet(settings: Settings, stopwatch: Stopwatch | None = None) -> Fleet:
    """All configured models, their references read from the repository as their versions appear on the log; `stopwatch` takes the time
    that this costs."""
    repository = Repository(settings.repository)
    specs = {model: monitor_spec(model_settings) for model, model_settings in settings.models.items()}
    live, annotation = repository.current, settings.version_annotation
    if stopwatch is not None:
        timed = stopwatch.references(references(repository))
        return Fleet(specs, timed, live=live, annotation=annotation, monitor=stopwatch.monitor)
    return Fleet(specs, references(repository), live=live, annotation=annotation)


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
    # A budget is kept without: another look would only come later.
    sure = {"confirm", "of"}.isdisjoint(governor.model_fields_set) and all(_has_budget(limit) for limit in settings.limits)
    first, *more = [
        View(name, _window(window), tuple([_limit(limit, window, settings) for limit in settings.limits_of(name)]))
        for name, window in settings.named_windows.items()
    ]
    segments = settings.segments
    return MonitorSpec(
        window=first.window,
        limits=first.limits,
        governor=Governor(
            1 if sure else governor.confirm,
            1 if sure else governor.of,
            governor.min_samples,
            governor.cooldown,
            governor.max_run,
            retrain=settings.retraining is not None,
        ),
        name=first.name,
        more=tuple(more),
        segments=Segments(segments.column, segments.at_most, segments.min_rows) if segments else None,
        errors=_error_limit(settings.errors) if settings.errors else None,
        schema=SchemaLimit(settings.schema_changes.share, settings.schema_changes.of) if settings.schema_changes else None,
    )


def _error_limit(settings: ErrorSettings) -> ErrorLimit:
    detector = settings.detector
    return ErrorLimit(
        detector.kind,
        lambda: detector.build(0, 1),
        detector.settings,
        detector.binary,
        settings.size,
        settings.slide,
        settings.max_waiting,
        settings.max_age,
    )


def _window(settings: WindowSettings | TimeWindowSettings) -> Window:
    if isinstance(settings, WindowSettings):
        return CountWindow(settings.size, settings.slide)
    return TimeWindow(settings.length, settings.slide, settings.lateness, settings.min_rows, settings.max_rows)


def _has_budget(settings: LimitSettings) -> bool:
    return settings.kind == "budget" or (settings.kind == "evidently" and settings.false_alarms is not None)


def _limit(settings: LimitSettings, window: WindowSettings | TimeWindowSettings, model: ModelSettings) -> Limit:
    if settings.kind == "budget":
        return BudgetLimit(settings.label, settings.false_alarms.events, settings.false_alarms.seconds, settings.columns)
    if settings.kind == "detector":
        detector = settings.detector
        return DetectorLimit(settings.label, detector.kind, detector.build, settings.columns, detector.settings)
    if settings.kind == "quality":
        return QualityLimit(settings.label, settings.missing, settings.out_of_range, settings.new_categories, settings.columns)
    share = None if settings.drifting == "any" else settings.drifting
    budget = None
    if settings.false_alarms is not None and isinstance(window, WindowSettings):
        # Windows that it judges share its budget.
        windows = sum(settings in model.limits_of(name) for name in model.named_windows)
        alarms = settings.false_alarms
        budget = WindowBudget(window.slide, alarms.events, alarms.seconds).part(1.0 / windows)
    return EvidentlyLimit(settings.label, settings.test, settings.threshold, share, settings.columns, settings.winsorize, budget)
