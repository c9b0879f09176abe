#!/usr/bin/env python3
"""KServe's own programs on this machine, built once from its Go module: the agent, which logs payloads, and the controller.

    python infra/kserve/agent.py fetch [agent|manager]

It prints where the program lies: in the cache, $DRIFTLOOP_CACHE or ~/.cache/driftloop. The first time it needs Go, and some minutes.
The exit code is 3, with the reason, if the program cannot be had on this machine.
"""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

MODULE, VERSION = "github.com/kserve/kserve", "v0.20.0"
# The module's digest, as Go's checksum database has it; the go.sum inside the module holds those of all that it needs.
SUM = "h1:Bs7HxmGV4KFqqptDcWseKv+mwD4YOYHJWcuVgPG2Gug="
GO = "1.25.8"  # what KServe's go.mod asks for
# Without the C compiler, as KServe's own images are built, and without what only debuggers read.
FLAGS = ("-mod=readonly", "-trimpath", "-ldflags=-s -w")
DOWNLOAD_LIMIT, BUILD_LIMIT = 300.0, 1800.0  # seconds


class MissingError(Exception):
    """The program cannot be had here: no Go, no module, or it does not build."""


def say(line: str, to: IO[str] = sys.stdout) -> None:
    to.write(f"{line}\n")
    to.flush()


def run(command: list[str], limit: float, folder: Path) -> tuple[int, str, str]:
    """The exit code and what the command said on stdout and stderr."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=folder, env=environment)  # noqa: S603
    except subprocess.TimeoutExpired:
        return 1, "", f"no end after {limit:.0f} s"
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def cache() -> Path:
    return Path(os.environ.get("DRIFTLOOP_CACHE") or "~/.cache/driftloop").expanduser().resolve()


def program(name: str) -> Path:
    """The program cmd/NAME of the module, built if it has not been built from these inputs yet."""
    inputs = "\n".join([MODULE, VERSION, SUM, *FLAGS, platform.system(), platform.machine()])
    folder = cache() / f"kserve-{VERSION.removeprefix('v')}-{hashlib.sha256(inputs.encode()).hexdigest()[:8]}"
    path = folder / name
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # Of two that start at once the second waits here, then finds the program; one with the final name is always whole.
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_file():
            return path
        compiler = go(folder)
        say(f"building KServe {VERSION}'s {name} into {folder}, which takes some minutes", sys.stderr)
        source = module(compiler, folder)
        partial = folder / f"{name}.partial"
        # In the module's own folder: its go.mod and go.sum count as they are, its `replace` lines among them.
        code, _, problem = run([compiler, "build", *FLAGS, "-o", str(partial), f"./cmd/{name}"], BUILD_LIMIT, source)
        if code != 0 or not partial.is_file():
            raise MissingError(f"{compiler} could not build KServe {VERSION}'s {name}: {problem[-1500:] or f'exit code {code}'}")
        partial.rename(path)
    return path


def go(folder: Path) -> str:
    needed = f"KServe {VERSION} is built with Go {GO} or newer"
    found = shutil.which("go")
    if found is None:
        raise MissingError(f"no go on the PATH: {needed}")
    code, said, problem = run([found, "version"], 60, folder)
    version = re.search(r"\bgo(\d+)\.(\d+)", said)
    if code != 0 or version is None:
        raise MissingError(f"{found} version does not work ({(said + problem)[:200]}): {needed}")
    # A newer one fetches the Go that a module asks for, or says itself why it may not.
    if (int(version[1]), int(version[2])) < (1, 21):
        raise MissingError(f"{found} is Go {version[1]}.{version[2]}: {needed}")
    return found


def module(compiler: str, folder: Path) -> Path:
    """Where the module's files are, once their digest is known to be the expected one."""
    code, said, problem = run([compiler, "mod", "download", "-json", f"{MODULE}@{VERSION}"], DOWNLOAD_LIMIT, folder)
    try:
        found = json.loads(said)
    except json.JSONDecodeError:
        found = {}
    if code != 0 or "Dir" not in found:
        why = found.get("Error") or problem or f"exit code {code}"
        raise MissingError(f"{compiler} could not fetch {MODULE}@{VERSION}: {why[-1500:]}")
    if found.get("Sum") != SUM:
        raise MissingError(f"{MODULE}@{VERSION} is not what it was: its digest is {found.get('Sum')}, not {SUM}")
    return Path(found["Dir"])


def main() -> int:
    parser = argparse.ArgumentParser(description="KServe's own programs on this machine, built once from its Go module.")
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="build it if that has not been done, and print where it is")
    fetching.add_argument("name", nargs="?", choices=("agent", "manager"), default="agent", help="default: %(default)s")
    options = parser.parse_args()
    try:
        say(str(program(options.name)))
    except MissingError as error:
        say(f"agent.py: {error}", sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
