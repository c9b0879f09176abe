"""The steps' insides as plain functions: collecting, training, evaluating, and telling the loop."""

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas
import pytest

from inference.errors import PipelineError, TooLittleData
from inference.event import LABEL, REQUEST, RESPONSE, Event, own_event
from inference.log import Record, open_log
from inference.payload import decode_finished, decode_promotion
from inference.versions import PREDICTION, Feature, Repository, Schema, Version
from pipelines import collect as collect_module
from pipelines import steps
from pipelines.collect import from_log, from_table, infer_schema
from pipelines.evaluate import evaluate
from pipelines.publish import finished, promoted, publish
from pipelines.tables import Table, make_frame, read_table, write_table
from pipelines.train import fit, make_estimator, reference, split

MODEL = "default/flowers"
SCHEMA = Schema((Feature("a", "numeric"), Feature("b", "numeric")), "categorical", "kind")


class Fixed:
    """An estimator that always answers the same."""

    def __init__(self, answers):
        self.answers = answers

    def fit(self, rows, labels):
        return self

    def predict(self, rows):
        return self.answers[: len(rows)]


class Broken(Fixed):
    def predict(self, rows):
        raise RuntimeError("no such column: c")


def table(labels, *, ordered=True, schema=SCHEMA):
    columns = {name: [float(i) for i in range(len(labels))] for name in schema.names}
    return Table(make_frame({**columns, schema.target: labels}, schema), schema, {"rows": len(labels)}, ordered)


def live(tmp_path: Path, estimator=None, schema=SCHEMA, predictions=(0, 1)) -> Version:
    """A version 1 in a repository, promoted."""
    import joblib

    joblib.dump(estimator or Fixed([0] * 1000), tmp_path / "m.joblib")
    frame = pandas.DataFrame({**{name: [0.0] * len(predictions) for name in schema.names}, PREDICTION: list(predictions)})
    frame.to_parquet(tmp_path / "r.parquet")
    repository = Repository(tmp_path / "repository")
    version = Version(MODEL, repository.next_version(MODEL), Path(), schema)
    made = repository.write(version, model_file=tmp_path / "m.joblib", reference_file=tmp_path / "r.parquet")
    repository.promote(MODEL, made.version, expected=repository.current(MODEL))
    return made


# --- collect: tables


def test_a_table_without_a_live_version_tells_its_own_schema(tmp_path):
    (tmp_path / "t.csv").write_text("size,colour,ripe,kind\n1,red,True,0\n2.5,,False,1\n3,red,True,1\n4,blue,True,\n")
    found = from_table(tmp_path / "t.csv", live=None, target="kind", min_rows=1, max_rows=100)
    kinds = {feature.name: feature.kind for feature in found.schema.features}
    assert kinds == {"size": "numeric", "colour": "categorical", "ripe": "categorical"}
    assert found.schema.prediction == "categorical"
    assert found.labels == [0, 1, 1] and all(type(label) is int for label in found.labels)
    assert found.frame["colour"].tolist() == ["red", None, "red"]
    assert found.span["counts"] == {"rows": 4, "rows_without_label": 1}


def test_a_fractional_target_is_a_quantity_and_a_few_whole_numbers_are_classes():
    frame = pandas.DataFrame({"a": range(60), "f": [i / 7 for i in range(60)], "c": [i % 3 for i in range(60)], "q": range(60)})
    kinds = {name: infer_schema(frame[["a", name]], name).prediction for name in ("f", "c", "q")}
    assert kinds == {"f": "numeric", "c": "categorical", "q": "numeric"}


def test_a_table_is_read_with_the_live_versions_schema(tmp_path):
    (tmp_path / "t.csv").write_text("extra,b,a,kind\n1,2,3,0\n1,2,3,1\n")
    found = from_table(tmp_path / "t.csv", live=live(tmp_path), target="", min_rows=1, max_rows=100)
    assert list(found.frame.columns) == ["a", "b", "kind"]


@pytest.mark.parametrize(
    ("text", "target", "says"),
    [
        ("a,b\n1,2\n", "kind", "no column 'kind'.*a, b"),
        ("a,kind\n1,2\n", "", r"\['b'\] are missing"),
        ("a,b,kind\n1,x,2\n", "", "should hold numbers"),
        ("", "kind", "cannot be read"),
    ],
)
def test_a_table_that_will_not_do_is_told_with_what_is_there(tmp_path, text, target, says):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(PipelineError, match=says):
        from_table(tmp_path / "t.csv", live=live(tmp_path), target=target, min_rows=1, max_rows=9)


