"""Sources of events: a recording replays as the log it is of, stretches by time and offset, and what can't be read is told and left out."""

import gzip
import json
import math
import shutil
import tracemalloc

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import LogUnavailable, SettingsError
from inference.event import LABEL, RESPONSE, Event, own_event
from inference.log import Record
from inference.log.embedded import EmbeddedLog
from inference.versions import Feature, Schema
from streaming.core.errors import ErrorLimit
from streaming.core.fleet import Fleet
from streaming.core.governor import Governor
from streaming.core.limits import EvidentlyLimit
from streaming.core.monitor import MonitorSpec
from streaming.core.reference import prepare
from streaming.core.verdict import Decision, Notice, Verdict, as_object
from streaming.core.window import CountWindow
from streaming.detectors import Adwin
from streaming.replay import Replay
from streaming.source_replay import SourceReplay, Stopwatch
from streaming.sources import rfc3339
from streaming.sources.files import files_of
from streaming.sources.logs import LogSource
from streaming.sources.opening import format_of, open_events
from streaming.sources.recording import RecordingSource, as_line
from streaming.sources.seam import Stretch
from streaming.sources.writing import write_recording
from streaming.testing import finished, prediction, promotion

MODELS = ("default/iris", "default/other")
SCHEMA = Schema((Feature("x", "numeric"),), "categorical", "y")
WHOLE = Stretch()


def reference(model, version):
    rng = np.random.default_rng(0)
    sample = {"x": list(rng.normal({"1": 0.0, "2": 10.0}[version], 1.0, 400)), "prediction": list(rng.choice(["0", "1"], 400))}
    return prepare(model, version, SCHEMA, sample)


def fleet(stopwatch=None):
    judged = Adwin()
    errors = ErrorLimit("adwin", lambda: judged.build(0, 1), judged.settings, False, 60, 10, 1000, 1e6)
    spec = MonitorSpec(CountWindow(40, 10), (EvidentlyLimit("ks", "ks", 1e-6),), Governor(confirm=2, of=3, cooldown=5.0), errors=errors)
    timed = {"monitor": stopwatch.monitor} if stopwatch else {}
    return Fleet(dict.fromkeys(MODELS, spec), reference, live=lambda model: None, annotation="driftloop.io/model-version", **timed)


def label(model, id_, value, number):
    body = {"prediction_id": id_, "labels": [value]}
    return own_event(LABEL, body, model=model, source="truth", id_=f"label {id_} {number}", now=0.0)


def story(model, seed=1):
    """Promotion, quiet, drift, a run that ends, the promotion of its version (a re-baseline), quiet; labels all along, wrong ones later."""
    rng = np.random.default_rng(seed)
    events = [promotion(model, "1")]
    for number in range(300):
        centre = 0.0 if number < 100 else 10.0
        events += prediction(model, f"p{number}", [[float(rng.normal(centre, 1.0))]], ["0"])
        events.append(label(model, f"p{number}", "1" if number > 240 and rng.random() < 0.8 else "0", number))
        if number == 160:
            events += [finished(model, "a-run", "promoted", "2"), promotion(model, "2", "1", "a-run")]
    return events


