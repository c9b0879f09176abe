"""The configuration: every problem at once, each with its line; secrets only from the environment and never shown."""

import re
from importlib.resources import files

import pytest

from inference.errors import SettingsError
from streaming.assemble import monitor_spec
from streaming.core import errors, schema
from streaming.core.limits.pace import WindowBudget
from streaming.core.segments import Segments
from streaming.core.time_window import TimeWindow
from streaming.core.window import CountWindow
from streaming.settings import TAKEN_WINDOW_NAMES, load_settings

GOOD = """\
models:
  default/iris:
    limits:
      - {kind: evidently, test: ks, threshold: 1e-4}
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "driftloop.yaml"
        path.write_text(text)
        return path

    return write


def problems(path, environ=None):
    with pytest.raises(SettingsError) as caught:
        load_settings(path, environ or {})
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


def test_a_small_file_is_enough_and_paths_start_at_its_folder(written, tmp_path):
    settings = load_settings(written(GOOD))
    model = settings.models["default/iris"]
    assert (model.window.size, model.window.slide, model.limits[0].threshold) == (500, 50, 0.0001)
    assert settings.log.url == f"embedded:{tmp_path.resolve()}/.driftloop/log.db"


def test_every_problem_is_reported_at_once_with_its_line(written):
    path = written(
        """\
log: x.db
foo: 1
models:
  default/iris:
    window: {size: 10, slide: 20}
    limits:
      - kind: evidently
        test: kss
      - kind: detector
        detector: {kind: adwin, delta: 3}
      - kind: nope
    governor: {cooldown: 10x, confirm: 4}
  BAD: {}
  default/b: {limits: []}
alerts:
  slack: {webhook: "${NOPE}"}
