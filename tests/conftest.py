"""What several test files share: a real Apache Kafka, started once for the whole run."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "infra" / "kafka" / "broker.py"
Broker = Callable[..., subprocess.CompletedProcess[str]]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.fixture(scope="session")
def broker() -> Broker:
    """Runs infra/kafka/broker.py with the given arguments, for a test that needs a broker of its own to stop and start.

    Without Java or the artifacts its tests are skipped, but never in CI.
    """
    fetched = run("fetch")
    missing = fetched.stderr.strip() if fetched.returncode != 0 else ""
    if importlib.util.find_spec("kafka") is None:
        missing = "kafka-python is not installed (extra `kafka`)"
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI tests against a real Kafka: {missing}")
    if missing:
        pytest.skip(f"no Kafka to test against: {missing}")
    return run


@pytest.fixture(scope="session")
def kafka(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker that all tests share: choose topics and groups that no other test has."""
    folder = tmp_path_factory.mktemp("kafka")
    try:
        started = broker("start", "--port", 0, "--folder", folder, "--detach")
        assert started.returncode == 0, started.stdout + started.stderr
        yield started.stdout.split()[-1]
    finally:
        broker("stop", "--folder", folder)
