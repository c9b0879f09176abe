"""Deploying into the local repository: immutable versions, compare-and-set, the hot swap, the smoke prediction, the way back."""

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import joblib
import pandas
import pytest
from sklearn.linear_model import LogisticRegression

from inference.errors import DeployError, PipelineError
from inference.log import open_log
from inference.payload import decode_finished, decode_promotion
from inference.versions import PREDICTION, Feature, Repository, Schema
from pipelines import steps, tables
from pipelines.deploy import Candidate
from pipelines.deploy.local import LocalTarget

ROOT = Path(__file__).parent.parent
MODEL = "default/flowers"
SCHEMA = Schema((Feature("a", "numeric"), Feature("b", "numeric")), "categorical", "kind")
ROWS = [[0.0, 0.0], [1.0, 0.0], [2.0, 1.0], [3.0, 1.0], [4.0, 2.0], [5.0, 2.0]]


def candidate(folder: Path, run_id: str, answers=(0, 0, 0, 1, 1, 1), claimed=None) -> Candidate:
    """A real model fitted to `answers`; `claimed` are other answers written into its reference."""
    folder = folder / run_id
    folder.mkdir(parents=True)
    rows = pandas.DataFrame(ROWS, columns=list(SCHEMA.names))
    joblib.dump(LogisticRegression(C=1e6).fit(rows, list(answers)), folder / "m.joblib")
    rows.assign(**{PREDICTION: list(claimed or answers)}).to_parquet(folder / "r.parquet")
    return Candidate(MODEL, run_id, folder / "m.joblib", folder / "r.parquet", SCHEMA, {"accuracy": 0.9}, {"rows": 6})


FLIPPED = (1, 1, 1, 0, 0, 0)


@contextmanager
def predictor(repository: Repository, *, fail_load=(), answers=None, serves=None, hang=0.0):
    """An HTTP double of KServe's server, for what the real one never does: load fails, wrong answers, wrong version, silence."""
    calls: list[str] = []
    loaded = {"version": repository.current(MODEL)}
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200, {"name": "flowers", "versions": [serves or loaded["version"]]})

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            calls.append(self.path)
            release.wait(hang)
            if self.path.endswith("/load"):
                if repository.current(MODEL) in fail_load:
                    self.answer(500, {"error": "out of memory"})
                    return
                loaded["version"] = repository.current(MODEL)
                self.answer(200, {"name": "flowers", "load": True})
                return
            rows = json.loads(body)["instances"]
            model = repository.read(MODEL, loaded["version"]).load_model()
            own = model.predict(pandas.DataFrame(rows, columns=list(SCHEMA.names))).tolist()
            self.answer(200, {"predictions": answers(own) if answers else own})

        def answer(self, code, body):
            text = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", loaded, calls
    finally:
        release.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "repository")


@pytest.fixture
def with_one(repository, tmp_path):
    """A repository in which version 1 is live."""
    LocalTarget(repository.root).deploy(candidate(tmp_path, "first"), expected=None)
    return repository


def test_the_first_version_is_written_and_live(repository, tmp_path):
    target = LocalTarget(repository.root)
    assert target.live(MODEL) is None
    version = target.deploy(candidate(tmp_path, "run-1"), expected=None)
    assert (version.version, version.parent, version.run_id) == ("1", "", "run-1")
    assert version.metrics == {"accuracy": 0.9} and version.span == {"rows": 6} and version.created
    assert target.live(MODEL) == "1"


def test_a_second_version_names_the_one_it_replaced(with_one, tmp_path):
    version = LocalTarget(with_one.root).deploy(candidate(tmp_path, "run-2"), expected="1")
    assert (version.version, version.parent) == ("2", "1")


def test_a_repeated_deployment_finds_the_version_it_made(with_one, tmp_path):
    target, made = LocalTarget(with_one.root), candidate(tmp_path, "run-2")
    assert target.deploy(made, expected="1").version == "2"
    assert target.deploy(made, expected="1").version == "2"
    assert with_one.versions(MODEL) == ["1", "2"] and with_one.current(MODEL) == "2"


def test_a_deployment_that_was_cut_short_before_it_went_live_goes_on_with_its_version(with_one, tmp_path):
    target, made = LocalTarget(with_one.root), candidate(tmp_path, "run-2")
    target.deploy(made, expected="1")
    with_one.promote(MODEL, "1", expected="2")
    assert target.deploy(made, expected="1").version == "2"
    assert with_one.versions(MODEL) == ["1", "2"] and with_one.current(MODEL) == "2"


def test_another_champion_than_the_one_evaluated_against_stays_and_no_version_is_made(with_one, tmp_path):
    target = LocalTarget(with_one.root)
    target.deploy(candidate(tmp_path, "run-2"), expected="1")
    with pytest.raises(DeployError, match="version 2 is live, not 1"):
        target.deploy(candidate(tmp_path, "run-3"), expected="1")
    assert with_one.versions(MODEL) == ["1", "2"] and with_one.current(MODEL) == "2"


