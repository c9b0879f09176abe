"""Sources that others wrote: prediction logs, Event Hubs Capture, KServe's own blob logger; each through the fleet."""

import base64
import json
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise

import fastavro
import numpy as np
import orjson
import pyarrow
import pyarrow.parquet
import pytest
from test_sources import fleet, read

from inference.errors import SettingsError
from inference.event import PROMOTED, REQUEST, RESPONSE, to_kafka
from inference.log import Record
from inference.log.kafka_records import record_of
from inference.predict_log import PredictLog
from streaming.core.verdict import Decision, Notice
from streaming.sources.capture import CaptureSource, captured
from streaming.sources.files import files_of
from streaming.sources.kserve_blobs import KServeBlobSource
from streaming.sources.opening import format_of, open_events
from streaming.sources.predict_log import PredictLogSource
from streaming.sources.seam import Stretch
from streaming.testing import prediction, promotion, records

MODEL = "default/iris"
ANNOTATION = "driftloop.io/model-version"
WHOLE = Stretch()


def predict_log(path, stretch=WHOLE):
    return PredictLogSource(files_of(str(path)), "predictions", stretch, model=MODEL, annotation=ANNOTATION)


def bodies(source):
    return [(record.event.type, orjson.loads(record.event.data)) for record in read(source)]


# Prediction logs


def test_the_log_of_our_own_server_gives_the_verdicts_of_the_events_that_it_is_of(tmp_path):
    rng = np.random.default_rng(1)
    log = PredictLog(tmp_path / "predict_log.json", max_bytes=9000, backups=9, clock=count(1_790_000_000).__next__)
    events = [promotion(MODEL, "1")]
    for number in range(200):
        version, centre = ("2", 10.0) if number >= 120 else ("1", 0.0 if number < 60 else 10.0)
        if number == 120:
            events.append(promotion(MODEL, "2", "1"))
        rows = [[float(rng.normal(centre))]]
        log.write(id_=f"p{number}", model=MODEL, version=version, inputs=rows, outputs=["0"])
        events += prediction(MODEL, f"p{number}", rows, ["0"], version=version)
    log.close()
    assert len([*tmp_path.iterdir()]) > 3, "it was rotated"

    def said(outcomes):
        return [
            (one.action, one.verdict.predictions) if isinstance(one, Decision) else one.kind if isinstance(one, Notice) else one.breached
            for one in outcomes
        ]

    source = open_events(str(tmp_path / "predict_log.json"), "predict-log", WHOLE, log=None, model="x/y", annotation=ANNOTATION)
    running, watched = fleet(), fleet()
    outcomes = [outcome for batch in source for outcome in running.feed(batch)]
    expected = watched.feed(records(events))[1:]
    assert ("retrain" in {one.action for one in outcomes if isinstance(one, Decision)}) and "promoted" in said(outcomes)
    assert said(outcomes) == said(expected)
    assert source.notes == [] and source.unreadable.total == 0


ROW = {"instances": [[5.1, 3.5]]}
TENSOR = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [5.1, 3.5]}


@pytest.mark.parametrize(
    ("line", "request_body", "response_body"),
    [
        ({"inputs": [[5.1, 3.5]], "outputs": [1]}, ROW, {"predictions": [1]}),
        ({"instances": [[5.1, 3.5]], "predictions": ["a"]}, ROW, {"predictions": ["a"]}),
        ({"inputs": [5.1, 3.5], "outputs": 1}, ROW, {"predictions": [1]}),
        ({"inputs": [5.1, 3.5], "outputs": [1]}, ROW, {"predictions": [1]}),
        ({"inputs": [5.1, 3.5], "outputs": [1, 2]}, {"instances": [5.1, 3.5]}, {"predictions": [1, 2]}),
        ({"input": {"a": 5.1}, "prediction": "b"}, {"instances": [{"a": 5.1}]}, {"predictions": ["b"]}),
        ({"inputs": [{"a": 5.1}, {"a": 2}], "outputs": [1, 2]}, {"instances": [{"a": 5.1}, {"a": 2}]}, {"predictions": [1, 2]}),
        ({"inputs": [TENSOR], "outputs": [TENSOR]}, {"inputs": [TENSOR]}, {"outputs": [TENSOR]}),
        ({"request": ROW, "response": {"predictions": [1]}}, ROW, {"predictions": [1]}),
    ],
)
def test_logs_of_others_are_read_leniently(tmp_path, line, request_body, response_body):
    (tmp_path / "log.json").write_text(json.dumps(line))
    assert bodies(predict_log(tmp_path / "log.json")) == [(REQUEST, request_body), (RESPONSE, response_body)]


