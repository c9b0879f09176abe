"""The command `driftloop`. Nothing heavy is imported before a command needs it."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from inference.errors import DriftloopError, SettingsError
from streaming import cli_replay

EXIT_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit code: 0 done, 1 the command's own "no" (a loop that did not close), 2 an error that it explains."""
    options = _parser().parse_args(arguments)
    _configure_logging(logging.INFO if options.verbose or options.run in _SERVICES else logging.WARNING)
    try:
        return int(options.run(options))
    except DriftloopError as error:
        for line in str(error).splitlines() or [type(error).__name__]:
            sys.stderr.write(f"driftloop: {line}\n")
        return EXIT_ERROR
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("inference", "streaming", "pipelines"):
            raise
        sys.stderr.write(f"driftloop: this command needs {error.name}; pip install 'driftloop[{options.extra}]'\n")
        return EXIT_ERROR
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="driftloop", description="Watch every prediction, retrain when a window drifts, deploy only what is better."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what goes on, to stderr")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = _command(commands, "demo", _demo, "the whole loop on this machine, from a prediction to a better model", extra="demo")
    demo.add_argument("--folder", type=Path, default=Path("driftloop-demo"), help="working folder (default: %(default)s)")
    demo.add_argument("--no-drift", action="store_true", help="send quiet traffic only: nothing may fire")
    demo.add_argument(
        "--slack-webhook", metavar="URL", help="post to this Slack webhook ($SLACK_WEBHOOK is read too; default: show it here)"
    )
    demo.add_argument(
        "--log", metavar="URL", help="kafka://HOST:PORT[/TOPIC] in place of the embedded log; a new topic unless one is named"
    )
    demo.add_argument("--json", action="store_true", help="no live view; one JSON object as the last line")
    demo.add_argument("--seed", type=int, default=7, help="of the traffic (default: %(default)s)")

    serve = _command(commands, "serve", _serve, "serve a model's live version with KServe's ModelServer", extra="predictor")
    serve.add_argument("--repository", type=Path, required=True, help="the folder of all model versions")
    serve.add_argument("--model", required=True, metavar="NAMESPACE/NAME")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 on a cluster (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8080, help="default: %(default)s")
    serve.add_argument(
        "--tap", metavar="URL", help="post payloads there as KServe's agent would (where there is no agent: never on a cluster)"
    )
    serve.add_argument("--source", help="the tap's Ce-Source (default: this host's name)")
    serve.add_argument("--predict-log", type=Path, metavar="FILE", help="append each prediction as one JSON line; rotated")

    gateway = _command(commands, "gateway", _gateway, "take in payload events and put them on the log", extra="gateway")
    gateway.add_argument("--config", type=Path, metavar="FILE", help="read `log` and `gateway` there; what is given here counts more")
    gateway.add_argument("--log", metavar="PATH|URL", help="the embedded log, made if it is not there, or kafka://HOST:PORT/TOPIC")
    gateway.add_argument("--spool", type=Path, metavar="FOLDER", help="with Kafka: where events wait on this disk until Kafka has them")
    gateway.add_argument("--host", help="default: 127.0.0.1")
    gateway.add_argument("--port", type=int, help="0 takes a free one (default: 8090)")
    gateway.add_argument("--max-body", type=int, metavar="BYTES", help="larger events are set aside (default: 1000000)")

    watch = _command(commands, "watch", _watch, "follow the log, judge every window, act", extra="watch,pipeline,report")
    watch.add_argument("--config", type=Path, default=Path("driftloop.yaml"), metavar="FILE", help="default: %(default)s")

    replay = _command(commands, "replay", cli_replay.replay, "what the watcher said, or would have said; performs nothing", extra="replay")
    cli_replay.add_replay(replay)

    calibrate = _command(commands, "calibrate", _calibrate, "what a model's limits can see, and how often they cry wolf", extra="watch")
    calibrate.add_argument("--config", type=Path, metavar="FILE", help="default: driftloop.yaml; with --reference: that of replay --table")
    calibrate.add_argument("--model", metavar="NAMESPACE/NAME", help="one of the configured models (default: the only one)")
    calibrate.add_argument("--reference", type=Path, metavar="FILE", help="rows in time order (default: the live version's reference)")
    calibrate.add_argument("--ignore", action="append", nargs="+", default=[], metavar="COLUMN", help="of --reference: to be left out")
    calibrate.add_argument("--rate", type=float, metavar="N", help="predictions per second, to tell false alarms by the month")
    calibrate.add_argument(
        "--quiet", metavar="FILE|PATH|URL", help="rows (CSV, Parquet) or a log of a time when nothing changed: counts the alarms there"
    )
    calibrate.add_argument("--time", metavar="COLUMN", help="with --quiet FILE: when each row was")
    calibrate.add_argument("--json", action="store_true", help="one JSON object instead of the tables")

    record = _command(commands, "record", cli_replay.record, "write a stretch of a log as CloudEvents, one a line", extra="replay")
    cli_replay.add_record(record)

    pipeline = commands.add_parser("pipeline", help="the retraining pipeline").add_subparsers(metavar="COMMAND", required=True)
    compiled = _command(pipeline, "compile", _compile, "write the pipeline's YAML for Kubeflow Pipelines", extra="pipeline")
    compiled.add_argument("--output", type=Path, default=Path("output/pipeline.yaml"), help="default: %(default)s")
    run = _command(pipeline, "run", _run_pipeline, "run the compiled pipeline on this machine", extra="pipeline")
    run.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the pipeline; may be repeated")
    run.add_argument("--folder", type=Path, default=Path("output/runs"), help="where runs leave their files (default: %(default)s)")

    bench = commands.add_parser("bench", help="benchmarks that anyone can repeat").add_subparsers(metavar="COMMAND", required=True)
    detection = _command(bench, "detection", _bench_detection, "how soon each policy sees a change, how often there is none", extra="watch")
    detection.add_argument("--seeds", type=int, default=5, metavar="N", help="of each stream (default: %(default)s)")
    detection.add_argument("--events", type=int, default=100_000, metavar="N", help="quiet ones for each seed (default: %(default)s)")
    detection.add_argument("--only", default="", metavar="NAME", help="streams with this in their name")
    detection.add_argument("--policy", action="append", default=[], metavar="NAME", help="driftloop, evidently, adwin or kswin")
    detection.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one for each core)")
    detection.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    speed = _command(bench, "speed", _bench_speed, "events per second through the core, next to Evidently's own code", extra="watch,report")
    speed.add_argument("--only", default="", metavar="NAME", help="cases with this in their name")
    speed.add_argument("--rounds", type=int, default=3, metavar="N", help="the median counts (default: %(default)s)")
    speed.add_argument("--no-evidently", action="store_true", help="our own figures alone, in a tenth of the time")
    speed.add_argument("--json", action="store_true", help="one JSON object instead of the table")

    init = _command(commands, "init", _init, "write a commented configuration to start from")
    init.add_argument("--config", type=Path, default=Path("driftloop.yaml"), metavar="FILE", help="default: %(default)s")
    init.add_argument("--force", action="store_true", help="overwrite a file that is there")

    check = _command(commands, "check", _check, "list every error of a configuration with its line", extra="kafka")
    check.add_argument("--config", type=Path, default=Path("driftloop.yaml"), metavar="FILE", help="default: %(default)s")
    check.add_argument("--connect", action="store_true", help="also reach the log, and tell what stands on it")
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    *,
    extra: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run, extra=extra)
    return parser