def test_of_two_deployments_at_once_one_wins_and_the_other_is_told(with_one, tmp_path):
    made = [candidate(tmp_path, f"run-{i}") for i in range(4)]
    outcomes = []

    def deploy(one):
        try:
            outcomes.append(LocalTarget(with_one.root).deploy(one, expected="1").version)
        except DeployError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=deploy, args=(one,)) for one in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[0] == "2" and sum("is live, not 1" in outcome for outcome in outcomes) == 3
    assert with_one.versions(MODEL) == ["1", "2"]


def test_a_model_that_answers_otherwise_than_in_training_is_not_left_live(with_one, tmp_path):
    with pytest.raises(DeployError, match="version 1 stays live"):
        LocalTarget(with_one.root).deploy(candidate(tmp_path, "run-2", claimed=FLIPPED), expected="1")
    assert with_one.current(MODEL) == "1"


def test_a_failed_first_version_leaves_none_live(repository, tmp_path):
    with pytest.raises(DeployError, match="no version is live"):
        LocalTarget(repository.root).deploy(candidate(tmp_path, "run-1", claimed=FLIPPED), expected=None)
    assert repository.current(MODEL) is None


def test_a_file_that_is_no_model_is_not_left_live(with_one, tmp_path):
    broken = candidate(tmp_path, "run-2")
    broken.model_file.write_bytes(b"not a pickle")
    with pytest.raises(DeployError, match="cannot be loaded"):
        LocalTarget(with_one.root).deploy(broken, expected="1")
    assert with_one.current(MODEL) == "1"


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeployError, match="cannot be written"):
        LocalTarget(tmp_path / "file").deploy(candidate(tmp_path, "run-1"), expected=None)


def test_the_predictor_is_swapped_and_asked(with_one, tmp_path):
    with predictor(with_one) as (url, loaded, calls):
        LocalTarget(with_one.root, url).deploy(candidate(tmp_path, "run-2", FLIPPED), expected="1")
        assert loaded["version"] == "2"
        assert calls == ["/v2/repository/models/flowers/load", "/v1/models/flowers:predict"]


def test_when_the_load_fails_the_version_before_is_live_again(with_one, tmp_path):
    with predictor(with_one, fail_load=["2"]) as (url, loaded, calls):
        with pytest.raises(DeployError, match=r"500.*out of memory.*version 1 stays live"):
            LocalTarget(with_one.root, url).deploy(candidate(tmp_path, "run-2"), expected="1")
        assert with_one.current(MODEL) == "1" and loaded["version"] == "1"
        assert len(calls) == 2  # the failed load, and the reload of the version before


def test_when_the_answers_differ_the_version_before_is_live_again(with_one, tmp_path):
    with predictor(with_one, answers=lambda own: [1 - own[0], *own[1:]]) as (url, loaded, _):
        with pytest.raises(DeployError, match=r"answers \[1, 0, 0, 1, 1\] to the smoke rows.*\[0, 0, 0, 1, 1\]"):
            LocalTarget(with_one.root, url).deploy(candidate(tmp_path, "run-2"), expected="1")
        assert with_one.current(MODEL) == "1" and loaded["version"] == "1"


def test_too_few_answers_are_a_failure(with_one, tmp_path):
    with predictor(with_one, answers=lambda own: own[:-1]) as (url, _, _), pytest.raises(DeployError, match="to the smoke rows"):
        LocalTarget(with_one.root, url).deploy(candidate(tmp_path, "run-2"), expected="1")


def test_a_server_that_says_it_serves_another_version_is_not_believed(with_one, tmp_path):
    with predictor(with_one, serves="1") as (url, _, _), pytest.raises(DeployError, match="serves version 1 after the load, not 2"):
        LocalTarget(with_one.root, url).deploy(candidate(tmp_path, "run-2"), expected="1")
    assert with_one.current(MODEL) == "1"


def test_a_predictor_that_hangs_is_given_up_and_a_person_is_told(with_one, tmp_path):
    began = time.monotonic()
    with predictor(with_one, hang=30.0) as (url, _, _), pytest.raises(DeployError, match=r"could not be told to load it.*ReadTimeout"):
        LocalTarget(with_one.root, url, timeout=0.3).deploy(candidate(tmp_path, "run-2"), expected="1")
    assert time.monotonic() - began < 10
    assert with_one.current(MODEL) == "1"


def test_rolling_back_does_nothing_once_another_version_is_live(with_one, tmp_path):
    target = LocalTarget(with_one.root)
    second = target.deploy(candidate(tmp_path, "run-2"), expected="1")
    target.deploy(candidate(tmp_path, "run-3"), expected="2")
    target.roll_back(second, "1")
    assert with_one.current(MODEL) == "3"


# --- the deploy step


