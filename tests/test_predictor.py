"""The predictor: KServe's real ModelServer in a process of its own, asked over HTTP by a client that does not know us."""

import asyncio
import http.server
import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import joblib
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from inference.errors import ServiceError, VersionError
from inference.tap import EXCHANGE, Exchange
from inference.versions import Feature, Repository, Schema, Version

ROOT = Path(__file__).parent.parent
MODEL = "default/iris-sklearn"
NAMES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
SCHEMA = Schema(tuple(Feature(name, "numeric") for name in NAMES), "categorical", "species")
ROW = [5.1, 3.5, 1.4, 0.2]
PREDICT = "/v1/models/iris-sklearn:predict"
INFER = "/v2/models/iris-sklearn/infer"
LOAD = "/v2/repository/models/iris-sklearn/load"


def deploy(repository, folder, estimator, *, schema=SCHEMA, model=MODEL):
    joblib.dump(estimator, folder / "model.joblib")
    columns = {name: [1.0] for name in schema.names} | {"prediction": [0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "reference.parquet")
    version = Version(model, repository.next_version(model), folder, schema)
    written = repository.write(version, model_file=folder / "model.joblib", reference_file=folder / "reference.parquet")
    repository.promote(model, written.version, expected=repository.current(model))
    return written


def iris_model():
    features, species = load_iris(return_X_y=True)
    return LogisticRegression(max_iter=1000).fit(features, species)


def always(answer):
    """A classifier that gives `answer` for every row: which version answered can be seen from the answer."""
    return DummyClassifier(strategy="constant", constant=answer).fit(np.zeros((2, 4)), [0, answer])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Serving:
    """`serve` in a process, and a client for it."""

    def __init__(self, repository, model=MODEL, **settings):
        self.port = settings.setdefault("port", free_port())
        self._arguments = json.dumps([str(repository.root), model, settings])

    def __enter__(self):
        code = "import sys, json; from inference.predictor_server import serve; a = json.loads(sys.argv[2]); serve(*a[:2], **a[2])"
        # KServe would take this argument for its own and refuse it, were it let see it.
        command = [sys.executable, "-c", code, "--workers=many", self._arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=20)
        deadline = time.monotonic() + 90
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                if self.client.get("/v2/health/ready").status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.1)
        self.process.kill()
        raise AssertionError(f"the predictor did not come up: {self.process.communicate()[1][-2000:]}")

    def __exit__(self, *_):
        self.client.close()
        if self.process.poll() is None:
            self.stop()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            output = "".join(self.process.communicate(timeout=20))
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.process.returncode == 0, output
        return output

    def answer(self, rows):
        reply = self.client.post(PREDICT, json={"instances": rows})
        assert reply.status_code == 200, reply.text
        return reply.json()["predictions"]


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "models")


@pytest.fixture(scope="module")
def iris(tmp_path_factory):
    folder = tmp_path_factory.mktemp("iris")
    repository = Repository(folder / "models")
    deploy(repository, folder, iris_model())
    with Serving(repository, predict_log=str(folder / "predict_log.json")) as serving:
        serving.predict_log = folder / "predict_log.json"
        yield serving
        log = serving.stop()
    assert "Traceback" not in log and "Deprecat" not in log, "what clients did wrong is told to them, not to the log"


def infer(inputs, **more):
    return {"inputs": inputs, **more}


def matrix(data, shape, **more):
    return infer([{"name": "input-0", "shape": shape, "datatype": "FP64", "data": data}], **more)


def test_v1_answers_the_classic_iris_request_in_plain_json(iris):
    reply = iris.client.post(PREDICT, content=b'{"instances": [[5.1, 3.5, 1.4, 0.2]]}', headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.content) == (200, b'{"predictions":[0]}')