def test_a_short_table_is_too_little_data(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,kind\n1,2,0\n1,2,\n")
    with pytest.raises(TooLittleData, match=r"1 of 2 rows .* at least 5"):
        from_table(tmp_path / "t.csv", live=None, target="kind", min_rows=5, max_rows=9)


# --- collect: the log


class Sent:
    """Predictions and labels appended to an embedded log the way the gateway does."""

    def __init__(self, path: Path):
        self.url = f"embedded:{path}"
        self.log = open_log(self.url)

    def half(self, type_, id_, body, *, model=MODEL, source="pod", time_="2026-01-01T00:00:00Z"):
        namespace, _, name = model.partition("/")
        extensions = {"namespace": namespace, "inferenceservicename": name}
        return Event(id_, source, type_, time_, "application/json", extensions, json.dumps(body).encode())

    def predicted(self, id_, rows, **options):
        request = self.half(REQUEST, id_, {"instances": rows}, **options)
        response = self.half(RESPONSE, id_, {"predictions": [0] * len(rows)}, **options)
        return self.log.append([request, response])

    def labelled(self, id_, labels, **more):
        data = {"prediction_id": id_, "labels": labels, **more}
        self.log.append([own_event(LABEL, data, model=MODEL, source="test", id_=f"label-{time.monotonic_ns()}", now=0.0)])


@pytest.fixture
def sent(tmp_path):
    sent = Sent(tmp_path / "log.db")
    yield sent
    sent.log.close()


def collected(sent, version, **options):
    settings = {"target": "", "since_offset": -1, "min_rows": 1, "max_rows": 100, "wait_seconds": 0.0, **options}
    return from_log(sent.url, live=version, **settings)


def test_labels_are_joined_row_by_row_whether_they_came_before_or_after(sent, tmp_path):
    sent.labelled("early", [1])
    sent.predicted("late", [[1, 2], [3, 4]])
    sent.predicted("early", [[5, 6]])
    sent.predicted("never", [[7, 8]])
    sent.labelled("late", [0, 1])
    found = collected(sent, live(tmp_path))
    assert found.frame.values.tolist() == [[1, 2, 0], [3, 4, 1], [5, 6, 1]]
    assert found.ordered
    assert found.span["counts"] == {"predictions": 3, "labels": 2, "unlabelled": 1}


def test_labels_for_unknown_predictions_and_unreadable_events_are_counted_not_fatal(sent, tmp_path):
    sent.labelled("nobody", [1])
    sent.predicted("narrow", [[1]])
    sent.predicted("good", [[1, 2], [3, 4]])
    sent.labelled("good", [1, None])
    sent.predicted("short", [[1, 2]])
    sent.labelled("short", [1, 0])
    sent.labelled("good-but", [[1]])
    found = collected(sent, live(tmp_path))
    assert found.frame.values.tolist() == [[1, 2, 1]]
    counts = found.span["counts"]
    assert counts["labels_for_unknown_predictions"] == 1
    assert counts["rows_without_label"] == 1
    assert counts["label_count_differs"] == 1
    assert counts["unreadable_wrong_width"] == 1
    assert counts["unreadable_bad_label"] == 1


def test_only_the_newest_rows_are_kept_in_the_order_of_the_log(sent, tmp_path):
    for i in range(10):
        sent.predicted(f"p{i}", [[i, i]])
    for i in reversed(range(10)):
        sent.labelled(f"p{i}", [i])
    assert collected(sent, live(tmp_path), max_rows=3).labels == [7, 8, 9]


def test_reading_begins_at_the_given_offset(sent, tmp_path):
    for i in range(4):
        sent.predicted(f"p{i}", [[i, i]])
    for i in range(4):
        sent.labelled(f"p{i}", [i])
    # Each prediction is two records: offset 4 is where the third begins.
    found = collected(sent, live(tmp_path), since_offset=4)
    assert found.labels == [2, 3]
    assert found.span["since_offset"] == 4 and found.span["offsets"] == [5, 7]


def test_another_models_events_on_the_same_partition_are_not_taken(sent, tmp_path):
    names = (f"default/other-{i}" for i in range(1000))
    other = next(name for name in names if sent.log.partition_of(name) == sent.log.partition_of(MODEL))
    sent.predicted("p", [[1, 2]], model=other)
    sent.labelled("p", [1])
    with pytest.raises(TooLittleData, match="labels_for_unknown_predictions 1"):
        collected(sent, live(tmp_path))


def test_a_reused_id_is_left_out_because_its_label_could_be_either_ones(sent, tmp_path):
    sent.predicted("same", [[1, 2]])
    sent.predicted("same", [[9, 9]], time_="2026-01-01T00:00:07Z")
    sent.labelled("same", [1])
    sent.predicted("other", [[3, 4]])
    sent.labelled("other", [0])
    found = collected(sent, live(tmp_path))
    assert found.frame.values.tolist() == [[3, 4, 0]]
    assert found.span["counts"]["ambiguous"] == 1


def test_a_label_without_a_source_is_nobodys_when_two_pods_used_its_id(sent, tmp_path):
    sent.predicted("same", [[1, 2]], source="pod-1")
    sent.predicted("same", [[3, 4]], source="pod-2")
    sent.labelled("same", [1])
    with pytest.raises(TooLittleData, match="ambiguous 2"):
        collected(sent, live(tmp_path))


def test_a_label_with_a_source_belongs_to_that_pods_prediction(sent, tmp_path):
    sent.predicted("same", [[1, 2]], source="pod-1")
    sent.predicted("same", [[3, 4]], source="pod-2")
    sent.labelled("same", [1], prediction_source="pod-2")
    assert collected(sent, live(tmp_path)).frame.values.tolist() == [[3, 4, 1]]


def test_a_corrected_label_replaces_the_earlier_one(sent, tmp_path):
    sent.predicted("p", [[1, 2]])
    sent.labelled("p", [0])
    sent.labelled("p", [1])
    assert collected(sent, live(tmp_path)).labels == [1]


def test_labels_take_the_type_in_which_the_live_version_answers(sent, tmp_path):
    sent.predicted("p", [[1, 2], [3, 4]])
    sent.labelled("p", ["1", "0"])
    assert collected(sent, live(tmp_path, predictions=(0, 1))).labels == [1, 0]
    assert collected(sent, live(tmp_path, predictions=("0", "1"))).labels == ["1", "0"]


def test_a_label_of_the_wrong_kind_costs_its_row_and_a_missing_number_stays(sent, tmp_path):
    sent.predicted("p", [[1, None], [3, 4]])
    sent.labelled("p", [0.5, "n/a"])
    schema = Schema(SCHEMA.features, "numeric", "price")
    found = collected(sent, live(tmp_path, schema=schema))
    assert found.labels == [0.5] and math.isnan(found.frame["b"][0])
    assert found.span["counts"]["rows_of_wrong_kind"] == 1


def test_waiting_ends_as_soon_as_the_labels_are_there(sent, tmp_path):
    sent.predicted("p", [[1, 2], [3, 4]])
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            sent.labelled("p", [0, 1])

    found = collected(sent, live(tmp_path), min_rows=2, wait_seconds=60.0, sleep=sleep)
    assert found.labels == [0, 1]
    assert len(pauses) == 3


def test_too_little_data_says_how_much_there_was_and_what_was_waited_for(sent, tmp_path):
    sent.predicted("p", [[1, 2]])
    sent.labelled("p", [1])
    now = iter(float(second) for second in range(100))
    with pytest.raises(TooLittleData, match=r"1 labelled rows .* waiting 5 s; at least 10 are needed \(.*labels 1"):
        collected(sent, live(tmp_path), min_rows=10, wait_seconds=5.0, sleep=lambda _: None, clock=lambda: next(now))


def test_a_log_that_is_not_there_is_an_error_and_none_is_made(tmp_path):
    with pytest.raises(PipelineError, match="there is no event log"):
        collected(type("Url", (), {"url": str(tmp_path / "no.db")}), live(tmp_path))
    assert not (tmp_path / "no.db").exists()


def test_collecting_from_a_log_needs_a_live_version(sent, tmp_path):
    with pytest.raises(PipelineError, match=r"no live version .* train the first from a table"):
        steps.collect(
            tmp_path / "out",
            model=MODEL,
            data=sent.url,
            repository=str(tmp_path / "empty"),
            target="",
            since_offset=-1,
            min_rows=1,
            max_rows=10,
            wait_seconds=0.0,
        )


# --- train


def test_the_newest_share_in_time_order_is_held_out():
    kept, held = split(table([0, 1] * 5), 0.3)
    assert kept.frame["a"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert held.frame["a"].tolist() == [7, 8, 9]


def test_an_unordered_table_is_drawn_with_a_seed_and_stratified():
    whole = table([0] * 70 + [1] * 20 + [2] * 10, ordered=False)
    _, held = split(whole, 0.3)
    assert [held.labels.count(kind) for kind in range(3)] == [21, 6, 3]
    assert held.frame["a"].tolist() != sorted(held.frame["a"].tolist())
    assert split(whole, 0.3)[1].frame.equals(held.frame)


def test_a_class_of_one_row_does_not_stop_the_draw():
    _, held = split(table([0] * 9 + [1], ordered=False), 0.3)
    assert len(held.frame) == 3


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.5, math.nan])
def test_a_holdout_must_be_a_share(holdout):
    with pytest.raises(PipelineError, match="between 0 and 1"):
        split(table([0, 1] * 5), holdout)