class Clock:
    """Goes on by an uneven step with each look at it, from where it stands."""

    def __init__(self, start=1_790_000_000.0, step=0.123456789):
        self.now, self.step = start, step

    def __call__(self):
        self.now += self.step
        return self.now


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a log of two models, and what it says when it is replayed from the log itself."""
    path = tmp_path_factory.mktemp("sources")
    log = EmbeddedLog(path / "events.db", partitions=3, clock=Clock(), retention_seconds=1e9)
    for pair in zip(story(MODELS[0]), story(MODELS[1], seed=2), strict=True):
        log.append(pair)
    log.append([Event("e", "s", "io.other", datacontenttype="text/plain", data=b"\xff\x00", extensions={"subject": "ü"})])
    log.close()
    return path


@pytest.fixture
def log(folder):
    opened = EmbeddedLog(folder / "events.db")
    yield opened
    opened.close()


def told(outcomes):
    return [repr(as_object(one)) for one in outcomes]


def replayed(source):
    return SourceReplay(source, fleet(), WHOLE, Stopwatch())


def recorded(path, records):
    path.write_bytes(b"".join(as_line(record) + b"\n" for record in records))
    return RecordingSource(files_of(str(path)), str(path), WHOLE)


def read(source):
    return [record for batch in source for record in batch]


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz", "all.jsonl.zst"])
def test_the_recording_of_a_log_says_what_the_log_said(folder, log, name):
    expected = [*Replay(log, fleet())]
    kinds = {(type(one), getattr(one, "action", getattr(one, "kind", getattr(one, "of_window", "")))) for one in expected}
    assert {(Decision, "retrain"), (Notice, "promoted"), (Notice, "retraining_finished"), (Verdict, "errors"), (Verdict, "")} <= kinds
    everything = read(LogSource(log, "log", WHOLE))
    assert write_recording(LogSource(log, "log", WHOLE), str(folder / name)) == len(everything)
    source = RecordingSource(files_of(str(folder / name)), name, WHOLE)
    replay = replayed(source)
    assert told(replay) == told(expected)
    assert (source.unreadable.total, replay.events) == (0, len(everything))
    assert read(RecordingSource(files_of(str(folder / name)), name, WHOLE)) == everything
    assert list(folder.glob("*.part")) == []


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)
BODIES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [b"null", b'"text"', b"{ }", b" {} ", b"[1,\n2]", b"\xc3\xa9", b'{"a":1e999}', b"12345678901234567890123", b"{}x", b"[" * 2000]
    ),
    st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | TEXT, st.lists, max_leaves=6).map(orjson.dumps),
)
EVENTS = st.builds(
    Event,
    TEXT.filter(bool),
    TEXT.filter(bool),
    st.sampled_from([RESPONSE, LABEL, "io.other"]),
    st.sampled_from(["", "2026-10-01T00:00:00Z"]),
    st.sampled_from([None, "application/json", "application/problem+json; charset=utf-8", "text/plain", "application/json;v=1"]),
    st.dictionaries(
        st.sampled_from(["namespace", "inferenceservicename", "metadata", "recordedtime", "subject", "mine", "annotations"]), TEXT
    ),
    BODIES,
)


@settings(max_examples=150, deadline=None)
@given(events=st.lists(EVENTS, max_size=6), times=st.lists(st.floats(0.0, 4e9), min_size=6, max_size=6), partition=st.integers(0, 2000))
def test_whatever_an_event_is_its_line_gives_it_back(tmp_path_factory, events, times, partition):
    records = [Record(partition, 7 * number, time, event) for number, (event, time) in enumerate(zip(events, times, strict=False))]
    source = recorded(tmp_path_factory.getbasetemp() / "any.jsonl", records)
    assert read(source) == records
    assert source.unreadable.places == []


@settings(max_examples=300, deadline=None)
@given(st.floats(0.0, 2.5e11))
def test_a_time_comes_back_to_the_last_bit(time):
    assert rfc3339.seconds(rfc3339.text(time)) == time


@pytest.mark.parametrize(
    "wrong", ["", "2026-10-01", "2026-10-01T00:00:00", "2026-10-01T00:00:00+01:00", "2026-10-01T00:00:00.5e3Z", "x" * 25]
)
def test_what_is_no_time_in_utc_is_refused(wrong):
    with pytest.raises(ValueError, match="no RFC 3339 time"):
        rfc3339.seconds(wrong)


def test_lines_of_others_are_one_partition_in_their_order(tmp_path):
    request, response = prediction(MODELS[0], "p", [[1.50]], ["0"])
    lines = [
        {"specversion": "1.0", "id": one.id, "source": one.source, "type": one.type, "time": when, **one.extensions, "more": 3}
        for one, when in ((request, "2026-10-01T00:00:01Z"), (response, "2026-10-01T00:00:00Z"))
    ]
    text = "\n".join(json.dumps(line)[:-1] + ', "data": {"x": 1.50}}' for line in lines)
    (tmp_path / "a.ndjson").write_text(text)
    records = read(RecordingSource(files_of(str(tmp_path / "a.ndjson")), "a", WHOLE))
    assert [(record.partition, record.offset) for record in records] == [(0, 0), (0, 1)]
    assert records[0].timestamp == records[1].timestamp == 1790812801.0, "times do not go back"
    assert records[0].event.data == b'{"x": 1.50}', "byte for byte"
    assert records[0].event.extensions["more"] == "3"
    assert records[0].event.datacontenttype == "application/json"


@pytest.mark.parametrize(
    ("more", "data"),
    [
        ('"datacontenttype":"text/plain","data":"text"', b"text"),
        ('"datacontenttype":"application/json","data":"text"', b'"text"'),
        ('"datacontenttype":"application/json","data":null', b""),
        ('"datacontenttype":"text/plain","data":{"a": 1.0}', b'{"a":1.0}'),
    ],
)
def test_a_body_means_what_cloudevents_says_it_does(tmp_path, more, data):
    head = '{"specversion":"1.0","id":"i","source":"s","type":"t","driftloopplace":"3:4","driftlooptime":"2026-10-01T00:00:00Z",'
    (tmp_path / "a.jsonl").write_text(f"{head}{more}}}\n")
    (record,) = read(RecordingSource(files_of(str(tmp_path)), "a", WHOLE))
    assert (record.partition, record.offset, record.event.data) == (3, 4, data)


def test_what_cannot_be_read_is_told_with_its_place_and_the_rest_goes_on(tmp_path):
    events = prediction(MODELS[0], "p", [[1.0]], ["0"])
    good = [as_line(Record(1, number, 5.0, event)) for number, event in enumerate(events)]
    lines = [b"no json", good[0], b'{"specversion":"1.0"}', b"", good[1], good[0], b'["x"]', good[1].replace(b'"1:1"', b'"1:x"')]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(as_line(Record(1, 2, 5.0, events[0])) + b"\n" + bytes(range(11, 256)) * 99)[:-30])
    source = RecordingSource(files_of(str(tmp_path)), "x", WHOLE)
    assert [record.offset for record in read(source)] == [0, 1, 2]
    places = [one["place"].removeprefix(f"{tmp_path}/") for one in source.unreadable.places]
    assert places[:5] == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:6", "a.jsonl:7", "a.jsonl:8"]
    assert "stands behind later ones" in source.unreadable.places[2]["reason"]
    assert "missing" in source.unreadable.places[1]["reason"]
    assert "cannot be read further" in source.unreadable.places[-1]["reason"]
    assert source.unreadable.total == len(source.unreadable.places)


def test_only_so_many_places_are_kept_and_all_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"x\n" * 5000)
    source = RecordingSource(files_of(str(tmp_path)), "x", WHOLE)
    assert read(source) == []
    assert (source.unreadable.total, len(source.unreadable.places)) == (5000, 100)


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("streaming.sources.files.MAX_LINE", 3_000_000)
    line = as_line(Record(0, 5, 1.0, prediction(MODELS[0], "p", [[1.0]], ["0"])[0]))
    (tmp_path / "a.jsonl").write_bytes(b"x" * 60_000_000 + b"\n" + line + b"\n" + b"y" * 5_000_000)
    source = RecordingSource(files_of(str(tmp_path)), "x", WHOLE)
    tracemalloc.start()
    records = read(source)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [record.offset for record in records] == [5]
    assert most < 13_000_000
    assert [(one["place"].rpartition(":")[2], one["reason"]) for one in source.unreadable.places] == [
        ("1", "longer than a record may be"),
        ("3", "longer than a record may be"),
    ]


# Stretches


def when(seconds):
    return rfc3339.text(seconds)


def test_a_stretch_of_time_and_one_of_offsets_hold_the_same_of_a_log_and_its_recording(folder, log):
    everything = read(LogSource(log, "log", WHOLE))
    times = sorted({record.timestamp for record in everything})
    path = folder / "stretches.jsonl"
    write_recording(LogSource(log, "log", WHOLE), str(path))
    stretches = [
        Stretch.of([when(times[100])], [when(times[200])]),
        Stretch.of([when(times[-3])]),
        Stretch.of([], [when(times[5])]),
        Stretch.of(["0:10,2:400"], ["0:20"]),
        Stretch.of([], ["2:7"]),
        Stretch.of(["0:3"], [when(times[100])]),
        Stretch.of(["2100-01-01"]),
    ]
    for stretch in stretches:
        expected = [
            record
            for record in everything
            if stretch.since <= record.timestamp < stretch.until
            and (not (stretch.first or stretch.end) or record.partition in {*stretch.first, *stretch.end})
            and stretch.first.get(record.partition, 0) <= record.offset < stretch.end.get(record.partition, math.inf)
        ]
        assert read(LogSource(log, "log", stretch)) == expected
        assert read(RecordingSource(files_of(str(path)), "r", stretch)) == expected
    assert read(LogSource(log, "log", stretches[-1])) == []
    assert {record.partition for record in read(LogSource(log, "log", stretches[3]))} == {0, 2}


@pytest.mark.parametrize(
    ("since", "until", "says"),
    [
        (["yesterday"], [], r"--since yesterday: must be a time .* or PARTITION:OFFSET"),
        (["7"], [], "must be a time"),
        (["2026-13-01"], [], "must be a time"),
        (["0:1", "0:2"], [], "a partition is there twice"),
        (["0:1", "2026-10-01"], [], "several are PARTITION:OFFSET each"),
        (["2026-10-02"], ["2026-10-01"], "there is nothing in between"),
        (["1:5"], ["1:5"], "there is nothing in between"),
    ],
)
def test_a_stretch_that_will_not_do_is_refused(since, until, says):
    with pytest.raises(SettingsError, match=says):
        Stretch.of(since, until)


def test_times_without_a_zone_are_utc_and_dates_begin_at_midnight():
    assert Stretch.of(["2026-10-01"]).since == Stretch.of(["2026-10-01T02:00:00+02:00"]).since == Stretch.of(["2026-10-01T00:00:00"]).since
    assert Stretch.of(["2026-10-01"], ["2026-10-02"]).as_dict() == {"since": "2026-10-01", "until": "2026-10-02"}


# Which source a URL means


def test_a_source_is_told_by_its_name_or_what_it_holds(folder, tmp_path):
    shutil.copy(folder / "events.db", tmp_path / "log")
    (tmp_path / "recording.json").write_bytes(as_line(Record(0, 0, 0.0, prediction(MODELS[0], "p", [[1.0]], ["0"])[0])))
    (tmp_path / "predict_log.json").write_text('{"inputs": [[1.0]], "outputs": [1]}\n')
    (tmp_path / "blob.json").write_text('[{"ReqType": "x"}]')
    for name in ("table.csv.gz", "table.parquet", "x-request.json", "10.avro"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "what").write_bytes(b"\x00\x01")
    expected = {
        "log": "log",
        "recording.json": "recording",
        "predict_log.json": "predict-log",
        "blob.json": "kserve",
        "table.csv.gz": "table",
        "table.parquet": "table",
        "x-request.json": "kserve",
        "10.avro": "capture",
    }
    assert {name: format_of(str(tmp_path / name)) for name in expected} == expected
    assert format_of("kafka://host/topic") == format_of("eventhubs://host/hub") == format_of("x.db") == "log"
    assert format_of(f"file://{tmp_path}/recording.json") == "recording"
    with pytest.raises(SettingsError, match=r"what: what this is cannot be told .* give its --format: log, recording"):
        format_of(str(tmp_path / "what"))
    with pytest.raises(SettingsError, match="there is no such file"):
        format_of(str(tmp_path / "gone.jsonl"))
    with pytest.raises(SettingsError, match="nosuch"):
        format_of("nosuch://x/y")


def test_a_log_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(LogUnavailable, match="there is no event log"):
        open_events(str(tmp_path / "gone.db"), "log", WHOLE, log=None, model="", annotation="")
    assert not (tmp_path / "gone.db").exists()


def test_the_sum_has_the_alarms_with_their_place_in_the_stretch(folder, log):
    replay = SourceReplay(LogSource(log, "log", WHOLE), fleet(watch := Stopwatch()), WHOLE, watch)
    outcomes = [*replay]
    decisions = [one for one in outcomes if isinstance(one, Decision) and one.action != "hold"]
    told = replay.summary()
    everything = [(record.partition, record.offset) for record in read(LogSource(log, "log", WHOLE))]
    assert len(told["alarms"]) == len(decisions) >= 4
    for alarm, decision in zip(told["alarms"], decisions, strict=True):
        assert everything[alarm["event"] - 1] == (alarm["partition"], alarm["offset"])
        assert (alarm["id"], alarm["run_id"], alarm["offset"]) == (decision.id, decision.run_id, decision.verdict.fell.offset)
        assert {finding["feature"] for finding in alarm["findings"]} == {one.feature for one in decision.verdict.findings if one.over}
    assert told["events"] == len(everything)
    assert 0.0 < watch.seconds < replay.seconds
    assert told["calibration_seconds"] == round(watch.seconds, 3)
    assert (told["unreadable"], told["since"], told["source"], told["promoted"]) == ({"count": 0, "places": []}, None, "log", 4)
    assert orjson.loads(orjson.dumps(told)) == told
