"""From settings, a repository and files to what `driftloop calibrate` reports on."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from inference.errors import SettingsError
from inference.log import open_log
from inference.pairing import ANNOTATION
from inference.versions import Repository
from streaming.assemble import monitor_spec, references
from streaming.calibrate import Calibrating
from streaming.core.reference import prepare
from streaming.quiet_rows import from_log, from_table, is_table
from streaming.settings import Settings, load_settings
from streaming.table_replay import DEFAULT_SPEC
from streaming.tables import read_tables


def open_calibration(
    config: Path | None,
    *,
    model: str | None = None,
    reference: Path | None = None,
    time: str | None = None,
    ignore: Sequence[str] = (),
    rate: float | None = None,
    quiet: str | None = None,
) -> Calibrating:
    """`driftloop calibrate`: a configured model's limits against its live version's reference, or against that of a table.

    With a table and no configuration the limits are those of `driftloop replay --table`. `quiet`: a table or a log.
    """
    if time is not None and not (quiet is not None and is_table(quiet)):
        raise SettingsError(["--time names a column of the table that --quiet FILE reads"])
    settings = load_settings(config, alerts=False, gateway=False) if config else None
    spec, annotation = DEFAULT_SPEC, ANNOTATION
    if settings is not None:
        model = _only_model(settings, model, config)
        spec, annotation = monitor_spec(settings.models[model]), settings.version_annotation
    notes: list[str] = []
    if reference is not None:
        tables = read_tables(reference, reference, ignore=ignore)
        notes = tables.notes
        known = prepare(model or "table/reference", "1", tables.schema, tables.reference)
    elif settings is not None and model is not None:
        repository = Repository(settings.repository)
        version = repository.current(model)
        if version is None:
            raise SettingsError([f"{settings.repository}: no live version of {model}; deploy one, or give --reference FILE"])
        known = references(repository)(model, version)
    else:
        raise SettingsError(["calibrate needs a configuration (--config FILE) or a table (--reference FILE)"])
    history = None
    if quiet is not None and is_table(quiet):
        history = from_table(Path(quiet), known, time)
    elif quiet is not None:
        if reference is not None:
            raise SettingsError(
                ["--quiet LOG goes with the reference of a deployed version: leave --reference out, or give a table of quiet rows"]
            )
        with closing(open_log(quiet, must_exist=True)) as event_log:
            history = from_log(event_log, quiet, known, annotation)
    return Calibrating(spec, known, rate, history, notes)


def _only_model(settings: Settings, model: str | None, config: Path | None) -> str:
    if model is not None and model not in settings.models:
        raise SettingsError([f"{config}: there is no model {model}; there are {', '.join(settings.models)}"])
    if model is None and len(settings.models) != 1:
        raise SettingsError([f"{config}: name one of its models with --model: {', '.join(settings.models)}"])
    return model or next(iter(settings.models))
