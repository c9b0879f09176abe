"""How many events a second the core takes on one core, next to Evidently's Report and functions on the same windows.

Processor time of this process, so that other processes count little; the median of several rounds in which ours and Evidently's take
turns. Ours is everything from a batch of columns to verdicts: codes, window, both Evidently tests of each column and the default
detector with all pairs. What only the first windows cost (p-values seen for the first time) lies before the first round.
"""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from inference.errors import SettingsError
from streaming.bench.printed import aligned, as_text, machine
from streaming.bench.streams import Columns, normal, part, reference_of
from streaming.core.governor import Governor
from streaming.core.limits import BudgetLimit, EvidentlyLimit
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import Reference
from streaming.core.window import CountWindow, Rows

_log = logging.getLogger(__name__)

REFERENCE, WINDOW = 5_000, 1_000
BATCH = 500
TIMES = 600.0
"""How many times as fast as Evidently's Report a window must be."""
_WARM_UP = 10


@dataclass(frozen=True, slots=True)
class Case:
    """So many numeric features, and a numeric prediction beside them. `events`: of each round. `target`: events per second."""

    name: str
    features: int
    slide: int
    events: int
    target: int
    times: float | None = None


CASES = (
    Case("20 features, slide 100", 20, 100, 20_000, 60_000, TIMES),
    Case("100 features, slide 100", 100, 100, 5_000, 8_000),
    Case("20 features, slide 10", 20, 10, 5_000, 12_000),
)


def run(*, only: str = "", cases: Sequence[Case] = CASES, rounds: int = 3, evidently: bool = True, seed: int = 1) -> dict[str, Any]:
    """All cases with this text in their name, as JSON values. SettingsError when there is none, or no round.

    Without Evidently (not wanted, or not installed) its figures are None.
    """
    chosen = [case for case in cases if only.lower() in case.name.lower()]
    if rounds < 1:
        raise SettingsError([f"rounds must be at least 1, not {rounds}"])
    if not chosen:
        raise SettingsError([f"no case has {only!r} in its name; there are: {'; '.join(case.name for case in cases)}"])
    theirs = _evidently() if evidently else None
    return {
        "reference": REFERENCE,
        "window": WINDOW,
        "batch": BATCH,
        "rounds": rounds,
        "cases": [_measured(case, theirs, rounds, seed) for case in chosen],
        "machine": machine(),
    }


def _measured(case: Case, theirs: "_Evidently | None", rounds: int, seed: int) -> dict[str, Any]:
    _log.info("%s", case.name)
    rng = np.random.default_rng(seed)
    columns = normal(rng, REFERENCE + WINDOW + case.events, case.features + 1)
    reference = reference_of(part(columns, 0, REFERENCE))
    stream = [*part(columns, REFERENCE, REFERENCE + WINDOW + case.events).values()]
    limits = (EvidentlyLimit("ks", "ks"), EvidentlyLimit("wasserstein", "wasserstein"), BudgetLimit("budget"))
    spec = MonitorSpec(CountWindow(WINDOW, case.slide), limits, Governor())
    calibration, monitor = _timed(lambda: Monitor(spec, reference, 0))
    batches = [tuple(cells[start : start + BATCH] for cells in stream) for start in range(WINDOW, WINDOW + case.events, BATCH)]
    lists = [([*zip(*(cells.tolist() for cells in batch[:-1]), strict=True)], batch[-1].tolist()) for batch in batches]
    _arrays(monitor, reference, [tuple(cells[:WINDOW] for cells in stream), *batches])
    if theirs:
        theirs.prepare(reference, columns)
    arrays, rows, report, functions = [], [], [], []
    for number in range(rounds):
        arrays.append(_timed(lambda: _arrays(monitor, reference, batches))[0])
        rows.append(_timed(lambda: _rows(monitor, lists))[0])
        if theirs:
            window = {name: cells[-WINDOW - number * case.slide :][:WINDOW] for name, cells in columns.items()}
            report.append(_timed(lambda window=window: theirs.report(window))[0])  # type: ignore[misc]
            functions.append(_timed(lambda window=window: theirs.functions(window))[0])  # type: ignore[misc]
    rate = case.events / median(arrays)
    of_window = case.slide / rate
    of_report, of_functions = (median(report), median(functions)) if theirs else (None, None)
    times = of_report / of_window if of_report else None
    return {
        "case": case.name,
        "columns": case.features + 1,
        "slide": case.slide,
        "events": case.events,
        "target": case.target,
        "events_per_second": round(rate),
        "events_per_second_from_python_rows": round(case.events / median(rows)),
        "reached": rate >= case.target,
        "window_ms": round(of_window * 1e3, 3),
        "evidently_report_ms": _ms(of_report),
        "evidently_functions_ms": _ms(of_functions),
        "times_report": None if times is None else round(times),
        "times_functions": None if of_functions is None else round(of_functions / of_window, 1),
        "times_target": case.times,
        "times_reached": None if times is None or case.times is None else times >= case.times,
        "calibration_seconds": round(calibration, 3),
    }


