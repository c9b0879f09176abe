"""The report of an incident: Evidently's HTML page of its window against the reference, rendered in a process of its own.

    python -m streaming.report INCIDENT_DIR --reference PARQUET --schema JSON

Evidently takes 8 to 12 s to import and up to 8 s to render, and the watcher's process never imports it. The page works
without a network, and no telemetry is attempted.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from inference.errors import ActionError, DriftloopError
from inference.payload import category
from inference.versions import PREDICTION, Kind, Schema
from streaming.actions.incident import REPORT, incident_folder, read_window, replace_file, update_incident
from streaming.actions.outbox import Done, Entry, Result
from streaming.actions.worker import Policy

if TYPE_CHECKING:
    import pandas as pd

POLICY = Policy(attempts=2, max_age=86_400.0)
"""For the worker: what a report needs is all on this disk, so a second failure is no accident."""

_SCHEMA = "schema.json"
_NO_TELEMETRY = {"DO_NOT_TRACK": "1", "ITERATIVE_DO_NOT_TRACK": "1", "EVIDENTLY_DISABLE_TELEMETRY": "1"}
_NOT_INSTALLED = 3
_TAIL = 600
_LARGEST = 1e100


def report_payload(incident: str, reference: Path, schema: Schema) -> dict[str, Any]:
    """An entry's payload."""
    return {"incident": incident, "reference": str(reference), "schema": asdict(schema)}


@dataclass(frozen=True, slots=True)
class RenderReport:
    """Performs entries of kind "report" (payload: `report_payload`): report.html in the incident's folder, within `timeout` seconds."""

    state: Path
    timeout: float = 120.0
    clock: Callable[[], float] = time.time

    def __call__(self, entry: Entry) -> Result:
        payload = entry.payload
        folder = incident_folder(self.state, payload["incident"])
        if not folder.is_dir():
            raise ActionError(f"{folder}: there is no such incident", retry=False)
        try:
            replace_file(folder / _SCHEMA, orjson.dumps(payload["schema"]))
        except OSError as error:
            raise ActionError(f"{folder / _SCHEMA}: cannot be written: {error.strerror}") from error
        self._render(folder, payload["reference"])
        report = folder / REPORT
        # The folder tells its own path, so that it can be moved.
        told = {"report": REPORT}
        update_incident(self.state, payload["incident"], id_=entry.key, what="report", text=REPORT, now=self.clock(), changes=told)
        return Done(str(report))

    def _render(self, folder: Path, reference: str) -> None:
        command = [sys.executable, "-m", "streaming.report", str(folder.resolve()), "--reference", str(Path(reference).resolve())]
        command += ["--schema", str((folder / _SCHEMA).resolve())]
        try:
            # In the incident's folder, where no module can be mistaken for ours.
            done = subprocess.run(  # noqa: S603 - our own module, and arguments without a shell
                command, cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=self.timeout, check=False
            )
        except subprocess.TimeoutExpired as expired:
            raise ActionError(f"the report was not rendered within {self.timeout:g} s{_tail(expired.stderr)}") from expired
        except OSError as error:
            raise ActionError(f"the report's process cannot be started: {error}") from error
        if done.returncode != 0:
            raise ActionError(
                f"the report's process ended with {done.returncode}{_tail(done.stderr)}", retry=done.returncode != _NOT_INSTALLED
            )


def _environment() -> dict[str, str]:
    # Warnings of numpy and scipy would hide the reason of a failure.
    environment = {**os.environ, **_NO_TELEMETRY, "PYTHONWARNINGS": "ignore"}
    ours = str(Path(__file__).resolve().parents[1])
    if ours not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        # Run from a checkout: the child must find the same one.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [ours, environment.get("PYTHONPATH", "")]))
    return environment


def _tail(stderr: bytes | None) -> str:
    text = (stderr or b"").decode(errors="replace").strip()
    return f": {text[-_TAIL:]}" if text else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The child's side. Exit codes: 0 done, 1 failed, 3 Evidently is not installed; the reason is on stderr."""
    parser = argparse.ArgumentParser(prog="python -m streaming.report", description="Render an incident's report.")
    parser.add_argument("folder", type=Path, help="the incident's folder")
    parser.add_argument("--reference", type=Path, required=True, help="the version's reference.parquet")
    parser.add_argument("--schema", type=Path, required=True, help="the version's schema as a JSON file")
    options = parser.parse_args(arguments)
    os.environ.update(_NO_TELEMETRY)
    try:
        kinds = _kinds(orjson.loads(options.schema.read_bytes()))
        replace_file(options.folder / REPORT, _page(options.folder, options.reference, kinds).encode())
    except ImportError as error:
        sys.stderr.write(f"{error}; the report needs the extra driftloop[report]\n")
        return _NOT_INSTALLED
    except (DriftloopError, OSError, ValueError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


def _kinds(schema: Mapping[str, Any]) -> dict[str, Kind]:
    try:
        return {**{feature["name"]: feature["kind"] for feature in schema["features"]}, PREDICTION: schema["prediction"]}
    except (KeyError, TypeError) as error:
        raise ActionError(f"not a model version's schema: {error!r}", retry=False) from error


def _page(folder: Path, reference_path: Path, kinds: Mapping[str, Kind]) -> str:
    import pandas as pd

    # Before the import of Evidently, which takes a while: what is not there is told at once.
    window = read_window(folder)
    reference = pd.read_parquet(reference_path)

    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    current = {name: _column(pd.Series(window[name], dtype=object), kind) for name, kind in kinds.items() if name in window}
    before = {name: _column(reference[name].astype(object), kind) for name, kind in kinds.items() if name in reference}
    # Evidently refuses a column without a value.
    shown = [name for name in kinds if all(name in side and side[name].notna().any() for side in (current, before))]
    if not shown:
        raise ActionError("window and reference have no column with values in common", retry=False)
    definition = DataDefinition(
        numerical_columns=[name for name in shown if kinds[name] == "numeric"],
        categorical_columns=[name for name in shown if kinds[name] == "categorical"],
    )
    datasets = [Dataset.from_pandas(pd.DataFrame({name: side[name] for name in shown}), definition) for side in (current, before)]
    return _defused(Report([DataDriftPreset()]).run(*datasets).get_html_str(as_iframe=False))


def _column(values: "pd.Series[Any]", kind: Kind) -> "pd.Series[Any]":
    import pandas as pd

    if kind == "numeric":
        numbers = pd.to_numeric(values, errors="coerce").astype(float).reset_index(drop=True)
        # Evidently leaves infinities out, and its charts break on a range that is not finite.
        return numbers.mask(numbers.abs() == float("inf")).clip(-_LARGEST, _LARGEST)
    # One type for all categories: Evidently sorts them, and 1 and 1.0 are the same class.
    return values.map(category).reset_index(drop=True)


def _defused(page: str) -> str:
    """The page with every `<` of its data written as `\\u003c`.

    Evidently puts names and categories, which come from whoever calls the model, as plain JSON into a <script>: a category
    `</script><script>...` would run in the reader's browser. Each of its two JSON documents is one line.
    """
    lines, found = page.split("\n"), 0
    for number, line in enumerate(lines):
        if line.lstrip().startswith(("var metric_", "var additional_graphs_metric_")):
            lines[number], found = line.replace("<", "\\u003c"), found + 1
    if found != 2:
        raise ValueError(f"Evidently's page has {found} lines of data where 2 were expected; it is not safe to show")
    return "\n".join(lines)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Threads of pyarrow's can abort the interpreter's own way out (seen under load); the page is on disk by now.
    os._exit(code)