def test_v1_takes_rows_by_name_in_any_order_many_rows_and_a_body_that_nobody_called_json(iris):
    features, _ = load_iris(return_X_y=True)
    wanted = iris_model().predict(features).tolist()
    assert iris.answer(features.tolist()) == wanted
    assert iris.answer([dict(reversed([*zip(NAMES, row, strict=True), ("extra", "x")])) for row in features.tolist()]) == wanted
    reply = iris.client.post(
        PREDICT, content=b'{"instances": [[6, 3, 5, 2]]}', headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert reply.json() == {"predictions": [2]}


def test_v2_json_takes_one_matrix_or_one_tensor_per_feature(iris):
    two = [*ROW, 6.9, 3.1, 5.1, 2.3]
    wanted = {"name": "predict", "shape": [2], "datatype": "INT64", "parameters": None, "data": [0, 2]}
    reply = iris.client.post(INFER, json=matrix(two, [2, 4], id="req-1")).json()
    assert (reply["id"], reply["model_name"], reply["model_version"], reply["outputs"]) == ("req-1", "iris-sklearn", "1", [wanted])
    assert iris.client.post(INFER, json=matrix([two[:4], two[4:]], [2, 4])).json()["outputs"] == [wanted]
    for shape in ([2], [2, 1]):
        tensors = [{"name": name, "shape": shape, "datatype": "FP32", "data": two[i::4]} for i, name in enumerate(NAMES)]
        assert iris.client.post(INFER, json=infer(tensors[::-1])).json()["outputs"] == [wanted]


def binary(document, raw):
    head = json.dumps(document).encode()
    return {
        "content": head + raw,
        "headers": {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))},
    }


def binary_matrix(shape, raw, **more):
    tensor = {"name": "input-0", "shape": shape, "datatype": "FP64", "parameters": {"binary_data_size": len(raw)}}
    return binary(infer([tensor], **more), raw)


def test_v2_binary_tensors_work_both_ways(iris):
    raw = np.array([ROW, [6.9, 3.1, 5.1, 2.3], [6.1, 2.9, 4.7, 1.4]]).tobytes()
    reply = iris.client.post(INFER, **binary_matrix([3, 4], raw, id="bin-0"))
    assert reply.json()["outputs"][0]["data"] == [0, 2, 1]
    reply = iris.client.post(INFER, **binary_matrix([3, 4], raw, parameters={"binary_data_output": True}))
    size = int(reply.headers["inference-header-content-length"])
    output = json.loads(reply.content[:size])["outputs"][0]
    assert (output["shape"], output["datatype"], output["parameters"]) == ([3], "INT64", {"binary_data_size": 24})
    assert struct.unpack("<3q", reply.content[size:]) == (0, 2, 1)


def test_metadata_lists_the_schemas_inputs_and_the_live_version(iris):
    assert iris.client.get("/v2/models/iris-sklearn").json() == {
        "name": "iris-sklearn",
        "versions": ["1"],
        "platform": "",
        "inputs": [{"name": name, "datatype": "FP64", "shape": [-1]} for name in NAMES],
        "outputs": [{"name": "predict", "datatype": "INT64", "shape": [-1]}],
    }


