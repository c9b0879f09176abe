"""What several test files share: a real Apache Kafka, started once for the whole run, and KServe's own agent."""

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
from certificates import Authority
from pydantic import SecretStr
from shared_broker import shared

from inference.log.connection import Connection, ConnectionString

INFRA = Path(__file__).resolve().parent.parent / "infra"
Script = Callable[..., subprocess.CompletedProcess[str]]


def run(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(INFRA / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def missing(what: str, why: str) -> NoReturn:
    """Skip the test that asked; in CI nothing may be missing."""
    if os.environ.get("CI"):
        pytest.fail(f"CI tests against {what}: {why}")
    pytest.skip(f"{what} cannot be had here: {why}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=30, help="how often the watcher is killed in test_exactness.py (default: 30)")


@pytest.hookimpl(trylast=True)  # after what was not chosen has been left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of pytest-xdist's workers begins with some of the slow tests: what is left to share at the end are quick ones."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    dealt: list[pytest.Item] = []
    for number in range(workers):
        share = (len(items) - len(dealt)) // (workers - number)  # what `--dist worksteal` gives each at first
        own = slow[number::workers]
        fill = max(0, share - len(own))
        dealt += own + quick[:fill]
        del quick[:fill]
    items[:] = dealt


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged may hold half a character, which pytest-xdist's workers could not send."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command sets up the root logger for the rest of its process: here that would be on the stderr of a test that is over."""
    loggers = [logging.getLogger(name) for name in (None, "kafka", "azure", "azure.eventhub")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--rounds"))


@pytest.fixture(scope="session")
def broker() -> Script:
    """Runs infra/kafka/broker.py with the given arguments, for a test that needs a broker of its own to stop and start.

    Without Java or the artifacts its tests are skipped, but never in CI.
    """
    script = partial(run, "kafka/broker.py")
    fetched = script("fetch")
    if fetched.returncode != 0:
        missing("a real Kafka", fetched.stderr.strip())
    if importlib.util.find_spec("kafka") is None:
        missing("a real Kafka", "kafka-python is not installed (extra `kafka`)")
    return script


@pytest.fixture(scope="session")
def kafka(broker: Script, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker that all tests share, in whichever process: choose topics and groups that no other test has."""
    mine = tmp_path_factory.getbasetemp()
    of_the_run = mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine
    with shared(INFRA / "kafka" / "broker.py", of_the_run / "kafka") as address:
        yield address


@pytest.fixture(scope="session")
def kserve_script() -> Script:
    """Runs infra/kserve/agent.py with the given arguments."""
    return partial(run, "kserve/agent.py")


@pytest.fixture(scope="session")
def kserve_agent(kserve_script: Script) -> str:
    """The path of KServe's own agent; built the first time, which takes some minutes. Without Go its tests are skipped, but never in CI."""
    fetched = kserve_script("fetch", "agent")
    if fetched.returncode != 0:
        missing("KServe's own agent", fetched.stderr.strip())
    return fetched.stdout.splitlines()[-1]


@pytest.fixture
def event_hub() -> Iterator[Connection]:
    """The connection to an empty hub of a double of Event Hubs, by AMQP."""
    from amqp_double import AmqpDouble

    with AmqpDouble({"hub": 4}) as double:
        auth = ConnectionString(connection_string=SecretStr(double.connection_string))
        yield Connection(url=f"eventhubs://127.0.0.1:{double.port}/hub", auth=auth, tls=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs certificates for servers and clients of a test file."""
    return Authority(tmp_path_factory.mktemp("tls"))
