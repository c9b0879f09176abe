"""What moved of a feature, from what to what: the numbers of a reference beside those of a window's rows.

`About` says what of which columns:

| kind     | of                     | what is told                                                                             |
|----------|------------------------|------------------------------------------------------------------------------------------|
| level    | a numeric column       | mean, median, standard deviation, interquartile range of its finite values                 |
| spread   | a numeric column       | the same, the standard deviation first                                                   |
| category, rare | a categorical column | the share of all rows; then of the categories that moved most                        |
| missing, unseen, outside | a column | the share of all rows that is missing, never seen in the reference, out of its range      |
| pair     | two numeric columns    | Spearman's rank correlation of the rows that lack neither                                 |
"""

from collections import Counter
from collections.abc import Iterator
from math import isfinite, sqrt
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from streaming.core.cusum.signals import COMMON
from streaming.core.reference import CategoricalColumn, Codes, Column, Floats, NumericColumn, Reference, Values
from streaming.core.verdict import Moved
from streaming.core.window import SlidingWindow

MOST = 6
"""Categories that are told of beside the one that the finding is about."""
_LONGEST = 60
_NAMES = {"missing": "missing", "unseen": "never seen", "outside": "out of range", "rare": "rare categories"}

Kind = Literal["level", "spread", "category", "rare", "missing", "unseen", "outside", "pair"]


class About(NamedTuple):
    """A kind of change of these columns (their numbers); `code` is a category's."""

    kind: Kind
    columns: tuple[int, ...]
    code: int = -1


def hits(column: Column, about: About, codes: Codes) -> NDArray[np.bool_]:
    """Which values a share is of."""
    if about.kind == "missing":
        found: NDArray[np.bool_] = codes == column.missing
    elif about.kind == "unseen":
        found = column.unseen(codes)
    elif about.kind == "outside" and isinstance(column, NumericColumn):
        found = column.outside(codes)
    elif about.kind == "rare" and isinstance(column, CategoricalColumn):
        common = sum(count >= COMMON * column.rows for count in column.counts.values())
        found = (codes >= common) & (codes < len(column.counts))
    else:
        found = codes == about.code
    return found


def moved(reference: Reference, window: SlidingWindow, about: About, place: int) -> list[Moved]:
    """What there is to tell, the window's rows from number `place` (0 = oldest) on as "after"; the first is what it is about."""
    if about.kind == "pair":
        told = [_pair(reference, window, about, place)]
    else:
        (number,) = about.columns
        column, known = reference.columns[number], reference.codes[number]
        codes, cells = window.codes[number][place:], window.values(number)[place:]
        if isinstance(column, CategoricalColumn):
            told = [*_categories(column, known, codes, cells, about)]
        else:
            told = [*_of_number(column, known, codes, cells, about)]
    return [one for one in told if one.before is not None or one.after is not None]


def _pair(reference: Reference, window: SlidingWindow, about: About, place: int) -> Moved:
    # Of the reference there are codes, which are in the order of the values that it holds.
    before = [np.where(reference.codes[one] == reference.columns[one].missing, np.nan, reference.codes[one]) for one in about.columns]
    after = [np.asarray(window.values(one)[place:], dtype=np.float64) for one in about.columns]
    return Moved("rank correlation", _correlation(*before), _correlation(*after))


def _correlation(first: Floats, second: Floats) -> float | None:
    """Spearman's; None where one of both is constant."""
    both = ~(np.isnan(first) | np.isnan(second))
    ranks = [rankdata(cells[both]) - (both.sum() + 1) / 2.0 for cells in (first, second)]
    scale = sqrt(float((ranks[0] ** 2).sum()) * float((ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum()) / scale if scale else None


def _of_number(column: NumericColumn, known: Codes, codes: Codes, cells: Values, about: About) -> Iterator[Moved]:
    names = ("mean", "median", "standard deviation", "interquartile range")
    numbers = [Moved(*one) for one in zip(names, _summary(column.values), _summary(column.known(cells)), strict=True)]
    if about.kind not in ("level", "spread"):
        yield _share(column, about, known, codes)
    yield from numbers if about.kind != "spread" else [*numbers[2:], *numbers[:2]]
    if about.kind != "missing":
        missing = _share(column, About("missing", about.columns), known, codes)
        if missing.before or missing.after:
            yield missing


def _summary(values: Floats) -> list[float | None]:
    if not len(values):
        return [None] * 4
    with np.errstate(over="ignore", invalid="ignore"):
        low, middle, high = np.percentile(values, [25.0, 50.0, 75.0])
        told = [float(np.mean(values)), float(middle), float(np.std(values)), float(high - low)]
    return [number if isfinite(number) else None for number in told]


def _share(column: Column, about: About, known: Codes, codes: Codes) -> Moved:
    shares = [float(hits(column, about, some).mean()) if len(some) else None for some in (known, codes)]
    return Moved(_NAMES[about.kind], *shares)


def _categories(column: CategoricalColumn, known: Codes, codes: Codes, cells: Values, about: About) -> Iterator[Moved]:
    count = column.missing + 1
    before, after = (np.bincount(some, minlength=count) / max(1, len(some)) for some in (known, codes))
    names = [*column.counts]

    def share(code: int) -> Moved:
        name = (*map(repr, map(_cut, names[code : code + 1])), "")[0]
        what = f"category {name}" if name else _NAMES["missing"] if code == column.missing else _never_seen(column, codes, cells)
        return Moved(what, float(before[code]), float(after[code]))

    first = {"category": about.code, "unseen": count - 2, "missing": count - 1}.get(about.kind, -1)
    yield _share(column, about, known, codes) if first < 0 else share(first)
    for code in np.argsort(-np.abs(after - before), kind="stable")[: MOST + 1].tolist():
        if code != first and before[code] != after[code]:
            yield share(code)


def _never_seen(column: CategoricalColumn, codes: Codes, cells: Values) -> str:
    """With the commonest of those values: its name is what people ask for first."""
    counts = Counter(cells[column.unseen(codes)].tolist())
    if not counts:
        return _NAMES["unseen"]
    often = min(counts, key=lambda name: (-counts[name], name))
    return f"{_NAMES['unseen']}, most often {_cut(often)!r}"


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