BAD_V1 = {
    "an empty body": (b"", "JSON|request format"),
    "no JSON": (b"{not json", "request format"),
    "no instances": (b'{"rows": []}', r'no "instances"; send .*sepal_length, sepal_width'),
    "a list": (b"[1]", 'no "instances"'),
    "a number": (b"1", 'no "instances"'),
    "instances that are no list": (b'{"instances": {"a": 1}}', "list"),
    "no rows": (b'{"instances": []}', "at least one row"),
    "a flat row": (b'{"instances": [5.1, 3.5, 1.4, 0.2]}', "instance 0 is 5.1, not a row of 4 values"),
    "a short row": (b'{"instances": [[1, 2]]}', "instance 0 has 2 values, the model takes 4"),
    "ragged rows": (b'{"instances": [[1, 2, 3, 4], [1, 2, 3]]}', "instance 1 has 3 values, the model takes 4"),
    "a missing feature": (
        b'{"instances": [{"sepal_length": 1, "petal_width": 2}]}',
        "instance 0 lacks the features sepal_width, petal_length",
    ),
    "null": (b'{"instances": [[5.1, null, 1.4, 0.2]]}', "row 0: 'sepal_width' is None, the model takes a finite number"),
    "NaN": (b'{"instances": [[5.1, NaN, 1.4, 0.2]]}', "request format"),
    "a text": (b'{"instances": [[1, 2, 3, 4], [1, 2, "3", 4]]}', "row 1: 'petal_length' is '3', the model takes a finite number"),
    "a boolean": (b'{"instances": [[true, 2, 3, 4]]}', "row 0: 'sepal_length' is True"),
    "a nest": (b'{"instances": [[[1], 2, 3, 4]]}', r"row 0: 'sepal_length' is \[1\]"),
    "a deep nest": (b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "request format"),
    "gzip": (b"\x1f\x8b\x08\x00abc", "request format"),
}


