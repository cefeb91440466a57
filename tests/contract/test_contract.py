"""The contract that ships with the library, on every store."""

from __future__ import annotations

import pytest

from eventlog import EventLog
from eventlog.testing import LogContract


class TestContract(LogContract):
    """What every EventLog promises, in memory and on each pair of servers."""

    @pytest.fixture
    def log(self, any_log: EventLog) -> EventLog:
        """The log under test."""
        return any_log
