"""What ships: the wheel's content, who owns its names, what each part may import, and what no file may say."""

import ast
import email
import gzip
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("inference", "pipelines", "streaming")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IN_CI = os.environ.get("CI") == "true"

HEAVY = {"numpy", "scipy", "pandas", "pyarrow", "sklearn", "joblib", "river", "evidently", "kserve", "kfp", "kafka", "azure"}
# What would let the core ask the time, roll dice, touch the world or hide an import.
IMPURE = {
    *("time", "datetime", "calendar", "random", "secrets", "uuid", "tempfile", "os", "io", "pathlib", "shutil", "glob", "fcntl", "mmap"),
    *("socket", "ssl", "select", "selectors", "http", "urllib", "smtplib", "ftplib", "sqlite3", "dbm", "shelve", "pickle", "logging"),
    *("threading", "asyncio", "concurrent", "multiprocessing", "queue", "subprocess", "signal", "ctypes", "importlib", "sys", "platform"),
}
PURE_LIBRARIES = {"numpy", "scipy", "pydantic"}
CORE_MAY_USE = {
    f"inference.{name}"
    for name in ("errors", "event", "messages", "pairing", "payload", "usual_bodies", "versions", "log.Record", "log.EventLog")
}
IMPURE_NAMES = {"open", "print", "input", "exec", "eval", "__import__"}
IMPURE_ATTRIBUTES = {
    "now",
    "utcnow",
    "today",
    "fromfile",
    "tofile",
    "loadtxt",
    "savetxt",
    "memmap",
    "default_rng",
    "read_text",
    "write_text",
}


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    if not IN_CI and not all(importlib.util.find_spec(name) for name in ("build", "hatchling")):
        pytest.skip("building the wheel needs the extra 'test' (build, hatchling)")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-P", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.iterdir()
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert top == {*PACKAGES, f"driftloop-{PROJECT['version']}.dist-info"}


def test_the_wheel_holds_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    here = {path.as_posix() for path in files() if path.parts[0] in PACKAGES}
    assert {name for name in wheel.namelist() if name.partition("/")[0] in PACKAGES} == here
    assert {f"{package}/py.typed" for package in PACKAGES} < here


def test_the_wheel_states_its_licence_its_command_and_its_pythons(wheel: zipfile.ZipFile) -> None:
    information = f"driftloop-{PROJECT['version']}.dist-info"
    metadata = email.message_from_bytes(wheel.read(f"{information}/METADATA"))
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("Apache-2.0", "<3.14,>=3.11")
    assert wheel.read(f"{information}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "driftloop = streaming.cli:main" in wheel.read(f"{information}/entry_points.txt").decode()


# Names


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_owns_the_name(package: str) -> None:
    owners = set(importlib.metadata.packages_distributions().get(package, []))
    assert owners == {"driftloop"} if IN_CI else owners <= {"driftloop"}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_under_test_is_the_installed_one(package: str) -> None:
    try:
        installed = importlib.metadata.distribution("driftloop")
    except importlib.metadata.PackageNotFoundError:
        assert not IN_CI, "CI tests what ships: install the wheel first"
        pytest.skip("driftloop is not installed here; the checkout itself is tested")
    if json.loads(installed.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"):
        pytest.skip("driftloop is installed in editable mode; the checkout itself is tested")
    found = importlib.import_module(package).__file__
    assert found is not None
    assert Path(found).resolve() == Path(str(installed.locate_file(f"{package}/__init__.py"))).resolve()


# A light start


def loaded_by(module: str) -> set[str]:
    script = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.parametrize("module", ["streaming.cli", "inference.gateway"])
def test_the_command_and_the_gateway_start_without_the_heavy_libraries(module: str) -> None:
    assert loaded_by(module) & HEAVY == set()


def test_the_gateways_extra_installs_none_of_the_heavy_libraries() -> None:
    wanted = [(Requirement(text), {""}) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["gateway"]]]
    seen: set[str] = set()
    while wanted:
        requirement, extras = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name not in seen and (not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)):
            seen.add(name)
            wanted.extend((Requirement(text), {"", *requirement.extras}) for text in importlib.metadata.requires(name) or [])
    assert {"uvicorn", "httptools", "pydantic-core"} < seen
    assert seen & (HEAVY | {"scikit-learn", "kafka-python", "azure-eventhub"}) == set()


# Who imports whom


