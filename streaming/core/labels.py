"""Predictions that wait for their labels: a bounded memory, joined by the rules by which a retraining joins them."""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, FiniteFloat

from inference.messages import Label
from inference.pairing import MAX_SAME_ID
from inference.payload import category
from streaming.core.made import Apart, Key, Learned, Made, as_columns, from_columns, key_of
from streaming.core.rates import Count

EARLY_WAIT = 300.0
"""Seconds of log time that a label waits for its prediction; as long as the halves of one may be apart."""

EARLY_ROWS = 10_000
"""Rows of labels that wait for their prediction."""

BEFORE_ANY = 10_000
"""Rows of predictions that are kept, one behind the other, as long as the model has had no label: most models never have one."""


class Joined(NamedTuple):
    """A prediction and the truth about it, a value per row: None where it is not known, NaN where it is no such value.

    `lag`: seconds of log time from the prediction to this label, `first` its first.
    """

    made: Made
    learned: Learned
    truths: Sequence[Any]
    lag: float
    first: bool


class _State(BaseModel):
    now: float
    any: bool
    kept: dict[str, Any]
    early: list[tuple[str | bytes, str | bytes, list[float | str | None], FiniteFloat]]
    counts: dict[str, Count]


class Waiting:
    """The newest `capacity` rows of predictions, at most `max_age` seconds of log time old; beyond, the oldest are forgotten.

    A label without a source belongs to the one prediction with its id, and says nothing where one with a source has spoken. A later label
    of the same prediction replaces the earlier one. Two predictions of the same identity can't be told apart: labels for them are counted
    as `ambiguous`. A label may come before its prediction, and then waits a while.

    Memory: some 500 bytes a row. `counts` are of label values, one a row, but `forgotten`: rows of predictions that went without a label,
    since there are labels.
    """

    def __init__(self, capacity: int, max_age: float, *, numeric: bool = False) -> None:
        self._capacity = capacity
        self._max_age = max_age
        self._numeric = numeric
        self._now = float("-inf")
        # Before the first label: what `_put` will take.
        self._any = False
        self._first: deque[tuple[Key, Key, int, float, Sequence[Any], Apart]] = deque()
        self._made: dict[Key, Made] = {}
        # Their keys, oldest first: a dict from whose front much was taken is slow to tell what its first is.
        self._order: deque[Key] = deque()
        self._oldest = float("inf")
        self._rows = 0
        self._early: OrderedDict[tuple[Key, Key], tuple[list[Any], float]] = OrderedDict()
        self._early_rows = 0
        self.counts: Counter[str] = Counter()

    @property
    def rows(self) -> int:
        """Rows of predictions that are kept, those that have had a label among them."""
        return self._rows

    def took_over(self, *, numeric: bool) -> None:
        """Another version: what the one before predicted is known by its identity alone."""
        self._numeric = numeric
        kept = self._kept()
        for made in kept:
            made.lose("other_version")
        self._first = deque([(*one[:4], (), "other_version") for one in self._first])
        self._rows = len(kept) + len(self._first)
        self._early.clear()
        self._early_rows = 0

    def _kept(self) -> list[Made]:
        return [made for key in self._order for made in self._made[key].all()]

    def add(self, id_: str, source: str, offset: int, time: float, values: Sequence[Any], apart: Apart = "") -> Joined | None:
        """Keep a prediction; it and its label, if that came before it."""
        key = key_of(id_)
        by = key_of(source)
        if self._any:
            made = self._put(key, by, offset, time, values, apart)
            return self._came_early(key, made) if self._early and made else None
        self._first.append((key, by, offset, time, values, apart))
        self._rows += len(values) or 1
        if self._rows > BEFORE_ANY:
            self._shorten()
        return None

    def _shorten(self) -> None:
        while self._rows > BEFORE_ANY:
            self._rows -= len(self._first.popleft()[4]) or 1

    def _put(self, key: Key, source: Key, offset: int, time: float, values: Sequence[Any], apart: Apart) -> Made | None:
        """Keep it where labels find it; None when it can't be told from another."""
        if time > self._now:
            self._now = time
        made = Made(source, offset, time, values, apart)
        known = self._made.get(key)
        if known is not None:
            if not self._beside(known, made):
                return None
        else:
            self._made[key] = made
            self._order.append(key)
            if len(self._order) == 1:
                self._oldest = time
        self._rows += len(values) or 1
        if self._rows > self._capacity or self._now - self._oldest > self._max_age:
            self._forget_old()
        return made

    def _beside(self, first: Made, made: Made) -> bool:
        """Keep it beside others of its id; False for one that can't be told from one of them."""
        same = next((one for one in first.all() if one.source == made.source), None)
        if same is not None:
            self._rows += 1 - same.rows
            same.lose("ambiguous")
            return False
        if first.others is None:
            first.others = []
        first.others.append(made)
        if len(first.others) >= MAX_SAME_ID:
            self._forget(first.others.pop(0))
        return True

    def _came_early(self, key: Key, made: Made) -> Joined | None:
        self._drop_early()
        for source in (made.source, ""):
            waiting = self._early.pop((key, source), None)
            if waiting is not None:
                truths, _ = waiting
                self._early_rows -= len(truths)
                self.counts["unmatched"] -= len(truths)
                return self._fitting(made, truths, named=source != "", lag=0.0)
        return None

    def label(self, label: Label, time: float) -> Joined | None:
        """The prediction that a label is about; None when it is not known (yet) or not which, as `counts` tells."""
        self._now = max(self._now, time)
        if not self._any:
            self._any, self._rows = True, 0
            for one in self._first:
                self._put(*one)
            self._first.clear()
        self._forget_old()
        key, source = key_of(label.prediction_id), key_of(label.source)
        truths = [_number(value) for value in label.labels] if self._numeric else [category(value) for value in label.labels]
        known = self._made.get(key)
        same = [made for made in known.all() if not source or made.source == source] if known else []
        if not same:
            self.counts["unmatched"] += len(truths)
            self._keep_early((key, source), truths)
            return None
        if len(same) > 1:
            self.counts["ambiguous"] += len(truths)
            return None
        return self._fitting(same[0], truths, named=bool(source), lag=max(0.0, time - same[0].time))

    def _fitting(self, made: Made, truths: list[Any], *, named: bool, lag: float) -> Joined | None:
        learned, rows = made.learned, len(made.values)
        if made.apart:
            self.counts[made.apart] += len(truths)
        elif len(truths) != rows:
            self.counts["label_count_differs"] += len(truths)
        elif learned is not None and learned.named and not named:
            self.counts["duplicates"] += len(truths)
        elif learned is None:
            made.learned = Learned(named, [-1] * rows, [0.0] * rows)
            return Joined(made, made.learned, truths, lag, True)
        else:
            learned.named = named
            return Joined(made, learned, truths, lag, False)
        return None

    def _keep_early(self, key: tuple[Key, Key], truths: list[Any]) -> None:
        known = self._early.pop(key, None)
        self._early_rows += len(truths) - (len(known[0]) if known else 0)
        self._early[key] = (truths, self._now)
        self._drop_early()

    def _drop_early(self) -> None:
        while self._early:
            truths, since = next(iter(self._early.values()))
            if self._early_rows <= EARLY_ROWS and self._now - since <= EARLY_WAIT:
                return
            self._early.popitem(last=False)
            self._early_rows -= len(truths)

    def _forget_old(self) -> None:
        while self._order:
            oldest = self._made[self._order[0]]
            if self._rows <= self._capacity and self._now - oldest.time <= self._max_age:
                self._oldest = oldest.time
                return
            del self._made[self._order.popleft()]
            for made in oldest.all():
                self._forget(made)
        self._oldest = float("inf")

    def _forget(self, made: Made) -> None:
        self._rows -= len(made.values) or 1
        if not made.apart:
            self.counts["forgotten"] += made.learned.numbers.count(-1) if made.learned else len(made.values)

    def state(self) -> dict[str, Any]:
        """All that its next answers depend on, as plain values."""
        if self._any:
            kept = [(key, made) for key in self._order for made in self._made[key].all()]
        else:
            kept = [(one[0], Made(*one[1:])) for one in self._first]
        return {
            "now": self._now,
            "any": self._any,
            "kept": as_columns(kept, numeric=self._numeric),
            "early": [[*key, truths, since] for key, (truths, since) in self._early.items()],
            "counts": dict(self.counts),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, on one of the same kind that has taken nothing yet; ValueError when it gave no such thing."""
        known = _State.model_validate(state)
        for key, made in from_columns(known.kept, numeric=self._numeric):
            self._rows += made.rows
            if not known.any:
                self._first.append((key, made.source, made.offset, made.time, made.values, made.apart))
            elif (first := self._made.setdefault(key, made)) is made:
                self._order.append(key)
            else:
                first.others = [*(first.others or ()), made]
        self._oldest = self._made[self._order[0]].time if self._order else float("inf")
        for key, source, truths, since in known.early:
            if self._numeric and any(isinstance(truth, str) for truth in truths):
                raise ValueError("a text as the truth about a number")
            self._early[key, source] = (truths, since)
            self._early_rows += len(truths)
        self._now, self._any = known.now, known.any
        self.counts.update(known.counts)


def _number(value: Any) -> float | None:
    """A label as a number; None for null, NaN for what is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float("nan")
    number = float(value)
    return number if abs(number) != float("inf") else float("nan")
