"""Model versions on disk: whole or not at all, never overwritten, one live at a time, and refused when damaged."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.errors import VersionError
from inference.versions import Feature, Repository, Schema, Version

MODEL = "default/iris"
SCHEMA = Schema((Feature("petal_length", "numeric"), Feature("colour", "categorical")), "categorical", "species")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "models")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    model, reference = tmp_path / "made.joblib", tmp_path / "made.parquet"
    joblib.dump({"weights": [1, 2]}, model)
    pq.write_table(pa.table({"colour": ["red", None], "petal_length": [1.5, None], "prediction": ["a", "b"]}), reference)
    return {"model_file": model, "reference_file": reference}


def version(name: str = "1", model: str = MODEL, **more: Any) -> Version:
    return Version(model=model, version=name, path=Path(), schema=SCHEMA, **more)


# Writing and reading


def test_a_version_comes_back_as_it_was_written(repository: Repository, files: dict[str, Path]) -> None:
    described = version(metrics={"accuracy": 0.9}, span={"rows": 10}, parent="", run_id="run-1", created="2026-11-23T10:11:36Z")
    written = repository.write(described, **files)
    assert written == repository.read(MODEL, "1")
    assert written.path == repository.root / "default" / "iris" / "1"
    assert sorted(written.digests) == ["model.joblib", "reference.parquet"]
    assert replace(written, path=Path(), digests={}) == described
    assert written.load_model() == {"weights": [1, 2]}
    assert written.load_reference() == {"petal_length": [1.5, None], "colour": ["red", None], "prediction": ["a", "b"]}
    assert sorted(path.name for path in written.path.iterdir()) == ["model.joblib", "reference.parquet", "version.json"]


def test_a_version_is_readable_by_another_user_as_the_predictor_is(repository: Repository, files: dict[str, Path]) -> None:
    assert repository.write(version(), **files).path.stat().st_mode & 0o055 == 0o055


def test_versions_are_in_the_order_of_their_numbers(repository: Repository, files: dict[str, Path]) -> None:
    for name in ("10", "9", "v-next", "1"):
        repository.write(version(name), **files)
    assert repository.versions(MODEL) == ["1", "9", "10", "v-next"]
    assert repository.next_version(MODEL) == "11"


def test_an_unknown_model_has_no_versions_and_begins_with_1(repository: Repository) -> None:
    assert repository.versions(MODEL) == []
    assert repository.current(MODEL) is None
    assert repository.next_version(MODEL) == "1"
    assert not repository.root.exists()


def test_a_version_is_never_overwritten(repository: Repository, files: dict[str, Path]) -> None:
    before = repository.write(version(run_id="first"), **files)
    with pytest.raises(VersionError, match="already there"):
        repository.write(version(run_id="second"), **files)
    assert repository.read(MODEL, "1") == before


def test_models_do_not_see_each_others_versions(repository: Repository, files: dict[str, Path]) -> None:
    repository.write(version(), **files)
    repository.write(version("7", model="default/wine"), **files)
    assert (repository.versions(MODEL), repository.versions("default/wine"), repository.versions("other/iris")) == (["1"], ["7"], [])


@pytest.mark.parametrize(
    "missing", [{"model_file": Path("/nonexistent/model")}, {"reference_file": Path("/nonexistent/reference")}], ids=["model", "reference"]
)
def test_a_write_that_fails_leaves_nothing(repository: Repository, files: dict[str, Path], missing: dict[str, Path]) -> None:
    with pytest.raises(VersionError, match="cannot be written"):
        repository.write(version(), **{**files, **missing})
    assert repository.versions(MODEL) == []
    assert [path.name for path in (repository.root / "default" / "iris").iterdir()] == [".lock"]


def test_metadata_that_is_not_json_is_refused_and_leaves_nothing(repository: Repository, files: dict[str, Path]) -> None:
    with pytest.raises(VersionError, match="not JSON serializable"):
        repository.write(version(span={"rows": object}), **files)
    assert [path.name for path in (repository.root / "default" / "iris").iterdir()] == [".lock"]


def test_a_root_that_cannot_be_made_is_a_version_error(tmp_path: Path, files: dict[str, Path]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VersionError, match="cannot be written"):
        Repository(tmp_path / "file").write(version(), **files)


# Names


@pytest.mark.parametrize("name", ["..", ".", "", "../1", "1/2", "/etc", "a\\..\\b\0", ".hidden", "1\n", "-rf", "x" * 254, "é", "a."])
def test_a_name_that_could_leave_the_repository_is_refused(repository: Repository, files: dict[str, Path], name: str) -> None:
    repository.write(version(), **files)
    with pytest.raises(VersionError, match="is no name"):
        repository.read(MODEL, name)
    with pytest.raises(VersionError, match="is no name"):
        repository.write(version(name), **files)
    with pytest.raises(VersionError, match="is no name"):
        repository.promote(MODEL, name, expected=None)
    for model in (f"{name}/iris", f"default/{name}"):
        with pytest.raises(VersionError):
            repository.versions(model)
        with pytest.raises(VersionError):
            repository.write(version(model=model), **files)


@pytest.mark.parametrize("name", ["CURRENT", "current"])
def test_no_version_is_called_like_the_pointer_to_the_live_one(repository: Repository, files: dict[str, Path], name: str) -> None:
    with pytest.raises(VersionError, match="CURRENT names the live one"):
        repository.write(version(name), **files)


def test_a_model_needs_its_namespace(repository: Repository) -> None:
    with pytest.raises(VersionError, match="NAMESPACE/INFERENCESERVICE, not 'iris'"):
        repository.versions("iris")


# Schemas


@pytest.mark.parametrize("names", [[], ["a", "a"], ["prediction"], ["species"]])
def test_a_schema_refuses_names_that_would_collide(names: list[str]) -> None:
    with pytest.raises(VersionError, match="feature"):
        Schema(tuple(Feature(name, "numeric") for name in names), "categorical", "species")


# Damage


def test_an_unknown_version_is_named_together_with_those_there_are(repository: Repository, files: dict[str, Path]) -> None:
    repository.write(version("3"), **files)
    with pytest.raises(VersionError, match=r"no version '4' .*known: 3"):
        repository.read(MODEL, "4")


def test_a_folder_without_its_description_is_no_version_but_keeps_its_number(repository: Repository, files: dict[str, Path]) -> None:
    repository.write(version(), **files)
    (repository.root / "default" / "iris" / "2").mkdir()
    assert repository.versions(MODEL) == ["1"]
    assert repository.next_version(MODEL) == "3"
    with pytest.raises(VersionError, match="no version '2'"):
        repository.promote(MODEL, "2", expected=None)
    with pytest.raises(VersionError, match="already there"):
        repository.write(version("2"), **files)


def change(path: Path, **more: Any) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **more}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_text(path.read_text()[:-20]), "cannot be read"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda path: path.write_text("[" * 200_000), "cannot be read"),
        (lambda path: path.write_text(""), "cannot be read"),
        (lambda path: path.write_text("[]"), "not a version description"),
        (lambda path: path.write_text("null"), "not a version description"),
        (lambda path: path.write_text("{}"), "not a version description"),
        (lambda path: change(path, format=2), "reads format 1"),
        (lambda path: change(path, schema=None), "not a version description"),
        (lambda path: change(path, schema={"features": [], "prediction": "numeric", "target": "t"}), "at least one feature"),
        (lambda path: change(path, schema={"features": [{"name": "a", "kind": "odd"}], "prediction": "numeric", "target": "t"}), "odd"),
        (lambda path: change(path, digests=["a"]), "not a version description"),
        (lambda path: change(path, metrics={"accuracy": "high"}), "not a version description"),
        (lambda path: change(path, parent=None), "not a version description"),
        (lambda path: change(path, version="2"), "describes 'default/iris' version '2'"),
        (lambda path: change(path, model="default/wine"), "describes 'default/wine'"),
    ],
)
def test_a_damaged_description_is_refused_with_its_path(repository: Repository, files: dict[str, Path], damage: Any, said: str) -> None:
    folder = repository.write(version(), **files).path
    damage(folder / "version.json")
    with pytest.raises(VersionError, match=said) as caught:
        repository.read(MODEL, "1")
    assert said == "at least one feature" or str(folder) in str(caught.value)
    with pytest.raises(VersionError):
        repository.promote(MODEL, "1", expected=None)


@pytest.mark.parametrize("name", ["model.joblib", "reference.parquet"])
@pytest.mark.parametrize("lost", [False, True])
def test_a_file_that_changed_or_went_after_the_write_is_not_loaded(
    repository: Repository, files: dict[str, Path], name: str, lost: bool
) -> None:
    written = repository.write(version(), **files)
    if lost:
        (written.path / name).unlink()
    else:
        with (written.path / name).open("ab") as file:
            file.write(b"\0")
    with pytest.raises(VersionError, match="cannot be read" if lost else r"not what version\.json states"):
        written.load_model() if name == "model.joblib" else written.load_reference()


class Trap:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_model_that_was_replaced_runs_none_of_its_code(repository: Repository, files: dict[str, Path], tmp_path: Path) -> None:
    written = repository.write(version(), **files)
    joblib.dump(Trap(tmp_path / "ran"), written.path / "model.joblib")
    with pytest.raises(VersionError, match=r"not what version\.json states"):
        written.load_model()
    assert not (tmp_path / "ran").exists()


def test_files_that_were_damaged_before_the_write_are_a_version_error(repository: Repository, files: dict[str, Path]) -> None:
    for path in files.values():
        path.write_bytes(path.read_bytes()[:20])
    written = repository.write(version(), **files)
    with pytest.raises(VersionError, match=r"model\.joblib: the model cannot be loaded"):
        written.load_model()
    with pytest.raises(VersionError, match=r"reference\.parquet: the reference sample cannot be read"):
        written.load_reference()


def test_a_reference_without_a_column_of_the_schema_names_it(repository: Repository, files: dict[str, Path]) -> None:
    pq.write_table(pa.table({"petal_length": [1.5], "prediction": ["a"], "extra": [1]}), files["reference_file"])
    with pytest.raises(VersionError, match=r"lacks the columns \['colour'\]"):
        repository.write(version(), **files).load_reference()


# Promotion


def test_the_live_version_is_the_one_promoted_last(repository: Repository, files: dict[str, Path]) -> None:
    for name in ("1", "2"):
        repository.write(version(name), **files)
    assert repository.current(MODEL) is None
    repository.promote(MODEL, "1", expected=None)
    repository.promote(MODEL, "2", expected="1")
    assert repository.current(MODEL) == "2"
    repository.promote(MODEL, "1", expected="2")
    assert repository.current(MODEL) == "1"


def test_the_pointer_is_replaced_and_never_rewritten_under_a_reader(repository: Repository, files: dict[str, Path]) -> None:
    for name in ("1", "2"):
        repository.write(version(name), **files)
    repository.promote(MODEL, "1", expected=None)
    with (repository.root / "default" / "iris" / "CURRENT").open() as reader:
        repository.promote(MODEL, "2", expected="1")
        assert reader.read() == "1\n"


@pytest.mark.parametrize("expected", [None, "2", ""])
def test_a_promotion_that_expects_another_live_version_changes_nothing(
    repository: Repository, files: dict[str, Path], expected: str | None
) -> None:
    for name in ("1", "2"):
        repository.write(version(name), **files)
    repository.promote(MODEL, "1", expected=None)
    with pytest.raises(VersionError, match="version 1 is live"):
        repository.promote(MODEL, "2", expected=expected)
    assert repository.current(MODEL) == "1"


def test_a_pointer_that_is_no_text_is_a_version_error(repository: Repository, files: dict[str, Path]) -> None:
    pointer = repository.write(version(), **files).path.parent / "CURRENT"
    pointer.write_bytes(b"\xff")
    with pytest.raises(VersionError, match="CURRENT: cannot be read"):
        repository.current(MODEL)
    pointer.unlink()
    pointer.mkdir()
    with pytest.raises(VersionError, match="CURRENT: cannot be read"):
        repository.promote(MODEL, "1", expected=None)


PROMOTE_OFTEN = """
import json, sys
from pathlib import Path
from inference.errors import VersionError
from inference.versions import Repository