def imports(path: Path) -> Iterator[str]:
    """The dotted name of everything that the file imports, inside functions too."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(folder: str) -> list[Path]:
    return [path for path in files() if path.suffix == ".py" and path.as_posix().startswith(f"{folder}/")]


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize(
    ("folder", "may_use"),
    [
        ("inference", {"inference"}),
        ("pipelines", {"inference", "pipelines"}),
        ("streaming/core", {"inference", "streaming.core", "streaming.detectors"}),
        ("streaming/detectors", {"inference", "streaming.core", "streaming.detectors"}),
    ],
)
def test_imports_go_one_way(folder: str, may_use: set[str]) -> None:
    wrong = [f"{path}: {name}" for path in sources(folder) for name in imports(path) if name.partition(".")[0] in PACKAGES]
    assert wrong, "there is nothing to check"
    assert [line for line in wrong if not within(line.partition(": ")[2], may_use)] == []


def test_nothing_that_is_imported_by_the_product_is_a_test_or_development_tool() -> None:
    tools = {"pytest", "hypothesis", "build", "hatchling", "ruff", "mypy", "tests"}
    assert [f"{path}: {name}" for package in PACKAGES for path in sources(package) for name in imports(path) if within(name, tools)] == []


def test_the_core_imports_nothing_that_reads_a_clock_rolls_dice_or_touches_the_world() -> None:
    pure = sys.stdlib_module_names - IMPURE
    wrong = [
        f"{path}: {name}"
        for path in sources("streaming/core")
        for name in imports(path)
        if not within(name, {*pure, *PURE_LIBRARIES, *CORE_MAY_USE, "streaming.core", "streaming.detectors"})
        or within(name, {"numpy.random", "scipy.io"})
    ]
    assert wrong == []


def test_the_core_calls_nothing_that_reads_a_clock_rolls_dice_or_touches_the_world() -> None:
    wrong = []
    for path in sources("streaming/core"):
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_NAMES:
                wrong.append(f"{path}:{node.lineno}: {node.func.id}()")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in IMPURE_ATTRIBUTES:
                wrong.append(f"{path}:{node.lineno}: .{node.func.attr}()")
            elif isinstance(node, ast.Attribute) and node.attr == "random" and isinstance(node.value, ast.Name):
                wrong.append(f"{path}:{node.lineno}: {node.value.id}.random")
    assert wrong == []


# What no file may say


def files() -> list[Path]:
    """The project's files, relative to its root: those in git and those about to be."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        assert not IN_CI, listed.stderr
        pytest.skip("not a git checkout")
    return sorted(path for name in listed.stdout.split("\0") if name and (ROOT / (path := Path(name))).is_file())


def text_of(path: Path) -> str:
    content = (ROOT / path).read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8", errors="replace")


# In pieces, so that this file does not name them.
REGISTRIES = [
    "py" + r"pi\.(org|io|python\.org)",
    "python" + "hosted",
    "npm" + r"js\.(org|com)",
    "ana" + r"conda\.(org|com)",
    "crates" + r"\.io",
]
REGISTRIES += [
    "ruby" + r"gems\.org",
    "proxy" + r"\.golang",
    "repo1?" + r"\.maven",
    "--(extra-)?index" + "-url",
    "(PIP|UV)_(EXTRA_|DEFAULT_)?INDEX" + "_URL",
]
MACHINE_PATHS = ["/" + r"work/(main|shared)\b", "/" + r"opt/dl\b", "/" + r"root/", "/" + r"Users/\w", "/" + r"home/(?!nonroot\b)\w"]


@pytest.mark.parametrize("forbidden", [*REGISTRIES, *MACHINE_PATHS])
def test_no_file_names_a_package_registry_or_a_path_of_one_machine(forbidden: str) -> None:
    pattern = re.compile(forbidden)
    found = [f"{path}: {match.group()}" for path in files() if (match := pattern.search(text_of(path)))]
    assert found == []


def test_there_is_no_lock_file_of_a_packaging_tool() -> None:
    tools = {"uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pylock.toml", "conda-lock.yml", "package-lock.json"}
    assert [path for path in files() if path.name in tools] == []


def test_the_constraints_are_names_and_versions_and_nothing_else() -> None:
    lines = (ROOT / "infra" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pinned if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.+]*( ; .+)?", line)] == []
    names = {line.partition("==")[0] for line in pinned}
    assert len(names) == len(pinned)
    direct = [Requirement(text) for extra in PROJECT["optional-dependencies"].values() for text in extra]
    direct += [Requirement(text) for text in PROJECT["dependencies"]]
    assert {canonicalize_name(requirement.name) for requirement in direct} - {"driftloop"} <= names