def _version() -> str:
    from importlib import metadata

    try:
        return f"driftloop {metadata.version('driftloop')}"
    except metadata.PackageNotFoundError:
        return "driftloop (not installed)"


def _demo(options: argparse.Namespace) -> int:
    from streaming.demo import run_demo

    return run_demo(
        options.folder,
        drift=not options.no_drift,
        slack_webhook=options.slack_webhook,
        log=options.log,
        as_json=options.json,
        seed=options.seed,
    )


def _serve(options: argparse.Namespace) -> int:
    from inference.predictor_server import serve

    serve(
        options.repository,
        options.model,
        host=options.host,
        port=options.port,
        tap=options.tap,
        predict_log=options.predict_log,
        source=options.source,
    )
    return 0


def _gateway(options: argparse.Namespace) -> int:
    from inference.gateway_server import serve_gateway
    from streaming.gateway_options import gateway_options

    flags = {name: getattr(options, name) for name in ("host", "port", "spool", "max_body")}
    chosen = gateway_options(options.config, options.log, **flags)

    def ready(port: int) -> None:
        logging.getLogger("inference.gateway").info("the gateway listens on http://%s:%d", chosen.host, port)

    serve_gateway(chosen, on_ready=ready)
    return 0


def _watch(options: argparse.Namespace) -> int:
    from streaming.assemble import run_watch
    from streaming.settings import load_settings

    run_watch(load_settings(options.config, gateway=False))
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from streaming.calibrate_text import as_text
    from streaming.open_calibration import open_calibration

    if options.rate is not None and not options.rate > 0:
        raise SettingsError([f"--rate must be a positive number of predictions per second, not {options.rate:g}"])
    config = options.config or (None if options.reference else Path("driftloop.yaml"))
    calibrating = open_calibration(
        config,
        model=options.model,
        reference=options.reference,
        time=options.time,
        ignore=[name for names in options.ignore for name in names],
        rate=options.rate,
        quiet=options.quiet,
    )
    report = calibrating.report()
    sys.stdout.write((json.dumps(report) if options.json else as_text(report)) + "\n")
    return 0