"""
    )
    found = problems(path)
    assert [line.split(": ")[:2] for line in found] == [
        ["2", "foo"],
        ["5", "models.default/iris.window"],
        ["8", "models.default/iris.limits.0.test"],
        ["10", "models.default/iris.limits.1.detector.delta"],
        ["11", "models.default/iris.limits.2"],
        ["12", "models.default/iris.governor.cooldown"],
        ["13", "models.BAD"],
        ["14", "models.default/b.limits"],
        ["16", "alerts.slack.webhook"],
    ]
    assert "slide must be at most size (10), not 20" in found[1]
    assert "'ks'" in found[2]
    assert "500ms, 30s, 10m" in found[5]
    assert "NAMESPACE/INFERENCESERVICE" in found[6]
    assert "NOPE is not set" in found[8]


def test_a_secret_comes_from_the_environment_and_is_shown_nowhere(written):
    path = written(GOOD + "alerts:\n  slack: {webhook: '${HOOK}'}\n")
    settings = load_settings(path, {"HOOK": "https://hooks.example/T0/s3cret"})
    assert settings.alerts.slack.webhook.get_secret_value() == "https://hooks.example/T0/s3cret"
    assert "s3cret" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert "HOOK is not set" in problems(path, {"HOOK": ""})[0]
    (line,) = problems(path, {"HOOK": "s3cret-without-scheme"})
    assert "s3cret" not in line
    assert "http" in line


def test_where_nobody_is_told_no_secret_is_needed(written):
    settings = load_settings(written(GOOD + "alerts:\n  slack: {webhook: '${HOOK}'}\n"), {}, alerts=False)
    assert settings.alerts.slack is None


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("models: {a: [}\n", "1", "not YAML"),
        ("models:\n\t- x\n", "2", "not YAML"),
        ("- a\n- b\n", "1", "must hold keys"),
        ("log: a\nlog: b\n" + GOOD, "2", "'log' stands here twice"),
        ("log: 2026-99-99T99:99:99Z\n" + GOOD, "1", "not a value"),
        ("? [a, b]\n: 1\n", "1", "a key must be plain text"),
        ("", "1", "'models' is missing"),
        (GOOD + "max_decision_age: -5\n", "5", "greater than or equal to 0"),
    ],
)
def test_a_file_that_is_no_configuration_says_where_and_why(written, text, line, says):
    found = problems(written(text))
    assert found[0].startswith(f"{line}:"), found
    assert says in found[0]


def test_a_file_that_is_not_there_names_the_command_that_writes_one(tmp_path):
    assert "driftloop init" in problems(tmp_path / "none.yaml")[0]


@pytest.mark.parametrize("text", ["a: " + "[" * 3000, "x: &a [1]\n" + "y: [" + "*a," * 60_000 + "]\n", "#" * 1_000_001])
def test_a_file_made_to_be_slow_is_refused(written, text):
    assert problems(written(text))


def test_two_limits_of_one_kind_need_names(written):
    twice = GOOD + "      - {kind: evidently, test: ks}\n"
    assert "give one of evidently ks a `name`" in problems(written(twice))[0]
    load_settings(written(twice.replace("test: ks}", "test: ks, name: second}")))


def test_the_file_that_init_writes_has_no_errors(tmp_path):
    path = tmp_path / "driftloop.yaml"
    path.write_text(files("streaming").joinpath("driftloop.yaml").read_text())
    settings = load_settings(path, {})
    assert [limit.kind for limit in settings.models["default/iris-sklearn"].limits] == ["budget"]
    # Every section that is commented out as a whole is right too, once it is not.
    path.write_text(re.sub(r"^(      )?# (?=[\w-]+:|  |- kind)", r"\1", path.read_text(), flags=re.MULTILINE))
    uncommented = load_settings(path, {"SLACK_WEBHOOK": "https://hooks.example/x", "HOSTNAME": "watcher-0", "GATEWAY_TOKEN": "long-enough"})
    assert [limit.kind for limit in uncommented.models["default/iris-sklearn"].limits] == ["budget", "evidently", "quality", "detector"]
    assert uncommented.alerts.webhook is not None
    assert (uncommented.watch.member, uncommented.watch.snapshots) == ("watcher-0", "abfs://CONTAINER/driftloop")


@pytest.mark.parametrize(
    ("text", "events", "seconds"),
    [
        ("1 per 30d", None, 30 * 86400.0),
        ("2 per 1d", None, 43200.0),
        ("1 per 100000 events", 100_000.0, None),
        ("1 per 100k events", 100_000.0, None),
        ("4 per 1M events", 250_000.0, None),
    ],
)
def test_a_budget_of_false_alarms_is_read(tmp_path, text, events, seconds):
    path = tmp_path / "driftloop.yaml"
    path.write_text(f"models:\n  default/m:\n    limits:\n      - {{kind: budget, false_alarms: {text}}}\n")
    (limit,) = load_settings(path).models["default/m"].limits
    assert (limit.false_alarms.events, limit.false_alarms.seconds) == (events, seconds)


@pytest.mark.parametrize("text", ["never", "1 per", "0 per 30d", "1 per 30", "1 per 10 events", "100 per 1m"])
def test_what_is_no_budget_is_refused_with_its_line(tmp_path, text):
    path = tmp_path / "driftloop.yaml"
    path.write_text(f"models:\n  default/m:\n    limits:\n      - kind: budget\n        false_alarms: {text}\n")
    with pytest.raises(SettingsError, match=r"driftloop\.yaml:[345]: .*false_alarms|budget"):
        load_settings(path)


def test_a_model_without_limits_has_a_budget_of_one_false_alarm_in_30_days(tmp_path):
    path = tmp_path / "driftloop.yaml"
    path.write_text("models:\n  default/m: {}\n")
    (limit,) = load_settings(path).models["default/m"].limits
    assert (limit.kind, limit.false_alarms.seconds) == ("budget", 30 * 86400.0)


# Windows and segments


def model_of(written, text):
    return load_settings(written("models:\n  default/m:\n" + text)).models["default/m"]


def test_a_window_of_time_is_read_in_durations(written):
    spec = monitor_spec(model_of(written, "    window: {length: 1h, slide: 5m, lateness: 30s, min_rows: 50, max_rows: 5000}\n"))
    assert spec.window == TimeWindow(3600.0, 300.0, 30.0, 50, 5000)
    assert monitor_spec(model_of(written, "    window: {length: 1h, slide: 5m}\n")).window == TimeWindow(3600.0, 300.0)


def test_several_windows_have_names_and_the_limits_that_are_for_them(written):
    text = """\
    windows:
      short: {size: 200, slide: 20}
      long: {length: 24h, slide: 1h}
    limits:
      - {kind: budget}
      - {kind: evidently, test: ks}
      - {kind: evidently, test: psi, windows: [long]}
      - {kind: detector, detector: {kind: adwin}, windows: [long]}
    segments: {column: country, at_most: 5, min_rows: 100}
