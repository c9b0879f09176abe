"""The steps of a retraining run: plain functions from folders to folders, without Kubeflow.

    collect -> train -> evaluate -> deploy (better) | keep (not better)          report (at the end, whatever happened)

Each takes the run's parameters by name; `retraining.py` makes a pipeline of them. On a laptop the run's folder is in the
environment (`RUN_FOLDER`): a failing step leaves its reason there, because Kubeflow's own status only says that a task failed.
"""

import fcntl
import functools
import gc
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from inference.errors import DriftloopError, PipelineError
from inference.versions import Repository, Version
from pipelines import tables

logger = logging.getLogger(__name__)

RUN_FOLDER = "DRIFTLOOP_RUN_FOLDER"
MODEL, REFERENCE, HOLDOUT, EVALUATION = "model.joblib", "reference.parquet", "holdout", "evaluation.json"
LOCK, STEP_LOCK, FAILURE = "lock", "step.lock", "failure.txt"

P = ParamSpec("P")
T = TypeVar("T")


def step(function: Callable[P, T]) -> Callable[P, T]:
    """Log like a program of its own, note why it failed, and hold the run's step lock for as long as it works."""

    @functools.wraps(function)
    def noted(*args: P.args, **kwargs: P.kwargs) -> T:
        folder = os.environ.get(RUN_FOLDER, "")
        with _alone(Path(folder)) if folder else _free():
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if folder:
                    reason = str(error) if isinstance(error, DriftloopError) else f"{type(error).__name__}: {error}"
                    with (Path(folder) / FAILURE).open("a", encoding="utf-8") as file:
                        file.write(f"{function.__name__}: {reason}\n")
                raise
            finally:
                if folder:
                    # The process ends now; collecting its garbage first takes a second once scikit-learn is loaded.
                    gc.freeze()

    return noted