def _compile(options: argparse.Namespace) -> int:
    from pipelines.retraining import compile_pipeline

    options.output.parent.mkdir(parents=True, exist_ok=True)
    compile_pipeline(options.output)
    sys.stdout.write(f"{options.output}\n")
    return 0


def _run_pipeline(options: argparse.Namespace) -> int:
    from inference.errors import PipelineError
    from pipelines.submit import run_local

    wrong = [text for text in options.param if "=" not in text]
    if wrong:
        raise PipelineError(f"--param takes NAME=VALUE, not {', '.join(map(repr, wrong))}")
    run_id, state = run_local(dict(text.split("=", 1) for text in options.param), folder=options.folder)
    sys.stdout.write(f"run {run_id}: {state.state}{f': {state.error}' if state.error else ''}\n")
    return 0 if state.state == "succeeded" else 1


def _bench_detection(options: argparse.Namespace) -> int:
    from streaming.bench.detection import run, table

    result = run(options.seeds, only=options.only, policies=options.policy, events=options.events, workers=options.workers)
    sys.stdout.write((json.dumps(result) if options.json else table(result)) + "\n")
    return 0


def _bench_speed(options: argparse.Namespace) -> int:
    from streaming.bench.speed import run, table

    result = run(only=options.only, rounds=options.rounds, evidently=not options.no_evidently)
    sys.stdout.write((json.dumps(result) if options.json else table(result)) + "\n")
    return 0


def _init(options: argparse.Namespace) -> int:
    from importlib.resources import files

    if options.config.exists() and not options.force:
        raise SettingsError([f"{options.config} is already there; --force overwrites it"])
    options.config.write_text(files("streaming").joinpath("driftloop.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    sys.stdout.write(f"{options.config}: name your model and its limits, then `driftloop check`\n")
    return 0


def _check(options: argparse.Namespace) -> int:
    from streaming.settings import load_settings

    settings = load_settings(options.config)
    sys.stdout.write(f"{options.config}: no errors; models: {', '.join(settings.models)}\n")
    if options.connect:
        from streaming.connect_check import connect, extra_of

        options.extra = extra_of(settings.log)
        for line in connect(settings):
            sys.stdout.write(f"{line}\n")
    return 0


_SERVICES = (_serve, _gateway, _watch)
"""Commands that run until they are stopped: their log is what people have of them."""


def _configure_logging(level: int) -> None:
    """To stderr: text on a terminal, one JSON object a line elsewhere."""
    from streaming.logs import configure

    configure(level, as_json=not sys.stderr.isatty())


if __name__ == "__main__":
    sys.exit(main())
