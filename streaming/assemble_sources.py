"""From the command's words to a replay of a source, or to a recording of one."""

from collections.abc import Sequence
from pathlib import Path

from inference.errors import SettingsError
from inference.pairing import ANNOTATION
from inference.versions import Repository, Version
from streaming.assemble import build_fleet, monitor_spec
from streaming.core.monitor import MonitorSpec
from streaming.core.time_window import TimeWindow
from streaming.settings import Settings, load_settings
from streaming.source_replay import SourceReplay, Stopwatch, TableSourceReplay
from streaming.sources.opening import FORMATS, format_of, open_events
from streaming.sources.seam import EventSource, Stretch
from streaming.sources.table import open_table
from streaming.sources.writing import write_recording


def open_source_replay(
    settings: Settings,
    source: str | None = None,
    *,
    since: Sequence[str] = (),
    until: Sequence[str] = (),
    format_: str | None = None,
    model: str | None = None,
) -> SourceReplay:
    """`driftloop replay --source URL`: the configured log unless a source is named. `model` is whose predictions a prediction log or a
    table has, where it does not say so and several are configured."""
    stretch = Stretch.of(since, until)
    stopwatch = Stopwatch()
    return SourceReplay(_events(settings, source, stretch, format_, model), build_fleet(settings, stopwatch), stretch, stopwatch)


def open_table_replay(
    settings: Settings,
    source: str,
    *,
    reference: Path | None = None,
    time: str | None = None,
    ignore: Sequence[str] = (),
    since: Sequence[str] = (),
    until: Sequence[str] = (),
    model: str | None = None,
    keep_reference: bool = False,
) -> TableSourceReplay:
    """`driftloop replay --source TABLE`: judged as `model` is configured, by the live version's reference unless another is named.
    SettingsError where a budget or a window wants to know times, and there are none."""
    stretch = Stretch.of(since, until)
    model = model_of(settings, model, needed=True)
    spec = monitor_spec(settings.models[model])
    if time is None and (problem := needs_times(spec)):
        raise SettingsError([f"{model}: {problem}: name their column with --time"])
    judged_by = reference or _live(settings, model)
    rows = open_table(source, judged_by, time=time, ignore=ignore, stretch=stretch)
    return TableSourceReplay(rows, spec, stretch, keep_reference)


def needs_times(spec: MonitorSpec) -> str:
    """What of it needs the rows' times; "" where nothing does."""
    limits = [limit for view in spec.views for limit in view.limits]
    if any(getattr(limit, "seconds", None) is not None for limit in limits):
        return "a budget in time needs the rows' times"
    return "a window of a stretch of time needs the rows' times" if any(isinstance(view.window, TimeWindow) for view in spec.views) else ""


def _live(settings: Settings, model: str) -> Version:
    repository = Repository(settings.repository)
    version = repository.current(model)
    if version is None:
        raise SettingsError(
            [f"no version of {model} is live in {settings.repository}: name rows of a time when all was well with --reference"]
        )
    return repository.read(model, version)


def is_table(source: str | None, format_: str | None) -> bool:
    """Whether the source is a table, which is judged by column."""
    return source is not None and _format(source, format_) == "table"


def record(
    out: str,
    *,
    config: Path | None = None,
    source: str | None = None,
    since: Sequence[str] = (),
    until: Sequence[str] = (),
    format_: str | None = None,
) -> tuple[EventSource, int]:
    """`driftloop record`: write the stretch of the configured log, or of a source, to `out`; gives the source and how many events."""
    stretch = Stretch.of(since, until)
    if config is not None:
        events = _events(load_settings(config, alerts=False, gateway=False), source, stretch, format_, None)
    elif source is not None:
        chosen = _format(source, format_)
        events = open_events(source, chosen, stretch, log=None, model="default/model", annotation=ANNOTATION)
    else:
        raise SettingsError(["record needs --config FILE or --log URL: what is to be recorded?"])
    return events, write_recording(events, out)


def _events(settings: Settings, source: str | None, stretch: Stretch, format_: str | None, model: str | None) -> EventSource:
    url = settings.log.url if source is None else source
    return open_events(
        url,
        "log" if source is None else _format(url, format_),
        stretch,
        log=settings.log,
        model=model_of(settings, model, needed=False),
        annotation=settings.version_annotation,
    )


def _format(url: str, format_: str | None) -> str:
    if format_ is not None and format_ not in FORMATS:
        raise SettingsError([f"--format {format_}: must be one of {', '.join(FORMATS)}"])
    return format_ or format_of(url)


def model_of(settings: Settings, model: str | None, *, needed: bool) -> str:
    """The model that is named, or the only one; "default/model" where there are several and none is `needed`."""
    names = [*settings.models]
    if model is not None and model not in names:
        raise SettingsError([f"--model {model}: not configured; there are {', '.join(names)}"])
    if model is None and len(names) > 1 and needed:
        raise SettingsError([f"--model: name one of {', '.join(names)}, whose predictions these are"])
    return model or (names[0] if len(names) == 1 else "default/model")