repository, names = Repository(Path(sys.argv[1])), sys.argv[2:]
print("ready", flush=True)
sys.stdin.readline()
swaps = []
for turn in range(150):
    live, target = repository.current("default/iris"), names[turn % 2]
    try:
        repository.promote("default/iris", target, expected=live)
    except VersionError:
        continue
    swaps.append((live, target))
print(json.dumps(swaps))
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Run `script` in a process of its own, up to the line it prints when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_promotions_by_several_processes_form_one_chain(repository: Repository, files: dict[str, Path]) -> None:
    names = [str(number) for number in range(1, 7)]
    for name in names:
        repository.write(version(name), **files)
    repository.promote(MODEL, "1", expected=None)
    promoters = [start(PROMOTE_OFTEN, repository.root, *names[i : i + 2]) for i in (0, 2, 4)]
    for promoter in promoters:
        assert promoter.stdin is not None
        promoter.stdin.write("go\n")
        promoter.stdin.flush()
    swaps = [swap for promoter in promoters for swap in json.loads(promoter.communicate(timeout=30)[0])]
    assert len(swaps) > 150
    # Each version is entered as often as it is left, but for the first and the last: a lost update breaks that.
    balance = dict.fromkeys(names, 0)
    for before, after in swaps:
        balance[before] -= 1
        balance[after] += 1
    balance["1"] += 1
    balance[str(repository.current(MODEL))] -= 1
    assert set(balance.values()) == {0}
    assert sorted(path.name for path in (repository.root / "default" / "iris").iterdir()) == sorted([".lock", "CURRENT", *names])