def test_what_is_no_prediction_is_told_with_its_line(tmp_path):
    lines = ['{"inputs": [[1.0]]}', "", "no", '{"inputs": "x", "outputs": 1}', '{"inputs": [[1]], "outputs": [1], "time": "soon"}', "[1]"]
    (tmp_path / "log.json").write_text("\n".join([*lines, '{"inputs": [[1.0]], "outputs": [1]}']))
    source = predict_log(tmp_path / "log.json")
    assert [(record.offset, record.event.id) for record in read(source)] == [(6, f"{tmp_path}/log.json:7")] * 2
    assert [one["place"].rpartition(":")[2] for one in source.unreadable.places] == ["1", "3", "4", "5", "6"]
    assert "no outputs or predictions" in source.unreadable.places[0]["reason"]
    assert "no RFC 3339 time" in source.unreadable.places[3]["reason"]


def test_without_times_lines_are_a_second_apart_and_with_them_they_do_not_go_back(tmp_path):
    line = {"inputs": [[1.0]], "outputs": [1]}
    (tmp_path / "log.json").write_text("\n".join([json.dumps(line)] * 3))
    source = predict_log(tmp_path / "log.json")
    assert [record.timestamp for record in read(source)] == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    assert source.notes == ["no line has a time: they are taken to be one second apart"]
    times = ["2026-10-01T00:00:05Z", 1790812803, None, "2026-10-01T00:00:09+00:00"]
    (tmp_path / "log.json").write_text("\n".join(json.dumps({**line, "timestamp": time}) for time in times))
    source = predict_log(tmp_path / "log.json")
    assert [record.timestamp - 1790812800 for record in read(source)][::2] == [5.0, 5.0, 5.0, 9.0]
    assert source.notes == []
    since = Stretch.of(["2026-10-01T00:00:06Z"])
    assert {record.offset for record in read(predict_log(tmp_path / "log.json", since))} == {3}
    assert {record.offset for record in read(predict_log(tmp_path / "log.json", Stretch.of(["0:1"], ["0:3"])))} == {1, 2}


def test_a_line_names_its_model_or_is_of_the_one_that_is_asked_for(tmp_path):
    line = {"inputs": [[1.0]], "outputs": [1]}
    models = ["a/b", "iris", None]
    text = "\n".join(json.dumps({**line, "model": model, "version": number % 2}) for number, model in enumerate(models * 2))
    (tmp_path / "log.json").write_text(text)
    found = read(predict_log(tmp_path / "log.json"))
    assert [record.event.model for record in found if record.event.type == REQUEST] == ["a/b", MODEL, MODEL] * 2
    promoted = [(record.offset, orjson.loads(record.event.data)["version"]) for record in found if record.event.type == PROMOTED]
    assert promoted == [(2, "0"), (3, "1"), (5, "1")]


# Event Hubs Capture

SCHEMA = fastavro.parse_schema(
    {
        "type": "record",
        "name": "EventData",
        "namespace": "Microsoft.ServiceBus.Messaging",
        "fields": [
            {"name": "SequenceNumber", "type": "long"},
            {"name": "Offset", "type": "string"},
            {"name": "EnqueuedTimeUtc", "type": "string"},
            {"name": "SystemProperties", "type": {"type": "map", "values": ["long", "double", "string", "bytes"]}},
            {"name": "Properties", "type": {"type": "map", "values": ["long", "double", "string", "bytes", "null"]}},
            {"name": "Body", "type": ["null", "bytes"]},
        ],
    }
)
BEGAN = datetime(2026, 10, 1, 23, 30, tzinfo=UTC)


