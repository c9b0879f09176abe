"""The command: light to start, clear when something is wrong, and its commands do what they say."""

import json
import subprocess
import sys

import pytest

from streaming.cli import main


def driftloop(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "streaming.cli", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_init_writes_a_file_that_check_accepts_and_never_overwrites_one(tmp_path, capsys):
    path = tmp_path / "driftloop.yaml"
    assert main(["init", "--config", str(path)]) == 0
    assert main(["check", "--config", str(path)]) == 0
    assert "default/iris-sklearn" in capsys.readouterr().out
    path.write_text("mine: 1\n")
    assert main(["init", "--config", str(path)]) == 2
    assert path.read_text() == "mine: 1\n"
    assert main(["check", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"driftloop: {path} is already there; --force overwrites it" in error
    assert f"driftloop: {path}:1: mine: unknown key" in error
    assert main(["init", "--config", str(path), "--force"]) == 0


def test_compile_writes_the_pipeline_where_it_is_told(tmp_path, capsys):
    assert main(["pipeline", "compile", "--output", str(tmp_path / "deep" / "pipeline.yaml")]) == 0
    from pipelines.retraining import COMPILED

    assert (tmp_path / "deep" / "pipeline.yaml").read_bytes() == COMPILED.read_bytes()


@pytest.mark.parametrize(
    ("parameter", "says"),
    [("margin", "NAME=VALUE"), ("nope=1", "nope"), ("min_rows=many", "min_rows")],
)
def test_a_wrong_pipeline_parameter_is_named(tmp_path, capsys, parameter, says):
    assert main(["pipeline", "run", "--folder", str(tmp_path), "--param", "model=default/iris", "--param", parameter]) == 2
    assert says in capsys.readouterr().err


def test_replay_of_nothing_is_an_empty_sum_and_a_wrong_log_is_an_error(tmp_path, capsys):
    main(["init", "--config", str(tmp_path / "driftloop.yaml")])
    (tmp_path / "text.db").write_text("no database at all, but long enough to be looked at" * 20)
    capsys.readouterr()
    assert main(["replay", "--config", str(tmp_path / "driftloop.yaml"), "--from-log", str(tmp_path / "text.db")]) == 2
    assert "text.db" in capsys.readouterr().err
    assert main(["replay", "--config", str(tmp_path / "driftloop.yaml"), "--from-log", str(tmp_path / "no.db"), "--json"]) == 2
    assert "no.db" in capsys.readouterr().err
    assert not (tmp_path / "no.db").exists()


def test_help_is_quick_and_a_mistyped_command_says_what_there_is(tmp_path):
    helped = driftloop("--help", cwd=tmp_path)
    assert helped.returncode == 0
    for command in ("demo", "serve", "gateway", "watch", "replay", "pipeline", "init", "check"):
        assert command in helped.stdout
    wrong = driftloop("wach", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "watch" in wrong.stderr


def test_serve_without_a_model_says_how_to_make_one(tmp_path):
    done = driftloop("serve", "--repository", tmp_path, "--model", "default/iris", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "default/iris" in done.stderr


def test_a_service_logs_json_where_there_is_no_terminal(tmp_path):
    (tmp_path / "taken").write_text("")
    done = driftloop("-v", "gateway", "--log", tmp_path / "taken" / "log.db", "--port", "0", cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("driftloop: ")]
    assert all(json.loads(line)["level"] for line in lines)
    assert "taken" in done.stderr
