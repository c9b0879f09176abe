"""The demo's processes: each the real command in a process of its own, its output in a file."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx

from inference.errors import ServiceError

_TAIL = 15


def free_ports(count: int) -> list[int]:
    """So many loopback ports that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in sockets]


class Processes:
    """Started processes; all are ended when the block is left, in the reverse order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Processes":
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running.values()):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in reversed(self._running.values()):
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start `driftloop COMMAND...` under a name; its output goes to NAME.log."""
        with (self._folder / f"{name}.log").open("wb") as output:
            self._running[name] = subprocess.Popen(  # noqa: S603 - our own command, no shell
                [sys.executable, "-m", "streaming.cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    def check(self) -> None:
        """ServiceError with the end of its output when one has ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise ServiceError(
                    f"`{name}` ended with code {process.returncode}; the end of {self._folder / f'{name}.log'}:\n{self._tail(name)}"
                )

    def wait_for(self, what: str, ready: Callable[[], bool], timeout: float) -> None:
        """Wait until `ready`; ServiceError when a process ends first or it takes too long."""
        end = time.monotonic() + timeout
        while not ready():
            self.check()
            if time.monotonic() > end:
                raise ServiceError(f"{what} within {timeout:.0f} s did not happen; look into {self._folder}")
            time.sleep(0.1)

    def _tail(self, name: str) -> str:
        lines = (self._folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_TAIL:]) or "(nothing)"


def answers(url: str) -> bool:
    """Whether a GET of `url` gives 200."""
    try:
        return httpx.get(url, timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False