def message(event, number, when, *, text=lambda when: when.strftime("%m/%d/%Y %I:%M:%S %p"), amqp=False):
    _, headers, body = to_kafka(event)
    properties = dict(headers)
    system = {}
    if amqp:
        system = {"content-type": properties.pop("content-type").decode()}
        properties = {name.replace("ce_", "cloudEvents:"): value.decode() for name, value in properties.items()}
    return {
        "SequenceNumber": number,
        "Offset": str(100 * number),
        "EnqueuedTimeUtc": text(when),
        "SystemProperties": system,
        "Properties": properties,
        "Body": body or None,
    }


def write(folder, partition, when, messages, codec="null"):
    path = folder / f"{partition}/{when:%Y/%m/%d/%H/%M/%S}.avro"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        fastavro.writer(file, SCHEMA, messages, codec=codec)
    return path


@pytest.fixture
def capture(tmp_path):
    """Two partitions over an hour and a half, across midnight: events every minute, a file every five, those in between empty."""
    hub = tmp_path / "lake" / "space" / "hub"
    expected = []
    for partition in (0, 1):
        events = [event for number in range(90) for event in prediction(f"default/m{partition}", f"p{number}", [[number / 7]], ["0"])]
        for window in range(18):
            when = BEGAN + timedelta(minutes=5 * window)
            some = list(enumerate(events))[10 * window : 10 * window + 10] if window % 2 == partition else []
            messages = []
            for number, event in some:
                arrived = when + timedelta(seconds=30 * (number % 10))
                messages.append(message(event, number, arrived, amqp=number % 3 == 0))
                expected.append((arrived, partition, Record(partition, number, arrived.timestamp(), event)))
            write(hub, partition, when, messages, codec="deflate" if window % 4 else "null")
    (hub / "0" / "2026" / "10" / "02" / "00" / "00" / "59.avro").write_bytes(b"")
    return hub, [record for _, _, record in expected]


def by_partition(found):
    return sorted(found, key=lambda record: (record.partition, record.offset))


def test_a_capture_gives_the_events_of_the_hub(capture):
    hub, expected = capture
    source = CaptureSource(str(hub), WHOLE)
    found = read(source)
    assert by_partition(found) == by_partition(expected)
    assert source.unreadable.places == []
    times = [record.timestamp for record in found]
    assert max(before - after for before, after in pairwise(times)) <= 300.0, "partitions side by side"
    assert by_partition(read(CaptureSource(str(hub.parent), WHOLE))) == by_partition(expected), "the namespace's folder will do"
    assert read(CaptureSource(str(hub / "1"), WHOLE)) == [record for record in by_partition(expected) if record.partition == 1]
    assert format_of(str(hub)) == format_of(f"file://{hub.parent}") == "capture"


@pytest.mark.parametrize(
    ("since", "until"),
    [(["2026-10-02"], []), ([], ["2026-10-01T23:41:30Z"]), (["2026-10-01T23:59:00Z"], ["2026-10-02T00:11:00Z"]), (["1:20"], ["1:31"])],
)
def test_a_stretch_of_a_capture_is_that_of_its_events(capture, since, until):
    hub, expected = capture
    stretch = Stretch.of(since, until)
    assert by_partition(read(CaptureSource(str(hub), stretch))) == by_partition(stretch.kept(expected)) != []


def test_of_a_stretch_only_the_folders_that_may_hold_it_are_looked_into(capture, monkeypatch):
    hub, _ = capture
    far = hub / "0" / "2025" / "01" / "01" / "00" / "00"
    far.mkdir(parents=True)
    (far / "00.avro").write_bytes(b"not even Avro")
    (hub / "7" / "2026").mkdir(parents=True)
    from fsspec.implementations.local import LocalFileSystem

    listed = []
    original = LocalFileSystem.ls
    monkeypatch.setattr(LocalFileSystem, "ls", lambda self, path, **more: (listed.append(str(path)), original(self, path, **more))[1])
    assert len(captured(str(hub), Stretch.of(["2026-10-01"], ["2026-10-03"]))) == 37
    assert not any("/2025/" in path for path in listed)
    listed.clear()
    captured(str(hub), Stretch.of(["1:0"]))
    assert not any(path.startswith(f"{hub}/0/") for path in listed)


