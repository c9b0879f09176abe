"""`driftloop replay`: from the command's words to a question, and its answer on stdout."""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import orjson

from inference.errors import SettingsError
from inference.versions import Repository, Version
from streaming.assemble_sources import is_table, model_of, open_source_replay
from streaming.backtest import run as processes
from streaming.backtest.inject import read_injections
from streaming.backtest.job import Job, Question, Tell, ride_events, ride_table
from streaming.backtest.question import KnownDrift, read_known_drifts
from streaming.backtest.result import Asked, Ridden, result
from streaming.backtest.table_settings import check_times, table_settings
from streaming.backtest.tabular import MODEL
from streaming.backtest.text import as_text
from streaming.backtest.tries import settings_tried
from streaming.settings import ModelSettings, Settings, load_settings
from streaming.sources.seam import EventSource, Stretch
from streaming.sources.table import TableSource, open_table

EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Wanted:
    """What the command line asks beside the source: `tries` as --try has it, `injections` one --inject each; `say` prints a line."""

    known_drifts: Path | None = None
    tries: Sequence[str] = ()
    injections: Sequence[str] = ()
    resume: bool = False
    workers: int | None = None
    as_json: bool = False
    report: Path | None = None
    say: Callable[[str], None] = lambda line: print_line(line)


def print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def asked(options: Namespace) -> int:
    """`driftloop replay` with the options of its command line; SettingsError where they do not go together."""
    _check(options)
    wanted = Wanted(
        options.known_drifts, options.tries, options.inject, options.resume, options.workers, as_json=options.json, report=options.report
    )
    if options.table is not None or is_table(options.source, options.format):
        return replay_table(
            options.table or options.source,
            options.reference,
            wanted,
            time=options.time,
            ignore=[name for names in options.ignore for name in names],
            since=options.since,
            until=options.until,
            config=options.config or (None if options.table else Path("driftloop.yaml")),
            model=options.model,
            keep_reference=options.keep_reference,
        )
    _none_of(options, _OF_TABLES, "is for tables")
    return replay_events(
        options.config or Path("driftloop.yaml"),
        wanted,
        source=options.source or options.from_log,
        since=options.since,
        until=options.until,
        format_=options.format,
        model=options.model,
    )


_OF_TABLES = ("reference", "time", "ignore", "keep_reference")


def _check(options: Namespace) -> None:
    if options.from_log and (options.table is not None or options.source):
        raise SettingsError([f"--{'source' if options.source else 'table'} or --from-log, not both"])
    if options.workers is not None and options.workers < 1:
        raise SettingsError([f"--workers must be at least 1, not {options.workers}"])
    if options.table is not None:
        _none_of(options, ("source", "format", "model"), "is not for --table FILE")
        if options.reference is None:
            raise SettingsError(["--table needs --reference FILE"])
    elif not options.source:
        _none_of(options, _OF_TABLES, "is for --table FILE")


def _none_of(options: Namespace, names: Sequence[str], why: str) -> None:
    given = [name.replace("_", "-") for name in names if getattr(options, name)]
    if given:
        raise SettingsError([f"--{given[0]} {why}"])


def replay_events(
    config: Path,
    wanted: Wanted,
    *,
    source: str | None = None,
    since: Sequence[str] = (),
    until: Sequence[str] = (),
    format_: str | None = None,
    model: str | None = None,
) -> int:
    """A log, or another source of events, through the configured models; 130 when it was interrupted, else 0."""
    settings = load_settings(config, alerts=False, gateway=False)
    models = [*settings.models]
    opening = partial(_opened, settings, source, tuple(since), tuple(until), format_, model)
    name, total = _named(opening)
    question = Question(
        settings_tried("; ".join(wanted.tries), settings.models),
        _drifts(wanted, models),
        read_injections(wanted.injections, models),
        lines="json" if wanted.as_json else "text",
        resume=wanted.resume,
        folder=config.resolve().parent,
    )
    asked = Asked(name, *Stretch.of(since, until).told, question.settings, [one.text for one in question.injections])
    return _answered(question, models, partial(_events, settings, opening), asked, wanted, total)


