"""The configuration: one YAML file, one frozen tree; every problem is reported at once, with its line.

`${NAME}` in a value is replaced by that environment variable (the only place where the environment is read), so that no
secret needs to stand in the file.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidationError,
)

from inference.errors import SettingsError
from inference.log.connection import Connection
from inference.pairing import ANNOTATION
from streaming.located_yaml import Located, Steps, read_yaml
from streaming.settings.model import ModelSettings
from streaming.settings.services import AlertSettings, GatewaySettings, WatchSettings
from streaming.settings.values import Frozen, Seconds

_Model = TypeVar("_Model", bound=BaseModel)
_VARIABLE = re.compile(r"\$\{(\w+)\}")


_MODEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def _model_name(name: str) -> str:
    if not _MODEL.fullmatch(name):
        raise ValueError("a model is named NAMESPACE/INFERENCESERVICE in lower case, for example default/iris-sklearn")
    return name


class Settings(Frozen):
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


class GatewayPart(Frozen):
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
