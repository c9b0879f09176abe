"""The configuration: one YAML file, one frozen tree; every problem is reported at once, with its line.

`${NAME}` in a value is replaced by that environment variable (the only place where the environment is read), so that no
secret needs to stand in the file.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationError,
    model_validator,
)

from inference.errors import SettingsError
from inference.log.connection import Connection
from inference.pairing import ANNOTATION
from streaming.detectors import DetectorSpec, ErrorAdwin, ErrorDetectorSpec
from streaming.located_yaml import Located, Steps, read_yaml

_Model = TypeVar("_Model", bound=BaseModel)
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MODEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def seconds(value: object) -> object:
    """A duration as a number of seconds or a text such as 500ms, 30s, 10m, 2h, 7d."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*", value)
        if not match:
            raise ValueError(f"{value!r} is no duration; write a number of seconds, or 500ms, 30s, 10m, 2h, 7d")
        return float(match[1]) * _UNITS[match[2]]
    return value


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL")
    return value


def _secret_url(value: SecretStr) -> SecretStr:
    _http_url(value.get_secret_value())
    return value


Seconds = Annotated[float, BeforeValidator(seconds), Field(ge=0)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
SecretUrl = Annotated[SecretStr, AfterValidator(_secret_url)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WindowSettings(_Frozen):
    """The last `size` predictions, judged each `slide` of them."""

    size: int = Field(default=500, ge=2, le=1_000_000)
    slide: int = Field(default=50, ge=1)

    @model_validator(mode="after")
    def _slide_fits(self) -> Self:
        if self.slide > self.size:
            raise ValueError(f"slide must be at most size ({self.size}), not {self.slide}")
        return self


class TimeWindowSettings(_Frozen):
    """The predictions of the last `length` by event time, judged each `slide`; what is more than `lateness` late is left out."""

    length: Annotated[Seconds, Field(ge=1, le=31 * 86400)]
    slide: Annotated[Seconds, Field(ge=1)]
    lateness: Annotated[Seconds, Field(le=86400)] = 0.0
    min_rows: int = Field(default=30, ge=1)
    max_rows: int = Field(default=100_000, ge=1000, le=1_000_000)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.slide > self.length:
            raise ValueError(f"slide must be at most length ({self.length:g}s), not {self.slide:g}s")
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows must be at most max_rows ({self.max_rows}), not {self.min_rows}")
        return self


_TIME = frozenset({"length", "lateness", "min_rows", "max_rows"})
TAKEN_WINDOW_NAMES = frozenset({"errors", "schema"})
"""Windows of labelled errors and of what cannot be read: their verdicts are told apart by these names."""


def _measure(value: object) -> str:
    """What a window's size is measured in."""
    if isinstance(value, Mapping):
        return "time" if "size" not in value and _TIME & value.keys() else "count"
    return "time" if isinstance(value, TimeWindowSettings) else "count"


def _window_name(name: str) -> str:
    if name in TAKEN_WINDOW_NAMES:
        raise ValueError(f"no window can be named {' or '.join(sorted(TAKEN_WINDOW_NAMES))}: driftloop has some of its own")
    return name


AnyWindowSettings = Annotated[Annotated[WindowSettings, Tag("count")] | Annotated[TimeWindowSettings, Tag("time")], Discriminator(_measure)]
WindowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$"), AfterValidator(_window_name)]


class SegmentSettings(_Frozen):
    """Windows of their own for the most frequent values of a categorical column, those with `min_rows` rows in the reference."""

    column: str
    at_most: int = Field(default=20, ge=1, le=200)
    min_rows: int = Field(default=200, ge=2)


_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s+per\s+(?:(\d+(?:\.\d+)?)\s*(k|M)?\s*events|(\d+(?:\.\d+)?)\s*(s|m|h|d))\s*")
_THOUSANDS = {None: 1.0, "k": 1e3, "M": 1e6}


@dataclass(frozen=True)
class FalseAlarms:
    """Quiet traffic between two false alarms, on average: so many events, or so many seconds of log time (the other is None)."""

    events: float | None
    seconds: float | None

    @classmethod
    def parse(cls, value: object) -> object:
        """From a text such as "1 per 30d" or "1 per 100k events"."""
        if not isinstance(value, str):
            return value
        match = _BUDGET.fullmatch(value)
        count = float(match[1]) if match else 0.0
        if not match or not count:
            raise ValueError(f"{value!r} is no budget; write for example '1 per 30d' or '1 per 100k events'")
        if match[2] is None:
            return cls(None, float(match[4]) * _UNITS[match[5]] / count)
        return cls(float(match[2]) * _THOUSANDS[match[3]] / count, None)


def _enough(value: FalseAlarms) -> FalseAlarms:
    if value.events is not None and value.events < 1000:
        raise ValueError(f"false_alarms: at least 1000 events per false alarm, not {value.events:g}")
    if value.seconds is not None and value.seconds < 60:
        raise ValueError(f"false_alarms: at least a minute per false alarm, not {value.seconds:g}s")
    return value


AlarmBudget = Annotated[FalseAlarms, BeforeValidator(FalseAlarms.parse), AfterValidator(_enough)]


class EvidentlyLimitSettings(_Frozen):
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


class DetectorLimitSettings(_Frozen):
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


class BudgetLimitSettings(_Frozen):
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


class QualityLimitSettings(_Frozen):
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


class GovernorSettings(_Frozen):
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


class RetrainingSettings(_Frozen):
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


class ErrorSettings(_Frozen):
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


class SchemaSettings(_Frozen):
    """At most this `share` of the last `of` predictions may be unreadable; alerts, and never retrains."""

    share: float = Field(default=0.05, gt=0, le=1)
    of: int = Field(default=200, ge=1, le=100_000)


class ModelSettings(_Frozen):
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


class SlackSettings(_Frozen):
    """Slack's incoming webhook."""

    webhook: SecretUrl
    timeout: Annotated[Seconds, Field(gt=0, le=60)] = 10.0


class WebhookSettings(_Frozen):
    """Where each drift is POSTed as a CloudEvent."""

    url: SecretUrl
    timeout: Annotated[Seconds, Field(gt=0, le=60)] = 10.0


class AlertSettings(_Frozen):
    """Who hears of it."""

    slack: SlackSettings | None = None
    webhook: WebhookSettings | None = None


class WatchSettings(_Frozen):
    """The watcher as one of several: members of one `group` share the log's partitions and one place for snapshots.

    `member` names this one (static membership: a restart within `session` moves no partition); after `session` without a sign
    of life the others get its partitions. `snapshots` is a folder or an fsspec URL, by default a folder in `state`.
    """

    group: Annotated[str, Field(pattern=r"^(\$Default|[A-Za-z0-9._-]{1,200})$")] = "driftloop"
    member: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")] | None = None
    session: Annotated[Seconds, Field(ge=6, le=1800)] = 30.0
    snapshots: str = ""
    snapshot_every: Annotated[Seconds, Field(gt=0)] = 30.0


class TeeSettings(_Frozen):
    """A second receiver of every event that the gateway accepts, for example TrustyAI or a Knative broker; best effort."""

    url: SecretUrl
    timeout: Annotated[Seconds, Field(gt=0, le=60)] = 5.0
    connections: int = Field(default=4, ge=1, le=64)
    max_events: int = Field(default=10_000, ge=1)
    max_bytes: int = Field(default=64_000_000, ge=1)
    ca: Path | None = None


class GatewaySettings(_Frozen):
    """How the gateway is run; what its command line says counts more. Sizes are in bytes.

    `spool` is where events wait for a log on the network. `token`: who posts must show it. `close_connections`: after each answer,
    as KServe's agent needs over TLS (else it leaks a connection an event). `drain`: how long an ending gateway carries its spool on.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8090, ge=0, le=65_535)
    spool: Path = Path(".driftloop/spool")
    spool_bytes: int = Field(default=2_000_000_000, ge=1_000_000)
    drain: Annotated[Seconds, Field(le=3600)] = 10.0
    max_body: int = Field(default=1_000_000, ge=1_000, le=100_000_000)
    token: Annotated[SecretStr, Field(min_length=8)] | None = None
    close_connections: bool = False
    tee: TeeSettings | None = None

    def placed(self, folder: Path) -> "GatewaySettings":
        """The same with its paths made absolute, relative ones from `folder`."""
        tee = self.tee
        if tee is not None and tee.ca is not None:
            tee = tee.model_copy(update={"ca": (folder / tee.ca).resolve()})
        return self.model_copy(update={"spool": (folder / self.spool).resolve(), "tee": tee})


def _model_name(name: str) -> str:
    if not _MODEL.fullmatch(name):
        raise ValueError("a model is named NAMESPACE/INFERENCESERVICE in lower case, for example default/iris-sklearn")
    return name


class Settings(_Frozen):
    """The whole file. Relative paths are taken from the folder that the file stands in."""

    log: Connection = Connection(url=".driftloop/log.db")
    repository: Path = Path(".driftloop/models")
    state: Path = Path(".driftloop/state")
    version_annotation: str = ANNOTATION
    models: dict[Annotated[str, AfterValidator(_model_name)], ModelSettings] = Field(min_length=1)
    alerts: AlertSettings = AlertSettings()
    reports: bool = True
    watch: WatchSettings = WatchSettings()
    gateway: GatewaySettings = GatewaySettings()
    max_decision_age: Seconds = 3600.0

    def placed(self, folder: Path) -> "Settings":
        """The same with its paths made absolute, relative ones from `folder`."""
        paths: dict[str, Any] = {name: (folder / getattr(self, name)).resolve() for name in ("repository", "state")}
        paths |= {"log": self.log.placed(folder), "gateway": self.gateway.placed(folder)}
        snapshots = self.watch.snapshots or str(self.state / "snapshots")
        if "://" not in snapshots:
            paths["watch"] = self.watch.model_copy(update={"snapshots": str((folder / snapshots).resolve())})
        return self.model_copy(update=paths)


class GatewayPart(_Frozen):
    """The two parts of the file that the gateway reads."""

    log: Connection = Settings.model_fields["log"].default
    gateway: GatewaySettings = GatewaySettings()


def load_settings(path: Path, environ: Mapping[str, str] | None = None, *, alerts: bool = True, gateway: bool = True) -> Settings:
    """Read and check the file; SettingsError lists every problem as `FILE:LINE: path: what is wrong`.

    With `alerts` False nobody will be told anything: that part is left out, and its secrets need not be there; `gateway` likewise.
    """
    located = read_yaml(path)
    for part, wanted in (("alerts", alerts), ("gateway", gateway)):
        if not wanted:
            located.value.pop(part, None)
    return _checked(located, Settings, environ).placed(path.resolve().parent)


def load_gateway(path: Path, environ: Mapping[str, str] | None = None) -> GatewayPart:
    """The gateway's part of the file, as `load_settings`; what only other commands need is not looked at, nor are its secrets."""
    located = read_yaml(path)
    for part in Settings.model_fields.keys() - GatewayPart.model_fields.keys():
        located.value.pop(part, None)
    read, folder = _checked(located, GatewayPart, environ), path.resolve().parent
    return GatewayPart(log=read.log.placed(folder), gateway=read.gateway.placed(folder))


def _checked(located: Located, model: type[_Model], environ: Mapping[str, str] | None) -> _Model:
    problems: dict[Steps, str] = {}
    document = _filled(located, os.environ if environ is None else environ, problems)
    settings: _Model | None = None
    try:
        settings = model.model_validate(document)
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            where = _path(located, problem["loc"])
            # A list whose members are wrong is also reported as too short, and an empty variable as no URL: once is enough.
            if not any(known[: len(where)] == where for known in problems):
                problems[where] = _message(problem)
            elif problem["type"] == "missing":
                problems[where] += f"; {_message(problem)}"
    if problems or settings is None:
        raise SettingsError([f"{located.place(where)}: {problems[where]}" for where in sorted(problems, key=located.line)])
    return settings


def _filled(located: Located, environ: Mapping[str, str], problems: dict[Steps, str]) -> Any:
    def fill(value: Any, path: Steps) -> Any:
        if isinstance(value, dict):
            return {key: fill(inner, (*path, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [fill(inner, (*path, index)) for index, inner in enumerate(value)]
        if not isinstance(value, str):
            return value
        names = sorted(set(_VARIABLE.findall(value)))
        unset = [name for name in names if not environ.get(name)]
        if unset:
            problems[path] = f"the environment variable {', '.join(unset)} is not set"
        return _VARIABLE.sub(lambda match: environ.get(match[1], ""), value)

    return fill(located.value, ())


def _path(located: Located, loc: tuple[str | int, ...]) -> Steps:
    """The problem's place in the file: pydantic puts a union's tag into its own, the file has no such step."""
    path: Steps = ()
    for step in loc:
        if located.has((*path, step)):
            path = (*path, step)
    return path


def _message(problem: Any) -> str:
    if problem["type"] == "missing":
        return f"{problem['loc'][-1]!r} is missing"
    if problem["type"] == "extra_forbidden":
        return "unknown key"
    return str(problem["msg"]).removeprefix("Value error, ")
