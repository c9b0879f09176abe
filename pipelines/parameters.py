"""The parameters that the compiled pipeline takes, read from it, and given values checked against them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from inference.errors import PipelineError

COMPILED = Path(__file__).with_name("retraining.yaml")
"""The compiled pipeline that is shipped; every run on this machine executes this file."""

Value = str | int | float | bool
_KINDS: dict[str, type] = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "BOOLEAN": bool}
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter; `default` is None when a value must be given."""

    name: str
    kind: type
    default: Value | None


@cache
def known() -> Mapping[str, Parameter]:
    """Every parameter of the compiled pipeline by name."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document = yaml.load(COMPILED.read_text(encoding="utf-8"), loader)  # noqa: S506 - both are safe loaders
    inputs: Mapping[str, Mapping[str, Any]] = document["root"]["inputDefinitions"]["parameters"]
    found = {}
    for name, said in inputs.items():
        kind = _KINDS[said["parameterType"]]
        found[name] = Parameter(name, kind, kind(said["defaultValue"]) if "defaultValue" in said else None)
    return found


def checked(values: Mapping[str, Value]) -> dict[str, Value]:
    """The values in the parameters' types (text as it comes from a command line is read); PipelineError names every problem."""
    problems, good = [], {}
    for name, value in values.items():
        parameter = known().get(name)
        if parameter is None:
            problems.append(f"{name!r} is no parameter; the pipeline takes {', '.join(sorted(known()))}")
            continue
        try:
            good[name] = _as(value, parameter.kind)
        except ValueError:
            problems.append(f"{name} is {value!r}; it must be {_WORDS[parameter.kind]}")
    problems.extend(f"{name} is not given" for name, parameter in known().items() if parameter.default is None and name not in values)
    if problems:
        raise PipelineError("; ".join(problems))
    return good


def _as(value: Value, kind: type) -> Value:
    if kind is str and isinstance(value, str):
        return value
    if isinstance(value, bool) or kind is bool:
        if isinstance(value, bool) and kind is bool:
            return value
        raise ValueError
    if kind is int:
        number = float(value)
        if not number.is_integer():
            raise ValueError
        return int(value) if isinstance(value, str | int) and "." not in str(value) and "e" not in str(value).lower() else int(number)
    if kind is float:
        return float(value)
    raise ValueError
