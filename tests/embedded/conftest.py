"""A data folder per test, and nothing left running after it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventlog.embedded.temporary import copy_template
from tests.embedded.processes import (
    POLL_SECONDS,
    WAIT_SECONDS_MAX,
    Client,
    is_gone,
    servers_running,
    supervisor_pid,
)

MEMORY_BYTES_MIN = 1024**3
"""Free memory that is enough for several data folders of 40 MB."""


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is room: these tests are about processes, not about a busy disk."""
    memory = memory_folder()
    if memory is None:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="eventlog-test-", dir=memory) as folder:
        yield Path(folder)


def memory_folder() -> Path | None:
    """A file system in memory that is large enough."""
    memory = Path("/dev/shm")
    if memory.exists() and shutil.disk_usage(memory).free > MEMORY_BYTES_MIN:
        return memory
    return None


@pytest.fixture
def data(new_data: Path) -> Path:
    """A data folder with an empty Postgres, as if after a first run: faster than making one."""
    new_data.mkdir(mode=0o700)
    copy_template(new_data / "postgres")
    return new_data


@pytest.fixture
def new_data(tmp_path: Path) -> Iterator[Path]:
    """The name of a data folder that does not exist yet; after the test nothing runs there."""
    folder = tmp_path / "data"
    yield folder
    if (folder / "supervisor.lock").exists():
        end_supervisor(folder)


def end_supervisor(data: Path) -> None:
    """Wait for the one of a folder, whose clients are gone; a test that failed may leave one."""
    pid = supervisor_pid(data)
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not is_gone(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            pytest.fail(f"supervisor {pid} did not end")
        time.sleep(POLL_SECONDS)
    assert servers_running(data) == []


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can walk to (pytest's own can't be)."""
    with tempfile.TemporaryDirectory(prefix="eventlog-test-", dir=memory_folder()) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def start_client() -> Iterator[Callable[..., Client]]:
    """Start processes that use a data folder; they are killed after the test."""
    clients: list[Client] = []

    def start(data: Path, **options: Any) -> Client:
        clients.append(Client(data, **options))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