def _arrays(monitor: Monitor, reference: Reference, batches: Sequence[Sequence[Any]]) -> None:
    columns = reference.columns
    for batch in batches:
        rows = Rows.of(columns, batch, np.arange(len(batch[0])), np.zeros(len(batch[0])))
        for _ in monitor.take(rows):
            pass


def _rows(monitor: Monitor, batches: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> None:
    for rows, predictions in batches:
        for _ in monitor.feed(rows, predictions, range(len(rows)), [0.0] * len(rows)):
            pass


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time, and what it gave."""
    before = time.process_time()
    made = work()
    return time.process_time() - before, made


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _evidently() -> "_Evidently | None":
    try:
        import evidently  # noqa: F401
    except ModuleNotFoundError:
        return None
    return _Evidently()


class _Evidently:
    """Evidently on one window: its preset's Report, and its own functions of the two tests for each column."""

    def __init__(self) -> None:
        from evidently import DataDefinition, Dataset, Report
        from evidently.legacy.calculations.stattests import ks_stat_test, wasserstein_stat_test
        from evidently.legacy.core import ColumnType
        from evidently.presets import DataDriftPreset

        def dataset(columns: Columns) -> Any:
            import pandas as pd

            return Dataset.from_pandas(pd.DataFrame(columns), data_definition=DataDefinition(numerical_columns=[*columns]))

        def run(current: Any, reference: Any) -> None:
            Report([DataDriftPreset()]).run(current, reference)

        self._dataset = dataset
        self._run = run
        self._tests = [(ks_stat_test, 0.05), (wasserstein_stat_test, 0.1)]
        self._numerical = ColumnType.Numerical

    def prepare(self, reference: Reference, columns: Columns) -> None:
        """Take the reference, and do once what is only done the first time."""
        self._reference = part(columns, 0, len(reference.codes[0]))
        self._prepared = self._dataset(self._reference)
        few = {name: cells[:_WARM_UP] for name, cells in [*columns.items()][:2]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._run(self._dataset(few), self._dataset(few))
        self.functions(few)

    def report(self, window: Columns) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._run(self._dataset(window), self._prepared)

    def functions(self, window: Columns) -> None:
        import pandas as pd

        for name, cells in window.items():
            current, reference = pd.Series(cells), pd.Series(self._reference[name])
            for test, threshold in self._tests:
                test(reference, current, self._numerical, threshold)


def table(result: dict[str, Any]) -> str:
    """What `run` gave, for people."""
    head = [
        "events per second, one core",
        "target",
        "driftloop",
        "from Python rows",
        "ms a window",
        "Evidently's functions",
        "its Report",
        "times Report",
    ]
    rows = [head]
    for case in result["cases"]:
        times = "-" if case["times_report"] is None else f"{case['times_report']:,}"
        rows.append(
            [
                case["case"],
                f">= {case['target']:,}",
                f"{case['events_per_second']:,}{'' if case['reached'] else '!'}",
                f"{case['events_per_second_from_python_rows']:,}",
                f"{case['window_ms']:.2f}",
                *("-" if case[name] is None else f"{case[name]:,.1f} ms" for name in ("evidently_functions_ms", "evidently_report_ms")),
                f"{times}{'!' if case['times_reached'] is False else ''}"
                + (f" (>= {case['times_target']:,.0f})" if case["times_target"] else ""),
            ]
        )
    notes = [
        f"Reference {result['reference']:,}, window {result['window']:,}; numeric features and a numeric prediction. Limits: ks and"
        " wasserstein of every column at each slide, and the budget of false alarms after each event, with the pairs of up to 30 columns.",
        f"driftloop: batches of {result['batch']} events as arrays, a column each, to verdicts; from Python rows: the same from lists."
        f" Processor time, median of {result['rounds']} rounds.",
        "Evidently's functions: its own ks and wasserstein of every column; its Report: DataDriftPreset. ! missed the target.",
        "Calibration: " + ", ".join(f"{case['calibration_seconds']:.1f} s for {case['columns']} columns" for case in result["cases"]) + ".",
        as_text(result["machine"]),
    ]
    return "\n\n".join([aligned(rows), "\n".join(notes)])
