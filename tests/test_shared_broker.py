"""The broker that the processes of a test run share: one is started, and it ends after the last of them, however that ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from streaming.testing import poll_until

BROKER = """
import pathlib, sys, time
time.sleep(0.2)
folder = pathlib.Path(sys.argv[sys.argv.index("--folder") + 1])
with (folder.parent / "calls").open("a") as calls:
    calls.write(sys.argv[1] + " ")
print("ready at 127.0.0.1:9092")
"""
USER = """
import pathlib, sys
sys.path.append(sys.argv[3])
from shared_broker import shared
with shared(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])) as address:
    print(address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def use(tmp_path):
    """Starts processes that use a broker; it is a stand-in that writes down what it is told."""
    (tmp_path / "broker.py").write_text(BROKER)
    users = []

    def begin():
        command = [sys.executable, "-c", USER, str(tmp_path / "broker.py"), str(tmp_path / "shared"), str(Path(__file__).parent)]
        users.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return users[-1]

    yield begin
    for user in users:
        with user:  # closes its pipes and waits
            user.kill()


def test_processes_share_one_broker_and_the_last_one_ends_it_even_if_it_is_killed(use, tmp_path):
    def calls():
        return (tmp_path / "shared" / "calls").read_text()

    first, second = use(), use()
    assert [first.stdout.readline(), second.stdout.readline()] == ["127.0.0.1:9092\n"] * 2
    first.kill()
    first.wait()
    third = use()
    assert third.stdout.readline() == "127.0.0.1:9092\n"
    assert calls() == "start "
    second.kill()
    third.stdin.close()
    assert poll_until(lambda: calls() == "start stop ")
    assert use().stdout.readline() == "127.0.0.1:9092\n"
    assert calls() == "start stop start "
