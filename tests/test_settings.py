"""The configuration: every problem at once, each with its line; secrets only from the environment and never shown."""

import re
from importlib.resources import files

import pytest

from inference.errors import SettingsError
from streaming.settings import load_settings

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
    assert [limit.kind for limit in uncommented.models["default/iris-sklearn"].limits] == ["budget", "evidently", "detector"]
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
