"""Deploy into a model repository on a file system, and swap the predictor that serves from it through KServe's repository API."""

import fcntl
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from inference.errors import DeployError, DriftloopError, VersionError
from inference.event import deterministic_id
from inference.versions import PREDICTION, Repository, Version
from pipelines.deploy import Candidate
from pipelines.publish import shown
from pipelines.tables import is_missing, make_frame
from pipelines.train import predictions

logger = logging.getLogger(__name__)

SMOKE_ROWS = 5
_NAMES = 5
"""How often a new version's name is tried: another run may take the same number first."""


class LocalTarget:
    """The repository at `repository`; with a `server_url`, the predictor there is swapped and asked, else the model is asked in process.

    One lock file per model keeps two deployments on one file system apart, so that compare-and-set is one step.
    """

    def __init__(self, repository: Path, server_url: str = "", *, timeout: float = 30.0) -> None:
        self._repository = Repository(repository)
        self._url = server_url.rstrip("/")
        self._timeout = timeout

    def live(self, model: str) -> str | None:
        return self._repository.current(model)

    def deploy(self, candidate: Candidate, *, expected: str | None) -> Version:
        with self._locked(candidate.model):
            version = self._version(candidate, expected)
            if self._repository.current(candidate.model) != version.version:
                self._promote(version, expected)
            try:
                self._swap_and_ask(version)
            except Exception as error:
                self._undo(version, expected, error)
                raise DeployError(f"{version.model} version {version.version} was not put live: {error}; {_stays(expected)}") from error
        logger.info("%s: version %s is live (before: %s)", version.model, version.version, expected or "none")
        return version

    def roll_back(self, version: Version, to: str | None) -> None:
        with self._locked(version.model):
            self._undo(version, to, None)

    def _version(self, candidate: Candidate, expected: str | None) -> Version:
        """The version this run made before, or a new one."""
        made = self._made_by(candidate)
        if made is not None:
            logger.info("%s: run %s made version %s before", candidate.model, candidate.run_id, made.version)
            return made
        live = self._repository.current(candidate.model)
        if live != expected:
            raise DeployError(
                f"{candidate.model}: version {live} is live, not {expected}, which the evaluation was made against; run again"
            )
        for attempt in range(1, _NAMES + 1):
            name = self._repository.next_version(candidate.model)
            version = Version(
                model=candidate.model,
                version=name,
                path=Path(),
                schema=candidate.schema,
                metrics=dict(candidate.metrics),
                span=dict(candidate.span),
                parent=expected or "",
                run_id=candidate.run_id,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            try:
                return self._repository.write(version, model_file=candidate.model_file, reference_file=candidate.reference_file)
            except VersionError:
                if attempt == _NAMES or name not in self._repository.versions(candidate.model):
                    raise
        raise AssertionError("unreachable")

    def _made_by(self, candidate: Candidate) -> Version | None:
        for name in reversed(self._repository.versions(candidate.model)):
            try:
                made = self._repository.read(candidate.model, name)
            except VersionError as error:  # an older version's damage must not stop a new one
                logger.warning("%s", error)
                continue
            if candidate.run_id and made.run_id == candidate.run_id:
                return made
        return None

    def _promote(self, version: Version, expected: str | None) -> None:
        try:
            self._repository.promote(version.model, version.version, expected=expected)
        except VersionError as error:
            raise DeployError(f"version {version.version} was not put live: {error}") from error

    def _swap_and_ask(self, version: Version) -> None:
        """Raises whatever went wrong. The reference's `prediction` column says what the model in the folder answers."""
        rows, expected = _smoke_rows(version)
        if self._url:
            self._load(version.model)
            self._check_version(version)
            answers, who = self._ask(version, rows), shown(self._url)
        else:
            columns = {name: [row[i] for row in rows] for i, name in enumerate(version.schema.names)}
            answers, who = predictions(version.load_model(), make_frame(columns, version.schema)), "the model read back"
        if len(answers) != len(expected) or not all(_same(a, b) for a, b in zip(answers, expected, strict=True)):
            raise DeployError(f"{who} answers {answers} to the smoke rows, but version {version.version} was made with {expected}")

    def _undo(self, version: Version, to: str | None, cause: Exception | None) -> None:
        if self._repository.current(version.model) != version.version:
            return
        why = f"; this was after: {cause}" if cause is not None else ""
        try:
            if to is None:
                (version.path.parent / "CURRENT").unlink(missing_ok=True)
            else:
                self._repository.promote(version.model, to, expected=version.version)
        except (DriftloopError, OSError) as error:
            raise DeployError(
                f"{version.model}: rolling back from version {version.version} to {to or 'none'} failed: {error}{why}"
            ) from error
        if self._url and to is not None:
            try:
                self._load(version.model)
            except DeployError as error:
                told = f"version {to} is the repository's live version again, but the predictor could not be told to load it"
                raise DeployError(f"{version.model}: {told}: {error}{why}") from error
        logger.warning("%s: rolled back from version %s to %s", version.model, version.version, to or "none")

    def _load(self, model: str) -> None:
        self._call("POST", f"/v2/repository/models/{_name(model)}/load")

    def _check_version(self, version: Version) -> None:
        said = self._call("GET", f"/v2/models/{_name(version.model)}")
        served = said.get("versions") if isinstance(said, dict) else None
        # Other servers leave `versions` out or empty; then the smoke prediction alone must do.
        if isinstance(served, list) and served and version.version not in [str(name) for name in served]:
            raise DeployError(f"{shown(self._url)} serves version {', '.join(map(str, served))} after the load, not {version.version}")

    def _ask(self, version: Version, rows: list[list[Any]]) -> list[Any]:
        # The id tells a person who reads the log that this was no client.
        headers = {"Ce-Id": deterministic_id("smoke", version.model, version.version, datetime.now(UTC).isoformat())}
        said = self._call("POST", f"/v1/models/{_name(version.model)}:predict", {"instances": rows}, headers)
        answers = said.get("predictions") if isinstance(said, dict) else None
        if not isinstance(answers, list):
            raise DeployError(f"{shown(self._url)} answered the smoke prediction without a list of predictions: {str(said)[:200]}")
        return answers

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None) -> Any:
        import httpx

        try:
            response = httpx.request(method, self._url + path, json=body, headers=headers, timeout=self._timeout)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DeployError(f"{method} {shown(self._url)}{path}: {type(error).__name__}: {error}") from error
        if not response.is_success:
            raise DeployError(f"{method} {shown(self._url)}{path} answered {response.status_code}: {response.text[:300]}")
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise DeployError(f"{method} {shown(self._url)}{path} answered no JSON: {response.text[:200]}") from error

    @contextmanager
    def _locked(self, model: str) -> Iterator[None]:
        self._repository.versions(model)  # checks the name before a folder is made of it
        folder = self._repository.root.joinpath(*model.split("/"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / ".deploying").open("w")
        except OSError as error:
            raise DeployError(f"{folder}: cannot be written: {error.strerror}") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _name(model: str) -> str:
    return quote(model.partition("/")[2], safe="")


def _stays(expected: str | None) -> str:
    return f"version {expected} stays live" if expected else "no version is live"


def _smoke_rows(version: Version) -> tuple[list[list[Any]], list[Any]]:
    """A few reference rows, complete ones if there are any, and the version's own predictions for them."""
    reference = version.load_reference()
    rows = [list(row) for row in zip(*(reference[name] for name in version.schema.names), reference[PREDICTION], strict=True)]
    complete = [row for row in rows if not any(map(is_missing, row))]
    chosen = [[None if is_missing(cell) else cell for cell in row] for row in (complete or rows)[:SMOKE_ROWS]]
    if not chosen:
        raise DeployError(f"{version.path / 'reference.parquet'} has no rows to ask the model with")
    return [row[:-1] for row in chosen], [row[-1] for row in chosen]


def _same(served: Any, expected: Any) -> bool:
    if isinstance(served, int | float) and isinstance(expected, int | float):
        return math.isclose(served, expected, rel_tol=1e-6, abs_tol=1e-9)
    return bool(served == expected)
