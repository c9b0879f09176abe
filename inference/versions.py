"""Model versions on disk: one immutable folder each, holding model, reference sample, schema and metadata.

    <repository>/<namespace>/<inferenceservice>/CURRENT            the live version's name
                                              /<version>/model.joblib
                                                        /reference.parquet   the features and `prediction`, one row each
                                                        /version.json        schema, metrics, span, parent, digests

A version folder is written beside its final name and renamed into place, so that it is there whole or not at all. Who
writes or promotes holds the lock of the model's folder (`.lock`, flock), so two processes never do it at once.
`model.joblib` is a pickle, as KServe's scikit-learn runtime wants it: whoever can write to the repository can run code in
the predictor. It is loaded only when its digest is the one that `version.json` states.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from inference.errors import VersionError

PREDICTION = "prediction"
"""The reference column that holds the model's own answers; no feature may have this name."""

Kind = Literal["numeric", "categorical"]
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Feature:
    """One input of the model: its name and whether its values are numbers or categories."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Schema:
    """The features in the order the model takes them, what it predicts, and the label column it was trained on."""

    features: tuple[Feature, ...]
    prediction: Kind
    target: str

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        if not names:
            raise VersionError("a schema needs at least one feature")
        if len(set(names)) != len(names):
            raise VersionError(f"feature names must differ: {names}")
        if PREDICTION in names or self.target in names:
            raise VersionError(f"no feature may be named {PREDICTION!r} or like the target {self.target!r}: {names}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)


@dataclass(frozen=True, slots=True)
class Version:
    """What `version.json` says. `model` is "namespace/inferenceservice"; `span` tells what it was trained on (free JSON);
    `metrics` the evaluation's numbers; `run_id` the run that made it; `parent` the version it replaced, or ""."""

    model: str
    version: str
    path: Path
    schema: Schema
    metrics: Mapping[str, float] = field(default_factory=dict)
    span: Mapping[str, Any] = field(default_factory=dict)
    parent: str = ""
    run_id: str = ""
    created: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)

    def load_model(self) -> Any:
        """The fitted scikit-learn estimator. VersionError when the file is not the one that was deployed."""
        import joblib

        path = self._verified("model.joblib")
        try:
            return joblib.load(path)
        except Exception as error:
            raise VersionError(f"{path}: the model cannot be loaded: {error}") from error

    def load_reference(self) -> dict[str, list[Any]]:
        """The reference sample by column: every feature of the schema, and `prediction`. Missing values are None."""
        import pyarrow.parquet

        path = self._verified("reference.parquet")
        try:
            columns = pyarrow.parquet.read_table(path).to_pydict()
        except Exception as error:
            raise VersionError(f"{path}: the reference sample cannot be read: {error}") from error
        wanted = [*self.schema.names, PREDICTION]
        missing = [name for name in wanted if name not in columns]
        if missing:
            raise VersionError(f"{path}: the reference sample lacks the columns {missing}")
        return {name: columns[name] for name in wanted}

    def _verified(self, name: str) -> Path:
        path = self.path / name
        try:
            digest = _digest(path)
        except OSError as error:
            raise VersionError(f"{path}: cannot be read: {error.strerror}") from error
        if digest != self.digests.get(name):
            raise VersionError(f"{path}: its content is not what version.json states (sha256 {digest}); deploy the version anew")
        return path


