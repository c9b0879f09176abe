"""One Kafka for all processes of a test run (pytest-xdist's workers): the first that asks starts it, after the last it is stopped.

A process that uses it holds a lock on the file `users`, which ends with the process, whatever ended that. A keeper, started before the
broker, waits until nobody holds the lock and then stops the broker: so it does not outlive a run that is killed either.
"""

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def shared(script: Path, folder: Path) -> Iterator[str]:
    """The address of the broker in `folder`, run by `script` (infra/kafka/broker.py)."""
    folder.mkdir(exist_ok=True)
    address = folder / "address"
    with (folder / "users").open("w") as users:
        with (folder / "starting").open("w") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_SH)  # waits for a keeper that is stopping the broker of earlier users
            if not address.exists():
                keeper = [sys.executable, __file__, str(script), str(folder)]
                nothing = subprocess.DEVNULL
                # In a session of its own: Ctrl-C is meant for the tests.
                subprocess.Popen(keeper, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
                started = _run(script, "start", "--port", "0", "--folder", str(folder / "broker"), "--detach")
                assert started.returncode == 0, started.stdout + started.stderr
                address.write_text(started.stdout.split()[-1], encoding="utf-8")
        yield address.read_text(encoding="utf-8")


def keep(script: Path, folder: Path) -> None:
    """Stop the broker in `folder` once nobody uses it."""
    with (folder / "users").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_EX)
        (folder / "address").unlink(missing_ok=True)
        _run(script, "stop", "--folder", str(folder / "broker"))


def _run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
