"""How one model is watched and retrained."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from streaming.detectors import ErrorAdwin, ErrorDetectorSpec
from streaming.settings.limits import BudgetLimitSettings, LimitSettings
from streaming.settings.values import Frozen, HttpUrl, Seconds
from streaming.settings.windows import (
    TAKEN_WINDOW_NAMES,
    AnyWindowSettings,
    SegmentSettings,
    TimeWindowSettings,
    WindowName,
    WindowSettings,
)


class GovernorSettings(Frozen):
    """When a breach starts a run. Where all limits are budgets and nothing is said, `confirm` and `of` are 1."""

    confirm: int = Field(default=2, ge=1)
    of: int = Field(default=3, ge=1, le=1000)
    min_samples: int = Field(default=0, ge=0)
    cooldown: Seconds = 600.0
    max_run: Annotated[Seconds, Field(gt=0)] = 3600.0

    @model_validator(mode="after")
    def _confirm_fits(self) -> Self:
        if self.confirm > self.of:
            raise ValueError(f"confirm must be at most of ({self.of}), not {self.confirm}")
        return self


class RetrainingSettings(Frozen):
    """What the retraining run gets to know; times and counts bound how long it waits for labels and how much it reads."""

    trainer: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] = "pipelines.trainers:classifier"
    metric: Literal["accuracy", "balanced_accuracy", "f1_macro", "r2", "neg_mean_absolute_error"] = "accuracy"
    margin: float = Field(default=0.01, ge=0)
    min_rows: int = Field(default=200, ge=10)
    max_rows: int = Field(default=10_000, ge=10, le=5_000_000)
    wait: Seconds = 300.0
    holdout: float = Field(default=0.3, gt=0, lt=1)
    reference_rows: int = Field(default=1000, ge=10, le=100_000)
    server_url: HttpUrl | None = None
    gateway_url: HttpUrl | None = None


class ErrorSettings(Frozen):
    """Labelled errors: which detector hears of them, how many are judged together, and how many predictions wait for labels how long."""

    detector: ErrorDetectorSpec = ErrorAdwin()
    size: int = Field(default=500, ge=10, le=100_000)
    slide: int = Field(default=50, ge=1)
    max_waiting: int = Field(default=100_000, ge=1, le=10_000_000)
    max_age: Annotated[Seconds, Field(gt=0)] = 7 * 86400.0

    @model_validator(mode="after")
    def _slide_fits(self) -> Self:
        if self.slide > self.size:
            raise ValueError(f"slide must be at most size ({self.size}), not {self.slide}")
        return self


class SchemaSettings(Frozen):
    """At most this `share` of the last `of` predictions may be unreadable; alerts, and never retrains."""

    share: float = Field(default=0.05, gt=0, le=1)
    of: int = Field(default=200, ge=1, le=100_000)


class ModelSettings(Frozen):
    """How one model is watched, and retrained (`retraining: null` only alerts): by one `window`, or by several `windows` with names."""

    window: AnyWindowSettings = WindowSettings()
    windows: dict[WindowName, AnyWindowSettings] | None = Field(default=None, min_length=1, max_length=10)
    segments: SegmentSettings | None = None
    limits: tuple[LimitSettings, ...] = Field(default=(BudgetLimitSettings(),), min_length=1)
    errors: ErrorSettings | None = ErrorSettings()
    schema_changes: SchemaSettings | None = Field(default=SchemaSettings(), alias="schema")
    governor: GovernorSettings = GovernorSettings()
    retraining: RetrainingSettings | None = RetrainingSettings()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [limit.label for limit in self.limits]
        taken = sorted(TAKEN_WINDOW_NAMES.intersection(names))
        if taken:
            raise ValueError(f"no limit can be named {' or '.join(taken)}: driftloop has such limits of its own")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"limits need different names; give one of {', '.join(twice)} a `name`")
        return self

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.windows is not None and "window" in self.model_fields_set:
            raise ValueError("give `window` or `windows`, not both")
        named = self.windows or {}
        for limit in self.limits:
            unknown = [name for name in limit.windows or () if name not in named]
            if unknown:
                there = f"there are {', '.join(named)}" if named else "there are no `windows` with names"
                raise ValueError(f"limit {limit.label!r}: no window {', '.join(unknown)}; {there}")
        timed = [name or "the window" for name, window in self.named_windows.items() if isinstance(window, TimeWindowSettings)]
        for limit in self.limits:
            judged = [name for name in timed if limit.windows is None or name in limit.windows]
            if limit.kind == "evidently" and limit.false_alarms is not None and judged:
                raise ValueError(
                    f"limit {limit.label!r}: false_alarms of an evidently limit needs a window of a number of predictions, and "
                    f"{', '.join(judged)} is of a stretch of time; give a threshold, or `windows` that fit, or a limit of kind budget"
                )
        idle = [name for name in named if not self.limits_of(name)]
        if idle:
            raise ValueError(
                f"no limit judges window {', '.join(idle)}: a limit that judges after each prediction is on one window, the first "
                "unless its `windows` names another; leave the window out, or give it a limit"
            )
        return self

    @property
    def named_windows(self) -> "dict[str, WindowSettings | TimeWindowSettings]":
        """All windows; the only one's name is ""."""
        return {"": self.window} if self.windows is None else dict(self.windows)

    def limits_of(self, window: str) -> tuple[LimitSettings, ...]:
        """The limits that judge this window."""
        first = next(iter(self.named_windows))
        return tuple([limit for limit in self.limits if window in (limit.windows or ((first,) if limit.per_event else (window,)))])
