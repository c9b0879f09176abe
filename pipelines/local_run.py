"""One run of the compiled pipeline on this machine, in a process of its own: python -m pipelines.local_run FOLDER

FOLDER/request.json   what to run (written by `submit.py`)
      /lock           held by this process for as long as it lives
      /step.lock      held by the step at work, which may outlive this process when that is killed
      /log.txt        everything that the run and its steps print
      /failure.txt    why a step failed, in its own words
      /result.json    written once, at the end
      /steps/         what one step handed to the next
"""

import argparse
import fcntl
import json
import logging
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.errors import DriftloopError, PipelineError
from pipelines.parameters import COMPILED, checked
from pipelines.steps import FAILURE, LOCK, RUN_FOLDER

REQUEST, RESULT, LOG = "request.json", "result.json", "log.txt"

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """0 when the run succeeded (or another process has it), 1 when it failed; the reason is in result.json."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.local_run", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lock-fd", type=int, help="an open, locked file descriptor of FOLDER/lock that the parent hands down")
    given = parser.parse_args(arguments)
    folder: Path = given.folder.resolve()
    # Held until this process ends; never closed on purpose.
    descriptor = given.lock_fd if given.lock_fd is not None else os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stderr.write(f"{folder}: another process runs this\n")
        return 0
    _write_output_to(folder / LOG)
    (folder / FAILURE).unlink(missing_ok=True)
    error = ""
    try:
        run(folder)
    except DriftloopError as failed:
        error = str(failed)
    except Exception as failed:  # noqa: BLE001 - whatever ends the run is its result
        traceback.print_exc()
        error = f"{type(failed).__name__}: {failed}"
    write_result(folder, error)
    return 1 if error else 0


def run(folder: Path) -> None:
    """Execute the compiled pipeline with the folder's request; PipelineError tells the failing step's reason."""
    parameters = checked(_request(folder))
    os.environ[RUN_FOLDER] = str(folder)
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    # Kubeflow's launcher leaves a temporary folder behind for each step.
    os.environ["TMPDIR"] = str(temporary)
    try:
        _execute(parameters, folder / "steps")
    except Exception as error:
        raise PipelineError(_reason(folder) or f"{type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _execute(parameters: Mapping[str, Any], root: Path) -> None:
    from kfp import components, local

    # It warns that an image without "python" in its name may hold none.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local\..*")
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
    pipeline = components.load_component_from_file(str(COMPILED))
    pipeline(**parameters)


def _reason(folder: Path) -> str:
    try:
        return (folder / FAILURE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _request(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        return {**document["parameters"], "model": document["model"], "run_id": document["run_id"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{folder / REQUEST}: not a run's request: {error!r}") from error


def write_result(folder: Path, error: str) -> None:
    """Write the run's end, whole or not at all."""
    result = {"state": "failed" if error else "succeeded", "error": error}
    handle, name = tempfile.mkstemp(prefix=".result-", dir=folder)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(folder / RESULT)


def _write_output_to(path: Path) -> None:
    with path.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)


if __name__ == "__main__":
    sys.exit(main())