"""
    spec = monitor_spec(model_of(written, text))
    first, second = spec.views
    assert (first.name, first.window, second.name, second.window) == ("short", CountWindow(200, 20), "long", TimeWindow(86_400.0, 3600.0))
    assert [limit.name for limit in first.limits] == ["budget", "evidently ks"]
    assert [limit.name for limit in second.limits] == ["evidently ks", "evidently psi", "adwin"]
    assert spec.segments == Segments("country", 5, 100)
    (only,) = monitor_spec(model_of(written, "    window: {size: 10, slide: 5}\n")).views
    assert (only.name, only.window, len(only.limits)) == ("", CountWindow(10, 5), 1)


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("window: {length: 1h, slide: 2h}", "window", "slide must be at most length (3600s), not 7200s"),
        ("window: {length: 1h, slide: 100ms}", "window.slide", "greater than or equal to 1"),
        ("window: {length: 1h, slide: 5m, max_rows: 10}", "window.max_rows", "greater than or equal to 1000"),
        ("window: {length: 1h, slide: 5m, min_rows: 5000, max_rows: 2000}", "window", "min_rows must be at most max_rows (2000), not 5000"),
        ("window: {size: 10, slide: 5, length: 1h}", "window.length", "unknown key"),
        ("window: {lateness: 5s}", "window", "'length' is missing"),
        ("window: {size: 10, slide: 5}\n    windows: {w: {size: 10, slide: 5}}", "", "give `window` or `windows`, not both"),
        ("windows: {}", "windows", "at least 1 item"),
        ("windows: {errors: {size: 10, slide: 5}}", "windows.errors", "no window can be named errors or schema"),
        ("windows: {'a b': {size: 10, slide: 5}}", "windows.a b", "match pattern"),
        ("windows: {a: {size: 10, slide: 5}, b: {size: 20, slide: 5}}", "", "no limit judges window b"),
        ("windows: {a: {size: 10, slide: 5}}\n    limits: [{kind: budget, windows: [z]}]", "", "limit 'budget': no window z; there are a"),
        ("limits: [{kind: budget, windows: [z]}]", "", "no window z; there are no `windows` with names"),
        (
            "windows: {a: {size: 10, slide: 5}, b: {size: 20, slide: 5}}\n    limits: [{kind: budget, windows: [a, b]}]",
            "limits.0.windows",
            "at most 1 item",
        ),
        ("segments: {at_most: 3}", "segments", "'column' is missing"),
        ("segments: {column: c, at_most: 0}", "segments.at_most", "greater than or equal to 1"),
    ],
)
def test_windows_that_make_no_sense_are_refused_with_their_place(written, text, where, says):
    problem = problems(written("models:\n  default/m:\n    " + text + "\n"))[0]
    line, path, message = problem.split(": ", 2)
    assert path == "models.default/m" + (f".{where}" if where else "")
    assert says in message
    assert int(line) in (3, 4) or not where


def test_the_names_of_windows_that_the_core_has_itself_are_taken():
    assert {errors.NAME, schema.NAME} == TAKEN_WINDOW_NAMES


def test_the_windows_that_the_template_shows_are_right(written):
    template = files("streaming").joinpath("driftloop.yaml").read_text()
    shown = re.search(r"^    # window:.*\n(?:    # .*\n)+", template, flags=re.MULTILINE)[0]
    of_time, _, rest = re.sub(r"^    # ", "    ", shown, flags=re.MULTILINE).partition("    windows:")
    assert model_of(written, of_time).window.lateness == 30.0
    model = model_of(written, "    windows:" + rest + "    limits: [{kind: evidently}]\n")
    assert [*model.windows] == ["short", "long"]
    assert model.segments.column == "country"


def test_labelled_errors_and_schema_changes_are_watched_unless_switched_off(written):
    spec = monitor_spec(load_settings(written(GOOD)).models["default/iris"])
    assert (spec.errors.kind, spec.errors.size, spec.errors.max_age, spec.errors.binary) == ("adwin", 500, 7 * 86400.0, False)
    assert (spec.schema.share, spec.schema.of) == (0.05, 200)
    off = monitor_spec(load_settings(written(GOOD + "    errors: null\n    schema: null\n")).models["default/iris"])
    assert (off.errors, off.schema) == (None, None)


@pytest.mark.parametrize("kind", ["adwin", "ddm", "eddm", "hddm_a", "hddm_w", "page_hinkley"])
def test_each_detector_of_labelled_errors_is_made_as_it_is_by_default(written, kind):
    text = f"    errors: {{detector: {{kind: {kind}}}, size: 100, slide: 10, max_age: 2h}}\n"
    limit = monitor_spec(load_settings(written(GOOD + text)).models["default/iris"]).errors
    assert (limit.kind, limit.size, limit.slide, limit.max_age, limit.binary) == (kind, 100, 10, 7200.0, kind in ("ddm", "eddm"))
    assert limit.make().feed([0.0] * 5) == []
    if kind == "adwin":
        assert "0.0005" in limit.settings, "not the default of detectors on features"


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("errors: {detector: {kind: kswin}}", "errors.detector", "'adwin', 'ddm', 'eddm', 'hddm_a', 'hddm_w', 'page_hinkley'"),
        ("errors: {slide: 900}", "errors", "slide must be at most size (500), not 900"),
        ("errors: {max_age: 0}", "errors.max_age", "greater than 0"),
        ("schema: {share: 0}", "schema.share", "greater than 0"),
        ("schema: {of: 9, last: 1}", "schema.last", "unknown key"),
        ("limits: [{kind: evidently, name: schema}]", "", "no limit can be named schema"),
    ],
)
def test_what_is_wrong_with_labelled_errors_or_the_schema_is_told_with_its_place(written, text, where, says):
    (problem,) = problems(written("models:\n  default/m:\n    " + text + "\n"))
    _, path, message = problem.split(": ", 2)
    assert path == "models.default/m" + (f".{where}" if where else "")
    assert says in message


def evidently_of(written, text, rest=""):
    path = written(f"models:\n  default/m:\n    limits: [{{kind: evidently, {text}}}]\n{rest}")
    return monitor_spec(load_settings(path).models["default/m"])


def test_a_budget_of_an_evidently_limit_knows_the_windows_slide_and_needs_no_confirmation(written):
    spec = evidently_of(written, "false_alarms: 1 per 100k events", "    window: {size: 300, slide: 30}\n")
    assert spec.limits[0].budget == WindowBudget(30, 100_000.0)
    assert (spec.governor.confirm, spec.governor.of) == (1, 1)
    assert evidently_of(written, "false_alarms: 2 per 30d").limits[0].budget == WindowBudget(50, None, 15 * 86400.0)
    plain = evidently_of(written, "threshold: 0.2")
    assert (plain.limits[0].budget, plain.governor.confirm) == (None, 2)


def test_windows_that_an_evidently_limit_judges_share_its_budget(written):
    windows = "    windows: {short: {size: 100, slide: 10}, long: {size: 1000, slide: 100}}\n"
    spec = evidently_of(written, "false_alarms: 1 per 100k events", windows)
    assert [view.limits[0].budget for view in spec.views] == [WindowBudget(10, 200_000.0), WindowBudget(100, 200_000.0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("threshold: 0.1, false_alarms: 1 per 30d", "not both"),
        ("false_alarms: 3 a day", "'3 a day' is no budget"),
        ("false_alarms: 1 per 10 events", "at least 1000 events per false alarm, not 10"),
        ("false_alarms: 1 per 5s", "at least a minute per false alarm"),
    ],
)
def test_a_budget_of_an_evidently_limit_that_makes_no_sense_is_refused(written, text, says):
    (problem,) = problems(written(f"models:\n  default/m:\n    limits: [{{kind: evidently, {text}}}]\n"))
    assert says in problem


def test_a_budget_of_an_evidently_limit_wants_windows_of_a_number_of_predictions(written):
    text = "models:\n  default/m:\n    window: {length: 1h, slide: 5m}\n    limits: [{kind: evidently, false_alarms: 1 per 30d}]\n"
    (problem,) = problems(written(text))
    assert "needs a window of a number of predictions" in problem
    named = "    windows: {a: {size: 100, slide: 10}, b: {length: 1h, slide: 5m}}\n"
    limits = "    limits: [{kind: evidently, false_alarms: 1 per 30d, windows: [a]}, {kind: evidently, name: b, windows: [b]}]\n"
    assert monitor_spec(load_settings(written("models:\n  default/m:\n" + named + limits)).models["default/m"]).views[0].limits[0].budget
