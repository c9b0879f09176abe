"""Seeded streams for benchmarks: what a quiet stream looks like, and what changes on it.

A stream is twenty columns or so by name, object arrays for categories and float arrays for numbers (NaN = missing); the last column
stands as the model's prediction. Reference and stream are one stretch of the same process, the reference first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from inference.versions import PREDICTION, Feature, Kind, Schema
from streaming.core.reference import Reference, prepare
from streaming.core.window import Rows

Columns = dict[str, NDArray[Any]]
Law = Callable[[np.random.Generator, int], Columns]
Change = Callable[[np.random.Generator, Columns], None]
"""Changes the columns in place, from the first row on."""

_COLUMNS = 20
_LETTERS = (0.3, 0.2, 0.15, 0.1, 0.1, 0.06, 0.04, 0.03, 0.015, 0.005)
_BURN_IN = 500
_PERIOD = 1000
_OUTLIER = 1e6


@dataclass(frozen=True, slots=True)
class Quiet:
    """A stream that does not change. `at_most`: the false triggers per 100,000 events that the default may have."""

    name: str
    law: Law
    reference: int
    at_most: float = 1.0


@dataclass(frozen=True, slots=True)
class Changed:
    """A stream that changes once. `within`: the median delay in events that the default may have; `horizon`: how long it is looked for.

    `quiet` names the quiet stream of the same law: who cries wolf there has found nothing here.
    """

    name: str
    law: Law
    reference: int
    change: Change
    within: int
    quiet: str
    horizon: int = 12_000


def drawn(name: str, law: Law, rows: int, seed: int) -> tuple[Columns, np.random.Generator]:
    """`rows` rows of a law, and the generator to go on with; the same for the same name and seed."""
    rng = np.random.default_rng((seed, crc32(name.encode())))
    return law(rng, rows), rng


def part(columns: Columns, start: int, stop: int) -> Columns:
    return {name: cells[start:stop].copy() for name, cells in columns.items()}


def reference_of(columns: Columns) -> Reference:
    *features, last = columns
    kinds: dict[str, Kind] = {name: "categorical" if cells.dtype == object else "numeric" for name, cells in columns.items()}
    schema = Schema(tuple(Feature(name, kinds[name]) for name in features), kinds[last], last)
    sample: dict[str, Any] = {PREDICTION if name == last else name: cells for name, cells in columns.items()}
    return prepare("bench/stream", "1", schema, sample)


def rows_of(reference: Reference, columns: Columns) -> Rows:
    cells = [*columns.values()]
    count = len(cells[0])
    return Rows.of(reference.columns, cells, np.arange(count), np.zeros(count))


# Laws


def normal(rng: np.random.Generator, rows: int, columns: int = _COLUMNS) -> Columns:
    """Independent standard normal columns."""
    return {f"x{number}": rng.normal(size=rows) for number in range(columns)}


def mixed(rng: np.random.Generator, rows: int) -> Columns:
    """A column of each kind that tables have, independent of each other."""
    shares = 1.0 / np.arange(1, 201)
    names = np.array([f"name-{number}" for number in range(200)], dtype=object)
    return {
        "normal": rng.normal(size=rows),
        "lognormal": rng.lognormal(0.0, 1.5, rows),
        "heavy tails": rng.standard_t(2.5, rows),
        "exponential": rng.exponential(size=rows),
        "uniform": rng.uniform(size=rows),
        "counts": rng.poisson(3.0, rows).astype(np.float64),
        "binary": (rng.uniform(size=rows) < 0.1).astype(np.float64),
        "zero-inflated": np.where(rng.uniform(size=rows) < 0.7, 0.0, rng.lognormal(0.0, 1.0, rows)),
        "letter": rng.choice(np.array([*"abcdefghij"], dtype=object), rows, p=_LETTERS),
        "one of 200": rng.choice(names, rows, p=shares / shares.sum()),
        "partly missing": _without(rng, rng.normal(size=rows), 0.05),
        "bimodal": np.where(rng.uniform(size=rows) < 0.5, rng.normal(-3.0, 1.0, rows), rng.normal(3.0, 0.5, rows)),
    }


def with_outliers(rng: np.random.Generator, rows: int) -> Columns:
    """Normal, and one value in a thousand is 1e6, in every column."""
    columns = normal(rng, rows)
    for cells in columns.values():
        cells[rng.uniform(size=rows) < 0.001] = _OUTLIER
    return columns


def autoregressive(rho: float) -> Law:
    """Each column an AR(1) process with variance 1."""

    def law(rng: np.random.Generator, rows: int) -> Columns:
        noise = rng.normal(size=(_COLUMNS, rows + _BURN_IN)) * np.sqrt(1.0 - rho**2)
        levels = lfilter([1.0], [1.0, -rho], noise)[:, _BURN_IN:]
        return {f"x{number}": cells for number, cells in enumerate(levels)}

    return law


def periodic(rng: np.random.Generator, rows: int) -> Columns:
    """Each column a sine of amplitude 1 and period 1,000 rows, at a phase of its own, with noise of variance 1."""
    angles = 2.0 * np.pi * np.arange(rows) / _PERIOD
    return {f"x{number}": np.sin(angles + number) + rng.normal(size=rows) for number in range(_COLUMNS)}


def partly_missing(rng: np.random.Generator, rows: int) -> Columns:
    """Normal; one column lacks 1 % of its values."""
    columns = normal(rng, rows)
    columns["x3"] = _without(rng, columns["x3"], 0.01)
    return columns


# Changes


def shifted(by: float) -> Change:
    """One column's mean; outliers stay where they are."""

    def change(rng: np.random.Generator, columns: Columns) -> None:
        cells = columns["x3"]
        cells[cells != _OUTLIER] += by

    return change


