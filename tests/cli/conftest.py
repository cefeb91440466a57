"""One data folder with running embedded servers for all tests of the command line."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from eventlog import EventLog, Settings
from tests.cli.command import CommandLine
from tests.embedded.processes import Client


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder whose servers run until the last test."""
    folder = tmp_path_factory.mktemp("cli") / "data"
    client = Client(folder)
    try:
        assert "error" not in client.servers()
        yield folder
        client.leave()
    finally:
        client.close()


@pytest.fixture
def eventlog(data_folder: Path) -> CommandLine:
    """The command, on the embedded servers of the data folder."""
    return CommandLine({"data": str(data_folder)})


@pytest.fixture
async def opened(data_folder: Path) -> AsyncIterator[EventLog]:
    """The same log, opened here."""
    async with EventLog.open(settings=Settings(data=data_folder)) as log:
        yield log


@pytest.fixture
def key() -> str:
    """Key of a session that no other test has."""
    return f"test-{uuid.uuid4().hex[:12]}"