@contextmanager
def _free() -> Iterator[None]:
    yield


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A step outlives its run's process when only that is killed: the lock tells that the run is not over yet, and a step
    that finds its run's process gone does not begin."""
    with (folder / STEP_LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not is_locked(folder / LOCK):
            raise PipelineError("the run's process is gone; this step does not begin")
        yield


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock file. Asked with a shared lock, so that two who ask do not see each other."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@step
def collect(
    out: Path, *, model: str, data: str, repository: str, target: str, since_offset: int, min_rows: int, max_rows: int, wait_seconds: float
) -> None:
    """Write the labelled rows to train on into `out`."""
    from pipelines import collect as collecting

    if max_rows < 2 or max_rows < min_rows:
        raise PipelineError(f"max_rows is {max_rows}; it must be at least 2 and no less than min_rows, which is {min_rows}")
    live = _live(repository, model)
    if not data:
        raise PipelineError("data is empty; give a .csv or .parquet table, or the event log's path")
    if collecting.is_table(data):
        table = collecting.from_table(Path(data), live=live, target=target, min_rows=min_rows, max_rows=max_rows)
    elif live is None:
        raise PipelineError(f"{model} has no live version in {repository}, so the log's rows have no schema; train the first from a table")
    else:
        table = collecting.from_log(
            data,
            live=live,
            target=target,
            since_offset=since_offset,
            min_rows=min_rows,
            max_rows=max_rows,
            wait_seconds=wait_seconds,
        )
    tables.write_table(table, out)


@step
def train(data: Path, out: Path, *, trainer: str, holdout: float, reference_rows: int) -> None:
    """Write the fitted model, its reference sample, the hold-out and a description into `out`."""
    import joblib

    from pipelines import train as training

    table = tables.read_table(data)
    kept, held = training.split(table, holdout)
    estimator, schema = training.fit(trainer, kept)
    out.mkdir(parents=True, exist_ok=True)
    joblib.dump(estimator, out / MODEL)
    whole = tables.Table(table.frame, schema, table.span, table.ordered)
    sample = training.reference(estimator, whole, reference_rows)
    tables.write_frame(sample, out / REFERENCE)
    span = {**table.span, "trainer": trainer, "rows_trained": len(kept.frame), "rows_held_out": len(held.frame)}
    tables.write_table(tables.Table(held.frame, schema, span, table.ordered), out / HOLDOUT)


@step
def evaluate(candidate: Path, out: Path, *, model: str, run_id: str, repository: str, metric: str, margin: float, floor: float) -> bool:
    """Write the evaluation as JSON to `out`; whether the candidate should go live."""
    import joblib

    from pipelines import evaluate as evaluating

    held = tables.read_table(candidate / HOLDOUT)
    challenger = joblib.load(candidate / MODEL)
    champion = _live(repository, model)
    if champion is not None and run_id and champion.run_id == run_id:
        # This run was cut short after its own version went live: it is measured against the one before, and announced.
        champion = Repository(Path(repository)).read(model, champion.parent) if champion.parent else None
    verdict = evaluating.evaluate(challenger, champion, held, metric=metric, margin=margin, floor=floor)
    out.mkdir(parents=True, exist_ok=True)
    tables.write_json(out / EVALUATION, {**asdict(verdict), "rows": held.span["rows"], "rows_held_out": verdict.rows})
    logger.info("%s: %s", model, verdict.reason)
    return verdict.better


@step
def deploy(
    candidate: Path,
    evaluation: Path,
    *,
    model: str,
    run_id: str,
    repository: str,
    server_url: str,
    gateway_url: str,
    log_url: str,
    incident: str,
    reason: str,
) -> str:
    """Put the candidate live and tell the loop; the new version's name. What was live stays live when anything fails."""
    from pipelines import publish as publishing
    from pipelines.deploy import Candidate
    from pipelines.deploy.local import LocalTarget

    held = tables.read_json(candidate / HOLDOUT / tables.DESCRIPTION)
    numbers = tables.read_json(evaluation / EVALUATION)
    champion = numbers["champion_version"] or None
    target = LocalTarget(Path(repository), server_url)
    span = {**held["span"], "incident": incident, "reason": reason, "evaluation": numbers}
    files = candidate / MODEL, candidate / REFERENCE
    schema = tables.schema_of(held["schema"])
    version = target.deploy(Candidate(model, run_id, *files, schema, numbers["scores"], span), expected=champion)
    event = publishing.promoted(version, previous=champion or "", repository=str(Path(repository).resolve()), now=time.time())
    try:
        publishing.publish([event], gateway_url=gateway_url, log_url=log_url)
    except Exception:
        # Unannounced, the watcher would hold the new model's answers against the old reference.
        target.roll_back(version, champion)
        raise
    outcome = publishing.finished(model, run_id, "promoted", {**_outcome(numbers), "version": version.version}, now=time.time())
    try:
        publishing.publish([outcome], gateway_url=gateway_url, log_url=log_url)
    except PipelineError as error:
        logger.warning("version %s is live and announced, but the run's outcome could not be told: %s", version.version, error)
    return version.version


@step
def keep(evaluation: Path, *, model: str, run_id: str, gateway_url: str, log_url: str) -> None:
    """Tell the loop that the live version stays, and why."""
    from pipelines import publish as publishing

    numbers = tables.read_json(evaluation / EVALUATION)
    event = publishing.finished(model, run_id, "kept", _outcome(numbers), now=time.time())
    publishing.publish([event], gateway_url=gateway_url, log_url=log_url)


@step
def report(*, model: str, run_id: str, state: str, message: str, gateway_url: str, log_url: str) -> None:
    """Tell the loop of a run that failed; the other outcomes were told by their own step."""
    from pipelines import publish as publishing

    if state != "FAILED":
        return
    event = publishing.finished(model, run_id, "failed", {"reason": (failure() or message or "a step failed")[:2000]}, now=time.time())
    publishing.publish([event], gateway_url=gateway_url, log_url=log_url)


def failure() -> str:
    """What the failing step of this run noted, or ""."""
    folder = os.environ.get(RUN_FOLDER, "")
    try:
        return (Path(folder) / FAILURE).read_text(encoding="utf-8").strip() if folder else ""
    except FileNotFoundError:
        return ""


def _outcome(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: numbers[name] for name in ("reason", "champion", "challenger", "metric", "margin", "rows")}


def _live(repository: str, model: str) -> Version | None:
    versions = Repository(Path(repository))
    name = versions.current(model)
    return versions.read(model, name) if name is not None else None