@pytest.mark.parametrize("case", BAD_V1)
def test_bad_v1_input_is_a_400_that_says_what_would_be_right(iris, case):
    body, message = BAD_V1[case]
    reply = iris.client.post(PREDICT, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400, reply.text
    assert re.search(message, reply.json()["error"]), reply.json()["error"]


NUMBERS = np.array([ROW]).tobytes()
BAD_V2 = {
    "a wrong width": ({"json": matrix([1, 2], [1, 2])}, r"'input-0' has the shape \[1, 2\], the model takes \[n, 4\]"),
    "a wrong rank": ({"json": matrix(ROW, [4])}, r"has the shape \[4\]"),
    "a wrong count": ({"json": matrix(ROW[:3], [1, 4])}, r"has 3 values, its shape \[1, 4\] says 4"),
    "a huge shape": ({"json": matrix(ROW, [10**15, 4])}, "has 4 values"),
    "a negative shape": ({"json": matrix(ROW, [-1, 4])}, r"shape \[-1, 4\]"),
    "no rows": ({"json": matrix([], [0, 4])}, "no rows; send one tensor"),
    "no tensors": ({"json": infer([])}, "no input tensor for the features sepal_length"),
    "a null": ({"json": matrix([5.1, None, 1.4, 0.2], [1, 4])}, "row 0: 'sepal_width' is None"),
    "a text": ({"json": matrix([5.1, "3.5", 1.4, 0.2], [1, 4])}, "'sepal_width' is '3.5'"),
    "an endless number": ({"content": b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP64","data":[1,2,3,1e999]}]}'}, "is inf"),
    "a number beyond a double": ({"content": json.dumps(matrix([1, 2, 3, 10**400], [1, 4])).encode()}, "finite number|pars"),
    "a nest": ({"json": matrix([[1, 2], [3, [4]]], [1, 4])}, r"is \[4\]"),
    "one tensor twice": ({"json": infer([matrix(ROW, [1, 4])["inputs"][0]] * 2)}, "same name"),
    "a missing feature": (
        {"json": infer([{"name": n, "shape": [1], "datatype": "FP64", "data": [1]} for n in NAMES[:3]])},
        "no input tensor for the features petal_width",
    ),
    "tensors of different length": (
        {"json": infer([{"name": n, "shape": [i + 1], "datatype": "FP64", "data": [1] * (i + 1)} for i, n in enumerate(NAMES)])},
        "differ in length: sepal_length 1, sepal_width 2",
    ),
    "an unknown output": ({"json": matrix(ROW, [1, 4], outputs=[{"name": "nothing"}])}, "Unexpected inference output 'nothing'"),
    "NaN in bytes": (binary_matrix([1, 4], np.array([1, np.nan, 3, 4]).tobytes()), "'sepal_width' is nan"),
    "too few bytes": (binary_matrix([1, 4], NUMBERS[:24]), "cannot be read"),
    "an odd number of bytes": (binary_matrix([1, 4], NUMBERS[:-1]), "cannot be read"),
    "no inputs": (binary({}, b""), "cannot be read: KeyError"),
    "inputs of a wrong type": (binary({"inputs": 5}, b""), "cannot be read"),
    "a size that is a text": (
        binary(infer([{"name": "x", "shape": [1, 4], "datatype": "FP64", "parameters": {"binary_data_size": "32"}}]), NUMBERS),
        "cannot be read",
    ),
    "a text tensor cut short": (
        binary(infer([{"name": "x", "shape": [1, 4], "datatype": "BYTES", "parameters": {"binary_data_size": 6}}]), b"\xff\xff\0\0ab"),
        "cannot be read",
    ),
    "a header length that is no number": (
        {"content": b"{}", "headers": {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "ten"}},
        "cannot be read",
    ),
}


@pytest.mark.parametrize("case", BAD_V2)
def test_bad_v2_input_is_a_400_that_says_what_would_be_right(iris, case):
    request, message = BAD_V2[case]
    reply = iris.client.post(INFER, **({"headers": {"Content-Type": "application/json"}} | request))
    assert reply.status_code == 400, reply.text
    assert re.search(message, reply.text), reply.text


def test_only_the_given_address_is_listened_on(iris):
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", iris.port), timeout=2)


def test_an_unknown_model_is_a_404_and_the_server_still_answers_after_all_that(iris):
    assert iris.client.post("/v1/models/other:predict", json={"instances": [ROW]}).status_code == 404
    assert iris.answer([ROW]) == [0]


@pytest.mark.parametrize("path", [PREDICT, INFER])
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_fifty_megabytes_is_refused_before_it_is_read(iris, path, announced):
    def pieces():
        for _ in range(50):
            yield b" " * 2**20
            time.sleep(0)

    with httpx.Client(base_url=iris.client.base_url, trust_env=False, timeout=20) as client:
        try:
            reply = client.post(path, content=b" " * (50 * 2**20) if announced else pieces(), headers={"Content-Type": "application/json"})
        except httpx.WriteError:  # the server closed the connection while we were still sending, as it should
            reply = None
    assert reply is None or (reply.status_code == 413 and "more than 16777216 bytes" in reply.json()["error"])
    assert iris.answer([ROW]) == [0]


def test_too_many_rows_are_refused_and_just_enough_are_answered(iris):
    reply = iris.client.post(PREDICT, content=b'{"instances": [' + b"[1,1,1,1]," * 100_000 + b"[1,1,1,1]]}")
    assert (reply.status_code, reply.json()["error"].split(";")[0]) == (
        400,
        "the request has 100001 rows, at most 100000 are answered at once",
    )
    assert len(iris.answer([ROW] * 100_000)) == 100_000


def test_each_prediction_is_a_line_in_the_predict_log_under_the_clients_event_id(iris):
    iris.client.post(PREDICT, json={"instances": [ROW, ROW]}, headers={"Ce-Id": "mine-1"})
    line = json.loads(iris.predict_log.read_text().splitlines()[-1])
    assert line.pop("time").endswith("Z")
    assert line == {"id": "mine-1", "model": MODEL, "version": "1", "inputs": [ROW, ROW], "outputs": [0, 0]}


@pytest.mark.slow
def test_a_swap_under_load_loses_no_request_though_a_load_fails_and_neither_tap_nor_predict_log_works(repository, tmp_path):
    deploy(repository, tmp_path, always(1))
    full = "/dev/full" if Path("/dev/full").exists() else str(tmp_path / "p.json")
    with Serving(repository, tap=f"http://127.0.0.1:{free_port()}", predict_log=full) as serving:
        seen, failures, stop = [], [], threading.Event()

        def ask():
            with httpx.Client(base_url=serving.client.base_url, trust_env=False, timeout=20) as client:
                while not stop.is_set():
                    reply = client.post(INFER, json=matrix(ROW * 2, [2, 4]))
                    if reply.status_code != 200:
                        failures.append(reply.text)
                        return
                    seen.append((reply.json()["model_version"], *reply.json()["outputs"][0]["data"]))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        while not seen and not failures:
            time.sleep(0.01)
        for number in (2, 3, 4):
            deploy(repository, tmp_path, always(number))
            assert serving.client.post(LOAD).json() == {"name": "iris-sklearn", "load": True}
            assert serving.answer([ROW]) == [number]
        broken = deploy(repository, tmp_path, always(5))
        (broken.path / "model.joblib").write_bytes(b"another file")
        refused = serving.client.post(LOAD)
        deploy(repository, tmp_path, iris_model().fit(np.zeros((2, 3)), [0, 1]))
        narrow = serving.client.post(LOAD)
        stop.set()
        for thread in threads:
            thread.join()
        assert (failures, serving.answer([ROW])) == ([], [4])
        assert refused.status_code == 503 and "its content is not what version.json states" in refused.text
        assert narrow.status_code == 503 and "the model takes 3 features, the schema has 4" in narrow.text
        assert {"1", "2", "3", "4"} == {version for version, *_ in seen}
        assert all(int(version) == first == second for version, first, second in seen), "an answer mixes two versions"
        assert serving.client.get("/v2/models/iris-sklearn").json()["versions"] == ["4"]
        assert serving.client.post("/v2/repository/models/other/load").status_code == 503
        assert serving.client.post("/v2/repository/models/iris-sklearn/unload").status_code == 200
        assert serving.client.post(PREDICT, json={"instances": [ROW]}).status_code == 404
        deploy(repository, tmp_path, always(7))
        assert serving.client.post(LOAD).status_code == 200
        assert serving.answer([ROW]) == [7]
        log = serving.stop()
    assert "Traceback" not in log and "Deprecat" not in log and log.count("stays live") == 2 and "the tap lost" in log, log


class Sink(http.server.ThreadingHTTPServer):
    def __init__(self):
        self.events = []
        super().__init__(("127.0.0.1", 0), SinkHandler)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class SinkHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.events.append((dict(self.headers), body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_tap_of_the_real_server_sends_pairs_that_name_the_version_and_flushes_at_the_end(repository, tmp_path):
    deploy(repository, tmp_path, always(1))
    log = tmp_path / "p.json"
    with Sink() as sink, Serving(repository, tap=f"http://127.0.0.1:{sink.server_port}/", source="pod-1", predict_log=str(log)) as serving:
        sink.events.clear()
        bodies = [json.dumps({"instances": [[number, 1, 1, 1]]}).encode() for number in range(20)]
        for number, body in enumerate(bodies):
            if number == 10:
                deploy(repository, tmp_path, always(2))
                serving.client.post(LOAD)
            assert serving.client.post(PREDICT, content=body, headers={"Content-Type": "application/json"}).status_code == 200
        assert serving.client.post(PREDICT, json={"instances": [[1]]}).status_code == 400
        serving.client.get("/v1/models", headers={"User-Agent": "kube-probe/1.31"})
        serving.stop()
    requests = {h["Ce-Id"]: (h, b) for h, b in sink.events if h["Ce-Type"].endswith(".request") and b.startswith(b'{"inst')}
    responses = {h["Ce-Id"]: (h, b) for h, b in sink.events if h["Ce-Type"].endswith(".response") and b.startswith(b'{"pred')}
    assert (len(requests), len(responses)) == (21, 20), "twenty pairs, and the refused request without a response"
    by_body = {requests[id_][1]: (responses[id_][1], json.loads(responses[id_][0]["Ce-Annotations"])) for id_ in responses}
    for number, body in enumerate(bodies):
        version = "1" if number < 10 else "2"
        assert by_body[body] == (b'{"predictions":[%s]}' % version.encode(), {"driftloop.io/model-version": version})
    assert {(h["Ce-Source"], h["Ce-Namespace"], h["Ce-Inferenceservicename"]) for h, _ in sink.events} == {
        ("pod-1", "default", "iris-sklearn")
    }
    assert [json.loads(line)["id"] for line in log.read_text().splitlines()] == [
        next(id_ for id_, (_, sent) in requests.items() if sent == body) for body in bodies
    ], "a label can name the prediction by the id in the predict log"


# What needs no server is asked of the model itself.


def loaded(repository, model=MODEL):
    from inference.predictor import Predictor

    predictor = Predictor(repository, model)
    predictor.load()
    return predictor


def ask(predictor, instances):
    return asyncio.run(predictor.predict({"instances": instances}))["predictions"]


def ask_v2(predictor, tensors):
    from kserve.protocol.infer_type import InferInput, InferRequest

    inputs = [InferInput(name, shape, datatype, data) for name, shape, datatype, data in tensors]
    return asyncio.run(predictor.predict(InferRequest(predictor.name, inputs))).outputs[0]


def test_categories_and_text_answers_work_with_a_model_fitted_on_a_data_frame(repository, tmp_path):
    schema = Schema((Feature("size", "numeric"), Feature("colour", "categorical")), "categorical", "kind")
    frame = pandas.DataFrame({"size": [1.0, 1.0, 2.0, 2.0], "colour": pandas.Series(["red", "blue"] * 2, dtype=object)})
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(frame, ["warm", "cold"] * 2)
    deploy(repository, tmp_path, model, schema=schema)
    predictor = loaded(repository)
    assert ask(predictor, [{"colour": "red", "size": 1}, [2, "blue"]]) == ["warm", "cold"]
    output = ask_v2(predictor, [("colour", [2], "BYTES", [b"blue", "red"]), ("size", [2], "FP64", [1, 2])])
    assert (output.datatype, output.shape, output.data) == ("BYTES", [2], ["cold", "warm"])
    assert [tensor["datatype"] for tensor in predictor.get_input_types()] == ["FP64", "BYTES"]
    assert predictor.get_output_types()[0]["datatype"] == "BYTES"
    with pytest.raises(ValueError, match="the model refused the rows: Found unknown categories"):
        ask(predictor, [[1, "green"]])
    with pytest.raises(ValueError, match=r"the model refused the rows: Found unknown categories \[None\]"):
        ask(predictor, [[1, None]])


def test_a_category_is_the_same_as_number_and_as_text_as_it_was_in_training(repository, tmp_path):
    schema = Schema((Feature("size", "numeric"), Feature("grade", "categorical")), "categorical", "kind")
    frame = pandas.DataFrame({"size": [1.0] * 4, "grade": pandas.Series(["1", "2"] * 2, dtype=object)})
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression()).fit(frame, ["p", "q"] * 2)
    deploy(repository, tmp_path, model, schema=schema)
    predictor = loaded(repository)
    assert ask(predictor, [[1, "1"], [1, "2"], [1, 1], [1, 2], [1, 2.0]]) == ["p", "q", "p", "q", "q"]


def test_a_model_that_takes_missing_values_gets_them_and_a_regressor_answers_with_floats(repository, tmp_path):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(60, 4))
    model = HistGradientBoostingRegressor(max_iter=3).fit(features, features[:, 0])
    deploy(repository, tmp_path, model)
    predictor = loaded(repository)
    assert ask(predictor, [[None, 1, 1, 1]]) == model.predict([[np.nan, 1, 1, 1]]).tolist()
    assert ask_v2(predictor, [("x", [1, 4], "FP64", ROW)]).datatype == "FP64"
    with pytest.raises(ValueError, match="'petal_width' is 'x'"):
        ask(predictor, [[None, 1, 1, "x"]])


def test_a_large_request_leaves_the_event_loop_to_others_and_a_swap_meanwhile_changes_nothing_for_it(repository, tmp_path, monkeypatch):
    from inference.predictor import INLINE_ROWS

    deploy(repository, tmp_path, always(1))
    predictor = loaded(repository)
    entered, release = threading.Event(), threading.Event()

    def slow(_, rows):
        entered.set()
        release.wait(10)
        return np.ones(len(rows), int)

    monkeypatch.setattr(DummyClassifier, "predict", slow)

    async def run():
        exchange = Exchange("id-1", "")
        EXCHANGE.set(exchange)
        asking = asyncio.create_task(predictor.predict({"instances": [ROW] * (INLINE_ROWS + 1)}))
        while not entered.is_set():
            await asyncio.sleep(0.01)
        assert not asking.done(), "the event loop stood still while the model worked"
        deploy(repository, tmp_path, always(2))
        predictor.load()
        release.set()
        await asking
        return exchange.version, predictor.version

    assert asyncio.run(run()) == ("1", "2"), "the answer names the version that gave it, whatever was put live meanwhile"


def test_an_announced_body_over_the_bound_is_refused_unread():
    from inference.predictor_server import _Bounded

    async def never(*_):
        raise AssertionError("it was read")

    async def run():
        sent = []

        async def send(message):
            sent.append(message)

        await _Bounded(never, 10)({"type": "http", "headers": [(b"content-length", b"11")]}, never, send)
        return sent

    assert asyncio.run(run())[0]["status"] == 413


def test_an_error_of_the_model_itself_is_not_blamed_on_the_client(repository, tmp_path, monkeypatch):
    deploy(repository, tmp_path, always(1))
    predictor = loaded(repository)
    monkeypatch.setattr(DummyClassifier, "predict", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask(predictor, [ROW])


def test_a_repository_without_a_live_version_says_how_to_get_one(repository):
    from inference.predictor_server import serve

    with pytest.raises(VersionError, match=r"default/iris-sklearn has no live version in .*versions there: none.*driftloop pipeline run"):
        serve(repository.root, MODEL, port=free_port())


def test_a_model_that_is_none_or_does_not_fit_its_schema_is_refused(repository, tmp_path):
    deploy(repository, tmp_path, {"not": "a model"})
    with pytest.raises(VersionError, match=r"holds a dict; it must be an estimator with predict\(\)"):
        loaded(repository)
    frame = pandas.DataFrame(np.zeros((2, 4)), columns=["a", "b", "c", "d"])
    deploy(repository, tmp_path, LogisticRegression().fit(frame, [0, 1]))
    with pytest.raises(VersionError, match="the model takes the features a, b, c, d, the schema has sepal_length"):
        loaded(repository)


def test_a_port_in_use_a_host_that_is_not_ours_and_grpc_on_the_loopback_are_clear_errors(repository, tmp_path):
    from inference.predictor_server import serve

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*stop what uses it"):
            serve(repository.root, MODEL, port=port)
    with pytest.raises(ServiceError, match=r"cannot listen on no\.such\.host\.invalid"):
        serve(repository.root, MODEL, host="no.such.host.invalid", port=port)
    with pytest.raises(ServiceError, match="70000 is no port"):
        serve(repository.root, MODEL, port=70000)
    with pytest.raises(ServiceError, match=r"gRPC server listens on every interface.*give host 0\.0\.0\.0"):
        serve(repository.root, MODEL, port=free_port(), enable_grpc=True)


def test_the_filter_lets_the_servers_own_errors_through():
    from kserve.errors import InvalidInput

    from inference.predictor_server import _NoClientErrors

    def record(error):
        return logging.makeLogRecord({"msg": "Exception:", "exc_info": (type(error), error, None)})

    assert not _NoClientErrors().filter(record(InvalidInput("no")))
    assert _NoClientErrors().filter(record(RuntimeError("ours"))) and _NoClientErrors().filter(logging.makeLogRecord({}))