def test_two_rows_are_too_few_to_split():
    with pytest.raises(TooLittleData, match="2 labelled rows leave 1"):
        split(table([0, 1]), 0.3)


def not_an_estimator(schema):
    return object()


def raising(schema):
    raise KeyError("licence")


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        ("nothing", "must read module:function"),
        ("no.such.module:f", "cannot be imported.*no"),
        ("pipelines.trainers:forest", "cannot be imported.*forest"),
        ("test_steps:not_an_estimator", "gave a object"),
        ("test_steps:raising", "failed: KeyError"),
    ],
)
def test_a_trainer_that_will_not_do_is_named(trainer, says, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(PipelineError, match=says) as caught:
        make_estimator(trainer, SCHEMA)
    assert trainer in str(caught.value)


def test_rows_of_a_single_class_are_told_as_what_the_trainer_could_not_fit():
    with pytest.raises(PipelineError, match=r"could not fit 8 rows of a, b: ValueError"):
        fit("pipelines.trainers:classifier", table([1] * 8))


MIXED = Schema((Feature("a", "numeric"), Feature("c", "categorical")), "categorical", "kind")


def test_the_classifier_takes_missing_values_and_categories_it_never_saw():
    frame = make_frame({"a": [1.0, None, 3.0, 4.0] * 5, "c": ["x", "y", None, 1] * 5, "kind": ["p", "q"] * 10}, MIXED)
    estimator, schema = fit("pipelines.trainers:classifier", Table(frame, MIXED, {}, True))
    unseen = make_frame({"a": [None, 2.0], "c": ["never", None]}, MIXED)
    assert set(estimator.predict(unseen)) <= {"p", "q"}
    assert schema.prediction == "categorical"
    assert tuple(estimator.feature_names_in_) == ("a", "c")


def test_the_default_trainer_says_that_it_takes_missing_numbers():
    from sklearn.utils import get_tags

    assert get_tags(make_estimator("pipelines.trainers:classifier", SCHEMA).steps[0][1]).input_tags.allow_nan


def test_the_regressor_makes_the_prediction_a_quantity():
    estimator, schema = fit("pipelines.trainers:regressor", table([float(i) for i in range(20)]))
    assert schema.prediction == "numeric"
    assert estimator.predict(table([0, 0]).features)[1] == pytest.approx(1.0, abs=0.5)


def test_the_same_rows_give_the_same_model():
    rows = table([i % 3 for i in range(60)])
    one, two = (fit("pipelines.trainers:classifier", rows)[0] for _ in range(2))
    assert (one.predict_proba(rows.features) == two.predict_proba(rows.features)).all()


def test_the_reference_is_the_newest_rows_with_the_new_models_own_answers():
    sample = reference(Fixed([7, 8, 9, 7]), table([0] * 10), 4)
    assert sample["a"].tolist() == [6, 7, 8, 9]
    assert sample[PREDICTION].tolist() == [7, 8, 9, 7]
    assert list(sample.columns) == ["a", "b", PREDICTION]


def test_a_table_travels_between_steps_with_its_types(tmp_path):
    frame = make_frame({"a": [1.0, None], "c": ["1", None], "kind": [1, 2]}, MIXED)
    write_table(Table(frame, MIXED, {"rows": 2}, False), tmp_path / "t")
    back = read_table(tmp_path / "t")
    assert back.schema == MIXED and back.span == {"rows": 2} and not back.ordered
    assert back.frame["c"].tolist() == ["1", None] and back.labels == [1, 2]


# --- evaluate


def judged(challenger, champion, labels, *, metric="accuracy", margin=0.0, floor=0.0):
    return evaluate(Fixed(challenger), champion, table(labels), metric=metric, margin=margin, floor=floor)


def test_the_margin_itself_is_enough_and_less_is_not(tmp_path):
    truth = [1] * 10
    champion = live(tmp_path, Fixed([1] * 2 + [0] * 8))
    exact = judged([1] * 3 + [0] * 7, champion, truth, margin=0.1)
    assert 0.3 - 0.2 < 0.1  # in floating point
    assert exact.better, exact.reason
    assert (exact.champion, exact.challenger, exact.champion_version) == (0.2, 0.3, "1")
    short = judged([1] * 3 + [0] * 7, champion, truth, margin=0.11)
    assert not short.better
    assert "0.3000, not the margin of 0.1100 above version 1's 0.2000" in short.reason


def test_a_worse_challenger_loses_with_the_numbers_in_the_reason(tmp_path):
    verdict = judged([0] * 10, live(tmp_path, Fixed([1] * 10)), [1] * 10)
    assert not verdict.better and "0.0000" in verdict.reason and "1.0000" in verdict.reason


def test_without_a_champion_the_floor_decides():
    assert judged([1] * 8 + [0] * 2, None, [1] * 10, floor=0.8).better
    assert not judged([1] * 8 + [0] * 2, None, [1] * 10, floor=0.81).better


def test_a_champion_that_cannot_predict_counts_as_worst_and_the_reason_says_why(tmp_path):
    verdict = judged([1] * 10, live(tmp_path, Broken([])), [1] * 10, margin=0.5)
    assert verdict.better and verdict.champion is None and verdict.champion_version == "1"
    assert "cannot predict these rows" in verdict.reason and "no such column: c" in verdict.reason


def test_classes_are_compared_as_text(tmp_path):
    verdict = judged([1, 0, 1], live(tmp_path, Fixed(["1", "0", "1"])), [1, 0, 1])
    assert (verdict.champion, verdict.challenger) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("metric", "value"), [("f1_macro", (0.8 + 2 / 3) / 2), ("balanced_accuracy", 0.75), ("r2", -1 / 3), ("neg_mean_absolute_error", -0.25)]
)
def test_the_metrics_are_scikit_learns(metric, value):
    labels = [1, 1, 0, 0] if metric in ("f1_macro", "balanced_accuracy") else [1.0, 1.0, 1.0, 0.0]
    schema = SCHEMA if metric in ("f1_macro", "balanced_accuracy") else Schema(SCHEMA.features, "numeric", "kind")
    given = [1, 1, 0, 1] if schema is SCHEMA else [1.0, 1.0, 1.0, 1.0]
    verdict = evaluate(Fixed(given), None, table(labels, schema=schema), metric=metric, margin=0.0, floor=-9.0)
    assert verdict.challenger == pytest.approx(value) and verdict.better