class Repository:
    """The folder of all model versions. `root` is made when the first version is written."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def versions(self, model: str) -> list[str]:
        """The versions there are, oldest first; [] for an unknown model."""
        folder = self._folder(model)
        if not folder.is_dir():
            return []
        names = [path.name for path in folder.iterdir() if (path / "version.json").is_file() and _NAME.fullmatch(path.name)]
        return sorted(names, key=lambda name: (0, int(name), name) if name.isdigit() else (1, 0, name))

    def current(self, model: str) -> str | None:
        """The live version's name, or None when nothing was ever promoted."""
        try:
            return (self._folder(model) / "CURRENT").read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise VersionError(f"{self._folder(model) / 'CURRENT'}: cannot be read: {error}") from error

    def read(self, model: str, version: str) -> Version:
        """What the version's folder says; VersionError when it is not there, damaged or of something else."""
        folder = self._folder(model) / _checked_version(version)
        try:
            document = json.loads((folder / "version.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            known = ", ".join(self.versions(model)) or "none"
            raise VersionError(f"{model} has no version {version!r} in {self.root} (known: {known})") from error
        except (OSError, ValueError, RecursionError) as error:
            raise VersionError(f"{folder / 'version.json'}: cannot be read: {error}") from error
        try:
            found = _from_document(document, folder)
        except (KeyError, TypeError, ValidationError) as error:
            raise VersionError(f"{folder / 'version.json'}: not a version description: {error}") from error
        if (found.model, found.version) != (model, version):
            raise VersionError(f"{folder / 'version.json'}: describes {found.model!r} version {found.version!r}; copied here?")
        return found

    def next_version(self, model: str) -> str:
        """The name for one more version: the largest whole number that any folder has, a damaged version's included, plus one."""
        folder = self._folder(model)
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return str(max((int(name) for name in names if name.isdecimal() and name.isascii()), default=0) + 1)

    def write(self, version: Version, *, model_file: Path, reference_file: Path) -> Version:
        """Copy model and reference into a new immutable folder named `version.version`; its `path` and `digests` are filled in here.

        VersionError when that version is already there.
        """
        parent = self._folder(version.model)
        target = parent / _checked_version(version.version)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with _locked(parent):
                if target.exists():
                    raise VersionError(f"{target} is already there; versions are never overwritten")
                _write(version, target, model_file=model_file, reference_file=reference_file)
        except (OSError, TypeError, ValueError) as error:
            raise VersionError(f"{target}: cannot be written: {error}") from error
        return self.read(version.model, version.version)

    def promote(self, model: str, version: str, *, expected: str | None) -> None:
        """Make `version` the live one, if `expected` is live now; VersionError otherwise (someone else promoted meanwhile)."""
        self.read(model, version)
        folder = self._folder(model)
        try:
            with _locked(folder):
                live = self.current(model)
                if live != expected:
                    raise VersionError(f"{model}: version {live} is live, not {expected}; evaluate against the live one and try again")
                temporary = folder / ".writing-CURRENT"
                _write_text(temporary, version + "\n")
                temporary.replace(folder / "CURRENT")
        except OSError as error:
            raise VersionError(f"{folder / 'CURRENT'}: cannot be written: {error}") from error

    def _folder(self, model: str) -> Path:
        namespace, separator, name = model.partition("/")
        if not separator:
            raise VersionError(f"a model is named NAMESPACE/INFERENCESERVICE, not {model!r}")
        return self.root / _checked_name(namespace) / _checked_name(name)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise VersionError(f"{name[:80]!r} is no name for a namespace, model or version (letters, digits, '-', '_' and '.')")
    return name


def _checked_version(name: str) -> str:
    if name.upper() == "CURRENT":
        raise VersionError(f"{name!r} is no name for a version: the file CURRENT names the live one")
    return _checked_name(name)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep every other writer out of the model's folder; the kernel lets go of the lock when its holder dies."""
    with (folder / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(version: Version, target: Path, *, model_file: Path, reference_file: Path) -> None:
    # We hold the lock: what stands here half-written was left by a writer that was killed.
    for left in target.parent.glob(".writing-*/"):
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    try:
        shutil.copyfile(model_file, staging / "model.joblib")
        shutil.copyfile(reference_file, staging / "reference.parquet")
        digests = {name: _digest(staging / name) for name in ("model.joblib", "reference.parquet")}
        document = {**asdict(version), "format": _FORMAT, "digests": digests}
        del document["path"]
        _write_text(staging / "version.json", json.dumps(document, indent=2) + "\n")
        staging.chmod(0o755)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_document(document: Mapping[str, Any], folder: Path) -> Version:
    if document["format"] != _FORMAT:
        raise VersionError(f"{folder}: format {document['format']!r}; this driftloop reads format {_FORMAT}")
    return TypeAdapter(Version).validate_python({**document, "path": folder})
