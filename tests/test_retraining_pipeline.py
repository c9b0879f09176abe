"""The compiled pipeline: current, reproducible, and run for real by kfp.local on both of its branches and through a failure."""

import json
from pathlib import Path

import pandas
import pytest
import yaml
from sklearn.datasets import load_iris

from inference.errors import PipelineError
from inference.event import LABEL, REQUEST, RESPONSE, Event, own_event
from inference.log import open_log
from inference.payload import decode_finished, decode_promotion
from inference.versions import PREDICTION, Repository
from pipelines.parameters import COMPILED, checked, known
from pipelines.retraining import compile_pipeline
from pipelines.submit import run_local

MODEL = "default/iris-sklearn"
NAMES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]


def test_the_committed_copy_is_what_the_code_compiles_to_byte_for_byte(tmp_path):
    compile_pipeline(tmp_path / "output" / "one.yaml")
    compile_pipeline(tmp_path / "two.yaml")
    assert (tmp_path / "output" / "one.yaml").read_bytes() == (tmp_path / "two.yaml").read_bytes()
    assert (tmp_path / "two.yaml").read_bytes() == COMPILED.read_bytes(), "run: python -m pipelines.retraining"


def test_no_step_is_cached_and_none_installs_anything():
    document = yaml.safe_load(COMPILED.read_text())
    dags = [document["root"]["dag"], *(part["dag"] for part in document["components"].values() if "dag" in part)]
    tasks = [task for dag in dags for task in dag["tasks"].values() if task["componentRef"]["name"] in document["components"]]
    steps = [task for task in tasks if "executorLabel" in document["components"][task["componentRef"]["name"]]]
    assert len(steps) == 6
    assert all(task["cachingOptions"] == {} for task in steps)
    assert "pip install" not in COMPILED.read_text() and "pip3" not in COMPILED.read_text()


def test_the_parameters_are_those_of_the_compiled_file():
    assert {name for name, parameter in known().items() if parameter.default is None} == {"model", "run_id", "data", "repository"}
    assert known()["holdout"].default == 0.3 and known()["max_rows"].default == 50_000
    given = {"model": "a/b", "run_id": "1", "data": "x.csv", "repository": "r", "max_rows": "10", "margin": "0.05", "min_rows": 5}
    assert checked(given) == {**given, "max_rows": 10, "margin": 0.05}


def test_every_wrong_parameter_is_told_at_once():
    with pytest.raises(PipelineError) as caught:
        checked({"model": "a/b", "max_rows": "many", "holdout": True, "colour": "red", "min_rows": 1.5, "trainer": 3})
    text = str(caught.value)
    for part in (
        "max_rows is 'many'",
        "holdout is True",
        "'colour' is no parameter",
        "min_rows is 1.5",
        "trainer is 3",
        "data is not given",
    ):
        assert part in text


def iris(folder: Path) -> pandas.DataFrame:
    frame = load_iris(as_frame=True).frame
    frame.columns = [*NAMES, "species"]
    frame.to_csv(folder / "iris.csv", index=False)
    return frame


def put_predictions(log, frame: pandas.DataFrame) -> None:
    """Each row as a prediction and, after them all, its label: what the gateway writes."""
    extensions = {"namespace": "default", "inferenceservicename": "iris-sklearn"}
    halves, labels = [], []
    for i, row in enumerate(frame.itertuples(index=False)):
        *cells, label = row
        bodies = ((REQUEST, {"instances": [[float(cell) for cell in cells]]}), (RESPONSE, {"predictions": [0]}))
        for type_, body in bodies:
            halves.append(Event(f"p{i}", "pod", type_, "2026-01-01T00:00:00Z", "application/json", extensions, json.dumps(body).encode()))
        data = {"prediction_id": f"p{i}", "labels": [int(label)]}
        labels.append(own_event(LABEL, data, model=MODEL, source="test", id_=f"label-{i}", now=0.0))
    log.append(halves)
    log.append(labels)


def told(log):
    records = log.read({log.partition_of(MODEL): 0}, limit=10_000)
    return [record.event for record in records if record.event.source == "driftloop/pipelines"]


@pytest.mark.slow
def test_the_compiled_pipeline_deploys_keeps_and_reports_a_failure(tmp_path):
    frame = iris(tmp_path)
    url = str(tmp_path / "log.db")
    log = open_log(url)
    repository = Repository(tmp_path / "repository")
    common = {"model": MODEL, "repository": str(repository.root), "log_url": url}

    # Version 1 from a table: nothing is live, so the floor decides.
    table = {"data": str(tmp_path / "iris.csv"), "target": "species", "reference_rows": 60}
    _, state = run_local({**common, **table}, folder=tmp_path / "runs", run_id="first", timeout=120)
    assert state.state == "succeeded", state.error
    assert repository.current(MODEL) == "1"
    version = repository.read(MODEL, "1")
    assert version.metrics["accuracy"] > 0.9 and version.run_id == "first" and version.span["rows"] == 150
    assert len(version.load_reference()[PREDICTION]) == 60
    promotion, outcome = told(log)
    assert decode_promotion(promotion).version == "1"
    assert decode_finished(outcome)["outcome"] == "promoted"

    # The same rows from the log, joined with their labels: no better, so version 1 stays.
    put_predictions(log, frame.sample(frac=1.0, random_state=1))
    more = {"data": url, "since_offset": 0, "margin": 0.2}
    _, state = run_local({**common, **more}, folder=tmp_path / "runs", run_id="second", timeout=120)
    assert state.state == "succeeded", state.error
    assert repository.current(MODEL) == "1" and repository.versions(MODEL) == ["1"]
    outcome = decode_finished(told(log)[-1])
    assert (outcome["outcome"], outcome["run_id"], outcome["rows"], outcome["version"]) == ("kept", "second", 150, "")
    assert outcome["champion"] > 0.9 and "not the margin" in outcome["reason"]

    # A step that raises: nothing after it runs, and the exit handler tells its reason.
    bad = {"data": url, "min_rows": 1000, "wait_seconds": 0}
    _, state = run_local({**common, **bad}, folder=tmp_path / "runs", run_id="third", timeout=120)
    assert state.state == "failed" and "150 labelled rows" in state.error and "at least 1000 are needed" in state.error
    outcome = decode_finished(told(log)[-1])
    assert (outcome["outcome"], outcome["run_id"]) == ("failed", "third") and "at least 1000 are needed" in outcome["reason"]
    assert len(told(log)) == 4
    log.close()
    assert not list((tmp_path / "runs").glob("*/tmp"))
