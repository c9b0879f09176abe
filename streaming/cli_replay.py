"""The commands `driftloop replay` and `driftloop record`: their options, and from these to a replay or a recording."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from inference.errors import SettingsError

if TYPE_CHECKING:
    from streaming.settings import Settings
    from streaming.source_replay import TableSourceReplay
    from streaming.table_replay import TableReplay


def add_replay(parser: argparse.ArgumentParser) -> None:
    """The options of `driftloop replay`."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="default: driftloop.yaml; with --table: a budget of 1 false alarm per 100,000 rows"
    )
    parser.add_argument("--from-log", metavar="PATH|URL", help="an embedded log or kafka://HOST:PORT/TOPIC (default: the configured one)")
    parser.add_argument("--json", action="store_true", help="one JSON object per outcome, and their sum as the last line")
    parser.add_argument("--table", type=Path, metavar="FILE", help="judge the rows of a CSV or Parquet file instead; needs --reference")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="with --table: rows of a time when all was well")
    parser.add_argument("--time", metavar="COLUMN", help="with --table: when each row was")
    parser.add_argument("--ignore", action="append", nargs="+", default=[], metavar="COLUMN", help="with --table: columns to leave out")
    parser.add_argument(
        "--keep-reference", action="store_true", help="with --table: do not take the rows after an alarm as the new reference"
    )
    parser.add_argument(
        "--source", metavar="URL", help="a log, or files by fsspec URL: a recording, a prediction log, tables, Event Hubs Capture, KServe's"
    )
    _of_source(parser)
    _of_backtest(parser)
    parser.add_argument("--model", metavar="NAMESPACE/NAME", help="with --source: whose predictions these are, where they do not say")


def add_record(parser: argparse.ArgumentParser) -> None:
    """The options of `driftloop record`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="record the log that is configured there")
    parser.add_argument("--log", dest="source", metavar="URL", help="record this one; with --config it may be on the same servers")
    _of_source(parser)
    parser.add_argument("output", metavar="OUT", help="NAME.jsonl, or packed as .jsonl.gz or .jsonl.zst; an fsspec URL")


def _of_source(parser: argparse.ArgumentParser) -> None:
    """Which stretch of which kind of source."""
    text = "a time (RFC 3339 or a date, in UTC unless it says otherwise) or PARTITION:OFFSET[,PARTITION:OFFSET...]"
    parser.add_argument("--since", action="append", default=[], metavar="WHEN", help=f"from there on: {text}")
    parser.add_argument("--until", action="append", default=[], metavar="WHEN", help="up to before that; as --since")
    formats = "log, recording, predict-log, table, capture or kserve (default: what it looks like)"
    parser.add_argument("--format", metavar="FORMAT", help=formats)


def _of_backtest(parser: argparse.ArgumentParser) -> None:
    """What is asked of the past, beside what was said."""
    parser.add_argument("--known-drifts", type=Path, metavar="FILE", help="what is to be found: CSV, YAML or JSON of name, from, until")
    tried = "the same with other settings: 'window.size=500,1000; limit.false_alarms=1 per 7d,1 per 30d'"
    parser.add_argument("--try", dest="tries", action="append", default=[], metavar="SETTINGS", help=tried)
    change = "what if: 'FEATURE: shift 0.5sd from 2026-10-03'; also ramp, scale, unit, missing, category"
    parser.add_argument("--inject", action="append", default=[], metavar="CHANGE", help=change)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the answer as one page of HTML, too")
    parser.add_argument("--resume", action="store_true", help="go on where the same replay was stopped with Ctrl-C")
    parser.add_argument("--workers", type=int, metavar="N", help="processes for models or tried settings (default: one for each core)")


def replay(options: argparse.Namespace) -> int:
    """Judge the past; exit code 0, or 130 when it was interrupted."""
    if any(getattr(options, name) for name in ("known_drifts", "tries", "inject", "report", "resume", "workers")):
        from streaming.backtest.command import asked

        return asked(options)
    if options.table is not None:
        return _replay_table(options)
    from streaming.assemble import tuned
    from streaming.assemble_sources import is_table, open_source_replay
    from streaming.replay import as_line, as_text
    from streaming.settings import load_settings

    if options.from_log and options.source is not None:
        raise SettingsError(["--source or --from-log, not both"])
    if options.source is None and (options.format or options.model):
        raise SettingsError([f"--{'format' if options.format else 'model'} is for --source URL"])
    if options.source is None and (name := _of_tables(options)):
        raise SettingsError([f"--{name} is for --table FILE"])
    settings = load_settings(options.config or Path("driftloop.yaml"), alerts=False, gateway=False)
    if is_table(options.source, options.format):
        return _replay_table_source(options, settings)
    if name := _of_tables(options):
        raise SettingsError([f"--{name} is for tables"])
    source, format_ = (options.from_log, "log") if options.from_log else (options.source, options.format)
    judged = open_source_replay(settings, source, since=options.since, until=options.until, format_=format_, model=options.model)
    tuned()
    for outcome in judged:
        sys.stdout.write((as_line(outcome) if options.json else as_text(outcome)) + "\n")
    sys.stdout.write((json.dumps(judged.summary()) if options.json else judged.summary_text()) + "\n")
    return 0


def _of_tables(options: argparse.Namespace) -> str:
    """The first option that only tables have and that is given, or ""."""
    given = [name for name in ("reference", "time", "ignore", "keep_reference") if getattr(options, name)]
    return given[0].replace("_", "-") if given else ""


def _replay_table_source(options: argparse.Namespace, settings: "Settings") -> int:
    from streaming.assemble_sources import open_table_replay

    judged = open_table_replay(
        settings,
        options.source,
        reference=options.reference,
        time=options.time,
        ignore=[name for names in options.ignore for name in names],
        since=options.since,
        until=options.until,
        model=options.model,
        keep_reference=options.keep_reference,
    )
    return _tell(judged, options)


def record(options: argparse.Namespace) -> int:
    """Write a recording; exit code 0."""
    from streaming import assemble_sources

    chosen = {"since": options.since, "until": options.until, "format_": options.format}
    source, count = assemble_sources.record(options.output, config=options.config, source=options.source, **chosen)
    told = f", {source.unreadable.total} of them unreadable" if source.unreadable.total else ""
    sys.stdout.write(f"{options.output}: {count} events of {source.name}{told}\n")
    return 0


def _replay_table(options: argparse.Namespace) -> int:
    from streaming.assemble import open_table

    if options.reference is None or options.from_log:
        raise SettingsError(["--table needs --reference FILE" if options.reference is None else "--table or --from-log, not both"])
    ignore = [name for names in options.ignore for name in names]
    judged = open_table(
        options.table,
        options.reference,
        time=options.time,
        ignore=ignore,
        config=options.config,
        keep_reference=options.keep_reference,
    )
    return _tell(judged, options)


def _tell(judged: "TableReplay | TableSourceReplay", options: argparse.Namespace) -> int:
    """A table's alarms as they come, and their sum."""
    from streaming.table_replay import as_text

    for alarm in judged:
        if not options.json:
            sys.stdout.write(f"{as_text(alarm)}\n")
    sys.stdout.write((json.dumps(judged.summary()) if options.json else judged.summary_text()) + "\n")
    return 0