def test_what_a_capture_holds_that_cannot_be_read_is_told_and_the_rest_goes_on(capture):
    hub, expected = capture
    broken = hub / "0" / "2026" / "10" / "01" / "23" / "30" / "00.avro"
    broken.write_bytes(broken.read_bytes()[:-40])
    (hub / "1" / "2026" / "10" / "01" / "23" / "35" / "00.avro").write_bytes(b"Obj\x01garbage")
    odd = message(prediction(MODEL, "x", [[1.0]], ["0"])[0], 1000, BEGAN)
    write(hub, 0, BEGAN + timedelta(hours=2), [odd | {"EnqueuedTimeUtc": "late"}, odd | {"Properties": {}}, odd, odd])
    source = CaptureSource(str(hub), WHOLE)
    found = read(source)
    told_of = [(one["place"].removeprefix(f"{hub}/"), one["reason"]) for one in source.unreadable.places]
    assert ("0/2026/10/02/01/30/00.avro:1", "no record of Event Hubs Capture: ValueError(\"EnqueuedTimeUtc 'late' is no time\")") in told_of
    assert any(place == "0/2026/10/02/01/30/00.avro:2 (0:1000)" and reason == "missing_specversion" for place, reason in told_of)
    assert any("stands behind later ones" in reason for _, reason in told_of)
    assert sum("cannot be read further" in reason for _, reason in told_of) == 2
    assert len(found) >= len(expected) - 20


def test_times_are_read_as_the_service_writes_them():
    from streaming.sources.capture import _seconds

    when = datetime(2026, 10, 1, 13, 5, 9, tzinfo=UTC).timestamp()
    forms = ["10/1/2026 1:05:09 PM", "2026-10-01T13:05:09Z", "2026-10-01T13:05:09.0000000Z", "2026-10-01 13:05:09", "10/01/2026 13:05:09"]
    assert [_seconds(text) for text in forms] == [when] * len(forms)


def test_two_hubs_at_once_are_refused_and_so_is_a_folder_of_something_else(capture, tmp_path):
    hub, _ = capture
    write(hub.parent / "other", 0, BEGAN, [])
    with pytest.raises(SettingsError, match="holds the captures of 2 hubs"):
        read(CaptureSource(str(hub.parent), WHOLE))
    (tmp_path / "plain").mkdir()
    with pytest.raises(SettingsError, match="no file there is named as Capture does"):
        read(CaptureSource(str(tmp_path / "plain"), WHOLE))
    with pytest.raises(SettingsError, match="there is no such folder"):
        read(CaptureSource(str(tmp_path / "gone"), WHOLE))


def test_a_capture_and_the_topic_it_is_of_give_the_same_records():
    event = prediction(MODEL, "p", [[1.5]], ["0"], version="1")[0]
    _, headers, body = to_kafka(event)
    assert record_of("t", 3, 9, 5000, headers, body) == Record(3, 9, 5.0, event)


# KServe's blob logger

URL = {"Scheme": "http", "Opaque": "", "User": None, "Host": "localhost:9081", "Path": "/", "RawPath": "", "RawQuery": "", "Fragment": ""}


def entries():
    events = prediction(MODEL, "p1", [[1.5, 2.5]], ["0"], version="1") + prediction(MODEL, "p2", [[3.5, 2.5]], ["1"], version="1")
    return [(event, {**event.extensions, "component": "predictor", "metadata": '{"X":["1"]}'}) for event in events]


def as_go(event, extensions):
    """As KServe's Go struct in JSON."""
    return {
        "Url": URL,
        "Bytes": base64.b64encode(event.data).decode(),
        "ContentType": event.datacontenttype,
        "ReqType": event.type,
        "Id": event.id,
        "SourceUri": {**URL, "Scheme": "", "Host": "", "Path": event.source},
        "InferenceService": "iris",
        "Namespace": "default",
        "Component": "predictor",
        "Endpoint": "",
        "Metadata": {"X": ["1"]},
        "Annotations": json.loads(extensions["annotations"]),
        "CertName": "",
        "TlsSkipVerify": False,
    }