def test_a_score_that_is_no_number_never_wins():
    schema = Schema(SCHEMA.features, "numeric", "kind")
    verdict = evaluate(Fixed([1.0]), None, table([1.0], schema=schema), metric="r2", margin=0.0, floor=-9.0)
    assert not verdict.better and "not a number" in verdict.reason


def test_an_unknown_metric_is_told_with_the_known_ones():
    with pytest.raises(PipelineError, match="'auc' is not known; one of accuracy, f1_macro"):
        judged([1], None, [1], metric="auc")


# --- publish


@contextmanager
def receiver(answers: list[int], *, hang: float = 0.0) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A gateway that answers with the given codes, the last one for ever."""
    got: list[tuple[dict[str, str], bytes]] = []
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            release.wait(hang)
            self.send_response(answers[min(len(got), len(answers)) - 1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        release.set()
        server.shutdown()
        server.server_close()
        thread.join()


EVENT = finished(MODEL, "run-1", "kept", {"reason": "0.9 against 0.9 — même", "rows": 3}, now=0.0)


def test_an_event_arrives_in_binary_mode_in_spite_of_a_flaky_gateway():
    with receiver([503, 500, 200]) as (url, got):
        publish([EVENT], gateway_url=url, sleep=lambda _: None)
    assert len(got) == 3
    headers, body = got[-1]
    assert headers["ce-type"] == "io.driftloop.retraining.finished" and headers["ce-id"] == EVENT.id
    assert headers["ce-namespace"] == "default" and headers["ce-inferenceservicename"] == "flowers"
    assert json.loads(body)["reason"] == "0.9 against 0.9 — même"


def test_pauses_grow_and_the_attempts_are_bounded():
    pauses = []
    with receiver([500]) as (url, got), pytest.raises(PipelineError, match=r"answered 500 .*\(4 attempts\)"):
        publish([EVENT], gateway_url=url, attempts=4, sleep=pauses.append)
    assert len(got) == 4
    assert pauses == [0.2, 0.4, 0.8]


def test_a_refusal_is_not_repeated():
    with receiver([400, 200]) as (url, got), pytest.raises(PipelineError, match=r"refused .* with 400"):
        publish([EVENT], gateway_url=url)
    assert len(got) == 1


def test_a_gateway_that_hangs_is_given_up():
    began = time.monotonic()
    with receiver([200], hang=30.0) as (url, _), pytest.raises(PipelineError, match=r"ReadTimeout.*\(2 attempts\)"):
        publish([EVENT], gateway_url=url, attempts=2, timeout=0.2, sleep=lambda _: None)
    assert time.monotonic() - began < 5


def test_a_gateway_that_is_away_is_told_without_its_password():
    with receiver([200]) as (url, _):
        pass  # closed again: nobody listens there
    secret = url.replace("http://", "http://user:pass-phrase@") + "/?token=hidden"
    with pytest.raises(PipelineError, match="ConnectError") as caught:
        publish([EVENT], gateway_url=secret, attempts=2, sleep=lambda _: None)
    assert "pass-phrase" not in str(caught.value) and "hidden" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://host", "http://"])
def test_a_gateway_url_that_is_none_is_told_at_once(url):
    with pytest.raises(PipelineError, match="must read http://HOST:PORT"):
        publish([EVENT], gateway_url=url)


def test_without_a_gateway_the_events_go_straight_onto_the_log(tmp_path):
    version = Version(MODEL, "2", Path(), SCHEMA, metrics={"accuracy": 0.9}, run_id="run-1")
    events = [promoted(version, previous="1", repository="/models", now=0.0), EVENT]
    publish(events, gateway_url="", log_url=str(tmp_path / "log.db"))
    log = open_log(str(tmp_path / "log.db"))
    records = log.read({log.partition_of(MODEL): 0})
    log.close()
    promotion = decode_promotion(records[0].event)
    assert (promotion.version, promotion.previous, promotion.metrics) == ("2", "1", {"accuracy": 0.9})
    assert decode_finished(records[1].event)["outcome"] == "kept"


def test_a_repeated_run_tells_the_same_event_by_id():
    again = finished(MODEL, "run-1", "kept", {"reason": "other"}, now=5.0)
    assert (again.id, again.source, again.type) == (EVENT.id, EVENT.source, EVENT.type)
    assert finished(MODEL, "run-2", "kept", {}, now=5.0).id != EVENT.id


def test_a_log_that_never_falls_silent_is_read_to_where_it_ended_as_the_reading_began(tmp_path):
    """Traffic that comes as fast as it is read must not keep the reading going for ever."""

    class Busy:
        def __init__(self):
            self.reads = 0

        def partition_of(self, model):
            return 0

        def start_positions(self):
            return {0: 0}

        def end_positions(self):
            return {0: 100}

        def read(self, positions, limit):
            self.reads += 1
            assert self.reads < 50, "read on and on"
            return [Record(0, positions[0] + n, 0.0, Event("x", "s", "io.other")) for n in range(10)]

    busy = Busy()
    live = Version("default/iris", "1", tmp_path, Schema((Feature("x", "numeric"),), "numeric", "y"))
    reading = collect_module._Reading(busy, live, live.schema, -1)
    reading.advance()
    assert busy.reads == 10
