"""Replays of files: events a second, the share of it that reading costs, and the largest resident set, each in a process of its own.

    python tests/benchmarks/replay.py [--events 1000000] [--only NAME] [--folder FOLDER]

Makes a table (Parquet and CSV), a recording (JSON lines, plain and gzip) and a prediction log of quiet iris-sized rows (4 numeric
features and a prediction) in FOLDER, and replays each by the command with the limits that `driftloop init` writes: a row of a table or a
line of a prediction log is an event, and so is each half of a prediction in a recording. `events/s` is by the clock, reading and
calibration included; `per core` by the process's own CPU time, which other work on the machine disturbs less; `reading` is the
source's share of that time, measured in a second process that only reads. A table goes to stderr, one JSON object to stdout.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
MODEL = "default/iris"
CONFIG = """
log: {folder}/events.db
repository: {folder}/models
state: {folder}/state
models:
  default/iris:
    limits:
      - {{kind: budget, false_alarms: 1 per 100k events}}
"""
FILES = {
    "Parquet": "rows.parquet",
    "CSV": "rows.csv",
    "JSON lines": "rows.jsonl",
    "JSON lines, gzip": "rows.jsonl.gz",
    "prediction log": "predict_log.json",
}


def quiet(rng, count):
    import numpy as np

    centres, spreads = np.array([5.8, 3.0, 3.8, 1.2]), np.array([0.8, 0.4, 1.8, 0.8])
    return (rng.normal(size=(count, 4)) * spreads + centres).round(3), rng.choice(["setosa", "versicolor", "virginica"], count)


def fill(folder, count, wanted):
    """The files, and a live version of the model."""
    import joblib
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from inference.versions import Feature, Repository, Schema, Version

    rng = np.random.default_rng(0)
    rows, predictions = quiet(rng, 10_000)
    table = pa.table({**{name: rows[:, place] for place, name in enumerate(NAMES)}, "prediction": predictions})
    pyarrow.parquet.write_table(table, folder / "reference.parquet")
    joblib.dump(None, folder / "model.joblib")
    schema = Schema(tuple(Feature(name, "numeric") for name in NAMES), "categorical", "species")
    repository = Repository(folder / "models")
    files = {"model_file": folder / "model.joblib", "reference_file": folder / "reference.parquet"}
    repository.write(Version(MODEL, "1", Path(), schema), **files)
    repository.promote(MODEL, "1", expected=None)
    (folder / "driftloop.yaml").write_text(CONFIG.format(folder=folder))
    rows, predictions = quiet(rng, count)
    times = 1_790_000_000.0 + np.arange(count) / 10
    table = pa.table({**{name: rows[:, place] for place, name in enumerate(NAMES)}, "prediction": predictions, "when": times})
    if "Parquet" in wanted:
        pyarrow.parquet.write_table(table, folder / "rows.parquet")
    if "CSV" in wanted:
        pyarrow.csv.write_csv(table, folder / "rows.csv")
    if wanted & {"JSON lines", "JSON lines, gzip"}:
        record(folder, rows[: count // 2].tolist(), predictions[: count // 2].tolist(), times.tolist(), "JSON lines, gzip" in wanted)
    if "prediction log" in wanted:
        with (folder / "predict_log.json").open("w") as lines:
            for row, said, when in zip(rows.tolist(), predictions.tolist(), times.tolist(), strict=True):
                told = {"timestamp": when, "id": f"{when:.1f}", "model": MODEL, "version": "1", "inputs": [row], "outputs": [said]}
                lines.write(json.dumps(told) + "\n")


def record(folder, rows, predictions, times, packed):
    import gzip

    from inference.log import Record
    from streaming.sources.recording import as_line
    from streaming.testing import prediction

    with (folder / "rows.jsonl").open("wb") as lines:
        for number, (row, said) in enumerate(zip(rows, predictions, strict=True)):
            for half, event in enumerate(prediction(MODEL, f"{number:08x}-0000-4000-8000-000000000000", [row], [said], version="1")):
                lines.write(as_line(Record(0, 2 * number + half, times[2 * number + half], event)) + b"\n")
    if packed:
        with (folder / "rows.jsonl").open("rb") as plain, gzip.open(folder / "rows.jsonl.gz", "wb", compresslevel=1) as packing:
            while block := plain.read(1 << 20):
                packing.write(block)


def measured(command, folder):
    """Wall seconds, CPU seconds, the largest resident set in bytes, and the last line of stdout."""
    out = folder / "out.txt"
    began = time.perf_counter()
    with out.open("wb") as stdout:
        process = subprocess.Popen([sys.executable, *command], stdout=stdout, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{command} failed: {out.read_bytes()[-300:]!r}")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, out.read_bytes().splitlines()[-1]


def read_only(folder, name):
    """In a process of its own: the source and nothing else."""
    from streaming.assemble_sources import open_source_replay, open_table_replay
    from streaming.settings import load_settings

    settings = load_settings(folder / "driftloop.yaml", alerts=False, gateway=False)
    path = str(folder / FILES[name])
    if name in ("Parquet", "CSV"):
        source = open_table_replay(settings, path, time="when").source
        count = lambda batch: len(batch.times)  # noqa: E731
    else:
        source = open_source_replay(settings, path).source
        count = len
    began = resource.getrusage(resource.RUSAGE_SELF)
    total = sum(map(count, source))
    ended = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"events": total, "cpu": ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime}))


def case(folder, name):
    path = folder / FILES[name]
    times = ["--time", "when"] if name in ("Parquet", "CSV") else []
    command = ["-m", "streaming.cli", "replay", "--config", str(folder / "driftloop.yaml"), "--source", str(path), *times, "--json"]
    wall, cpu, memory, last = measured(command, folder)
    told = json.loads(last)
    reading = json.loads(measured([__file__, "--read", name, "--folder", str(folder)], folder)[3])
    return {
        "source": name,
        "events": told["events"],
        "events_per_second": round(told["events"] / wall),
        "events_per_second_and_core": round(told["events"] / cpu),
        "reading": round(reading["cpu"] / cpu, 2),
        "seconds": round(wall, 1),
        "peak_memory_mb": round(memory / 1e6),
        "bytes": path.stat().st_size,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--only", default="")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--fill", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        fill(options.folder, options.events, {name for name in FILES if options.only.lower() in name.lower()})
        return
    if options.read:
        read_only(options.folder, options.read)
        return
    wanted = [name for name in FILES if options.only.lower() in name.lower()]
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        # Elsewhere: a process counts as its own what was resident where it was made.
        subprocess.run([sys.executable, __file__, "--fill", *sys.argv[1:], "--folder", str(folder)], check=True)
        print(f"{'source':18} {'events':>9} {'events/s':>9} {'per core':>9} {'reading':>8} {'seconds':>8} {'peak MB':>8}", file=sys.stderr)
        found = []
        for name in wanted:
            one = case(folder, name)
            found.append(one)
            numbers = (one["events"], one["events_per_second"], one["events_per_second_and_core"])
            more = f"{one['reading']:>8} {one['seconds']:>8} {one['peak_memory_mb']:>8}"
            print(f"{name:18} {numbers[0]:>9} {numbers[1]:>9} {numbers[2]:>9} {more}", file=sys.stderr)
    print(json.dumps({"cores": os.cpu_count(), "cases": found}))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