def _opened(
    settings: Settings, source: str | None, since: Sequence[str], until: Sequence[str], format_: str | None, model: str | None
) -> EventSource:
    return open_source_replay(settings, source, since=since, until=until, format_=format_, model=model).source


def _named(opening: Callable[[], EventSource]) -> tuple[str, int | None]:
    """What it is called, and how many records it has, where it can tell."""
    source = opening()
    return source.name, getattr(source, "expected", None)


def _events(
    settings: Settings, opening: Callable[[], EventSource], question: Question, job: Job, tell: Tell, stop: Callable[[], bool]
) -> Ridden:
    return ride_events(question, job, settings, opening, tell, stop)


def replay_table(
    table: str | Path,
    reference: Path | None,
    wanted: Wanted,
    *,
    time: str | None = None,
    ignore: Sequence[str] = (),
    since: Sequence[str] = (),
    until: Sequence[str] = (),
    config: Path | None = None,
    model: str | None = None,
    keep_reference: bool = False,
) -> int:
    """The rows of a table against others, or against the live version's reference; 130 when it was interrupted, else 0."""
    model, settings, judged_by = _judged_by(config, model, reference)
    if time is None:
        check_times(str(config), settings)
    stretch = Stretch.of(since, until)
    opening = partial(open_table, str(table), judged_by, time=time, ignore=tuple(ignore), stretch=stretch, strict=isinstance(table, Path))
    drifts, injections = _drifts(wanted, [model]), read_injections(wanted.injections, [model])
    timed = [one.name for one in (*drifts, *(injection.drift for injection in injections)) if one.timed]
    if timed and time is None:
        raise SettingsError([f"{timed[0]} is told by time: name the column of the rows' times with --time, or tell rows"])
    question = Question(
        settings_tried("; ".join(wanted.tries), {model: settings}),
        # Here the model is the only one, whatever its name.
        [replace(drift, model="") for drift in drifts],
        [replace(injection, drift=replace(injection.drift, model="")) for injection in injections],
        lines="" if wanted.as_json else "text",
        keep_reference=keep_reference,
        resume=wanted.resume,
        folder=table.resolve().parent if isinstance(table, Path) else Path.cwd(),
    )
    asked = Asked(opening().name, *stretch.told, question.settings, [one.text for one in injections], of_log=False)
    return _answered(question, [MODEL], partial(_table, opening), asked, wanted, None)


def _judged_by(config: Path | None, model: str | None, reference: Path | None) -> tuple[str, ModelSettings, Path | Version]:
    """The model's name and settings, and the rows of a time when all was well: those that are named, else the live version's."""
    if reference is not None and model is None:
        return *table_settings(config), reference
    settings = load_settings(config or Path("driftloop.yaml"), alerts=False, gateway=False)
    name = model_of(settings, model, needed=True)
    if reference is not None:
        return name, settings.models[name], reference
    repository = Repository(settings.repository)
    version = repository.current(name)
    if version is None:
        raise SettingsError([f"no version of {name} is live in {settings.repository}: name rows of a quiet time with --reference"])
    return name, settings.models[name], repository.read(name, version)


def _table(opening: Callable[[], TableSource], question: Question, job: Job, tell: Tell, stop: Callable[[], bool]) -> Ridden:
    return ride_table(question, job, opening, tell, stop)


def _drifts(wanted: Wanted, models: Sequence[str]) -> list[KnownDrift]:
    return read_known_drifts(wanted.known_drifts, models) if wanted.known_drifts else []


def _answered(question: Question, models: Sequence[str], work: processes.Work, asked: Asked, wanted: Wanted, total: int | None) -> int:
    if wanted.report is not None:
        from streaming.backtest.page import check_page

        check_page(wanted.report)
    parts = processes.run(question, models, work, say=wanted.say, workers=wanted.workers, total=total)
    told = result(asked, parts)
    # Not a number and infinite are null: JSON knows neither.
    encoded = orjson.dumps(told, option=orjson.OPT_NON_STR_KEYS)
    if wanted.report is not None:
        from streaming.backtest.page import write_page

        write_page(orjson.loads(encoded), wanted.report)
    wanted.say(encoded.decode() if wanted.as_json else as_text(told))
    return EXIT_INTERRUPTED if told["interrupted"] else 0