KILLED_AT_EACH_STEP = """
import os, signal, sys
from pathlib import Path
from inference.versions import Feature, Repository, Schema, Version

root, model, reference = map(Path, sys.argv[1:])
steps = ("open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "os.truncate")
schema = Schema((Feature("colour", "categorical"),), "categorical", "species")
print("ready", flush=True)
for last in range(1, 100):
    child = os.fork()
    if child == 0:
        left = last
        def step(event, arguments):
            global left
            if event in steps and str(root) in str(arguments[0]):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(step)
        repository = Repository(root / str(last))
        repository.write(Version("default/iris", "1", Path(), schema), model_file=model, reference_file=reference)
        repository.promote("default/iris", "1", expected=None)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        assert status == 0
        break
print(last)
"""


def test_a_writer_killed_at_any_step_leaves_a_whole_version_or_none_and_no_lock(tmp_path: Path, files: dict[str, Path]) -> None:
    ended = int(start(KILLED_AT_EACH_STEP, tmp_path / "killed", *files.values()).communicate(timeout=30)[0])
    assert 10 < ended < 99
    states = set()
    for last in range(1, ended + 1):
        repository = Repository(tmp_path / "killed" / str(last))
        folder = repository.root / "default" / "iris"
        if (folder / "1").exists():
            written = repository.read(MODEL, "1")
            assert written.load_model() == {"weights": [1, 2]}
            assert written.load_reference()
        states.add((repository.versions(MODEL) == ["1"], repository.current(MODEL)))
        repository.write(version("2"), **files)
        repository.promote(MODEL, "2", expected=repository.current(MODEL))
        assert {path.name for path in folder.iterdir()} - {"1"} == {".lock", "CURRENT", "2"}
    assert states == {(False, None), (True, None), (True, "1")}