def spread(rng: np.random.Generator, columns: Columns) -> None:
    """The spread of five columns, by 1.3."""
    for number in range(5):
        columns[f"x{number}"] *= 1.3


def ramp(rng: np.random.Generator, columns: Columns) -> None:
    """The mean of five columns, to 0.5 over 10,000 rows."""
    for number in range(5):
        cells = columns[f"x{number}"]
        cells += 0.5 * np.minimum(np.arange(len(cells)) / 10_000, 1.0)


def more_missing(rng: np.random.Generator, columns: Columns) -> None:
    """10 % of a column go missing, besides those that do anyway: 1 % becomes 10 %."""
    columns["x3"] = _without(rng, columns["x3"], 1.0 - 0.9 / 0.99)


def new_category(rng: np.random.Generator, columns: Columns) -> None:
    """A category never seen before, in 1 % of the rows."""
    cells = columns["letter"]
    cells[rng.uniform(size=len(cells)) < 0.01] = "never seen"


def correlated(rng: np.random.Generator, columns: Columns) -> None:
    """Two columns become correlated by 0.8; each keeps its own law."""
    columns["x3"] = 0.8 * columns["x2"] + 0.6 * columns["x3"]


def _without(rng: np.random.Generator, cells: NDArray[Any], share: float) -> NDArray[Any]:
    return np.where(rng.uniform(size=len(cells)) < share, np.nan, cells)


_AR5, _AR9 = autoregressive(0.5), autoregressive(0.9)

QUIET = (
    Quiet("20 normal, reference 5,000", normal, 5_000),
    Quiet("20 normal, reference 1,000", normal, 1_000),
    Quiet("12 mixed types, reference 5,000", mixed, 5_000),
    Quiet("12 mixed types, reference 1,000", mixed, 1_000),
    Quiet("recurring 1e6 outliers", with_outliers, 5_000),
    Quiet("AR(1) rho 0.5, reference 20,000", _AR5, 20_000),
    Quiet("AR(1) rho 0.9, reference 20,000", _AR9, 20_000),
    Quiet("periodic, reference 10,000", periodic, 10_000),
)

CHANGED = (
    Changed("0.25 sigma in 1 of 20", normal, 5_000, shifted(0.25), 500, QUIET[0].name),
    Changed("0.5 sigma in 1 of 20", normal, 5_000, shifted(0.5), 120, QUIET[0].name),
    Changed("1 sigma in 1 of 20", normal, 5_000, shifted(1.0), 45, QUIET[0].name),
    Changed("spread x1.3 in 5 of 20", normal, 5_000, spread, 120, QUIET[0].name),
    Changed("ramp to 0.5 over 10,000 in 5 of 20", normal, 5_000, ramp, 3_200, QUIET[0].name, horizon=15_000),
    Changed("1 sigma behind 1e6 outliers", with_outliers, 5_000, shifted(1.0), 30, QUIET[4].name),
    Changed("missing 1 to 10 %", partly_missing, 5_000, more_missing, 150, QUIET[0].name),
    Changed("new category at 1 %", mixed, 5_000, new_category, 1_000, QUIET[2].name),
    Changed("1 sd in AR(1) rho 0.5", _AR5, 20_000, shifted(1.0), 150, QUIET[5].name),
    Changed("1.5 sd in AR(1) rho 0.9", _AR9, 20_000, shifted(1.5), 350, QUIET[6].name),
    Changed("correlation 0 to 0.8", normal, 5_000, correlated, 80, QUIET[0].name),
)
