"""What may not be gone over: one class for each kind of limit."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from streaming.detectors import DetectorSpec
from streaming.settings.values import AlarmBudget, FalseAlarms, Frozen


class EvidentlyLimitSettings(Frozen):
    """One of Evidently's tests over the window; `drifting` is "any" column or a share of the columns.

    `winsorize`: numbers are clipped to the reference's range without its outliers first, so that no outlier can trip or mask.
    `false_alarms` in place of a threshold: each column's limit is calibrated from the reference, so that all of them together keep it.
    """

    per_event: ClassVar[bool] = False
    kind: Literal["evidently"] = "evidently"
    name: str = ""
    test: Literal["auto", "ks", "wasserstein", "psi", "jensenshannon", "chisquare", "z"] = "auto"
    threshold: float | None = Field(default=None, ge=0)
    false_alarms: AlarmBudget | None = None
    drifting: Literal["any"] | Annotated[float, Field(gt=0, le=1)] = "any"
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    windows: tuple[str, ...] | None = Field(default=None, min_length=1)
    winsorize: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.threshold is not None and self.false_alarms is not None:
            raise ValueError("give a threshold, or false_alarms that one is calibrated from, not both")
        return self

    @property
    def label(self) -> str:
        return self.name or f"evidently {self.test}"


class DetectorLimitSettings(Frozen):
    """One of river's detectors on each column's rank in the reference."""

    per_event: ClassVar[bool] = True
    kind: Literal["detector"]
    name: str = ""
    detector: DetectorSpec
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    windows: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=1)

    @property
    def label(self) -> str:
        return self.name or self.detector.kind


class BudgetLimitSettings(Frozen):
    """A budget of false alarms over all columns together, kept by a CUSUM of ranks that judges after each prediction."""

    per_event: ClassVar[bool] = True
    kind: Literal["budget"] = "budget"
    name: str = ""
    false_alarms: AlarmBudget = FalseAlarms(None, 30 * 86400.0)
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    windows: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=1)

    @property
    def label(self) -> str:
        return self.name or "budget"


class QualityLimitSettings(Frozen):
    """Shares of each column's values in the window: missing, out of the reference's range, of no category that it knows."""

    per_event: ClassVar[bool] = False
    kind: Literal["quality"]
    name: str = ""
    missing: float | None = Field(default=None, ge=0, lt=1)
    out_of_range: float | None = Field(default=None, ge=0, lt=1)
    new_categories: float | None = Field(default=None, ge=0, lt=1)
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    windows: tuple[str, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if self.missing is None and self.out_of_range is None and self.new_categories is None:
            raise ValueError("ask for at least one of missing, out_of_range, new_categories, each a share such as 0.05")
        return self

    @property
    def label(self) -> str:
        return self.name or "quality"


LimitSettings = Annotated[
    BudgetLimitSettings | EvidentlyLimitSettings | QualityLimitSettings | DetectorLimitSettings, Field(discriminator="kind")
]
