"""YAML that remembers where each value stands, so that a problem can be shown with its line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from inference.errors import SettingsError

_MAX_BYTES = 1_000_000
_MAX_VALUES = 50_000

Steps = tuple[str | int, ...]


@dataclass(frozen=True)
class Located:
    """A document as plain values, and the line (from 1) of each path into it."""

    file: Path
    value: Any
    lines: dict[Steps, int]

    def has(self, path: Steps) -> bool:
        return path in self.lines

    def line(self, path: Steps) -> int:
        return self.lines.get(path, 1)

    def place(self, path: Steps) -> str:
        """`FILE:LINE: path` of the value, for a message."""
        return f"{self.file}:{self.line(path)}: {'.'.join(map(str, path)) or 'the file'}"


def read_yaml(path: Path) -> Located:
    """Read one YAML document; SettingsError for a file that is missing, too large, no YAML, or has a key twice."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}; `driftloop init` writes one to start from"]) from error
    if len(raw) > _MAX_BYTES:
        raise SettingsError([f"{path}: {len(raw)} bytes; a configuration has at most {_MAX_BYTES}"])
    try:
        node = yaml.compose(raw, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise SettingsError([f"{path}:{line}: not YAML: {getattr(error, 'problem', None) or error}"]) from error
    reader = _Reader(path)
    value = reader.read(node, ()) if node is not None else {}
    if not reader.problems and not isinstance(value, dict):
        reader.problems.append(f"{path}:1: the file must hold keys and values, not a {type(value).__name__}")
    if reader.problems:
        raise SettingsError(reader.problems)
    return Located(path, value, reader.lines)


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._constructor = yaml.constructor.SafeConstructor()
        self.lines: dict[Steps, int] = {}
        self.problems: list[str] = []

    def read(self, node: yaml.Node, path: Steps) -> Any:
        if len(self.lines) > _MAX_VALUES or len(path) > 50:
            raise SettingsError([f"{self._path}: more than {_MAX_VALUES} values, or nested deeper than 50"])
        line = node.start_mark.line + 1
        self.lines[path] = line
        if isinstance(node, yaml.MappingNode):
            found: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = str(self._scalar(key_node)) if isinstance(key_node, yaml.ScalarNode) else ""
                if not key:
                    self.problems.append(f"{self._path}:{key_node.start_mark.line + 1}: a key must be plain text")
                elif key in found:
                    self.problems.append(f"{self._path}:{key_node.start_mark.line + 1}: {key!r} stands here twice")
                else:
                    found[key] = self.read(value_node, (*path, key))
                    self.lines[(*path, key)] = key_node.start_mark.line + 1
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self.read(inner, (*path, index)) for index, inner in enumerate(node.value)]
        return self._scalar(node)

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            return self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError):
            self.problems.append(f"{self._path}:{node.start_mark.line + 1}: {str(node.value)[:80]!r} is not a value we can read")
            return None