def step_folders(tmp_path: Path, champion: str):
    """What train and evaluate left behind."""
    made = candidate(tmp_path, "trained")
    out, judged = tmp_path / "candidate", tmp_path / "evaluation"
    frame = tables.make_frame({"a": [1.0], "b": [2.0], "kind": [0]}, SCHEMA)
    tables.write_table(tables.Table(frame, SCHEMA, {"rows": 6}, True), out / steps.HOLDOUT)
    made.model_file.rename(out / steps.MODEL)
    made.reference_file.rename(out / steps.REFERENCE)
    judged.mkdir()
    numbers = {"better": True, "reason": "0.9 beats 0.5", "metric": "accuracy", "margin": 0.01, "champion": 0.5, "challenger": 0.9}
    more = {"champion_version": champion, "scores": {"accuracy": 0.9}, "rows": 6, "rows_held_out": 1}
    tables.write_json(judged / steps.EVALUATION, {**numbers, **more})
    return out, judged


def run_step(folders, repository, **urls):
    given = {"server_url": "", "gateway_url": "", "log_url": "", **urls}
    return steps.deploy(*folders, model=MODEL, run_id="run-2", repository=str(repository.root), incident="i-1", reason="drift", **given)


def told(path):
    log = open_log(str(path))
    events = [record.event for record in log.read({log.partition_of(MODEL): 0})]
    log.close()
    return events


def test_the_promotion_and_then_the_outcome_are_told(with_one, tmp_path):
    assert run_step(step_folders(tmp_path, "1"), with_one, log_url=str(tmp_path / "log.db")) == "2"
    first, second = told(tmp_path / "log.db")
    promotion, outcome = decode_promotion(first), decode_finished(second)
    assert (promotion.version, promotion.previous, promotion.run_id) == ("2", "1", "run-2")
    assert (outcome["outcome"], outcome["version"], outcome["champion"], outcome["rows"]) == ("promoted", "2", 0.5, 6)
    assert with_one.read(MODEL, "2").span["incident"] == "i-1"


def test_a_promotion_that_cannot_be_told_is_taken_back(with_one, tmp_path):
    with predictor(with_one) as (url, loaded, _):
        with pytest.raises(PipelineError, match="must read http"):
            run_step(step_folders(tmp_path, "1"), with_one, server_url=url, gateway_url="nonsense")
        assert with_one.current(MODEL) == "1" and loaded["version"] == "1"


def test_a_run_that_was_cut_short_after_the_swap_is_judged_against_the_version_before_and_told(with_one, tmp_path):
    folders = step_folders(tmp_path, "1")
    run_step(folders, with_one)  # live, but nobody was told
    better = steps.evaluate(
        folders[0],
        tmp_path / "again",
        model=MODEL,
        run_id="run-2",
        repository=str(with_one.root),
        metric="accuracy",
        margin=0.0,
        floor=0.0,
    )
    assert better and tables.read_json(tmp_path / "again" / steps.EVALUATION)["champion_version"] == "1"
    assert run_step((folders[0], tmp_path / "again"), with_one, log_url=str(tmp_path / "log.db")) == "2"
    assert [event.type.rpartition(".")[2] for event in told(tmp_path / "log.db")] == ["promoted", "finished"]
    assert with_one.versions(MODEL) == ["1", "2"]


# --- with KServe's own server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The real ModelServer on a repository whose version 1 is live."""
    folder = tmp_path_factory.mktemp("served")
    repository = Repository(folder / "repository")
    LocalTarget(repository.root).deploy(candidate(folder, "first"), expected=None)
    port = free_port()
    imports = "from pathlib import Path; from inference.predictor_server import serve"
    program = f"{imports}; serve(Path({str(repository.root)!r}), {MODEL!r}, port={port})"
    with (folder / "server.txt").open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{url}/v2/models/flowers/ready", timeout=1).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None and time.monotonic() < deadline, (folder / "server.txt").read_text()
            time.sleep(0.1)
        yield repository, url, folder
    finally:
        process.terminate()
        process.wait(20)


def asked(url):
    said = httpx.post(f"{url}/v1/models/flowers:predict", json={"instances": ROWS}, timeout=10)
    return said.json()["predictions"]


def test_kserves_server_is_swapped_and_a_bad_version_leaves_it_as_it_was(served):
    repository, url, folder = served
    target = LocalTarget(repository.root, url)
    assert asked(url) == [0, 0, 0, 1, 1, 1]
    version = target.deploy(candidate(folder, "run-2", FLIPPED), expected="1")
    assert version.version == "2" and asked(url) == list(FLIPPED)

    # Its reference claims other answers than the server gives.
    with pytest.raises(DeployError, match="version 2 stays live"):
        target.deploy(candidate(folder, "run-3", claimed=FLIPPED), expected="2")
    assert repository.current(MODEL) == "2" and asked(url) == list(FLIPPED)

    # The server itself refuses to load it.
    broken = candidate(folder, "run-4")
    broken.model_file.write_bytes(b"not a pickle")
    with pytest.raises(DeployError, match="/load answered"):
        target.deploy(broken, expected="2")
    assert repository.current(MODEL) == "2" and asked(url) == list(FLIPPED)

    target.roll_back(version, "1")
    assert repository.current(MODEL) == "1" and asked(url) == [0, 0, 0, 1, 1, 1]