def flat(event, extensions):
    """As one row of its CSV and newer Parquet files."""
    names = {"Id": "id", "ReqType": "reqType", "ContentType": "contentType", "Bytes": "bytes", "Component": "component"}
    row = {new: as_go(event, extensions)[old] for old, new in names.items()}
    more = {"annotations": extensions["annotations"], "metadata": extensions["metadata"], "url": "http://localhost:9081/"}
    return row | {"sourceUri": event.source, "inferenceService": "iris", "namespace": "default", "endpoint": ""} | more


def snake(event, extensions):
    """As one row of its Parquet files with raw bodies and maps."""
    row = {"id": event.id, "req_type": event.type, "content_type": event.datacontenttype, "bytes": event.data, "source_uri": event.source}
    maps = {"metadata": [("X", ["1"])], "annotations": [*json.loads(extensions["annotations"]).items()]}
    return row | {"inference_service": "iris", "namespace": "default", "component": "predictor", "endpoint": ""} | maps


def store_json(folder, number, found):
    (folder / f"{number}-request.json").write_text(json.dumps([as_go(*one) for one in found]))


def store_object(folder, number, found):
    for place, one in enumerate(found):
        (folder / f"{number}{place}-request.json").write_text(json.dumps(as_go(*one)))


def store_csv(folder, number, found):
    import csv

    rows = [flat(*one) for one in found]
    with (folder / f"{number}-request.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def store_parquet(folder, number, found):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([flat(*one) for one in found]), folder / f"{number}-request.parquet")


def store_maps(folder, number, found):
    text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
    names = ["id", "req_type", "content_type", "source_uri", "inference_service", "namespace", "component", "endpoint"]
    maps = [("metadata", pyarrow.map_(text, texts)), ("annotations", pyarrow.map_(text, text))]
    schema = pyarrow.schema([*((name, text) for name in names), ("bytes", pyarrow.binary()), *maps])
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([snake(*one) for one in found], schema=schema), folder / f"{number}-request.parquet"
    )


@pytest.mark.parametrize("store", [store_json, store_object, store_csv, store_parquet, store_maps])
def test_what_kserve_stores_gives_the_events_it_would_have_posted(tmp_path, store):
    import os

    found = entries()
    store(tmp_path, 7, found[:2])
    store(tmp_path, 3, found[2:])
    for path in tmp_path.iterdir():
        number = 1000 if path.name.startswith("7") else 2000
        os.utime(path, (number, number))
    assert format_of(str(tmp_path)) == "kserve"
    source = open_events(str(tmp_path), "kserve", WHOLE, log=None, model="", annotation="")
    records = read(source)
    assert [(record.offset, record.timestamp) for record in records] == [(0, 1000.0), (1, 1000.0), (2, 2000.0), (3, 2000.0)]
    for record, (event, extensions) in zip(records, found, strict=True):
        assert (record.event.id, record.event.source, record.event.type) == (event.id, event.source, event.type)
        assert (record.event.data, record.event.datacontenttype) == (event.data, "application/json")
        names = ("namespace", "inferenceservicename", "component")
        assert [record.event.extensions[name] for name in names] == [extensions[name] for name in names]
        for name in ("annotations", "metadata"):
            assert json.loads(record.event.extensions[name]) == json.loads(extensions[name])
    assert source.unreadable.total == 0
    later = open_events(str(tmp_path), "kserve", Stretch.of(["1970-01-01T00:20:00Z"]), log=None, model="", annotation="")
    assert [record.event.id for record in read(later)] == ["p2", "p2"]


def test_a_file_of_kserve_that_cannot_be_read_is_told_and_the_rest_goes_on(tmp_path):
    store_json(tmp_path, 1, entries())
    (tmp_path / "2-request.json").write_text("[1]")
    (tmp_path / "3-request.json").write_text('[{"ReqType": "t", "Id": "i", "Bytes": "%"}, {"Id": "i"}]')
    (tmp_path / "4-request.parquet").write_bytes(b"PAR1")
    (tmp_path / "5-request.csv").write_bytes(b"\xff\xfe")
    source = KServeBlobSource(files_of(str(tmp_path)), "blobs", WHOLE)
    assert len(read(source)) == 4
    assert sorted(one["place"].removeprefix(f"{tmp_path}/") for one in source.unreadable.places) == [
        "2-request.json",
        "3-request.json:1",
        "3-request.json:2",
        "4-request.parquet",
        "5-request.csv",
    ]
